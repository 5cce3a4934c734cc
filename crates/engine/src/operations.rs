//! Operations under way, for those who wait for them. The store holds all operations; this holds the live ones.
//!
//! ```text
//! accepted --open--> Ticket (owned by whoever carries it out)
//!                      |   (step: waiters see Running{step})
//!                      |-- close  -> waiters see the outcome, which is on disk
//!                      |-- drop   -> waiters see Failed{interrupted}; the next start settles the operation
//! ```
//! A ticket is answered exactly once, so no waiter outlives the one it waits for.

use crate::sync::lock;
use jiff::Timestamp;
use offshoot_types::{
    Actor, ErrorCode, Failure, Operation, OperationId, OperationKind, OperationOutcome, OperationState,
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};
use tokio::sync::{Notify, futures::OwnedNotified, watch};

#[derive(Debug, Clone, Default)]
pub(crate) struct Operations {
    live: Arc<Mutex<HashMap<OperationId, watch::Sender<Operation>>>>,
    opened: Arc<Notify>,
}

/// The duty to answer one operation's waiters.
#[derive(Debug)]
pub(crate) struct Ticket {
    operation: Operation,
    live: Arc<Mutex<HashMap<OperationId, watch::Sender<Operation>>>>,
}

impl Operations {
    pub fn open(&self, operation: Operation) -> Ticket {
        let (sender, _) = watch::channel(operation.clone());
        lock(&self.live).insert(operation.id, sender);
        self.opened.notify_waiters();
        Ticket { operation, live: self.live.clone() }
    }

    /// `None` if the operation has ended or is not known; the store can tell.
    pub fn watch(&self, id: OperationId) -> Option<watch::Receiver<Operation>> {
        lock(&self.live).get(&id).map(watch::Sender::subscribe)
    }

    /// Resolves when an operation is opened after this call.
    pub fn next_opened(&self) -> OwnedNotified {
        self.opened.clone().notified_owned()
    }

    /// Shows the waiters how far it is.
    pub fn step(&self, id: OperationId, step: &str, at: Timestamp) {
        if let Some(sender) = lock(&self.live).get(&id) {
            sender.send_modify(|operation| {
                operation.state = OperationState::Running { step: step.into() };
                operation.updated = at;
            });
        }
    }

    /// Those under way that change a VM and end by themselves. A process in a VM survives the daemon, code in a live
    /// context is interrupted with it, and an open transaction is its caller's to end.
    pub fn changes(&self) -> Vec<OperationId> {
        let live = lock(&self.live);
        let changes = live.values().filter(|operation| {
            !matches!(
                operation.borrow().kind,
                OperationKind::Exec
                    | OperationKind::WriteFiles
                    | OperationKind::Context
                    | OperationKind::Transaction
            )
        });
        changes.map(|operation| operation.borrow().id).collect()
    }

    /// Whether one of this kind is under way.
    pub fn any(&self, which: impl Fn(&Operation) -> bool) -> bool {
        lock(&self.live).values().any(|operation| which(&operation.borrow()))
    }

    /// All that are under way, and those of them that somebody else than the daemon asked for.
    pub fn count(&self) -> (usize, usize) {
        let live = lock(&self.live);
        let asked = live.values().filter(|operation| operation.borrow().actor != Actor::Daemon).count();
        (live.len(), asked)
    }
}

impl Ticket {
    pub fn operation(&self) -> &Operation {
        &self.operation
    }
    pub fn id(&self) -> OperationId {
        self.operation.id
    }

    /// Answers the waiters with an outcome that is on disk.
    pub fn close(self, outcome: OperationOutcome, at: Timestamp) {
        self.answer(outcome, at);
    }

    fn answer(&self, outcome: OperationOutcome, at: Timestamp) {
        if let Some(sender) = lock(&self.live).remove(&self.operation.id) {
            sender.send_modify(|operation| {
                operation.state = OperationState::Ended { outcome };
                operation.updated = at;
            });
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let failure = Failure::new(
            ErrorCode::Interrupted,
            format!("{} was cut off: the daemon is ending", self.operation.kind),
        )
        .hint("the next start of the daemon completes it or takes it back; see `offshoot status`");
        // Does nothing if the ticket was closed.
        self.answer(OperationOutcome::Failed { failure }, self.operation.updated);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use offshoot_types::Actor;

    fn operation() -> Operation {
        Operation {
            id: OperationId::new(),
            kind: OperationKind::Start,
            vm: None,
            actor: Actor::Daemon,
            reason: "test".into(),
            state: OperationState::Pending,
            undone_by: None,
            created: Timestamp::UNIX_EPOCH,
            updated: Timestamp::UNIX_EPOCH,
        }
    }

    #[tokio::test]
    async fn a_waiter_sees_each_step_and_then_the_outcome() {
        let operations = Operations::default();
        let ticket = operations.open(operation());
        let mut waiter = operations.watch(ticket.id()).unwrap();
        operations.step(ticket.id(), "boot", Timestamp::UNIX_EPOCH);
        waiter.changed().await.unwrap();
        assert_eq!(waiter.borrow_and_update().state, OperationState::Running { step: "boot".into() });
        ticket.close(OperationOutcome::Done, Timestamp::UNIX_EPOCH);
        waiter.changed().await.unwrap();
        assert_eq!(
            waiter.borrow_and_update().state,
            OperationState::Ended { outcome: OperationOutcome::Done }
        );
        assert_eq!(operations.count(), (0, 0));
    }

    #[tokio::test]
    async fn a_dropped_ticket_answers_its_waiters_as_interrupted() {
        let operations = Operations::default();
        let ticket = operations.open(operation());
        let mut waiter = operations.watch(ticket.id()).unwrap();
        drop(ticket);
        waiter.changed().await.unwrap();
        let state = waiter.borrow().state.clone();
        let OperationState::Ended { outcome: OperationOutcome::Failed { failure } } = state else {
            panic!("{state:?}")
        };
        assert_eq!(failure.code, ErrorCode::Interrupted);
    }
}
