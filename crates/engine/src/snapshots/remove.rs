//! Letting snapshots go, and what is left of those that were never finished.
//!
//! ```text
//! <id> --renamed--> .old-<id> --record forgets it--> removed
//! ```
//! A crash between the first two leaves a record whose files have another name: [`Core::sweep_snapshots`] puts it back.

use crate::{
    core::Core,
    layers,
    saga::create::remove_tree,
    state_dir::{MERGED_SNAPSHOT, NEW_SNAPSHOT},
    trace::{Scope, TraceEvent},
};
use offshoot_store::{SnapshotRecord, SnapshotRetention, StoreError};
use offshoot_types::{
    Actor, ErrorCode, Failure, OperationId, OperationKind, OperationOutcome, Owner, SnapshotId,
    SnapshotOrigin, SnapshotState, VmId,
};
use std::{
    collections::{HashMap, HashSet},
    fs, io,
    path::PathBuf,
};
use uuid::Uuid;

const OLD_SNAPSHOT: &str = ".old-";

impl Core {
    /// Removes one snapshot, or says who needs it. Its disk layer goes when nobody needs that either. What came after it
    /// comes after the one before it then or, unless `join`, keeps it from being removed. Bases that are needed by nobody
    /// but it, or need nothing but it, go too: nobody who asks for a removal knows of them.
    pub async fn remove_snapshot(
        &self,
        id: SnapshotId,
        join: bool,
        operation: OperationId,
        actor: &Actor,
    ) -> Result<(), Failure> {
        for base in self.store.read(move |view| view.needless_bases(id)).await? {
            self.remove_one(base, true, operation, actor).await?;
        }
        let mut below = self.remove_one(id, join, operation, actor).await?;
        while let Some(id) = below {
            let needless = self.store.read(move |view| {
                let base = view.snapshot(id)?.is_some_and(|below| below.origin == SnapshotOrigin::Rebase);
                Ok(base && view.snapshot_users(id)?.is_empty())
            });
            if !needless.await? {
                break;
            }
            below = match self.remove_one(id, true, operation, actor).await {
                Ok(below) => below,
                // It goes by its age; what was asked for is done.
                Err(failure) => {
                    let event = TraceEvent::NotCollected { path: &id.to_string(), error: &failure.message };
                    event.emit(&Scope::default());
                    break;
                }
            };
        }
        Ok(())
    }

    /// Returns what its pages were a difference to.
    async fn remove_one(
        &self,
        id: SnapshotId,
        join: bool,
        operation: OperationId,
        actor: &Actor,
    ) -> Result<Option<SnapshotId>, Failure> {
        if let Some(volatile) = self.snapshots.volatile(id) {
            // Whether it could be written does not matter any more.
            let _ = volatile.written().await;
        }
        let alone = self.snapshots.uses.alone(&[id]).await?;
        alone.unused()?;
        let (dir, old) = (self.layout.snapshot(id), self.old_snapshot(id));
        let moved = rename(dir.clone(), old.clone()).await?;
        let actor = actor.clone();
        let removed = self.store.transaction(move |tx| match join {
            true => tx.remove_snapshot(id, operation, &actor),
            false => tx.remove_last_snapshot(id, operation, &actor),
        });
        let removed = match removed.await {
            Ok(removed) => removed,
            Err(error) => {
                if moved {
                    rename(old, dir).await?;
                }
                return Err(error.into());
            }
        };
        self.snapshots.forget(id);
        self.remove_snapshot_files(id).await;
        Ok(removed.and_then(|removed| removed.memory_base))
    }

    fn old_snapshot(&self, id: SnapshotId) -> PathBuf {
        self.layout.snapshots().join(format!("{OLD_SNAPSHOT}{}", id.simple()))
    }

    pub(super) async fn remove_snapshot_files(&self, id: SnapshotId) {
        let dirs = [self.layout.new_snapshot(id), self.layout.snapshot(id), self.old_snapshot(id)];
        let removed =
            offshoot_store::blocking(move || dirs.iter().try_for_each(|dir| remove_tree(dir))).await;
        if let Ok(Err(failure)) = removed {
            let event = TraceEvent::NotCollected { path: &id.to_string(), error: &failure.message };
            event.emit(&Scope::default());
        }
    }

    /// Removes what was written of a state that did not become a snapshot, if the change could not do so itself.
    pub async fn remove_unrecorded(&self, id: SnapshotId) {
        match self.store.read(move |view| view.snapshot(id)).await {
            Ok(None) => self.remove_snapshot_files(id).await,
            Ok(Some(_)) => {}
            // The next start removes it.
            Err(error) => self.store_failed("look for what a change left", &error),
        }
    }

    /// Removes the snapshots of a VM that is gone, newest first: all, or those nobody asked for. Returns how many it has
    /// kept that somebody asked for.
    pub async fn remove_snapshots_of(
        &self,
        vm: VmId,
        all: bool,
        operation: OperationId,
        actor: &Actor,
    ) -> usize {
        let snapshots = match self.store.read(move |view| view.snapshots(Some(vm))).await {
            Ok(snapshots) => snapshots,
            Err(error) => {
                self.store_failed("list a VM's snapshots", &error);
                return 0;
            }
        };
        let mut kept = 0;
        for snapshot in snapshots.into_iter().rev() {
            if !all && wanted(&snapshot) {
                kept += 1;
                continue;
            }
            if let Err(failure) = self.remove_snapshot(snapshot.id, true, operation, actor).await {
                let event =
                    TraceEvent::NotCollected { path: &snapshot.id.to_string(), error: &failure.message };
                event.emit(&Scope::default());
            }
        }
        kept
    }

    /// Whether a removal that was cut off had got as far as the record.
    pub async fn has_removed(&self, operation: OperationId) -> bool {
        match self.store.read(move |view| view.has_removed_snapshots(operation)).await {
            Ok(removed) => removed,
            Err(error) => {
                self.store_failed("look for what a removal did", &error);
                false
            }
        }
    }

    /// Removes snapshots that were taken without being asked for and are too old or too many, then the layers they
    /// alone needed.
    pub async fn expire_snapshots(&self) {
        let now = self.now();
        let keep = SnapshotRetention::default();
        let expired = match self.store.read(move |view| view.snapshots_to_expire(&keep, now)).await {
            Ok(expired) => expired,
            Err(error) => return self.store_failed("list expired snapshots", &error),
        };
        if !expired.is_empty() {
            let reason = format!("{} snapshots are too old or too many", expired.len());
            let authority = crate::core::Authority::Daemon;
            let kind = OperationKind::RemoveSnapshot;
            let new = self.new_operation(&authority, kind, None, &Owner::default(), reason);
            let ticket = match self.store.begin_operation(new).await {
                Ok(begun) => self.opened(begun.into_operation()),
                Err(error) => return self.store_failed("begin to remove expired snapshots", &error),
            };
            let mut outcome = OperationOutcome::Done;
            let vms: HashSet<VmId> = expired.iter().map(|snapshot| snapshot.vm).collect();
            for snapshot in expired {
                if let Err(failure) =
                    self.remove_snapshot(snapshot.id, true, ticket.id(), &Actor::Daemon).await
                {
                    outcome = OperationOutcome::Failed { failure };
                }
            }
            self.close(ticket, outcome).await;
            vms.into_iter().for_each(|vm| self.snapshots.grown.add(vm));
        }
        self.collect_layers().await;
    }

    /// Removes what is in nobody's list, or cannot be restored, once the last that ran from it is gone: bases of VMs that
    /// are no more, and what forks ran from that could not be written.
    pub async fn drop_left_over(&self) {
        let left = match self.store.read(|view| view.snapshots_left_over()).await {
            Ok(left) => left,
            Err(error) => return self.store_failed("look for snapshots that are left over", &error),
        };
        for SnapshotRecord { id, operation, .. } in left {
            // What one is a difference to is looked at after it.
            let needed = self.store.read(move |view| Ok(!view.snapshot_users(id)?.is_empty())).await;
            if matches!(needed, Ok(true)) {
                continue;
            }
            if let Err(failure) = self.remove_one(id, true, operation, &Actor::Daemon).await
                && failure.code != ErrorCode::InUse
            {
                let event = TraceEvent::NotCollected { path: &id.to_string(), error: &failure.message };
                event.emit(&Scope::default());
            }
        }
    }

    /// Takes back what the daemon before this one had not finished to write, before any VM is looked at. Returns what
    /// rollbacks left whose process may still be there, to be taken again: see [`crate::capture::take_again`].
    pub async fn discard_volatile(&self) -> Result<HashMap<VmId, SnapshotRecord>, StoreError> {
        let (snapshots, processes) = self
            .store
            .read(|view| {
                let mut processes: HashMap<VmId, usize> = HashMap::new();
                for instance in view.instances()? {
                    *processes.entry(instance.vm).or_default() += 1;
                }
                Ok((view.snapshots(None)?, processes))
            })
            .await?;
        let mut left = HashMap::new();
        for snapshot in snapshots.into_iter().rev().filter(|s| s.state == SnapshotState::Volatile) {
            let two = processes.get(&snapshot.vm).is_some_and(|processes| *processes > 1);
            if snapshot.origin == SnapshotOrigin::Undo && two && !left.contains_key(&snapshot.vm) {
                left.insert(snapshot.vm, snapshot);
            } else {
                self.discard(snapshot.id).await;
            }
        }
        Ok(left)
    }

    /// Once per start: directories of snapshots that the record does not know, and layers' files nobody made a layer of.
    pub async fn sweep_snapshots(&self) {
        let known: HashMap<SnapshotId, SnapshotRecord> =
            match self.store.read(|view| view.snapshots(None)).await {
                Ok(snapshots) => snapshots.into_iter().map(|snapshot| (snapshot.id, snapshot)).collect(),
                Err(error) => return self.store_failed("list snapshots", &error),
            };
        for path in entries(self.layout.snapshots()) {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if let Some(new) = name.strip_prefix(NEW_SNAPSHOT) {
                if id_of(new).is_none_or(|id| self.snapshots.volatile(id).is_none()) {
                    crate::strays::remove(self, &path).await;
                }
            } else if let Some(id) = name.strip_prefix(OLD_SNAPSHOT).and_then(id_of) {
                if known.contains_key(&id) {
                    if let Err(failure) = rename(path.clone(), self.layout.snapshot(id)).await {
                        let path = path.display().to_string();
                        TraceEvent::NotCollected { path: &path, error: &failure.message }
                            .emit(&Scope::default());
                    }
                } else {
                    crate::strays::remove(self, &path).await;
                }
            } else if name.starts_with(MERGED_SNAPSHOT) {
                // Settled before: see `settle_merges`.
                crate::strays::remove(self, &path).await;
            } else if id_of(name).is_none_or(|id| !known.contains_key(&id)) {
                crate::strays::keep(self, &path).await;
            }
        }
        self.sweep_layers().await;
    }

    async fn sweep_layers(&self) {
        let known: HashSet<String> = match self.store.read(|view| view.layers()).await {
            Ok(layers) => layers.into_iter().map(|layer| layer.path).collect(),
            Err(error) => return self.store_failed("list disk layers", &error),
        };
        for path in entries(self.layout.disks()) {
            let relative = path.strip_prefix(&self.layout.state).unwrap_or(&path).display().to_string();
            if known.contains(&relative) {
                continue;
            }
            // One that nobody ever wrote to holds nothing.
            if layers::is_empty(&path) {
                crate::strays::remove(self, &path).await;
            } else {
                crate::strays::keep(self, &path).await;
            }
        }
    }
}

/// Whether it outlives its VM unless somebody says otherwise.
pub(crate) fn wanted(snapshot: &SnapshotRecord) -> bool {
    snapshot.name.is_some() || matches!(snapshot.origin, SnapshotOrigin::Manual | SnapshotOrigin::Template)
}

pub(super) fn id_of(name: &str) -> Option<SnapshotId> {
    Uuid::try_parse(name).ok().filter(|uuid| uuid.simple().to_string() == name).map(SnapshotId::from_uuid)
}

pub(super) fn entries(dir: PathBuf) -> Vec<PathBuf> {
    fs::read_dir(dir)
        .map(|entries| entries.filter_map(Result::ok).map(|entry| entry.path()).collect())
        .unwrap_or_default()
}

/// `false` if there was nothing to rename.
async fn rename(from: PathBuf, to: PathBuf) -> Result<bool, Failure> {
    let renamed = offshoot_store::blocking(move || match fs::rename(&from, &to) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(crate::machine::io_failure("rename", &from, &error)),
    });
    renamed.await.map_err(|_| crate::error::shutting_down())?
}
