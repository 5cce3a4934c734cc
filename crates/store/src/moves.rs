//! Moving a VM through its state machine: row, event and audit row in one transaction.

use crate::{AuditDecision, AuditEntry, NewEvent, StoreError, Tx, row::to_json};
use offshoot_types::{
    Actor, EventKind, Generation, OperationId, RollbackCause, TransactionEnd, VmId, VmState, VmStateName,
};
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
                // Its state is gone, and with it whatever they would have gone back to.
                self.end_transactions_of(&vm, &TransactionEnd::RolledBack { cause: RollbackCause::Asked })?;
                self.let_go(*id)?;
            }
            VmStateName::Suspended if vm.memory.is_none() => {
                let detail = format!("VM {id} has no memory to continue from");
                return Err(StoreError::Invalid { what: "state", detail });
            }
            _ => {}
        }

        let generation = vm.generation.next();
        let started = match to.name() {
            VmStateName::Running => Some(vm.started.unwrap_or(self.now())),
            name if name.has_process() => vm.started,
            _ => None,
        };
        let deadline = match (vm.started, started) {
            (None, Some(_)) => self.after(vm.life.timeout),
            (Some(_), Some(_)) => vm.deadline,
            (_, None) => None,
        };
        let failure = match to {
            VmState::Failed(failure) => Some(to_json(failure)),
            _ => None,
        };
        let sql = "UPDATE vms SET state = ?2, failure = ?3, generation = ?4, updated = ?5, started = ?6,
            deadline = ?7 WHERE id = ?1";
        let params = params![
            id.to_string(),
            to.name().as_str(),
            failure,
            generation.0,
            self.now_micros(),
            started.map(|at| at.as_microsecond()),
            deadline.map(|at| at.as_microsecond()),
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

    /// A destroyed VM needs neither disk nor snapshots; its row stays while somebody refers to it.
    fn let_go(&self, vm: VmId) -> Result<(), StoreError> {
        self.forget_contexts(vm)?;
        let sql = "UPDATE vms SET layer = NULL, memory = NULL, position = NULL WHERE id = ?1";
        self.execute("let go of a VM's state", sql, params![vm.to_string()]).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{Fixture, failed, instance, move_to, new_vm, operation};
    use offshoot_types::{Event, EventId, OperationKind};

    #[tokio::test]
    async fn a_move_writes_row_event_and_audit_together() {
        let f = Fixture::new();
        let (vm, at) = f.stopped("a").await;
        let (before, audit) =
            (f.store.events(EventId(0), 100).await.unwrap().last, f.store.audit_head().await.unwrap());
        let after = f.go(vm, at, VmState::Starting).await.unwrap();
        assert_eq!(after, at.next());
        let row = f.store.vm(vm).await.unwrap().unwrap();
        assert_eq!((row.state, row.generation), (VmState::Starting, after));
        let page = f.store.events(before, 100).await.unwrap();
        let [Event { kind: EventKind::StateChanged { from, to, generation, .. }, vm: Some(of), .. }] =
            &page.events[..]
        else {
            panic!("one event: {page:?}");
        };
        assert_eq!((from, to), (&Some(VmState::Stopped), &VmState::Starting));
        assert_eq!((*generation, *of), (after, vm));
        let rows = f.store.audit(audit.seq, 100).await.unwrap();
        assert_eq!(rows.len(), 1);
        assert!(rows[0].entry.detail.starts_with("stopped -> starting, generation 3"), "{rows:?}");
    }

    #[tokio::test]
    async fn a_stale_an_illegal_and_an_unexplained_move_change_nothing() {
        let f = Fixture::new();
        let (vm, at) = f.stopped("a").await;
        let before = (f.store.vms().await.unwrap(), f.store.events(EventId(0), 100).await.unwrap());
        let stale = f.go(vm, Generation(1), VmState::Starting).await.unwrap_err();
        assert!(matches!(stale, StoreError::StaleGeneration { found, .. } if found == at), "{stale}");
        let illegal = f.go(vm, at, VmState::Paused).await.unwrap_err();
        assert!(matches!(illegal, StoreError::IllegalMove { .. }), "{illegal}");
        let silent = Move { reason: " ".into(), ..move_to(vm, at, VmState::Starting) };
        assert!(matches!(f.store.move_vm(silent).await, Err(StoreError::Invalid { what: "reason", .. })));
        assert_eq!((f.store.vms().await.unwrap(), f.store.events(EventId(0), 100).await.unwrap()), before);
    }

    #[tokio::test]
    async fn uptime_begins_when_it_runs_survives_a_pause_and_ends_with_the_process() {
        let f = Fixture::new();
        let (vm, at) = f.stopped("a").await;
        let at = f.go(vm, at, VmState::Starting).await.unwrap();
        f.clock.advance(jiff::SignedDuration::from_secs(5));
        let at = f.go(vm, at, VmState::Running).await.unwrap();
        let began = f.store.vm(vm).await.unwrap().unwrap().started;
        assert!(began.is_some());
        f.clock.advance(jiff::SignedDuration::from_secs(5));
        let at = f.go(vm, at, VmState::Paused).await.unwrap();
        let at = f.go(vm, at, VmState::Running).await.unwrap();
        assert_eq!(f.store.vm(vm).await.unwrap().unwrap().started, began);
        let at = f.go(vm, at, failed()).await.unwrap();
        let row = f.store.vm(vm).await.unwrap().unwrap();
        assert_eq!((row.started, row.state), (None, failed()), "the reason of a failure is kept");
        f.go(vm, at, VmState::Stopped).await.unwrap();
    }

    #[tokio::test]
    async fn a_vm_with_a_recorded_instance_is_not_destroyed_and_a_destroyed_one_frees_its_name() {
        let f = Fixture::new();
        let (vm, at) = f.stopped("a").await;
        let at = f.go(vm, at, VmState::Starting).await.unwrap();
        f.store.record_instance(instance(vm, at)).await.unwrap();
        let refused = f.go(vm, at, VmState::Destroyed).await.unwrap_err();
        assert!(matches!(refused, StoreError::InstanceRecorded { .. }), "{refused}");
        f.store.forget_instance(vm, at).await.unwrap();
        f.go(vm, at, VmState::Destroyed).await.unwrap();
        assert_eq!(f.store.vms().await.unwrap(), []);
        assert_eq!(f.store.vm(vm).await.unwrap().unwrap().state, VmState::Destroyed, "history is kept");
        let again = new_vm("a");
        f.store.create_vm(operation(OperationKind::Create, Some(again.id)), again).await.unwrap();
        let gone = f.go(vm, at.next(), VmState::Starting).await.unwrap_err();
        assert!(matches!(gone, StoreError::NotFound { .. }), "{gone}");
    }
}
