//! One task per open transaction: it rolls back what nobody ends, and tries again what could not be rolled back.
//!
//! ```text
//! select: ended | engine ends | wished for (a denial, a rollback that failed) | VM failed | deadline --> roll back
//!            ^                                                                                             |
//!            +-------------------------------- failed: again after 1 s, 2 s, ... 60 s ---------------------+
//! ```
//! What an ending engine leaves open, the next one rolls back before it takes requests for the VM.

use super::owner::Watched;
use crate::{
    core::{Authority, Core},
    manager::VmHandle,
    trace::{Scope, TraceEvent},
};
use offshoot_types::{
    Actor, ErrorCode, Failure, OperationOutcome, RollbackCause, TransactionId, VmStateName,
};
use std::{sync::Arc, time::Duration};
use tokio::{sync::watch, time::Instant};

const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MOST: Duration = Duration::from_secs(60);

pub(super) struct Watch {
    pub core: Arc<Core>,
    pub handle: VmHandle,
    pub id: TransactionId,
    /// When its time is up, by a clock nobody sets.
    pub until: Instant,
    pub watched: Watched,
}

impl Watch {
    pub async fn run(self) {
        let scope = Scope { vm: Some(self.handle.id), op: None, actor: Some(Actor::Daemon) };
        let mut pause = RETRY_FIRST;
        for attempt in 1.. {
            let Some(cause) = self.next().await else { return };
            let (core, handle) = (&self.core, &self.handle);
            let Err(failure) = core.undo_transaction(handle, self.id, cause, Authority::Daemon).await else {
                return;
            };
            if self.watched.ended.is_cancelled() {
                return;
            }
            TraceEvent::RollbackRetry { attempt, error: &failure.message, next: pause }.emit(&scope);
            tokio::select! {
                biased;
                () = self.watched.ended.cancelled() => return,
                () = self.core.closing.cancelled() => return,
                () = self.reached(VmStateName::Destroyed) => {}
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(RETRY_MOST);
        }
    }

    /// Why it must be rolled back now; `None` once there is nothing left to watch.
    async fn next(&self) -> Option<RollbackCause> {
        tokio::select! {
            biased;
            () = self.watched.ended.cancelled() => return None,
            () = self.core.closing.cancelled() => return None,
            // Nothing can be rolled back any more, whatever is wished for.
            () = self.reached(VmStateName::Destroyed) => {}
            cause = wished(self.watched.wish.clone()) => return Some(cause),
            () = self.reached(VmStateName::Failed) => return Some(RollbackCause::GuestCrashed),
            () = tokio::time::sleep_until(self.until) => return Some(RollbackCause::Deadline),
        }
        self.abandon().await;
        None
    }

    async fn reached(&self, state: VmStateName) {
        let mut view = self.handle.view.clone();
        let reached = view.wait_for(|view| view.state.name() == state).await.is_ok();
        if !reached && state != VmStateName::Destroyed {
            // Its driver has let go of it, which it does of a destroyed VM, or with the engine.
            std::future::pending::<()>().await;
        }
    }

    /// The record of the destroyed VM has ended its transactions; their operations end here.
    async fn abandon(&self) {
        let name = &self.handle.name;
        let failure = Failure::new(
            ErrorCode::Interrupted,
            format!("VM `{name}` was destroyed, and what was done in it"),
        );
        let tickets = self.handle.shared.ownership.abandon();
        self.core.close_all(tickets, &OperationOutcome::Failed { failure }).await;
    }
}

async fn wished(mut wish: watch::Receiver<Option<RollbackCause>>) -> RollbackCause {
    loop {
        if let Some(cause) = wish.borrow_and_update().clone() {
            return cause;
        }
        if wish.changed().await.is_err() {
            // It has ended, which the other branches see.
            std::future::pending::<()>().await;
        }
    }
}
