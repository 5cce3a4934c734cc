//! A race on one WebSocket.
//!
//! ```text
//! request --> started* --> (output | lost | finished | gave-up | scored)* --> ended | failed --> close
//! ```
//! A caller that leaves ends the race; the VM stays as it was.

use super::{
    channel::{Channel, Left, Sink, Source, pings, wire},
    error::{ApiError, BranchErrors},
    extract::{Upgrade, Vm},
    request::Call,
    try_session::taken_over,
    vms,
};
use axum::response::Response;
use offshoot_api::v1::{NewRace, RaceMessage, RaceOutcome, RaceRequest, RacerScore, encode_race_output};
use offshoot_engine::{ExecEvent, RaceEnd, RaceEvent, RaceSession};
use offshoot_types::{Command, ErrorCode, Failure, VmId, VmRef};

/// Run a command in several forks at once: a WebSocket whose first text frame is a `RaceRequest`. The VM continues as
/// the fork that succeeds first, or scores best; `undo` takes that back.
#[utoipa::path(get, path = "/v1/vms/{vm}/race", tag = "transactions", operation_id = "race",
    params(("vm" = String, Path, description = "Name or id")),
    responses((status = 101, description = "`RaceRequest`, then `RaceMessage`s"), BranchErrors))]
pub async fn race(call: Call, Vm(vm): Vm, upgrade: Upgrade) -> Result<Response, ApiError> {
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
    let request: RaceRequest = channel.request().await?;
    let NewRace { count, exec, score } = request.try_into()?;
    let command = Command::Race { vm: VmRef::Id(vm), count, spec: Box::new(exec), score };
    let permit = call.permit(command).await?;
    let session = channel.while_connected(call.engine.race(permit)).await??;
    let Channel { sink, source } = channel;
    tokio::select! {
        told = tell(sink, session) => told,
        left = spectate(source) => Err(left),
        () = call.app.shutdown.expired() => Err(vms::stopping().into()),
    }
}

/// Nobody talks to racers.
async fn spectate(source: &mut Source) -> Left {
    match source.next().await {
        Ok(_) => Failure::new(ErrorCode::InvalidArgument, "racers take neither input nor orders").into(),
        Err(left) => left,
    }
}

/// Returns when the last event was told, or could not be.
async fn tell(sink: &mut Sink, mut session: RaceSession) -> Result<(), Left> {
    let mut pings = pings();
    loop {
        let event = tokio::select! {
            biased;
            event = session.next() => event,
            _ = pings.tick() => {
                sink.ping().await?;
                continue;
            }
        };
        let message = match event {
            Some(RaceEvent::Exec { racer, event: ExecEvent::Output { stream, data, .. } }) => {
                sink.bytes(encode_race_output(racer, wire(stream), &data)).await?;
                continue;
            }
            Some(RaceEvent::Exec { racer, event }) => match of_racer(racer, event) {
                Some(message) => message,
                None => continue,
            },
            Some(RaceEvent::Started { racer, name }) => RaceMessage::Started { racer, name },
            Some(RaceEvent::Scored { racer, score }) => RaceMessage::Scored { racer, score },
            Some(RaceEvent::Ended(end)) => RaceMessage::Ended(outcome(end)),
            Some(RaceEvent::Failed(failure)) => return Err(failure.into()),
            None => return Err(Failure::new(ErrorCode::Internal, "the race ended without an end").into()),
        };
        sink.say(&message).await?;
        if matches!(message, RaceMessage::Ended(_)) {
            return Ok(());
        }
    }
}

/// What is told of one racer's process but its output.
fn of_racer(racer: u32, event: ExecEvent) -> Option<RaceMessage> {
    match event {
        ExecEvent::Lost { stream, bytes } => Some(RaceMessage::Lost { racer, stream: wire(stream), bytes }),
        ExecEvent::Ended(end) => {
            Some(RaceMessage::Finished { racer, status: end.status.into(), truncated: end.truncated })
        }
        ExecEvent::Failed(failure) => Some(RaceMessage::GaveUp { racer, problem: failure.into() }),
        ExecEvent::Detached => Some(RaceMessage::GaveUp { racer, problem: taken_over().into() }),
        // That its fork runs was told already, and output goes its own way.
        ExecEvent::Started { .. } | ExecEvent::Output { .. } => None,
    }
}

fn outcome(end: RaceEnd) -> RaceOutcome {
    let scores = end.scores.into_iter().map(|(racer, score)| RacerScore { racer, score }).collect();
    RaceOutcome { winner: end.winner, scores, undo: end.undo, generation: end.generation }
}
