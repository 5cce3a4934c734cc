//! A change told twice in the transaction that makes it: an event for who listens, an audit row for who asks later.

use crate::{AuditDecision, AuditEntry, NewEvent, StoreError, Tx, VmRecord};
use offshoot_types::{Actor, EventId, EventKind, OperationId};

/// Whose VM was changed, by whom, on account of what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub vm: &'a VmRecord,
    pub operation: Option<OperationId>,
    pub actor: &'a Actor,
}

impl Tx<'_> {
    /// Returns the event's place in the order of all that happened.
    pub(crate) fn note(
        &self,
        subject: &Subject<'_>,
        kind: EventKind,
        action: &str,
        target: String,
        detail: String,
    ) -> Result<EventId, StoreError> {
        let Subject { vm, operation, actor } = *subject;
        let event = self.emit(&NewEvent {
            owner: vm.owner.clone(),
            vm: Some((vm.id, vm.name.clone())),
            operation,
            actor: actor.clone(),
            kind,
        })?;
        let entry = AuditEntry {
            actor: actor.clone(),
            action: action.into(),
            target,
            decision: AuditDecision::Recorded,
            rules: Vec::new(),
            revision: String::new(),
            detail,
        };
        self.append_audit(&entry, operation)?;
        Ok(event)
    }
}
