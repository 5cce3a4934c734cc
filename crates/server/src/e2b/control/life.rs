//! How long sandboxes live: time limits, rest, end.

use super::{
    asked::{Asked, Id},
    create::{seconds, start},
    error::Refused,
    view,
    wire::{Connect, DEFAULT_TIMEOUT, Pause, Refresh, SHORT_TIMEOUT, Sandbox, State, Timeout},
};
use crate::http::{Call, finished, glance};
use axum::{
    Json,
    http::{HeaderMap, StatusCode},
};
use jiff::Timestamp;
use offshoot_api::v1::DEFAULT_GRACE;
use offshoot_engine::VmView;
use offshoot_types::{Command, ErrorCode, Failure, LifeChange, TimeLimit, VmRef, VmStateName};
use std::time::Duration;

/// From now on.
pub async fn timeout(call: Call, Id(id): Id, Asked(request): Asked<Timeout>) -> Result<StatusCode, Refused> {
    let limit = seconds("timeout", request.timeout)?;
    let vm = view::find(&call, &id).await?;
    set_timeout(&call, &vm, limit).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Not before a time from now.
pub async fn refresh(call: Call, Id(id): Id, Asked(request): Asked<Refresh>) -> Result<StatusCode, Refused> {
    let limit = seconds("duration", request.duration.unwrap_or(DEFAULT_TIMEOUT))?;
    let vm = view::find(&call, &id).await?;
    extend(&call, &vm, limit).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn set_timeout(call: &Call, vm: &VmView, limit: Duration) -> Result<(), Failure> {
    let life = LifeChange { timeout: Some(TimeLimit::After(limit)), ..LifeChange::default() };
    let permit = call.permit(Command::SetLife { vm: VmRef::Id(vm.id), life }).await?;
    call.until_cut(call.engine.set_life(permit)).await.map(drop)
}

async fn extend(call: &Call, vm: &VmView, limit: Duration) -> Result<(), Failure> {
    let left = vm.deadline.map(|end| end.duration_since(Timestamp::now()));
    let enough = left.is_none_or(|left| Duration::try_from(left).is_ok_and(|left| left >= limit));
    // One without an end has enough of it, unless it rests and has none for that.
    if enough && vm.started_at.is_some() {
        return Ok(());
    }
    set_timeout(call, vm, limit).await
}

/// Keeps its state and ends its process; with `memory: false` its disk alone is kept.
pub async fn pause(call: Call, Id(id): Id, Asked(request): Asked<Pause>) -> Result<StatusCode, Refused> {
    let vm = view::find(&call, &id).await?;
    if view::state(&vm) == Some(State::Paused) {
        let failure = Failure::new(ErrorCode::WrongState, format!("Sandbox \"{id:.80}\" is already paused"));
        return Err(Refused::with(StatusCode::CONFLICT, failure));
    }
    let vm = VmRef::Id(vm.id);
    let command = match request.memory {
        Some(false) => Command::Stop { vm, grace: DEFAULT_GRACE },
        _ => Command::Suspend { vm },
    };
    let operation = call.engine.submit(call.permit(command).await?).await?;
    finished(&call, &operation).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// 200 if it ran, 201 if it was resumed.
pub async fn connect(
    call: Call,
    headers: HeaderMap,
    Id(id): Id,
    Asked(request): Asked<Connect>,
) -> Result<(StatusCode, Json<Sandbox>), Refused> {
    call.detached(awake(call.clone(), headers, id, request, DEFAULT_TIMEOUT)).await
}

/// As SDKs before version 2 ask for it.
pub async fn resume(
    call: Call,
    headers: HeaderMap,
    Id(id): Id,
    Asked(request): Asked<Connect>,
) -> Result<(StatusCode, Json<Sandbox>), Refused> {
    call.detached(awake(call.clone(), headers, id, request, SHORT_TIMEOUT)).await
}

async fn awake(
    call: Call,
    headers: HeaderMap,
    id: String,
    request: Connect,
    default_timeout: u64,
) -> Result<(StatusCode, Json<Sandbox>), Refused> {
    let limit = seconds("timeout", request.timeout.unwrap_or(default_timeout))?;
    let mut vm = view::find(&call, &id).await?;
    let mut status = StatusCode::OK;
    if view::state(&vm) == Some(State::Paused) {
        // Before it runs, so that an old limit does not end it at once.
        set_timeout(&call, &vm, limit).await?;
        wake(&call, &vm, request.memory).await?;
        status = StatusCode::CREATED;
        vm = glance(&call, VmRef::Id(vm.id)).await?;
    } else {
        extend(&call, &vm, limit).await?;
    }
    Ok((status, Json(view::opened(&call, &headers, &vm).await?)))
}

async fn wake(call: &Call, vm: &VmView, memory: Option<bool>) -> Result<(), Failure> {
    let id = VmRef::Id(vm.id);
    let change = async |command| {
        let operation = call.engine.submit(call.permit(command).await?).await?;
        finished(call, &operation).await.map(drop)
    };
    match vm.state.name() {
        VmStateName::Suspended if memory == Some(false) => {
            change(Command::Stop { vm: id.clone(), grace: DEFAULT_GRACE }).await?;
            start(call, id).await
        }
        VmStateName::Paused => change(Command::Resume { vm: id }).await,
        _ => start(call, id).await,
    }
}

/// Snapshots that somebody asked for outlive it.
pub async fn kill(call: Call, Id(id): Id) -> Result<StatusCode, Refused> {
    let name = id.parse().map_err(|_no_name| super::error::not_found(&id))?;
    let permit = call.permit(Command::Destroy { vm: VmRef::Name(name) }).await?;
    let operation = call.engine.submit(permit).await?;
    finished(&call, &operation).await?;
    Ok(StatusCode::NO_CONTENT)
}
