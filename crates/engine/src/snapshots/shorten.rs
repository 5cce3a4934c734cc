//! Keeping disks shallow: layers that nobody names any more become one.
//!
//! ```text
//! VM -> top -> s3 -> s2 -> . -> . -> . -> s1 -> .         s: named by a durable snapshot     .: by nobody
//!                         \___________/
//!                             merged                      then the record says so, and so do the manifests
//!
//! record    the new layer, of an operation under way: nobody needs it yet, and nobody removes it
//! write     compared with the manifests that list the layers, merged into a new file, hashed
//! place     the manifests sealed anew; in one transaction: they, and the chain goes through the new layer
//! ```
//! Only what lies below exactly one layer and is named by nobody is merged: a layer that a snapshot names is that
//! snapshot's disk, and a copy of it would shorten no chain but its own. Nor is anything merged that a process may write
//! to: what lies below a durable snapshot's layer was left by every process before that was taken. No file is written to:
//! the merged one is new, and a crash leaves it unused, or the ones it covers.
//! Processes go on with the files they have open; a VM that runs is told of the shorter stack before its next snapshot.

use super::{
    Manifest,
    manifest::LayerPart,
    persist::{blocking, hash, part_failure},
    restage::{Restage, Staged},
};
use crate::{
    core::{Authority, Core},
    layers,
    saga::{Checkpoint, Fault, Phase},
    sync::lock,
    trace::{Scope, TraceEvent},
};
use offshoot_provider::{
    disk::DiskError,
    parts::{PartError, Trusted},
};
use offshoot_store::{LayerRecord, NewLayer, SnapshotRecord, StoreError, View, VmRecord};
use offshoot_types::{
    ErrorCode, Failure, LayerId, OperationId, OperationKind, OperationOutcome, SnapshotId, SnapshotState,
    VmId,
};
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fs,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::{Arc, Mutex},
};
use tokio::sync::Notify;

/// When layers of a disk are merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Merging {
    /// Disks of at most so many layers are left as they are.
    pub above: usize,
    /// Fewer layers beside each other are not worth the copy.
    pub at_least: usize,
}

impl Default for Merging {
    fn default() -> Self {
        Self { above: 16, at_least: 4 }
    }
}

/// As often is a merge that somebody was in the way of tried again at once.
const ATTEMPTS: u32 = 64;
/// The top, which is written to, and the one below it, which a snapshot under way may be about to name.
const IN_USE: usize = 2;
/// So small a layer is merged whatever lies above it.
const SMALL: u64 = 4 << 20;

/// VMs whose disks may have become deep, or can be merged since.
#[derive(Debug, Default)]
pub(crate) struct Grown {
    vms: Mutex<BTreeSet<VmId>>,
    some: Notify,
}

impl Grown {
    pub fn add(&self, vm: VmId) {
        lock(&self.vms).insert(vm);
        self.some.notify_one();
    }

    async fn next(&self) -> VmId {
        loop {
            let first = lock(&self.vms).pop_first();
            match first {
                Some(vm) => return vm,
                None => self.some.notified().await,
            }
        }
    }
}

/// Merges what can be, disk after disk, until the engine ends.
pub(crate) async fn keep_shallow(core: Arc<Core>) {
    loop {
        tokio::select! {
            biased;
            () = core.closing.cancelled() => return,
            vm = core.snapshots.grown.next() => core.shorten_disk(vm).await,
        }
    }
}

/// A layer of a disk, as far as merging is concerned.
#[derive(Debug, Clone, Copy)]
struct Link {
    id: LayerId,
    /// By a snapshot or a VM.
    named: bool,
    /// How many layers lie over it.
    above: usize,
    /// What it takes on the host's disk.
    bytes: u64,
}

/// What is to become one of what lies below the first `skipped`, newest first: the longest run there is. A layer much
/// larger than all those above it in the run ends the run, so that a byte is copied again only when as much came above it.
fn run(chain: &[Link], skipped: usize) -> &[Link] {
    let candidate = |link: &Link| !link.named && link.above == 1;
    let mut best: &[Link] = &[];
    let mut begin = skipped;
    while begin < chain.len() {
        let (mut end, mut bytes) = (begin, 0_u64);
        while let Some(link) = chain.get(end).filter(|link| candidate(link)) {
            if end > begin && link.bytes > bytes.saturating_mul(2).saturating_add(SMALL) {
                break;
            }
            bytes = bytes.saturating_add(link.bytes);
            end += 1;
        }
        if end - begin > best.len() {
            best = &chain[begin..end];
        }
        begin = end.max(begin + 1);
    }
    best
}

/// A disk, and who uses which of its layers.
struct Disk {
    vm: VmRecord,
    chain: Vec<LayerRecord>,
    named: HashSet<LayerId>,
    /// By a snapshot that is durable.
    kept: HashSet<LayerId>,
    /// How many layers lie over each.
    above: HashMap<LayerId, usize>,
    /// Whether there may be a process of this VM.
    lives: bool,
}

impl Disk {
    /// `None`: there is none, or it is shallow.
    fn read(view: &View<'_>, id: VmId, deep: usize) -> Result<Option<Self>, StoreError> {
        let Some(vm) = view.vm(id)? else { return Ok(None) };
        let Some(layer) = vm.layer else { return Ok(None) };
        let chain = view.layer_chain(layer)?;
        if chain.len() <= deep {
            return Ok(None);
        }
        let snapshots = view.snapshots(None)?;
        let durable = |snapshot: &&SnapshotRecord| snapshot.state == SnapshotState::Durable;
        let mut above = HashMap::new();
        for parent in view.layers()?.into_iter().filter_map(|layer| layer.parent) {
            *above.entry(parent).or_default() += 1;
        }
        let kept = snapshots.iter().filter(durable).map(|snapshot| snapshot.layer).collect();
        let mut named: HashSet<LayerId> = snapshots.iter().map(|snapshot| snapshot.layer).collect();
        named.extend(view.vms()?.into_iter().filter_map(|vm| vm.layer));
        let lives = view.instances()?.iter().any(|instance| instance.vm == id);
        Ok(Some(Self { vm, chain, named, kept, above, lives }))
    }

    /// The first layers of the chain are left alone. Of a VM with a process, all those down to one that a durable snapshot
    /// names: a process whose checkpoint failed still writes to a layer below the one on top.
    fn skipped(&self) -> usize {
        let settled = self.chain.iter().position(|layer| self.kept.contains(&layer.id));
        match (self.lives, settled) {
            (false, _) => IN_USE,
            (true, Some(settled)) => settled.max(IN_USE),
            (true, None) => self.chain.len(),
        }
    }
}

impl Core {
    /// Merges layers of a VM's disk that nobody names, if it has become deep. Gives way to whoever uses what it would
    /// touch: the next snapshot has it tried again.
    async fn shorten_disk(&self, vm: VmId) {
        let _alone = self.snapshots.merging.lock().await;
        let merged = async {
            let Some((vm, covered)) = self.plan_merge(vm).await? else { return Ok(()) };
            self.merge_layers(&vm, &covered).await
        };
        if let Err(failure) = merged.await {
            let event = TraceEvent::NotMerged { error: &failure.message };
            event.emit(&Scope { vm: Some(vm), ..Scope::default() });
        }
    }

    async fn plan_merge(&self, id: VmId) -> Result<Option<(VmRecord, Vec<LayerRecord>)>, Failure> {
        let Merging { above, at_least } = self.options.merging;
        let Some(disk) = self.store.read(move |view| Disk::read(view, id, above)).await? else {
            return Ok(None);
        };
        let links: Vec<Link> = disk
            .chain
            .iter()
            .map(|layer| Link {
                id: layer.id,
                named: disk.named.contains(&layer.id) || !layer.frozen,
                above: disk.above.get(&layer.id).copied().unwrap_or_default(),
                // One that is not there is not small: it is left alone, for whoever reads it to find out.
                bytes: fs::metadata(self.layout.state.join(&layer.path))
                    .map_or(u64::MAX, |file| file.blocks() * 512),
            })
            .collect();
        let run: HashSet<LayerId> = run(&links, disk.skipped()).iter().map(|link| link.id).collect();
        if run.len() < at_least.max(2) {
            return Ok(None);
        }
        let covered = disk.chain.into_iter().filter(|layer| run.contains(&layer.id)).collect();
        Ok(Some((disk.vm, covered)))
    }

    async fn merge_layers(&self, vm: &VmRecord, covered: &[LayerRecord]) -> Result<(), Failure> {
        let reason = format!("{} layers of its disk that nobody names become one", covered.len());
        let name = Some((vm.id, &vm.name));
        let new = self.new_operation(&Authority::Daemon, OperationKind::Reconcile, name, &vm.owner, reason);
        let ticket = self.opened(self.store.begin_operation(new).await?.into_operation());
        let merged = self.put_one_for(ticket.id(), vm, covered).await;
        let outcome = match &merged {
            Ok(_) => OperationOutcome::Done,
            Err(failure) => OperationOutcome::Failed { failure: failure.clone() },
        };
        self.close(ticket, outcome).await;
        if let Ok(layer) = merged {
            self.tell_of(layer).await;
        }
        // What is covered now, or what was made for nothing.
        self.collect_layers().await;
        merged.map(drop)
    }

    /// Has the processes that read what was merged told, when their next snapshot is taken.
    async fn tell_of(&self, merged: LayerId) {
        let users = self.store.read(move |view| {
            let mut users = Vec::new();
            for vm in view.vms()? {
                let Some(layer) = vm.layer else { continue };
                if view.layer_chain(layer)?.iter().any(|layer| layer.id == merged) {
                    users.push(vm.id);
                }
            }
            Ok(users)
        });
        match users.await {
            Ok(users) => {
                for handle in users.into_iter().filter_map(|id| self.manager.get(id)) {
                    handle.shared.disk_is_shorter();
                }
            }
            Err(error) => self.store_failed("find who reads a merged disk layer", &error),
        }
    }

    /// Makes the one layer and has it take the place of those it covers, in the record and in the manifests.
    async fn put_one_for(
        &self,
        operation: OperationId,
        vm: &VmRecord,
        covered: &[LayerRecord],
    ) -> Result<LayerId, Failure> {
        let Some(oldest) = covered.last() else {
            return Err(Failure::new(ErrorCode::Internal, "no layers were to be merged"));
        };
        let id = LayerId::new();
        let new = NewLayer {
            size: oldest.size,
            ..layers::new_layer(id, &vm.owner, &vm.node, &vm.spec, oldest.parent, operation)
        };
        let (listed, path) = (new.path.clone(), self.layout.state.join(&new.path));
        self.at("record").await?;
        self.store
            .transaction(move |tx| {
                tx.add_layer(&new)?;
                tx.freeze_layer(id)
            })
            .await?;
        let parts = self.parts_of(covered).await?;
        self.at("write").await?;
        let provider = self.provider(vm.provider)?;
        let state = self.layout.state.clone();
        let files: Vec<PathBuf> = parts.iter().map(|part| state.join(&part.path)).collect();
        let part = blocking(move || {
            provider.merge_layers(&files, &path).map_err(|error| not_merged(&error))?;
            hash(&path)
        })
        .await?;
        // They are what was compared still.
        self.compare(&parts, None).await?;
        let one = LayerPart { layer: id, path: listed, part };
        self.at("place").await?;
        let mut staged = Vec::new();
        let mut attempt = 1;
        let placed = loop {
            match self.place(&one, &parts, &mut staged).await {
                // Somebody has begun to use what lies above meanwhile: only what that has made is sealed in addition.
                Err(failure) if failure.code == ErrorCode::InUse && attempt < ATTEMPTS => attempt += 1,
                ended => break ended,
            }
        };
        let beside: Vec<SnapshotId> = staged.iter().map(|(snapshot, _)| snapshot.id).collect();
        self.unstage(&beside).await;
        placed?;
        self.at("placed").await?;
        Ok(id)
    }

    /// Where a test may stand.
    async fn at(&self, step: &'static str) -> Result<(), Failure> {
        let here = Checkpoint { kind: OperationKind::Reconcile, step, phase: Phase::BeforeAct };
        match self.options.checkpoints.visit(here).await {
            Fault::Fail(failure) => Err(failure),
            Fault::Continue | Fault::Repeat => Ok(()),
        }
    }

    /// What the layers to be merged are, newest first. As a snapshot's manifest has it, if one lists them: nothing that is
    /// damaged may come to be vouched for.
    async fn parts_of(&self, covered: &[LayerRecord]) -> Result<Vec<LayerPart>, Failure> {
        let ids: Vec<LayerId> = covered.iter().map(|layer| layer.id).collect();
        if let Some(snapshot) = self.listing(&ids).await?.first() {
            let _reading = self.snapshots.uses.read(snapshot.id).await;
            self.still_there(std::slice::from_ref(snapshot)).await?;
            let manifest = self.manifest(snapshot).await?;
            let place = place_of(&manifest.layers, |part, id: &LayerId| part.layer == *id, &ids)?;
            let parts = manifest.layers[place..place + ids.len()].to_vec();
            self.compare(&parts, Some(snapshot.id)).await?;
            return Ok(parts);
        }
        let (state, covered) = (self.layout.state.clone(), covered.to_vec());
        let hashed = blocking(move || {
            let part = |layer: LayerRecord| {
                let part = hash(&state.join(&layer.path))?;
                Ok(LayerPart { layer: layer.id, path: layer.path, part })
            };
            covered.into_iter().map(part).collect::<Result<Vec<_>, Failure>>()
        });
        hashed.await
    }

    /// That the files are what is said of them; `by`: whose manifest says so.
    async fn compare(&self, parts: &[LayerPart], by: Option<SnapshotId>) -> Result<(), Failure> {
        let (state, trusted): (_, Arc<Trusted>) = (self.layout.state.clone(), self.snapshots.trusted.clone());
        let parts = parts.to_vec();
        let compared = blocking(move || {
            Ok(parts.iter().try_for_each(|LayerPart { path, part, .. }| {
                let path = state.join(path);
                trusted.verify(&path, part).map_err(|error| (path, error))
            }))
        });
        match (compared.await?, by) {
            (Ok(()), _) => Ok(()),
            (Err((path, error @ (PartError::Io { .. } | PartError::Changed { .. }))), _)
            | (Err((path, error)), None) => Err(part_failure(&path, &error)),
            (Err((_, error)), Some(snapshot)) => {
                Err(self.found_damaged(snapshot, &crate::link::chain(&error)).await)
            }
        }
    }

    /// Has `one` take the place of `covered`, in the record and in the manifests that list those. What is `staged` for
    /// that already is not staged again.
    async fn place(
        &self,
        one: &LayerPart,
        covered: &[LayerPart],
        staged: &mut Vec<(SnapshotRecord, Staged)>,
    ) -> Result<(), Failure> {
        let layers: Vec<LayerId> = covered.iter().map(|part| part.layer).collect();
        loop {
            let listed = self.listing(&layers).await?;
            let is_one_of = |some: &[SnapshotRecord], one: &SnapshotRecord| {
                some.iter().any(|other| other.id == one.id && other.manifest == one.manifest)
            };
            let (kept, stale): (Vec<_>, Vec<_>) =
                staged.drain(..).partition(|(snapshot, _)| is_one_of(&listed, snapshot));
            *staged = kept;
            let stale: Vec<SnapshotId> = stale.iter().map(|(snapshot, _)| snapshot.id).collect();
            self.unstage(&stale).await;
            let known: Vec<SnapshotRecord> = staged.iter().map(|(snapshot, _)| snapshot.clone()).collect();
            let new: Vec<_> = listed.into_iter().filter(|snapshot| !is_one_of(&known, snapshot)).collect();
            if new.is_empty() {
                break;
            }
            for snapshot in new {
                match self.seal_with(one, covered, &snapshot).await {
                    Ok(sealed) => staged.push((snapshot, sealed)),
                    Err(failure) => {
                        self.unstage(&[snapshot.id]).await;
                        return Err(failure);
                    }
                }
            }
        }
        self.at("seal").await?;
        let (snapshots, staged): (Vec<SnapshotRecord>, Vec<Staged>) = staged.iter().cloned().unzip();
        let ids: Vec<SnapshotId> = snapshots.iter().map(|snapshot| snapshot.id).collect();
        let alone = self.snapshots.uses.alone(&ids).await?;
        alone.unused()?;
        self.still_there(&snapshots).await?;
        let known: Vec<_> = snapshots.into_iter().map(|snapshot| (snapshot.id, snapshot.manifest)).collect();
        let (id, covered) = (one.layer, layers);
        self.put_in_place(&alone, staged, move |tx, staged: &[Staged]| {
            let told: Vec<SnapshotId> = known.iter().map(|(id, _)| *id).collect();
            // One that became durable since would list what is not there any more.
            tx.merge_layers(id, &covered, &told)?;
            for (id, before) in &known {
                // One that was removed or changed since would be put back.
                if tx.snapshot(*id)?.is_none_or(|now| now.manifest != *before) {
                    let (what, by) =
                        (format!("snapshot {id}"), vec!["somebody who has changed it".to_owned()]);
                    return Err(StoreError::InUse { what, by });
                }
            }
            staged.iter().try_for_each(|staged| tx.restage_snapshot(staged.id, &staged.manifest))
        })
        .await
    }

    /// The manifest of a snapshot with `one` instead of `covered`, beside the present one.
    async fn seal_with(
        &self,
        one: &LayerPart,
        covered: &[LayerPart],
        snapshot: &SnapshotRecord,
    ) -> Result<Staged, Failure> {
        let _reading = self.snapshots.uses.read(snapshot.id).await;
        self.still_there(std::slice::from_ref(snapshot)).await?;
        let mut manifest = self.manifest(snapshot).await?;
        // Byte for byte what was merged, by what this one says of it too.
        let place = place_of(&manifest.layers, |listed, part| listed == part, covered)?;
        manifest.layers.splice(place..place + covered.len(), [one.clone()]);
        self.stage(Restage { snapshot: snapshot.clone(), manifest, delta: None }).await
    }

    /// That nobody has removed or changed what was listed before its files were held.
    async fn still_there(&self, listed: &[SnapshotRecord]) -> Result<(), Failure> {
        let now = self.store.read(|view| view.snapshots(None)).await?;
        let same = |one: &SnapshotRecord| {
            now.iter().any(|now| (now.id, now.state, &now.manifest) == (one.id, one.state, &one.manifest))
        };
        match listed.iter().find(|one| !same(one)) {
            None => Ok(()),
            Some(one) => {
                let message = format!("snapshot {} was removed or changed meanwhile", one.id);
                Err(Failure::new(ErrorCode::InUse, message))
            }
        }
    }

    /// The snapshots whose manifests list what is to be merged, once all that are being written are.
    async fn listing(&self, covered: &[LayerId]) -> Result<Vec<SnapshotRecord>, Failure> {
        let snapshots = self.store.read(|view| view.snapshots(None)).await?;
        for snapshot in snapshots.iter().filter(|snapshot| snapshot.state == SnapshotState::Volatile) {
            if let Some(volatile) = self.snapshots.volatile(snapshot.id) {
                // However that ended: what counts is read again.
                let _ = volatile.written().await;
            }
        }
        let mut snapshots = self.store.read(|view| view.snapshots(None)).await?;
        snapshots.retain(|snapshot| {
            let manifest = serde_json::from_value::<Manifest>(snapshot.manifest.clone()).ok();
            let lists = |manifest: Manifest| manifest.layers.iter().any(|part| covered.contains(&part.layer));
            snapshot.state == SnapshotState::Durable && manifest.is_some_and(lists)
        });
        Ok(snapshots)
    }
}

/// Where a manifest lists all of `some`, one after the other.
fn place_of<T>(
    layers: &[LayerPart],
    is: impl Fn(&LayerPart, &T) -> bool,
    some: &[T],
) -> Result<usize, Failure> {
    let all = |window: &[LayerPart]| window.iter().zip(some).all(|(part, one)| is(part, one));
    layers.windows(some.len().max(1)).position(all).ok_or_else(|| {
        Failure::new(ErrorCode::Internal, "a manifest lists layers that are to be merged as something else")
    })
}

fn not_merged(error: &DiskError) -> Failure {
    match error {
        DiskError::Io { operation, path, source } => crate::machine::io_failure(operation, path, source),
        other => Failure::new(ErrorCode::Internal, "layers of a disk could not be merged").caused_by(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(named: bool, above: usize, mib: u64) -> Link {
        Link { id: LayerId::new(), named, above, bytes: mib << 20 }
    }

    /// The place and length of the run.
    fn of(chain: &[Link]) -> (usize, usize) {
        let run = run(chain, IN_USE);
        let begin = run.first().and_then(|first| chain.iter().position(|link| link.id == first.id));
        (begin.unwrap_or_default(), run.len())
    }

    #[test]
    fn only_what_nobody_names_and_one_layer_lies_over_is_merged() {
        let (kept, free, shared) = (link(true, 1, 1), || link(false, 1, 1), link(false, 2, 1));
        assert_eq!(of(&[]), (0, 0));
        assert_eq!(of(&[free(), free(), free(), free()]), (2, 2), "not the two on top");
        assert_eq!(of(&[kept, kept, kept, free(), free(), free(), kept, free()]), (3, 3));
        assert_eq!(of(&[kept, kept, free(), shared, free(), free()]), (4, 2), "a fork lies over it");
    }

    #[test]
    fn what_is_large_is_copied_again_only_with_as_much_above_it() {
        let free = |mib| link(false, 1, mib);
        let top = [free(0), free(0)];
        assert_eq!(of(&[&top[..], &[free(1), free(1), free(1), free(400)]].concat()), (2, 3));
        assert_eq!(of(&[&top[..], &[free(1), free(200), free(1), free(400)]].concat()), (3, 3));
    }

    /// Forever: each step adds one layer and merges when there are some. The depth stays that of a logarithm.
    #[test]
    fn a_disk_that_is_written_for_ever_stays_shallow_and_is_copied_rarely() {
        let (mut chain, mut copied, written) = (vec![link(false, 0, 0), link(false, 1, 0)], 0, 2000);
        let (mut deepest, Merging { above, at_least }) = (0, Merging::default());
        for _ in 0..written {
            chain.insert(IN_USE, link(false, 1, 8));
            if chain.len() > above && run(&chain, IN_USE).len() >= at_least {
                let run: Vec<Link> = run(&chain, IN_USE).to_vec();
                let bytes = run.iter().map(|link| link.bytes).sum();
                copied += bytes;
                let begin = chain.iter().position(|link| link.id == run[0].id).unwrap();
                chain.splice(begin..begin + run.len(), [Link { id: LayerId::new(), bytes, ..run[0] }]);
            }
            deepest = deepest.max(chain.len());
        }
        assert!(deepest <= above + 8, "{deepest}");
        assert!(copied < 12 * written * (8 << 20), "each byte {} times", copied / (written * (8 << 20)));
    }
}
