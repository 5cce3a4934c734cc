//! A caller's way into a running guest for files and TCP, with the record of what it was for.

use crate::{
    branch::transactions::Opening, core::Core, link::GuestLink, operations::Ticket, tasks::TaskKind,
};
use offshoot_guest_proto::client::Client;
use offshoot_types::{ErrorCode, Failure, OperationId, OperationOutcome};
use std::sync::Arc;

/// Writing is an operation: say how it went with [`complete`](Self::complete). Dropped without, it is recorded
/// as interrupted.
#[derive(Debug)]
pub struct GuestAccess {
    core: Arc<Core>,
    client: Client,
    /// The VM is worked with until this is dropped.
    _link: GuestLink,
    ticket: Option<Ticket>,
    /// Until what is written is written, no transaction begins.
    _opening: Option<Opening>,
}

impl GuestAccess {
    pub(crate) fn new(
        core: Arc<Core>,
        (link, client): (GuestLink, Client),
        ticket: Option<Ticket>,
        opening: Option<Opening>,
    ) -> Self {
        Self { core, client, _link: link, ticket, _opening: opening }
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    /// `None` for access that changes nothing.
    pub fn operation(&self) -> Option<OperationId> {
        self.ticket.as_ref().map(Ticket::id)
    }

    /// Records the outcome; returns once it is on disk.
    pub async fn complete(mut self, outcome: Result<(), Failure>) {
        if let Some(ticket) = self.ticket.take() {
            self.core.close(ticket, outcome_of(outcome)).await;
        }
    }
}

impl Drop for GuestAccess {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket.take() else { return };
        let failure = Failure::new(ErrorCode::Interrupted, "the caller went away before it was done");
        let (core, scope) = (self.core.clone(), crate::core::scope(ticket.operation()));
        self.core.tasks.spawn(TaskKind::Recorder, scope, async move {
            core.close(ticket, outcome_of(Err(failure))).await;
        });
    }
}

fn outcome_of(outcome: Result<(), Failure>) -> OperationOutcome {
    match outcome {
        Ok(()) => OperationOutcome::Done,
        Err(failure) => OperationOutcome::Failed { failure },
    }
}
