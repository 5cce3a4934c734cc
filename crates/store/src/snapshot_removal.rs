//! Letting snapshots go: never one whose bytes somebody needs, and never the history around it.

use crate::{
    SnapshotRecord, StoreError, Tx, View,
    note::Subject,
    row::{named, parsed, to_json},
};
use offshoot_types::{
    Actor, Bytes, EventKind, OperationId, SnapshotId, SnapshotOrigin, TransactionId, VmId, VmName,
};
use rusqlite::params;
use serde_json::Value;
use std::fmt;

/// Who needs the bytes of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SnapshotUser {
    /// A snapshot whose pages are a difference to this one's complete memory.
    Child(SnapshotId),
    /// The same of a base, which is in nobody's list.
    Base { base: SnapshotId, vm: VmId, name: VmName },
    /// A process of this VM maps its complete memory, so the VM's next snapshot will be a difference to it.
    MemoryOf { vm: VmId, name: VmName },
    /// This VM has no process and continues from it.
    Vm { vm: VmId, name: VmName },
    /// An open transaction goes back to it.
    Transaction(TransactionId),
}

impl fmt::Display for SnapshotUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Child(id) => write!(f, "snapshot {id}"),
            Self::Base { name, .. } => write!(f, "the memory of VM {name}"),
            Self::MemoryOf { name, .. } => write!(f, "the running VM {name}"),
            Self::Vm { name, .. } => write!(f, "VM {name}"),
            Self::Transaction(id) => write!(f, "transaction {id}"),
        }
    }
}

impl View<'_> {
    /// Who needs a snapshot's bytes. Disk layers above its own are not among them: a layer stays while it is needed,
    /// whether or not the snapshot that named it does.
    pub fn snapshot_users(&self, id: SnapshotId) -> Result<Vec<SnapshotUser>, StoreError> {
        let id = id.to_string();
        let sql =
            "SELECT snapshots.id AS id, origin, vm, vms.name AS name FROM snapshots JOIN vms ON vms.id = vm
            WHERE memory_base = ?1 ORDER BY taken";
        let mut users = self.many("find a snapshot's children", sql, params![id], |row| {
            let child = parsed(row, "id")?;
            Ok(match named(row, "origin")? {
                SnapshotOrigin::Rebase => {
                    SnapshotUser::Base { base: child, vm: parsed(row, "vm")?, name: parsed(row, "name")? }
                }
                _ => SnapshotUser::Child(child),
            })
        })?;
        let sql =
            "SELECT DISTINCT vms.id AS id, vms.name AS name FROM instances JOIN vms ON vms.id = instances.vm
            WHERE instances.memory_base = ?1 ORDER BY vms.id";
        users.extend(self.many("find who maps a snapshot", sql, params![id], |row| {
            Ok(SnapshotUser::MemoryOf { vm: parsed(row, "id")?, name: parsed(row, "name")? })
        })?);
        let sql = "SELECT id, name FROM vms WHERE memory = ?1 ORDER BY id";
        users.extend(self.many("find who continues from a snapshot", sql, params![id], |row| {
            Ok(SnapshotUser::Vm { vm: parsed(row, "id")?, name: parsed(row, "name")? })
        })?);
        let sql = "SELECT id FROM transactions WHERE snapshot = ?1 AND end IS NULL ORDER BY event";
        users.extend(self.many("find a snapshot's transactions", sql, params![id], |row| {
            Ok(SnapshotUser::Transaction(parsed(row, "id")?))
        })?);
        Ok(users)
    }

    /// The bases that go with a snapshot because only they need it, those last that the others need: none if somebody else
    /// needs it or one of them.
    pub fn needless_bases(&self, id: SnapshotId) -> Result<Vec<SnapshotId>, StoreError> {
        let mut needless = Vec::new();
        let only_bases = self.add_needless_bases(id, &mut needless)?;
        Ok(if only_bases { needless } else { Vec::new() })
    }

    fn add_needless_bases(&self, id: SnapshotId, needless: &mut Vec<SnapshotId>) -> Result<bool, StoreError> {
        for user in self.snapshot_users(id)? {
            let SnapshotUser::Base { base, .. } = user else { return Ok(false) };
            if !self.add_needless_bases(base, needless)? {
                return Ok(false);
            }
            needless.push(base);
        }
        Ok(true)
    }

    /// The snapshots that came directly after this one, in the order they were taken.
    pub fn snapshots_after(&self, id: SnapshotId) -> Result<Vec<SnapshotId>, StoreError> {
        let sql = "SELECT id FROM snapshots WHERE parent = ?1 ORDER BY taken";
        self.many("find what came after a snapshot", sql, params![id.to_string()], |row| parsed(row, "id"))
    }
}

impl Tx<'_> {
    /// As [`remove_snapshot`](Self::remove_snapshot), and refused while the tree goes on from it, whether or not what
    /// comes after it needs its bytes: for whoever did not say that the tree is to be joined.
    pub fn remove_last_snapshot(
        &self,
        id: SnapshotId,
        operation: OperationId,
        actor: &Actor,
    ) -> Result<Option<SnapshotRecord>, StoreError> {
        let after = self.snapshots_after(id)?;
        if after.is_empty() {
            return self.remove_snapshot(id, operation, actor);
        }
        let users = self.snapshot_users(id)?;
        // One that both came after it and differs from it is named once.
        let others = users
            .iter()
            .filter(|user| !matches!(user, SnapshotUser::Child(child) if after.contains(child)))
            .map(ToString::to_string);
        let by = after.iter().map(|id| SnapshotUser::Child(*id).to_string()).chain(others).collect();
        Err(StoreError::InUse { what: format!("snapshot {id}"), by })
    }

    /// Removes a snapshot's record, unless somebody needs its bytes. What came after it now comes after what was before
    /// it. The caller removes its files once this is committed, and its disk layer when nobody needs that any more
    /// ([`View::unused_layers`]). Returns the record that was removed; `None` if there was none.
    pub fn remove_snapshot(
        &self,
        id: SnapshotId,
        operation: OperationId,
        actor: &Actor,
    ) -> Result<Option<SnapshotRecord>, StoreError> {
        let Some(snapshot) = self.snapshot(id)? else { return Ok(None) };
        let users = self.snapshot_users(id)?;
        if !users.is_empty() {
            let by = users.iter().map(ToString::to_string).collect();
            return Err(StoreError::InUse { what: format!("snapshot {id}"), by });
        }
        let (gone, parent) = (id.to_string(), snapshot.parent.map(|parent| parent.to_string()));
        for (what, sql) in [
            ("join a tree around a snapshot", "UPDATE snapshots SET parent = ?2 WHERE parent = ?1"),
            ("move VMs up in their tree", "UPDATE vms SET position = ?2 WHERE position = ?1"),
            // The nearest state before it is now an earlier one.
            ("move the history up", "UPDATE history SET snapshot = ?2, exact = 0 WHERE snapshot = ?1"),
        ] {
            self.execute(what, sql, params![gone, parent])?;
        }
        self.execute("remove a snapshot", "DELETE FROM snapshots WHERE id = ?1", params![gone])?;
        let vm = self.vm_of(&snapshot)?;
        let name = snapshot.name.as_ref().map_or_else(String::new, |name| format!(" `{name}`"));
        let detail = format!("{} snapshot{name} of `{}`", snapshot.origin, vm.name);
        let subject = Subject { vm: &vm, operation: Some(operation), actor };
        self.note(&subject, EventKind::SnapshotRemoved { snapshot: id }, "snapshot-removed", gone, detail)?;
        Ok(Some(snapshot))
    }

    /// What a snapshot is made of was replaced by what says the same: from now on its manifest is this one.
    pub fn restage_snapshot(&self, id: SnapshotId, manifest: &Value) -> Result<(), StoreError> {
        self.expect_usable_snapshot(id)?;
        let sql = "UPDATE snapshots SET manifest = ?2 WHERE id = ?1";
        self.execute("restage a snapshot", sql, params![id.to_string(), to_json(manifest)]).map(drop)
    }

    /// A snapshot's pages were merged with those of what it depended on: from now on it differs from `memory_base`.
    /// `manifest` and `size` are those of its new files.
    pub fn rebase_snapshot(
        &self,
        id: SnapshotId,
        memory_base: Option<SnapshotId>,
        manifest: &Value,
        size: Bytes,
    ) -> Result<(), StoreError> {
        let snapshot = self.expect_usable_snapshot(id)?;
        let mut below = memory_base;
        while let Some(base) = below {
            if base == id {
                let detail = format!("{id} cannot differ from a memory that differs from its own");
                return Err(StoreError::Invalid { what: "snapshot", detail });
            }
            below = self.expect_usable_snapshot(base)?.memory_base;
        }
        self.admit_snapshot(self.limits(), snapshot.vm, size, snapshot.size)?;
        let sql = "UPDATE snapshots SET memory_base = ?2, manifest = ?3, size = ?4 WHERE id = ?1";
        let base = memory_base.map(|base| base.to_string());
        self.execute("rebase a snapshot", sql, params![id.to_string(), base, to_json(manifest), size.0])
            .map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NewInstance, NewSnapshot, NewTransaction, fixture::Fixture};
    use offshoot_types::{
        ErrorCode, IsolationClass, NodeName, OperationKind, Owner, ProviderKind, SnapshotOrigin,
        TransactionEnd, VmState,
    };

    #[tokio::test]
    async fn what_somebody_needs_is_refused_and_everybody_who_does_is_named() {
        let f = Fixture::new();
        let (a, _) = f.stopped("a").await;
        let (b, at) = f.stopped("b").await;
        let base = f.take(a, SnapshotOrigin::Manual).await;
        let child = NewSnapshot { memory_base: Some(base), ..f.to_take(a, SnapshotOrigin::Manual).await };
        let child = f.add(child).await.unwrap();
        let at = f.go(b, at, VmState::Starting).await.unwrap();
        let class = IsolationClass::EmulatedVm;
        let instance = NewInstance::new(b, at, ProviderKind::Fake, class, Some(base), &0).unwrap();
        f.store.record_instance(instance).await.unwrap();
        f.store.set_vm_memory(a, Some(base)).await.unwrap();
        let transaction = NewTransaction {
            id: TransactionId::new(),
            owner: Owner::default(),
            node: NodeName::default(),
            vm: a,
            parent: None,
            operation: f.begun(OperationKind::Transaction, a).await,
            snapshot: base,
            deadline: f.store.vm(a).await.unwrap().unwrap().created,
        };
        f.store.begin_transaction(transaction.clone()).await.unwrap();

        let users = f.store.snapshot_users(base).await.unwrap();
        let name = |name: &str| name.parse::<VmName>().unwrap();
        assert_eq!(
            users,
            [
                SnapshotUser::Child(child),
                SnapshotUser::MemoryOf { vm: b, name: name("b") },
                SnapshotUser::Vm { vm: a, name: name("a") },
                SnapshotUser::Transaction(transaction.id)
            ]
        );
        let refused = f.remove(base).await.unwrap_err();
        assert_eq!(refused.code(), ErrorCode::InUse);
        let sentence = format!(
            "snapshot {base} is needed by snapshot {child}, the running VM b, VM a, transaction {}",
            transaction.id
        );
        assert_eq!(refused.to_string(), sentence);

        // A base of somebody's goes with what it needs, unless somebody needs it.
        let base = NewSnapshot {
            memory_base: Some(base),
            parent: None,
            ..f.to_take(b, SnapshotOrigin::Rebase).await
        };
        let (root, base) = (base.memory_base.unwrap(), f.add(base).await.unwrap());
        let by = SnapshotUser::Base { base, vm: b, name: name("b") };
        assert_eq!(f.store.snapshot_users(root).await.unwrap()[1], by);
        assert_eq!(by.to_string(), "the memory of VM b");
        let needless = async |id| f.store.read(move |view| view.needless_bases(id)).await.unwrap();
        assert_eq!(
            (needless(root).await, needless(child).await, needless(base).await),
            (vec![], vec![], vec![])
        );
        let above = NewSnapshot {
            memory_base: Some(base),
            parent: None,
            ..f.to_take(b, SnapshotOrigin::Rebase).await
        };
        let above = f.add(above).await.unwrap();
        assert_eq!(needless(base).await, [above]);
        f.remove(above).await.unwrap();
        f.remove(base).await.unwrap();
        let base = root;

        // Each need that ends is one less; the last one frees it.
        f.store.end_transaction(transaction.id, TransactionEnd::Committed).await.unwrap();
        f.store.set_vm_memory(a, None).await.unwrap();
        f.store.forget_instance(b, at).await.unwrap();
        assert_eq!(f.store.snapshot_users(base).await.unwrap(), [SnapshotUser::Child(child)]);
        let merge = move |tx: &Tx<'_>| tx.rebase_snapshot(child, None, &serde_json::json!({}), Bytes(99));
        f.store.transaction(merge).await.unwrap();
        let removed = f.remove(base).await.unwrap().unwrap();
        assert_eq!(removed.id, base);
        let merged = f.store.snapshot(child).await.unwrap().unwrap();
        assert_eq!((merged.memory_base, merged.size, merged.parent), (None, Bytes(99), None));
    }

    #[tokio::test]
    async fn the_tree_is_joined_around_what_is_removed() {
        let f = Fixture::new();
        let (vm, at) = f.stopped("a").await;
        let root = f.take(vm, SnapshotOrigin::Manual).await;
        let middle = f.take_named(vm, "middle").await;
        let leaf = f.take(vm, SnapshotOrigin::Manual).await;
        let (event, audit) = (*f.store.last_event().borrow(), f.store.audit_head().await.unwrap());
        assert_eq!(f.remove(middle).await.unwrap().unwrap().id, middle);
        assert_eq!(f.store.snapshot(leaf).await.unwrap().unwrap().parent, Some(root));
        assert_eq!(f.remove(middle).await.unwrap(), None, "once");
        let events = f.store.events(event, 9).await.unwrap().events;
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].kind, EventKind::SnapshotRemoved { snapshot: middle });
        let rows = f.store.audit(audit.seq, 9).await.unwrap();
        assert_eq!(rows[0].entry.detail, "manual snapshot `middle` of `a`");
        f.remove(leaf).await.unwrap();
        assert_eq!(f.store.vm(vm).await.unwrap().unwrap().position, Some(root), "the VM moves up too");
        f.go(vm, at, VmState::Destroyed).await.unwrap();
        f.remove(root).await.unwrap();
        assert_eq!(f.store.snapshots(None).await.unwrap(), []);
    }

    #[tokio::test]
    async fn what_the_tree_goes_on_from_is_removed_only_by_whoever_joins_it() {
        let f = Fixture::new();
        let (vm, _) = f.stopped("a").await;
        let root = f.take(vm, SnapshotOrigin::Manual).await;
        let new = NewSnapshot { memory_base: Some(root), ..f.to_take(vm, SnapshotOrigin::Auto).await };
        let next = f.add(new).await.unwrap();
        let leaf = f.take(vm, SnapshotOrigin::Manual).await;
        f.store.set_vm_memory(vm, Some(root)).await.unwrap();
        let remove = |id| {
            f.store.transaction(move |tx| {
                tx.remove_last_snapshot(id, OperationId::new(), &crate::fixture::actor())
            })
        };
        let refused = remove(root).await.unwrap_err();
        assert_eq!(refused.to_string(), format!("snapshot {root} is needed by snapshot {next}, VM a"));
        assert!(matches!(remove(next).await, Err(StoreError::InUse { .. })));
        assert_eq!(remove(leaf).await.unwrap().map(|gone| gone.id), Some(leaf));
        assert_eq!(remove(next).await.unwrap().map(|gone| gone.id), Some(next));
        let refused = remove(root).await.unwrap_err();
        assert_eq!(refused.to_string(), format!("snapshot {root} is needed by VM a"));
    }

    #[tokio::test]
    async fn a_snapshot_never_depends_on_itself() {
        let f = Fixture::new();
        let (vm, _) = f.stopped("a").await;
        let base = f.take(vm, SnapshotOrigin::Manual).await;
        let child = NewSnapshot { memory_base: Some(base), ..f.to_take(vm, SnapshotOrigin::Manual).await };
        let child = f.add(child).await.unwrap();
        for below in [base, child] {
            let turn =
                move |tx: &Tx<'_>| tx.rebase_snapshot(base, Some(below), &serde_json::json!({}), Bytes(1));
            let refused = f.store.transaction(turn).await.unwrap_err();
            assert!(matches!(refused, StoreError::Invalid { what: "snapshot", .. }), "{refused}");
        }
        assert_eq!(f.store.snapshot(base).await.unwrap().unwrap().memory_base, None);
    }
}
