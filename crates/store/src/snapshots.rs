//! Snapshots: the tree of states that were kept.
//!
//! ```text
//! add --> Volatile --durable--> Durable        Volatile: its bytes are in the daemon's memory, or half written
//!             \------damaged------/--> Damaged                Damaged: nothing continues from it any more
//! ```
//! The parent is history: it says what came before, and moves up when one in between is removed. What a snapshot's bytes
//! depend on is its `memory_base` and its disk layer, which stay as long as it does.

use crate::{
    StoreError, Tx, View, VmRecord,
    note::Subject,
    row::{json, named, parsed, parsed_option, time, to_json, to_name},
};
use jiff::Timestamp;
use offshoot_types::{
    Actor, Bytes, EventId, EventKind, Labels, LayerId, NodeName, OperationId, Owner, SnapshotId,
    SnapshotKind, SnapshotName, SnapshotOrigin, SnapshotRef, SnapshotState, VmId, VmName, VmRef,
};
use rusqlite::{Row, params};
use serde_json::Value;

/// A snapshot that was just taken: its disk layer is frozen, the rest of it need not be on the disk yet.
#[derive(Debug, Clone, PartialEq)]
pub struct NewSnapshot {
    pub id: SnapshotId,
    pub owner: Owner,
    pub labels: Labels,
    pub node: NodeName,
    pub vm: VmId,
    /// Unique among the snapshots of its VM.
    pub name: Option<SnapshotName>,
    pub origin: SnapshotOrigin,
    pub kind: SnapshotKind,
    pub parent: Option<SnapshotId>,
    /// The disk as it was; frozen.
    pub layer: LayerId,
    /// The snapshot whose complete memory this one's pages are a difference to; `None`: zeros, or no memory at all.
    pub memory_base: Option<SnapshotId>,
    /// Whether the guest stood still for it. Without that it is good for a rollback, but not for a fork.
    pub quiesced: bool,
    pub note: Option<String>,
    pub manifest: Value,
    /// What it costs on the disk: its own parts and its own disk layer.
    pub size: Bytes,
}

#[derive(Debug, Clone, PartialEq)]
pub struct SnapshotRecord {
    pub id: SnapshotId,
    pub owner: Owner,
    pub labels: Labels,
    pub node: NodeName,
    pub vm: VmId,
    /// Of the VM, also if that is destroyed.
    pub vm_name: VmName,
    pub name: Option<SnapshotName>,
    pub origin: SnapshotOrigin,
    pub kind: SnapshotKind,
    pub state: SnapshotState,
    pub parent: Option<SnapshotId>,
    pub layer: LayerId,
    pub memory_base: Option<SnapshotId>,
    pub quiesced: bool,
    pub note: Option<String>,
    pub manifest: Value,
    pub size: Bytes,
    /// The one that took it.
    pub operation: OperationId,
    /// Its place in the order of all that happened: a later one has a higher one, whatever the clocks said.
    pub taken: EventId,
    pub created: Timestamp,
}

pub(crate) const COLUMNS: &str = "id, owner, labels, node, vm, \
    (SELECT vms.name FROM vms WHERE vms.id = snapshots.vm) AS vm_name, name, origin, kind, state, parent, layer, \
    memory_base, quiesced, note, manifest, size, operation, taken, created";

pub(crate) fn from_row(row: &Row<'_>) -> Result<SnapshotRecord, rusqlite::Error> {
    Ok(SnapshotRecord {
        id: parsed(row, "id")?,
        owner: parsed(row, "owner")?,
        labels: json(row, "labels")?,
        node: parsed(row, "node")?,
        vm: parsed(row, "vm")?,
        vm_name: parsed(row, "vm_name")?,
        name: parsed_option(row, "name")?,
        origin: named(row, "origin")?,
        kind: named(row, "kind")?,
        state: named(row, "state")?,
        parent: parsed_option(row, "parent")?,
        layer: parsed(row, "layer")?,
        memory_base: parsed_option(row, "memory_base")?,
        quiesced: row.get("quiesced")?,
        note: row.get("note")?,
        manifest: json(row, "manifest")?,
        size: Bytes(row.get("size")?),
        operation: parsed(row, "operation")?,
        taken: EventId(row.get("taken")?),
        created: time(row, "created")?,
    })
}

impl View<'_> {
    pub fn snapshot(&self, id: SnapshotId) -> Result<Option<SnapshotRecord>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM snapshots WHERE id = ?1");
        self.one("read a snapshot", &sql, params![id.to_string()], from_row)
    }

    /// A snapshot as a caller names it. A VM's name is looked up among those of `owner`; if VMs of the same name came one
    /// after the other, the living one is asked first and then the latest, because named snapshots outlive their VM.
    pub fn find_snapshot(
        &self,
        snapshot: &SnapshotRef,
        owner: &Owner,
    ) -> Result<Option<SnapshotRecord>, StoreError> {
        let (vm, name) = match snapshot {
            SnapshotRef::Id(id) => return self.snapshot(*id),
            SnapshotRef::Named { vm, name } => (vm, name),
        };
        let (id, vm_name) = match vm {
            VmRef::Id(id) => (Some(id.to_string()), None),
            VmRef::Name(name) => (None, Some(name.as_str())),
        };
        let sql = format!(
            "SELECT {COLUMNS} FROM snapshots WHERE name = ?1 AND vm IN (
                SELECT id FROM vms WHERE id = ?2 OR (?2 IS NULL AND owner = ?3 AND name = ?4))
             ORDER BY (SELECT state = 'destroyed' FROM vms WHERE vms.id = snapshots.vm), taken DESC LIMIT 1"
        );
        self.one("find a snapshot", &sql, params![name.as_str(), id, owner.as_str(), vm_name], from_row)
    }

    /// The snapshots of a VM, or of all VMs that exist or existed, in the order they were taken.
    pub fn snapshots(&self, vm: Option<VmId>) -> Result<Vec<SnapshotRecord>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM snapshots WHERE ?1 IS NULL OR vm = ?1 ORDER BY taken");
        self.many("list snapshots", &sql, params![vm.map(|vm| vm.to_string())], from_row)
    }

    /// What the next `undo` of a VM goes back to: the one kept last as what a rollback, a commit or a race left.
    pub fn newest_undo(&self, vm: VmId) -> Result<Option<SnapshotRecord>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM snapshots WHERE vm = ?1 AND origin = 'undo' AND state <> 'damaged'
             ORDER BY origin_since DESC LIMIT 1"
        );
        self.one("find what to undo to", &sql, params![vm.to_string()], from_row)
    }

    pub(crate) fn expect_snapshot(&self, id: SnapshotId) -> Result<SnapshotRecord, StoreError> {
        self.snapshot(id)?.ok_or_else(|| StoreError::NotFound { what: "snapshot", id: id.to_string() })
    }

    pub(crate) fn expect_usable_snapshot(&self, id: SnapshotId) -> Result<SnapshotRecord, StoreError> {
        let snapshot = self.expect_snapshot(id)?;
        match snapshot.state {
            SnapshotState::Volatile | SnapshotState::Durable => Ok(snapshot),
            SnapshotState::Damaged => Err(StoreError::SnapshotDamaged { snapshot: id }),
        }
    }

    /// The VM a snapshot was taken of, which may be destroyed.
    pub(crate) fn vm_of(&self, snapshot: &SnapshotRecord) -> Result<VmRecord, StoreError> {
        let found = self.vm(snapshot.vm)?;
        found.ok_or_else(|| StoreError::NotFound { what: "VM", id: snapshot.vm.to_string() })
    }
}

impl Tx<'_> {
    /// Records a snapshot, `Volatile`, if the quotas have room for it; its VM stands there from now on, unless it is a
    /// base, which is part of no history. Repeating it changes nothing.
    pub fn add_snapshot(
        &self,
        new: &NewSnapshot,
        operation: OperationId,
        actor: &Actor,
    ) -> Result<(), StoreError> {
        let invalid = |detail: String| StoreError::Invalid { what: "snapshot", detail };
        if let Some(found) = self.snapshot(new.id)? {
            let same = found.vm == new.vm && found.layer == new.layer && found.operation == operation;
            return if same { Ok(()) } else { Err(invalid(format!("{} is recorded already", new.id))) };
        }
        let vm = self.expect_vm(new.vm)?;
        if !self.expect_layer(new.layer)?.frozen {
            return Err(invalid(format!("its disk layer {} is still written to", new.layer)));
        }
        match (new.kind, new.memory_base) {
            (SnapshotKind::DiskOnly, Some(_)) => {
                return Err(invalid(format!("{} has no memory, and so none it differs from", new.id)));
            }
            (_, Some(base)) => drop(self.expect_usable_snapshot(base)?),
            (_, None) => {}
        }
        if let Some(parent) = new.parent {
            self.expect_snapshot(parent)?;
        }
        if let Some(name) = &new.name {
            let taken = SnapshotRef::Named { vm: VmRef::Id(new.vm), name: name.clone() };
            if let Some(other) = self.find_snapshot(&taken, &new.owner)? {
                return Err(StoreError::SnapshotNameTaken { vm: new.vm, name: name.clone(), by: other.id });
            }
        }
        self.admit_snapshot(self.limits(), new.vm, new.size, Bytes(0))?;
        let kind = EventKind::SnapshotTaken { snapshot: new.id, name: new.name.clone(), origin: new.origin };
        let name = new.name.as_ref().map_or_else(String::new, |name| format!(" `{name}`"));
        let detail = format!("{} snapshot{name} of `{}`, {}", new.origin, vm.name, to_name(&new.kind));
        let subject = Subject { vm: &vm, operation: Some(operation), actor };
        let event = self.note(&subject, kind, "snapshot-taken", new.id.to_string(), detail)?;
        self.insert_snapshot(new, operation, event)?;
        if new.origin == SnapshotOrigin::Rebase {
            return Ok(());
        }
        let sql = "UPDATE vms SET position = ?2 WHERE id = ?1";
        self.execute("place a VM in its tree", sql, params![new.vm.to_string(), new.id.to_string()]).map(drop)
    }

    fn insert_snapshot(
        &self,
        new: &NewSnapshot,
        operation: OperationId,
        event: EventId,
    ) -> Result<(), StoreError> {
        let sql = "INSERT INTO snapshots (id, owner, labels, node, vm, name, origin, kind, state, parent, layer,
                memory_base, quiesced, note, manifest, size, operation, taken, origin_since, created)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, 'volatile', ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?17, ?18)";
        let params = params![
            new.id.to_string(),
            new.owner.as_str(),
            to_json(&new.labels),
            new.node.as_str(),
            new.vm.to_string(),
            new.name.as_ref().map(SnapshotName::as_str),
            new.origin.as_str(),
            to_name(&new.kind),
            new.parent.map(|id| id.to_string()),
            new.layer.to_string(),
            new.memory_base.map(|id| id.to_string()),
            new.quiesced,
            new.note,
            to_json(&new.manifest),
            new.size.0,
            operation.to_string(),
            event.0,
            self.now_micros(),
        ];
        self.execute("record a snapshot", sql, params).map(drop)
    }

    /// Every part of it is hashed and flushed to the disk; `manifest` and `size` are those of the files. Refused if it
    /// does not fit the quotas: it then stays what it was. Repeating it changes nothing.
    pub fn snapshot_durable(&self, id: SnapshotId, manifest: &Value, size: Bytes) -> Result<(), StoreError> {
        let snapshot = self.expect_usable_snapshot(id)?;
        if snapshot.state == SnapshotState::Durable && snapshot.manifest == *manifest && snapshot.size == size
        {
            return Ok(());
        }
        self.admit_snapshot(self.limits(), snapshot.vm, size, snapshot.size)?;
        let sql = "UPDATE snapshots SET state = 'durable', manifest = ?2, size = ?3 WHERE id = ?1";
        self.execute("make a snapshot durable", sql, params![id.to_string(), to_json(manifest), size.0])?;
        self.note_snapshot(&snapshot, SnapshotState::Durable, snapshot.origin)
    }

    /// Nothing continues from it any more. Repeating it changes nothing; there is no way back.
    pub fn snapshot_damaged(&self, id: SnapshotId) -> Result<(), StoreError> {
        let snapshot = self.expect_snapshot(id)?;
        if snapshot.state == SnapshotState::Damaged {
            return Ok(());
        }
        let sql = "UPDATE snapshots SET state = 'damaged' WHERE id = ?1";
        self.execute("mark a snapshot as damaged", sql, params![id.to_string()])?;
        self.note_snapshot(&snapshot, SnapshotState::Damaged, snapshot.origin)
    }

    /// It is kept for another reason from now on, also if for the same one again: the newest undo snapshot is the one
    /// that became one last.
    pub fn set_snapshot_origin(&self, id: SnapshotId, origin: SnapshotOrigin) -> Result<(), StoreError> {
        let snapshot = self.expect_snapshot(id)?;
        self.note_snapshot(&snapshot, snapshot.state, origin)?;
        let sql = "UPDATE snapshots SET origin = ?2, origin_since = ?3 WHERE id = ?1";
        let params = params![id.to_string(), origin.as_str(), self.last_event()?.0];
        self.execute("set why a snapshot is kept", sql, params).map(drop)
    }

    fn note_snapshot(
        &self,
        snapshot: &SnapshotRecord,
        state: SnapshotState,
        origin: SnapshotOrigin,
    ) -> Result<(), StoreError> {
        let vm = self.vm_of(snapshot)?;
        let kind = EventKind::SnapshotChanged { snapshot: snapshot.id, state, origin };
        let detail = format!("{origin} snapshot of `{}`, {state}", vm.name);
        let subject = Subject { vm: &vm, operation: Some(snapshot.operation), actor: &Actor::Daemon };
        self.note(&subject, kind, "snapshot-changed", snapshot.id.to_string(), detail).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        LedgerResource, Limits, NewVm,
        fixture::{Fixture, actor, new_vm, operation},
    };
    use offshoot_types::{ErrorCode, OperationKind, VmState};

    #[tokio::test]
    async fn a_snapshot_is_read_back_as_it_was_recorded_and_its_vm_stands_there() {
        let mut f = Fixture::new();
        let (vm, _) = f.stopped("a").await;
        let (event, audit) = (*f.store.last_event().borrow(), f.store.audit_head().await.unwrap());
        let first = f.take_named(vm, "before").await;
        let new = NewSnapshot { note: Some("two".into()), ..f.to_take(vm, SnapshotOrigin::Auto).await };
        let (second, by) = (new.id, OperationId::new());
        for _ in 0..2 {
            f.store.add_snapshot(new.clone(), by, actor()).await.unwrap();
        }
        f.reopen().await;
        let record = f.store.snapshot(second).await.unwrap().unwrap();
        assert_eq!((record.parent, record.note.as_deref(), record.operation), (Some(first), Some("two"), by));
        assert_eq!((record.state, record.vm_name.as_str()), (SnapshotState::Volatile, "a"));
        assert_eq!((record.manifest, record.size, record.layer), (new.manifest, new.size, new.layer));
        assert_eq!(f.store.vm(vm).await.unwrap().unwrap().position, Some(second));
        let all = f.store.snapshots(Some(vm)).await.unwrap();
        assert_eq!(all.iter().map(|snapshot| snapshot.id).collect::<Vec<_>>(), [first, second]);
        assert_eq!(all[0].created, all[1].created, "at the same microsecond");
        assert!(all[0].taken < all[1].taken, "and yet in order");
        let events = f.store.events(event, 9).await.unwrap().events;
        let kinds: Vec<_> = events.into_iter().map(|event| event.kind).collect();
        let taken = |snapshot, name: Option<&str>, origin| EventKind::SnapshotTaken {
            snapshot,
            name: name.map(|name| name.parse().unwrap()),
            origin,
        };
        assert_eq!(
            kinds,
            [taken(first, Some("before"), SnapshotOrigin::Manual), taken(second, None, SnapshotOrigin::Auto)]
        );
        assert_eq!(f.store.audit(audit.seq, 9).await.unwrap().len(), 2, "a repeated call is no second one");
    }

    #[tokio::test]
    async fn a_snapshot_whose_disk_is_still_written_to_or_whose_base_is_damaged_is_refused() {
        let f = Fixture::new();
        let (vm, _) = f.stopped("a").await;
        let base = f.take(vm, SnapshotOrigin::Manual).await;
        let new = f.to_take(vm, SnapshotOrigin::Manual).await;
        let top = f.store.vm(vm).await.unwrap().unwrap().layer.unwrap();
        let open = f.add(NewSnapshot { layer: top, ..new.clone() }).await.unwrap_err();
        assert!(open.to_string().contains("still written to"), "{open}");
        let disk = NewSnapshot { kind: SnapshotKind::DiskOnly, memory_base: Some(base), ..new.clone() };
        assert!(matches!(f.add(disk).await, Err(StoreError::Invalid { what: "snapshot", .. })));
        for _ in 0..2 {
            f.store.snapshot_damaged(base).await.unwrap();
        }
        let on_sand = f.add(NewSnapshot { memory_base: Some(base), ..new.clone() }).await.unwrap_err();
        assert_eq!(on_sand.code(), ErrorCode::Snapshot, "{on_sand}");
        let durable = f.store.snapshot_durable(base, new.manifest.clone(), Bytes(1)).await.unwrap_err();
        assert!(matches!(durable, StoreError::SnapshotDamaged { .. }), "{durable}");
        assert!(f.store.set_vm_memory(vm, Some(base)).await.is_err());
        f.add(new).await.unwrap();
    }

    #[tokio::test]
    async fn a_name_is_unique_per_vm_and_outlives_it() {
        let f = Fixture::new();
        let (vm, at) = f.stopped("a").await;
        let first = f.take_named(vm, "x").await;
        let again = f.to_take(vm, SnapshotOrigin::Manual).await;
        let again = f.add(NewSnapshot { name: Some("x".parse().unwrap()), ..again }).await.unwrap_err();
        assert!(matches!(again, StoreError::SnapshotNameTaken { by, .. } if by == first), "{again}");
        let find = |name: &str| f.store.find_snapshot(name.parse().unwrap(), Owner::default());
        f.go(vm, at, VmState::Destroyed).await.unwrap();
        let found = find("a@x").await.unwrap().unwrap();
        assert_eq!((found.id, found.vm_name.as_str()), (first, "a"));

        let (next, at) = f.stopped("a").await;
        assert_eq!(find("a@x").await.unwrap().unwrap().id, first, "while the new one has none of that name");
        let second = f.take_named(next, "x").await;
        assert_eq!(find("a@x").await.unwrap().unwrap().id, second, "the living VM comes first");
        assert_eq!(find(&format!("{vm}@x")).await.unwrap().unwrap().id, first);
        assert_eq!(find(&first.to_string()).await.unwrap().unwrap().id, first);
        f.go(next, at, VmState::Destroyed).await.unwrap();
        assert_eq!(find("a@x").await.unwrap().unwrap().id, second, "then the latest");
        let stranger = f.store.find_snapshot("a@x".parse().unwrap(), "other".parse().unwrap());
        assert_eq!(stranger.await.unwrap(), None);
    }

    #[tokio::test]
    async fn quotas_hold_for_each_vm_and_in_all_and_count_what_is_on_the_disk_in_the_end() {
        let limits =
            Limits { snapshots: Some(Bytes(100)), snapshots_per_vm: Some(Bytes(60)), ..Limits::UNBOUNDED };
        let f = Fixture::with_limits(limits);
        let ((a, _), (b, _)) = (f.stopped("a").await, f.stopped("b").await);
        let sized = async |vm, size| {
            f.add(NewSnapshot { size: Bytes(size), ..f.to_take(vm, SnapshotOrigin::Auto).await }).await
        };
        let over = |error: StoreError| match error {
            StoreError::Ledger(exceeded) => exceeded.resource,
            other => panic!("{other}"),
        };
        let first = sized(a, 50).await.unwrap();
        assert_eq!(over(sized(a, 11).await.unwrap_err()), LedgerResource::SnapshotsOfVm);
        sized(b, 50).await.unwrap();
        let full = sized(b, 1).await.unwrap_err();
        assert_eq!(full.to_string(), "no room for the snapshot: 1 asked, 100 of 100 promised already");
        assert_eq!(over(full), LedgerResource::Snapshots);
        assert_eq!(f.store.ledger().await.unwrap().snapshots, Bytes(100));

        let manifest = serde_json::json!({ "parts": ["ram.delta"] });
        let grown = f.store.snapshot_durable(first, manifest.clone(), Bytes(51)).await.unwrap_err();
        assert_eq!(over(grown), LedgerResource::Snapshots);
        assert_eq!(f.store.snapshot(first).await.unwrap().unwrap().state, SnapshotState::Volatile);
        for _ in 0..2 {
            f.store.snapshot_durable(first, manifest.clone(), Bytes(20)).await.unwrap();
        }
        let durable = f.store.snapshot(first).await.unwrap().unwrap();
        assert_eq!((durable.state, durable.size), (SnapshotState::Durable, Bytes(20)));
        assert_eq!(durable.manifest, manifest);
        sized(b, 10).await.unwrap();
    }

    #[tokio::test]
    async fn the_newest_undo_is_the_one_that_became_one_last() {
        let f = Fixture::new();
        let (vm, _) = f.stopped("a").await;
        let begin = f.take(vm, SnapshotOrigin::Auto).await;
        assert_eq!(f.store.read(move |view| view.newest_undo(vm)).await.unwrap(), None);
        let left = f.take(vm, SnapshotOrigin::Undo).await;
        let newest = async || f.store.read(move |view| view.newest_undo(vm)).await.unwrap().unwrap().id;
        assert_eq!(newest().await, left);
        let commit = move |tx: &Tx<'_>| tx.set_snapshot_origin(begin, SnapshotOrigin::Undo);
        f.store.transaction(commit).await.unwrap();
        assert_eq!(newest().await, begin, "taken before, but kept as undo after");
        f.store.snapshot_damaged(begin).await.unwrap();
        assert_eq!(newest().await, left);
    }

    #[tokio::test]
    async fn a_fork_is_made_from_a_usable_snapshot_and_announced_when_it_is_kept() {
        let f = Fixture::new();
        let (source, _) = f.stopped("a").await;
        let from = f.take(source, SnapshotOrigin::Fork).await;
        let fork = |name: &str| {
            let mut vm = NewVm { memory: Some(from), position: Some(from), ..new_vm(name) };
            vm.spec.lifetime = offshoot_types::Lifetime::Request;
            vm
        };
        let (one, two) = (fork("a-1"), fork("a-2"));
        let vms = [one.id, two.id];
        let by = operation(OperationKind::Fork, None);
        let making = operation(OperationKind::Create, None);
        let make = move |tx: &Tx<'_>| {
            for vm in [&one, &two] {
                let create =
                    crate::NewOperation { id: OperationId::new(), vm: Some(vm.id), ..making.clone() };
                tx.create_vm(&create, vm)?;
            }
            Ok(())
        };
        f.store.transaction(make).await.unwrap();
        let seen = *f.store.last_event().borrow();
        for _ in 0..2 {
            f.store.keep_vms(vms.to_vec(), by.id, actor()).await.unwrap();
        }
        let kinds: Vec<_> =
            f.store.events(seen, 9).await.unwrap().events.into_iter().map(|event| event.kind).collect();
        assert_eq!(kinds, [EventKind::Forked { from }, EventKind::Forked { from }]);
        let record = f.store.vm(vms[0]).await.unwrap().unwrap();
        assert_eq!((record.memory, record.position), (Some(from), Some(from)));
        assert_eq!(record.spec.lifetime, offshoot_types::Lifetime::Kept);

        let gone = f.store.keep_vms(vec![vms[1], VmId::new()], by.id, actor()).await;
        assert!(matches!(gone, Err(StoreError::NotFound { .. })));
        f.store.snapshot_damaged(from).await.unwrap();
        let late = fork("a-3");
        let refused = f.store.create_vm(operation(OperationKind::Create, Some(late.id)), late).await;
        assert!(matches!(refused, Err(StoreError::SnapshotDamaged { .. })), "{refused:?}");
    }
}
