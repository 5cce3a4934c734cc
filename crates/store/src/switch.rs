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

        let generation = vm.generation.next();
        let failure = match state {
            VmState::Failed(failure) => Some(to_json(failure)),
            _ => None,
        };
        let started = vm.started.filter(|_| state.name().has_process());
        let sql = "UPDATE vms SET state = ?2, failure = ?3, generation = ?4, updated = ?5, started = ?6, position = ?7
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
