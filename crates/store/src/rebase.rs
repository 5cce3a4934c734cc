//! The one moment of a rebase: from here on the VM is the process that was restored beside its own.

use crate::{StoreError, Tx, note::Subject};
use offshoot_types::{Actor, EventKind, Generation, LayerId, OperationId, SnapshotId, VmId, VmStateName};
use rusqlite::params;

/// A VM that runs goes on as it was in another process, on a disk layer above the one it wrote to.
#[derive(Debug, Clone)]
pub struct Rebase {
    pub vm: VmId,
    /// What the VM is believed to be at.
    pub expected: Generation,
    pub layer: LayerId,
    /// Whose complete memory the other process maps.
    pub onto: SnapshotId,
    pub actor: Actor,
    pub operation: OperationId,
}

impl Tx<'_> {
    /// Gives a VM that runs its next generation, and says why. Its state, its place in the tree and what `undo` goes back
    /// to are what they were. The caller has recorded the process of that generation before.
    pub fn rebase_vm(&self, rebase: &Rebase) -> Result<Generation, StoreError> {
        let Rebase { vm: id, expected, layer, onto, actor, operation } = rebase;
        let vm = self.expect_vm(*id)?;
        if vm.generation != *expected {
            return Err(StoreError::StaleGeneration { vm: *id, expected: *expected, found: vm.generation });
        }
        let generation = vm.generation.next();
        let maps = |row: &crate::InstanceRow| row.generation == generation && row.memory_base == Some(*onto);
        if vm.state.name() != VmStateName::Running || !self.instances_of(*id)?.iter().any(maps) {
            let detail =
                format!("VM {id} is {}, and has no process of generation {generation} over {onto}", vm.state);
            return Err(StoreError::Invalid { what: "rebase", detail });
        }
        self.set_vm_layer(*id, *layer)?;
        let sql = "UPDATE vms SET generation = ?2, updated = ?3 WHERE id = ?1";
        self.execute("rebase a VM", sql, params![id.to_string(), generation.0, self.now_micros()])?;
        let kind = EventKind::Rebased { onto: *onto, generation };
        let detail = format!("onto {onto}, generation {generation}");
        let subject = Subject { vm: &vm, operation: Some(*operation), actor };
        self.note(&subject, kind, "rebased", id.to_string(), detail)?;
        Ok(generation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        NewInstance, NewSnapshot,
        fixture::{Fixture, actor, new_layer},
    };
    use offshoot_types::{IsolationClass, OperationKind, ProviderKind, SnapshotOrigin, VmState};

    #[tokio::test]
    async fn a_rebase_is_a_new_generation_of_the_same_vm_at_the_same_place_of_its_history() {
        let f = Fixture::new();
        let (vm, at) = f.stopped("a").await;
        let kept = f.take_named(vm, "before").await;
        let undo = f.take(vm, SnapshotOrigin::Undo).await;
        let at = f.go(vm, at, VmState::Starting).await.unwrap();
        let at = f.go(vm, at, VmState::Running).await.unwrap();
        let base = f.to_take(vm, SnapshotOrigin::Rebase).await;
        let base = f.add(NewSnapshot { parent: None, ..base }).await.unwrap();
        let before = f.store.vm(vm).await.unwrap().unwrap();
        assert_eq!(before.position, Some(undo), "a base is part of no history");
        let layer = new_layer(before.layer);
        f.store.add_layer(layer.clone()).await.unwrap();
        let rebase = Rebase {
            vm,
            expected: at,
            layer: layer.id,
            onto: base,
            actor: actor(),
            operation: f.begun(OperationKind::Rebase, vm).await,
        };
        let go = |rebase: Rebase| f.store.transaction(move |tx| tx.rebase_vm(&rebase));
        let without_process = go(rebase.clone()).await.unwrap_err();
        assert!(matches!(without_process, StoreError::Invalid { what: "rebase", .. }), "{without_process}");
        assert_eq!(f.store.vm(vm).await.unwrap().unwrap(), before, "and nothing has changed");

        let class = IsolationClass::EmulatedVm;
        let new = NewInstance::new(vm, at.next(), ProviderKind::Fake, class, Some(base), &0).unwrap();
        f.store.record_instance(new).await.unwrap();
        let event = *f.store.last_event().borrow();
        assert_eq!(go(rebase.clone()).await.unwrap(), at.next());
        let after = f.store.vm(vm).await.unwrap().unwrap();
        assert_eq!((after.generation, after.layer), (at.next(), Some(layer.id)));
        assert_eq!((&after.state, after.position, after.memory), (&VmState::Running, Some(undo), None));
        assert_eq!((after.started, after.deadline), (before.started, before.deadline));
        let newest = f.store.read(move |view| view.newest_undo(vm)).await.unwrap();
        assert_eq!(newest.map(|snapshot| snapshot.id), Some(undo));
        let parents = f.store.read(move |view| view.snapshots_after(kept)).await.unwrap();
        assert_eq!(parents, [undo]);
        let events = f.store.events(event, 9).await.unwrap().events;
        let kinds: Vec<_> = events.into_iter().map(|event| event.kind).collect();
        assert_eq!(kinds, [EventKind::Rebased { onto: base, generation: at.next() }]);
        let stale = go(rebase).await.unwrap_err();
        assert!(matches!(stale, StoreError::StaleGeneration { .. }), "{stale}");
    }
}
