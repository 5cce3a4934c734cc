//! The one moment of a rollback: from here on the VM is the other state.

use crate::{NewEvent, StoreError, Tx, note::Subject, row::to_json};
use offshoot_types::{
    Actor, EventKind, Generation, LayerId, OperationId, SnapshotId, VmId, VmState, VmStateName,
};
use rusqlite::params;

/// A VM continues from a snapshot, on a disk layer of its own above the snapshot's.
#[derive(Debug, Clone)]
pub struct Switch {
    pub vm: VmId,
    /// What the VM is believed to be at; if that is old, so are the reasons for the switch.
    pub expected: Generation,
    pub layer: LayerId,
    /// Where it stands in the tree from now on: `to`, unless that belongs to another tree.
    pub position: Option<SnapshotId>,
    pub to: SnapshotId,
    /// What holds the state it leaves.
    pub undo: Option<SnapshotId>,
    /// For people; never empty.
    pub reason: String,
    pub actor: Actor,
    pub operation: OperationId,
    /// As it was, or one it may become.
    pub state: VmState,
}

impl Tx<'_> {
    /// Switches a VM to another state of its tree and returns its new generation: disk layer, position and, if it has no
    /// process afterwards and the snapshot has one, the memory it continues from. The caller records and forgets
    /// instances in the same transaction.
    pub fn switch_vm(&self, switch: &Switch) -> Result<Generation, StoreError> {
        let Switch { vm: id, expected, layer, position, to, undo, reason, actor, operation, state } = switch;
        if reason.trim().is_empty() {
            let detail = format!("the switch of VM {id} to {to} has no reason");
            return Err(StoreError::Invalid { what: "reason", detail });
        }
        let vm = self.expect_vm(*id)?;
        if vm.generation != *expected {
            return Err(StoreError::StaleGeneration { vm: *id, expected: *expected, found: vm.generation });
        }
        if vm.state != *state {
            vm.state.check_move(state).map_err(|source| StoreError::IllegalMove { vm: *id, source })?;
        }
        let target = self.expect_usable_snapshot(*to)?;
        for other in [position, undo].into_iter().flatten() {
            self.expect_snapshot(*other)?;
        }
        self.set_vm_layer(*id, *layer)?;
        let suspended = state.name() == VmStateName::Suspended;
        self.set_vm_memory(*id, suspended.then_some(target.id))?;
        self.set_vm_kept_disk(*id, None)?;

        let generation = vm.generation.next();
        let failure = match state {
            VmState::Failed(failure) => Some(to_json(failure)),
            _ => None,
        };
        let started = vm.started.filter(|_| state.name().has_process());
        let sql = "UPDATE vms SET state = ?2, failure = ?3, generation = ?4, updated = ?5, started = ?6,
            deadline = CASE WHEN ?6 IS NULL THEN NULL ELSE deadline END, position = ?7
            WHERE id = ?1";
        let params = params![
            id.to_string(),
            state.name().as_str(),
            failure,
            generation.0,
            self.now_micros(),
            started.map(|at| at.as_microsecond()),
            position.map(|position| position.to_string()),
        ];
        self.execute("switch a VM", sql, params)?;
        let kind = EventKind::RolledBack { to: *to, undo: *undo, generation };
        let left = undo.map_or_else(|| "nothing".to_owned(), |undo| undo.to_string());
        let detail = format!("to {to}, generation {generation}, keeping {left}: {reason}");
        let subject = Subject { vm: &vm, operation: Some(*operation), actor };
        self.note(&subject, kind, "rolled-back", id.to_string(), detail)?;
        if vm.state != *state {
            let (from, to) = (Some(vm.state.clone()), state.clone());
            self.emit(&NewEvent {
                owner: vm.owner,
                vm: Some((*id, vm.name)),
                operation: Some(*operation),
                actor: actor.clone(),
                kind: EventKind::StateChanged { from, to, generation, reason: reason.clone() },
            })?;
        }
        Ok(generation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        NewSnapshot,
        fixture::{Fixture, actor, new_layer},
    };
    use offshoot_types::{OperationKind, SnapshotKind, SnapshotOrigin};

    async fn prepared(f: &Fixture) -> (VmId, SnapshotId, Switch) {
        let (vm, expected) = f.stopped("a").await;
        let to = f.take(vm, SnapshotOrigin::Manual).await;
        let layer = new_layer(Some(f.store.snapshot(to).await.unwrap().unwrap().layer));
        f.store.add_layer(layer.clone()).await.unwrap();
        let switch = Switch {
            vm,
            expected,
            layer: layer.id,
            position: Some(to),
            to,
            undo: None,
            reason: "a test says so".into(),
            actor: actor(),
            operation: f.begun(OperationKind::Rollback, vm).await,
            state: VmState::Stopped,
        };
        (vm, to, switch)
    }

    #[tokio::test]
    async fn a_switch_changes_the_state_the_generation_and_the_place_in_one_event() {
        let f = Fixture::new();
        let (vm, to, switch) = prepared(&f).await;
        f.take(vm, SnapshotOrigin::Undo).await;
        let (event, audit) = (*f.store.last_event().borrow(), f.store.audit_head().await.unwrap());
        let generation = f.store.switch_vm(switch.clone()).await.unwrap();
        assert_eq!(generation, switch.expected.next());
        let row = f.store.vm(vm).await.unwrap().unwrap();
        assert_eq!((row.layer, row.position, row.memory), (Some(switch.layer), Some(to), None));
        assert_eq!((row.state, row.generation), (VmState::Stopped, generation));
        let events = f.store.events(event, 9).await.unwrap().events;
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].kind, EventKind::RolledBack { to, undo: None, generation });
        assert_eq!(f.store.audit(audit.seq, 9).await.unwrap().len(), 1);
        let stale = f.store.switch_vm(switch).await.unwrap_err();
        assert!(matches!(stale, StoreError::StaleGeneration { .. }), "{stale}");
    }

    #[tokio::test]
    async fn what_was_kept_of_a_disk_in_memory_is_in_the_record_until_the_vm_is_another_state() {
        let mut f = Fixture::new();
        let (vm, _, switch) = prepared(&f).await;
        let kept = crate::KeptDisk {
            operation: switch.operation,
            file: "disk-x.kept".into(),
            length: 7,
            unpacked: 8,
            hash: "ab".into(),
            current: true,
        };
        let told = kept.clone();
        f.store.transaction(move |tx| tx.set_vm_kept_disk(vm, Some(&told))).await.unwrap();
        f.reopen().await;
        assert_eq!(f.store.vm(vm).await.unwrap().unwrap().kept_disk, Some(kept));
        f.store.switch_vm(switch).await.unwrap();
        assert_eq!(f.store.vm(vm).await.unwrap().unwrap().kept_disk, None);
    }

    #[tokio::test]
    async fn a_vm_without_process_continues_from_the_memory_it_was_switched_to() {
        let f = Fixture::new();
        let (vm, to, switch) = prepared(&f).await;
        let event = *f.store.last_event().borrow();
        let generation =
            f.store.switch_vm(Switch { state: VmState::Suspended, ..switch.clone() }).await.unwrap();
        let row = f.store.vm(vm).await.unwrap().unwrap();
        assert_eq!((row.memory, row.state), (Some(to), VmState::Suspended));
        let kinds: Vec<_> =
            f.store.events(event, 9).await.unwrap().events.into_iter().map(|event| event.kind).collect();
        let EventKind::StateChanged { to: state, generation: at, .. } = &kinds[1] else {
            panic!("{kinds:?}")
        };
        assert_eq!((state, *at), (&VmState::Suspended, generation));
        // A disk has no memory to continue from.
        let disk =
            NewSnapshot { kind: SnapshotKind::DiskOnly, ..f.to_take(vm, SnapshotOrigin::Manual).await };
        let disk = f.add(disk).await.unwrap();
        let layer = f.store.vm(vm).await.unwrap().unwrap().layer.unwrap();
        let again = Switch { to: disk, layer, expected: generation, state: VmState::Suspended, ..switch };
        let refused = f.store.switch_vm(again).await.unwrap_err();
        assert!(matches!(refused, StoreError::Invalid { what: "snapshot", .. }), "{refused}");
    }

    #[tokio::test]
    async fn what_cannot_be_is_refused_and_changes_nothing() {
        let f = Fixture::new();
        let (vm, to, switch) = prepared(&f).await;
        let before = f.store.vm(vm).await.unwrap();
        let frozen = f.store.snapshot(to).await.unwrap().unwrap().layer;
        for (what, wrong) in [
            ("no reason", Switch { reason: " ".into(), ..switch.clone() }),
            ("a frozen layer", Switch { layer: frozen, ..switch.clone() }),
            ("an impossible state", Switch { state: VmState::Running, ..switch.clone() }),
            ("no snapshot", Switch { to: SnapshotId::new(), ..switch.clone() }),
            ("no undo", Switch { undo: Some(SnapshotId::new()), ..switch.clone() }),
        ] {
            assert!(f.store.switch_vm(wrong).await.is_err(), "{what}");
        }
        f.store.snapshot_damaged(to).await.unwrap();
        let damaged = f.store.switch_vm(switch).await.unwrap_err();
        assert!(matches!(damaged, StoreError::SnapshotDamaged { .. }), "{damaged}");
        assert_eq!(f.store.vm(vm).await.unwrap(), before);
    }
}
