//! One piece of code in a live context, on one WebSocket.
//!
//! ```text
//! request --> started --> (output | display | value | error)* --> ended | failed --> close
//!                ^ interrupt
//! ```
//! A caller that leaves interrupts the code; the interpreter keeps its variables.

use super::{
    channel::{Channel, Heard, Left, Sink, Source, pings, wire},
    error::{ApiError, GuestErrors},
    extract::{Upgrade, Vm, parse_json},
    request::Call,
    vms,
};
use axum::response::Response;
use futures::FutureExt;
use offshoot_api::v1::{CodeInput, CodeMessage, CodeRequest, MAX_CODE_MESSAGE, encode_output};
use offshoot_engine::{CodeEvent, CodeSession};
use offshoot_types::{Command, ContextCode, ErrorCode, Failure, VmId, VmRef};
use std::convert::Infallible;
use tokio::sync::Notify;

/// Run code in a live context: a WebSocket whose first text frame is a `CodeRequest`. The context is made on first
/// use and keeps its variables until it or its VM ends; snapshots and forks take it along.
#[utoipa::path(get, path = "/v1/vms/{vm}/code", tag = "contexts", operation_id = "run_code",
    params(("vm" = String, Path, description = "Name or id")),
    responses((status = 101, description = "`CodeRequest`, then `CodeInput`s and `CodeMessage`s"), GuestErrors))]
pub async fn run(call: Call, Vm(vm): Vm, upgrade: Upgrade) -> Result<Response, ApiError> {
    // A stranger, or a name that means nothing, is told so by HTTP.
    let vm = vms::glance(&call, vm).await?.id;
    let present = call.app.activity.enter_session()?;
    Ok(upgrade.saying_up_to(MAX_CODE_MESSAGE).serve(move |socket| async move {
        let _present = present;
        let mut channel = Channel::new(socket);
        let outcome = session(&call, &mut channel, vm).await;
        channel.close(&call, outcome).await;
    }))
}

async fn session(call: &Call, channel: &mut Channel, vm: VmId) -> Result<(), Left> {
    let request: CodeRequest = channel.request().await?;
    let code = Box::new(ContextCode::try_from(request)?);
    let permit = call.permit(Command::RunCode { vm: VmRef::Id(vm), code }).await?;
    let session = channel.while_connected(call.engine.run_code(permit)).await??;
    let interrupt = Notify::new();
    let Channel { sink, source } = channel;
    tokio::select! {
        told = tell(sink, session, &interrupt) => told,
        left = listen(source, &interrupt) => left.map(|never| match never {}),
        () = call.app.shutdown.expired() => Err(vms::stopping().into()),
    }
}

/// Takes the caller's frames until it leaves.
async fn listen(source: &mut Source, interrupt: &Notify) -> Result<Infallible, Left> {
    loop {
        match source.next().await? {
            Heard::Text(text) => match parse_json(text.as_bytes())? {
                CodeInput::Interrupt => interrupt.notify_one(),
            },
            Heard::Binary(_) => {
                return Err(Failure::new(ErrorCode::InvalidArgument, "code has no stdin").into());
            }
        }
    }
}

/// Returns when the last event was told, or could not be.
async fn tell(sink: &mut Sink, mut session: CodeSession, interrupt: &Notify) -> Result<(), Left> {
    let mut pings = pings();
    loop {
        let event = tokio::select! {
            biased;
            () = interrupt.notified() => {
                // No room means that one is on its way; an end means that there is nothing to interrupt.
                let _sent = session.interrupt().now_or_never();
                continue;
            }
            event = session.next() => event,
            _ = pings.tick() => {
                sink.ping().await?;
                continue;
            }
        };
        let message = match event {
            Some(CodeEvent::Output { stream, data }) => {
                sink.bytes(encode_output(wire(stream), &data)).await?;
                continue;
            }
            Some(CodeEvent::Started { language, pid, created, count }) => {
                CodeMessage::Started { language, pid, created, count }
            }
            Some(CodeEvent::Display { mime, id, update }) => CodeMessage::Display { mime, id, update },
            Some(CodeEvent::Value { mime }) => CodeMessage::Value { mime },
            Some(CodeEvent::Error { name, message, traceback }) => {
                CodeMessage::Error { name, message, traceback }
            }
            Some(CodeEvent::Ended { interrupted, wall }) => {
                CodeMessage::Ended { interrupted, wall_us: wall.as_micros() as u64 }
            }
            Some(CodeEvent::Failed(failure)) => return Err(failure.into()),
            None => return Err(Failure::new(ErrorCode::Internal, "the code ended without an end").into()),
        };
        sink.say(&message).await?;
        if matches!(message, CodeMessage::Ended { .. }) {
            return Ok(());
        }
    }
}
