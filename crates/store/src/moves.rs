//! Moving a VM through its state machine: row, event and audit row in one transaction.

use crate::{AuditDecision, AuditEntry, NewEvent, StoreError, Tx, row::to_json};
use offshoot_types::{Actor, EventKind, Generation, OperationId, VmId, VmState, VmStateName};
use rusqlite::params;

/// One move. `expected` is the generation the mover believes the VM to be at; if that is old, so are its reasons.
#[derive(Debug, Clone)]
pub struct Move {
    pub vm: VmId,
    pub expected: Generation,
    pub to: VmState,
    /// For people; never empty.
    pub reason: String,
    pub actor: Actor,
    /// The operation that does it; `None` for what was merely observed.
    pub operation: Option<OperationId>,
}

impl Tx<'_> {
    /// Moves a VM and returns its new generation. A move to `Starting` is admitted by the memory ledger; a move to
    /// `Destroyed` frees the name, and is refused while an instance is recorded, lest a process be forgotten.
    pub fn move_vm(&self, change: &Move) -> Result<Generation, StoreError> {
        let Move { vm: id, expected, to, reason, actor, operation } = change;
        if reason.trim().is_empty() {
            let detail = format!("the move of VM {id} to {to} has no reason");
            return Err(StoreError::Invalid { what: "reason", detail });
        }
        let vm = self.expect_vm(*id)?;
        if vm.generation != *expected {
            return Err(StoreError::StaleGeneration { vm: *id, expected: *expected, found: vm.generation });
        }
        vm.state.check_move(to).map_err(|source| StoreError::IllegalMove { vm: *id, source })?;
        match to.name() {
            VmStateName::Starting => self.admit_start(self.limits(), vm.spec.memory.bytes())?,
            VmStateName::Destroyed => {
                if let Some(instance) = self.instances_of(*id)?.into_iter().next() {
                    return Err(StoreError::InstanceRecorded { vm: *id, generation: instance.generation });
                }
            }
            _ => {}
        }

        let generation = vm.generation.next();
        let started = match to.name() {
            VmStateName::Running => Some(vm.started.unwrap_or(self.now())),
            name if name.has_process() => vm.started,
            _ => None,
        };
        let failure = match to {
            VmState::Failed(failure) => Some(to_json(failure)),
            _ => None,
        };
        let sql = "UPDATE vms SET state = ?2, failure = ?3, generation = ?4, updated = ?5, started = ?6
            WHERE id = ?1";
        let params = params![
            id.to_string(),
            to.name().as_str(),
            failure,
            generation.0,
            self.now_micros(),
            started.map(|at| at.as_microsecond()),
        ];
        self.execute("move a VM", sql, params)?;
        let detail = format!("{} -> {to}, generation {generation}: {reason}", vm.state);
        let (from, to) = (Some(vm.state), to.clone());
        self.emit(&NewEvent {
            owner: vm.owner,
            vm: Some((*id, vm.name)),
            operation: *operation,
            actor: actor.clone(),
            kind: EventKind::StateChanged { from, to, generation, reason: reason.clone() },
        })?;
        self.append_audit(
            &AuditEntry {
                actor: actor.clone(),
                action: "state-changed".into(),
                target: id.to_string(),
                decision: AuditDecision::Recorded,
                rules: Vec::new(),
                revision: String::new(),
                detail,
            },
            *operation,
        )?;
        Ok(generation)
    }
}
