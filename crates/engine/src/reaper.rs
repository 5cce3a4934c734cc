//! Destroys what nobody wants any more, until it is gone.
//!
//! ```text
//! reap(vm) --> destroy --ok--> forgotten
//!                 ^  |
//!                 +--+ failed: again after 1 s, 2 s, ... 60 s
//! ```
//! Fed by dropped request guards, failed destroys and the daemon's start. What it has not finished when the
//! engine ends is found again by the next start: the VM's row says whose it is.

use crate::{
    core::Core,
    trace::{Scope, TraceEvent},
};
use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use offshoot_types::{Actor, ErrorCode, OperationOutcome, OperationState, VmId};
use std::{collections::HashSet, sync::Arc, time::Duration};
use tokio::sync::mpsc;

const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MOST: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct Reap {
    pub vm: VmId,
    pub reason: &'static str,
}

/// Runs until the engine ends.
pub(crate) async fn run(core: Arc<Core>, mut wanted: mpsc::UnboundedReceiver<Reap>) {
    let mut working: FuturesUnordered<BoxFuture<'static, VmId>> = FuturesUnordered::new();
    let mut known = HashSet::new();
    loop {
        tokio::select! {
            biased;
            Some(done) = working.next(), if !working.is_empty() => {
                known.remove(&done);
            }
            reap = wanted.recv() => match reap {
                // A VM that is being reaped already needs no second one.
                Some(reap) if known.insert(reap.vm) => {
                    working.push(Box::pin(until_gone(core.clone(), reap)));
                }
                Some(_) => {}
                None => return,
            },
            // What is not gone yet is found by the next start.
            () = core.closing.cancelled() => return,
        }
    }
}

async fn until_gone(core: Arc<Core>, Reap { vm, reason }: Reap) -> VmId {
    let scope = Scope { vm: Some(vm), op: None, actor: Some(Actor::Daemon) };
    let mut next = RETRY_FIRST;
    for attempt in 1.. {
        let error = match core.destroy(vm, reason).await {
            Err(failure) if failure.code == ErrorCode::NotFound => return vm,
            Err(failure) => failure.message,
            Ok(operation) => match operation.state {
                OperationState::Ended { outcome: OperationOutcome::Failed { failure } } => failure.message,
                _ => return vm,
            },
        };
        if core.manager.check_open().is_err() {
            return vm;
        }
        TraceEvent::ReaperRetry { attempt, error: &error, next }.emit(&scope);
        tokio::time::sleep(next).await;
        next = (next * 2).min(RETRY_MOST);
    }
    vm
}
