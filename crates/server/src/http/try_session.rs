//! One exec as a transaction, on one WebSocket.
//!
//! ```text
//! request --> begun --> command: started, (output | lost)*, part-ended --> check: the same --> ended | failed --> close
//!                          ^ stdin, signal, kill           ^ roll-back, at any time
//! ```
//! A caller that leaves rolls back: the engine does so whenever a session is dropped before its end. One that asks for
//! it (`roll-back`) is told when that is done.

use super::{
    channel::{Channel, Heard, Left, Sink, Source, pings, wire},
    error::{ApiError, BranchErrors},
    exec_session::stdin,
    extract::{Upgrade, Vm, parse_json},
    request::Call,
    vms,
};
use axum::response::Response;
use offshoot_api::v1::{TryInput, TryMessage, TryOutcome, TryPart, TryRequest, encode_try_output};
use offshoot_engine::{EventStream, ExecEvent, ExecInput, TryEvent, TrySession};
use offshoot_types::{
    Command, ErrorCode, EventKind, Failure, TransactionEnd, TransactionId, TrySpec, VmId, VmRef,
};
use std::convert::Infallible;
use tokio::sync::Notify;

/// Run a command as a transaction: a WebSocket whose first text frame is a `TryRequest`. The VM is kept as the command
/// leaves it if command and check exit with 0; otherwise, and when the socket closes, it is as it was before.
#[utoipa::path(get, path = "/v1/vms/{vm}/try", tag = "transactions", operation_id = "try",
    params(("vm" = String, Path, description = "Name or id")),
    responses((status = 101, description = "`TryRequest`, then `TryInput`s and `TryMessage`s"), BranchErrors))]
pub async fn attempt(call: Call, Vm(vm): Vm, upgrade: Upgrade) -> Result<Response, ApiError> {
    // A stranger, or a name that means nothing, is told so by HTTP.
    let vm = vms::glance(&call, vm).await?.id;
    let present = call.app.activity.enter_session()?;
    Ok(upgrade.serve(move |socket| async move {
        let _present = present;
        let mut channel = Channel::new(socket);
        let outcome = session(&call, &mut channel, vm).await;
        channel.close(&call, outcome).await;
    }))
}

async fn session(call: &Call, channel: &mut Channel, vm: VmId) -> Result<(), Left> {
    let request: TryRequest = channel.request().await?;
    let spec = Box::new(TrySpec::try_from(request)?);
    // From before it begins, so that its end cannot be missed.
    let inspect = call.permit(Command::Inspect { vm: Some(VmRef::Id(vm)) }).await?;
    let events = call.engine.events(inspect, None).await?;
    let permit = call.permit(Command::Try { vm: VmRef::Id(vm), spec }).await?;
    let session = channel.while_connected(call.engine.try_exec(permit)).await??;
    let (input, give_up) = (session.input().clone(), Notify::new());
    let Channel { sink, source } = channel;
    tokio::select! {
        told = tell(sink, session, events, &give_up) => told,
        left = listen(source, &input, &give_up) => left.map(|never| match never {}),
        () = call.app.shutdown.expired() => {
            Err(vms::stopping().hint("what was tried is rolled back; repeat the command").into())
        }
    }
}

/// Takes the caller's frames until it leaves.
async fn listen(source: &mut Source, input: &ExecInput, give_up: &Notify) -> Result<Infallible, Left> {
    loop {
        let text = match source.next().await? {
            Heard::Binary(frame) => {
                stdin(input, frame).await?;
                continue;
            }
            Heard::Text(text) => text,
        };
        let order: TryInput = parse_json(text.as_bytes())?;
        // A command that has ended takes no orders; how it ended is on its way to the caller.
        let _ended = match order.check()? {
            TryInput::StdinEnd => input.end_stdin().await,
            TryInput::Signal { signal } => input.signal(signal).await,
            TryInput::Kill => input.kill().await,
            TryInput::RollBack => {
                give_up.notify_one();
                Ok(())
            }
        };
    }
}

/// Returns when the last event was told, or could not be.
async fn tell(
    sink: &mut Sink,
    mut session: TrySession,
    events: EventStream,
    give_up: &Notify,
) -> Result<(), Left> {
    let mut pings = pings();
    let mut begun = None;
    loop {
        let event = tokio::select! {
            biased;
            // There is something to roll back only once it has begun.
            () = give_up.notified(), if begun.is_some() => break,
            event = session.next() => event,
            _ = pings.tick() => {
                sink.ping().await?;
                continue;
            }
        };
        let message = match event {
            Some(TryEvent::Begun { transaction, snapshot }) => {
                begun = Some(transaction);
                Some(TryMessage::Begun { transaction, snapshot })
            }
            Some(TryEvent::Exec(event)) => tell_part(sink, TryPart::Command, event).await?,
            Some(TryEvent::Check(event)) => tell_part(sink, TryPart::Check, event).await?,
            Some(TryEvent::Ended(end)) => {
                let status = end.status.map(Into::into);
                let outcome = TryOutcome { transaction: end.transaction, end: end.end.into(), status };
                return sink.say(&TryMessage::Ended(outcome)).await;
            }
            Some(TryEvent::Failed(failure)) => return Err(failure.into()),
            None => return Err(Failure::new(ErrorCode::Internal, "the try ended without an end").into()),
        };
        if let Some(message) = message {
            sink.say(&message).await?;
        }
    }
    drop(session);
    match begun {
        Some(transaction) => {
            let end = ended(sink, events, transaction).await?;
            let outcome = TryOutcome { transaction, end: end.into(), status: None };
            sink.say(&TryMessage::Ended(outcome)).await
        }
        None => Err(Failure::new(ErrorCode::Internal, "a try was given up before it began").into()),
    }
}

/// What is told of one of the two processes; output is told at once.
async fn tell_part(sink: &mut Sink, part: TryPart, event: ExecEvent) -> Result<Option<TryMessage>, Left> {
    Ok(match event {
        ExecEvent::Started { pid } => Some(TryMessage::Started { part, pid }),
        ExecEvent::Output { stream, data, .. } => {
            sink.bytes(encode_try_output(part, wire(stream), &data)).await?;
            None
        }
        ExecEvent::Lost { stream, bytes } => Some(TryMessage::Lost { part, stream: wire(stream), bytes }),
        ExecEvent::Ended(end) => {
            Some(TryMessage::PartEnded { part, status: end.status.into(), truncated: end.truncated })
        }
        ExecEvent::Failed(failure) => Some(TryMessage::PartFailed { part, problem: failure.into() }),
        ExecEvent::Detached => Some(TryMessage::PartFailed { part, problem: taken_over().into() }),
    })
}

/// What a caller is told whose process another has attached to.
pub fn taken_over() -> Failure {
    Failure::new(ErrorCode::Interrupted, "another caller attached to the process")
}

/// Waits for the end of a transaction as the record has it.
async fn ended(
    sink: &mut Sink,
    mut events: EventStream,
    wanted: TransactionId,
) -> Result<TransactionEnd, Left> {
    let mut pings = pings();
    loop {
        let event = tokio::select! {
            event = events.next() => event?,
            _ = pings.tick() => {
                sink.ping().await?;
                continue;
            }
        };
        match event.kind {
            EventKind::TransactionEnded { transaction, end } if transaction == wanted => return Ok(end),
            _ => {}
        }
    }
}
