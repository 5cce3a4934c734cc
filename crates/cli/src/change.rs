//! A change of a VM: ask for it, see it through, take it back if interrupted.
//!
//! ```text
//! request --journaled--> operation --ended--> done | failed (its failure is ours)
//!                           |--deadline------> status 6; the operation goes on in the daemon
//!                           |--Ctrl-C--------> undo, if the verb has one, then status 130
//! ```
//! The request itself is not raced against Ctrl-C: once it is journaled we must know, to be able to take it back.

use crate::{
    context::Context,
    failure::{Result, Stop},
    trace::TraceEvent,
};
use offshoot_api::{
    Client, ClientError,
    v1::{Change, Changed, DestroyQuery, EventQuery, Operation, OutcomeName, Vm},
};
use offshoot_types::{ErrorCode, Failure, VmId, VmRef};
use std::{convert::Infallible, future::Future, time::Duration};

/// How long taking back may take before the person is told what is left.
const UNDO_WITHIN: Duration = Duration::from_secs(30);
/// One long poll for events, with `-v`.
const EVENT_WAIT_MS: u64 = 30_000;

/// What an interrupted change needs to be as if it had never been asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Undo {
    /// What is under way can only be finished, and the daemon does so.
    LetItFinish,
    Stop,
    Destroy,
}

/// Asks by `request` and waits for the end. `what` reads like ``start of `web` ``.
pub async fn see_through(
    context: &Context,
    client: &Client,
    what: &str,
    undo: Undo,
    request: impl Future<Output = Result<Changed, ClientError>>,
) -> Result<Changed> {
    let progress = context.printer.progress(what);
    let seen_before = match context.verbose {
        0 => None,
        _ => Some(Box::pin(latest_event(client)).await?),
    };
    // On the heap: every verb holds one of these.
    progress
        .during(Box::pin(async {
            let accepted = context.bounded(what, async { Ok(request.await?) }).await?;
            let operation = match accepted.operation.ended() {
                true => accepted.operation,
                false => settle(context, client, what, undo, &accepted, seen_before).await?,
            };
            succeeded(&operation)?;
            let vm = match operation.vm {
                Some(id) => glance(client, id).await?,
                None => None,
            };
            Ok(Changed { operation, vm, snapshots_kept: None })
        }))
        .await
}

/// Asks by `request`, whose answer is its end. Interrupted, or once time is up, it goes on in the daemon, and the
/// person is told so.
pub async fn answered<T>(
    context: &Context,
    what: &str,
    request: impl Future<Output = Result<T, ClientError>>,
) -> Result<T> {
    let progress = context.printer.progress(what);
    let request = Box::pin(async { Ok(request.await?) });
    match context.interrupt.race(progress.during(context.bounded(what, request))).await {
        Ok(done) => done,
        Err(_) => {
            context.printer.note(&format!("{what} goes on in the daemon"));
            Err(Stop::Interrupted)
        }
    }
}

/// A request body that asks for an answer as soon as the change is journaled.
pub fn unwaited() -> Change {
    Change { wait: Some(false), ..Change::default() }
}

async fn settle(
    context: &Context,
    client: &Client,
    what: &str,
    undo: Undo,
    accepted: &Changed,
    seen_before: Option<u64>,
) -> Result<Operation> {
    let operation = &accepted.operation;
    let waiting = async {
        tokio::select! {
            biased;
            settled = client.settle(operation.id, context.deadline) => settled,
            never = tell_events(client, operation, seen_before) => match never {},
        }
    };
    match context.interrupt.race(waiting).await {
        Ok(Ok(ended)) => {
            if let Some(after) = seen_before {
                tell_page(client, operation, &EventQuery { after, ..EventQuery::default() }).await;
            }
            Ok(ended)
        }
        Ok(Err(ClientError::Timeout { after, .. })) => {
            let vm = accepted.vm.as_ref().map_or_else(String::new, |vm| format!(" {}", vm.name));
            Err(Failure::new(ErrorCode::Timeout, format!("{what} did not end within {after:?}"))
                .hint(format!("it goes on: `offshoot status{vm}` shows how far it is"))
                .into())
        }
        Ok(Err(error)) => Err(error.into()),
        Err(_) => {
            take_back(context, client, what, undo, operation).await;
            Err(Stop::Interrupted)
        }
    }
}

async fn take_back(context: &Context, client: &Client, what: &str, undo: Undo, operation: &Operation) {
    let Some(vm) = operation.vm.map(VmRef::Id) else { return };
    let undoing = async {
        let changed = match undo {
            Undo::LetItFinish => {
                context.printer.note(&format!("{what} goes on in the daemon"));
                return Ok(());
            }
            Undo::Stop => client.stop(&vm, &Change { grace_ms: Some(0), wait: Some(false) }).await?,
            Undo::Destroy => {
                client.destroy(&vm, &DestroyQuery { wait: Some(false), snapshots: false }).await?
            }
        };
        let ended = client.settle(changed.operation.id, Some(UNDO_WITHIN)).await?;
        succeeded(&ended).map_err(|failure| ClientError::Io {
            operation: "taking it back",
            source: std::io::Error::other(failure),
        })
    };
    if let Err(error) = undoing.await {
        let failure = error.into_failure();
        context
            .printer
            .warn(&format!("{what} could not be taken back: {failure}; see `offshoot status {vm}`"));
    }
}

fn succeeded(operation: &Operation) -> Result<(), Failure> {
    match (operation.outcome, &operation.problem) {
        (Some(OutcomeName::Failed), Some(problem)) => Err(problem.clone().into()),
        (Some(OutcomeName::Failed), None) => {
            Err(Failure::new(ErrorCode::Internal, format!("{} failed, and nobody noted why", operation.kind)))
        }
        (Some(OutcomeName::Interrupted), _) => Err(Failure::new(
            ErrorCode::Busy,
            format!("{} was interrupted by the end of the daemon", operation.kind),
        )
        .hint(match operation.undone {
            Some(true) => "it was taken back: try again",
            _ => "the next daemon completed it: see `offshoot status`",
        })),
        (Some(OutcomeName::Done) | None, _) => Ok(()),
    }
}

/// The VM as it is now; `None` once it is destroyed.
async fn glance(client: &Client, id: VmId) -> Result<Option<Vm>, ClientError> {
    match client.vm(&VmRef::Id(id)).await {
        Ok(vm) => Ok(Some(vm)),
        Err(error) if error.code() == ErrorCode::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The number of the newest event there is.
async fn latest_event(client: &Client) -> Result<u64, ClientError> {
    let mut after = 0;
    loop {
        let page = client.events(&EventQuery { after, ..EventQuery::default() }).await?;
        if page.events.is_empty() {
            return Ok(after);
        }
        after = page.next_after;
    }
}

/// With `-v`: what the daemon says of this operation and its VM, until dropped.
async fn tell_events(client: &Client, operation: &Operation, after: Option<u64>) -> Infallible {
    let mut after = after;
    while let Some(from) = after {
        let query = EventQuery { after: from, wait_ms: Some(EVENT_WAIT_MS), limit: None };
        after = tell_page(client, operation, &query).await;
    }
    std::future::pending().await
}

/// Tells one page and returns where the next begins; nothing once the daemon does not answer.
async fn tell_page(client: &Client, operation: &Operation, query: &EventQuery) -> Option<u64> {
    let page = client.events(query).await.ok()?;
    let ours = |event: &&offshoot_api::v1::Event| {
        event.operation == Some(operation.id) || (event.vm.is_some() && event.vm == operation.vm)
    };
    page.events.iter().filter(ours).for_each(|event| TraceEvent::VmEvent(event).emit());
    Some(page.next_after)
}
