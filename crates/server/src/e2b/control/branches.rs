//! Copies of sandboxes: forks and snapshots.

use super::{
    asked::{Asked, Id, Query},
    create::{discard, new_name, seconds},
    error::{Refused, invalid},
    view,
    wire::{Fork, Forked, SHORT_TIMEOUT, Sandbox, Snapshot, TakeSnapshot},
};
use crate::http::{Call, glance};
use axum::{
    Json,
    http::{HeaderMap, HeaderValue, StatusCode},
};
use futures::future::join_all;
use offshoot_engine::{ForkSettings, ForkedVm, SnapshotView};
use offshoot_types::{
    Command, ErrorCode, Failure, ForkSource, LifeChange, OnTimeout, SnapshotId, SnapshotKind, SnapshotName,
    SnapshotOrigin, TimeLimit, VmRef,
};

/// Most copies of one request.
const MAX_COPIES: u32 = 100;
const MAX_LIMIT: usize = 100;

/// Running copies of a sandbox as it is now. All of them, or none.
pub async fn fork(
    call: Call,
    headers: HeaderMap,
    Id(id): Id,
    Asked(request): Asked<Fork>,
) -> Result<(StatusCode, Json<Vec<Forked>>), Refused> {
    let limit = seconds("timeout", request.timeout.unwrap_or(SHORT_TIMEOUT))?;
    let count = request.count.unwrap_or(1);
    if !(1..=MAX_COPIES).contains(&count) {
        return Err(invalid("count", format!("{count} is not between 1 and {MAX_COPIES}")));
    }
    let vm = view::find(&call, &id).await?;
    let (name, source) = (new_name()?, ForkSource::Vm(VmRef::Id(vm.id)));
    let permit = call.permit(Command::Fork { source, name: Some(name), count }).await?;
    let life = LifeChange {
        timeout: Some(TimeLimit::After(limit)),
        // A copy that nobody asked to be kept is paused as any other.
        on_timeout: Some(match vm.life.on_timeout {
            OnTimeout::Destroy => OnTimeout::Destroy,
            _ => OnTimeout::Suspend,
        }),
        ..LifeChange::default()
    };
    // Theirs from the first moment: who leaves before the answer leaves copies that have an end.
    let settings = ForkSettings { life, ..ForkSettings::default() };
    let made = call.until_cut(Box::pin(call.engine.fork_as(permit, settings))).await;
    let made = made.map_err(|failure| Refused::from(failure).once())?;
    let open = async |fork: &ForkedVm| {
        let copy = glance(&call, VmRef::Id(fork.vm)).await?;
        view::opened(&call, &headers, &copy).await
    };
    let opened: Vec<Result<Sandbox, Failure>> = join_all(made.forks.iter().map(open)).await;
    let copies = opened.into_iter().map(|copy| copy.map(|sandbox| Forked { sandbox }));
    match copies.collect::<Result<Vec<_>, _>>() {
        Ok(copies) => Ok((StatusCode::CREATED, Json(copies))),
        Err(failure) => {
            // Nobody is told of any of them.
            join_all(made.forks.iter().map(|fork| discard(&call, VmRef::Id(fork.vm)))).await;
            Err(Refused::from(failure).once())
        }
    }
}

pub async fn snapshot(
    call: Call,
    Id(id): Id,
    Asked(request): Asked<TakeSnapshot>,
) -> Result<(StatusCode, Json<Snapshot>), Refused> {
    let vm = view::find(&call, &id).await?;
    let name: SnapshotName = match request.name {
        Some(name) => name.parse().map_err(|error| invalid("name", error))?,
        // One without a name would go with its VM.
        None => new_name()?.as_str().parse().map_err(|error| invalid("name", error))?,
    };
    let kind = if request.memory == Some(false) { SnapshotKind::DiskOnly } else { SnapshotKind::Full };
    let command = Command::Snapshot { vm: VmRef::Id(vm.id), name: Some(name), kind, note: None };
    let taken = call.until_cut(call.engine.snapshot(call.permit(command).await?)).await;
    let taken = taken.map_err(|failure| Refused::from(failure).once())?;
    Ok((StatusCode::CREATED, Json(shown(&taken))))
}

fn shown(snapshot: &SnapshotView) -> Snapshot {
    let names = snapshot.name.iter().map(|name| format!("{}@{name}", snapshot.vm_name)).collect();
    Snapshot { id: snapshot.id.to_string(), names }
}

/// Those somebody asked for, the latest first.
pub async fn list(call: Call, query: Query) -> Result<(HeaderMap, Json<Vec<Snapshot>>), Refused> {
    let limit = query.parsed("limit")?.unwrap_or(MAX_LIMIT).clamp(1, MAX_LIMIT);
    let after: Option<SnapshotId> = query.parsed("nextToken")?;
    let mut found = named(&call).await?;
    if let Some(sandbox) = query.get("sandboxID") {
        found.retain(|snapshot| snapshot.vm_name.as_str() == sandbox);
    }
    if let Some(name) = query.get("name") {
        found.retain(|snapshot| is_called(snapshot, name));
    }
    found.retain(|snapshot| after.is_none_or(|last| snapshot.id < last));
    let mut headers = HeaderMap::new();
    if found.len() > limit {
        let token = HeaderValue::from_str(&found[limit - 1].id.to_string()).expect("an id is ASCII");
        headers.insert("x-next-token", token);
        found.truncate(limit);
    }
    Ok((headers, Json(found.iter().map(shown).collect())))
}

/// The latest first.
async fn named(call: &Call) -> Result<Vec<SnapshotView>, Failure> {
    let mut all = call.engine.snapshots(call.permit(Command::Inspect { vm: None }).await?).await?;
    all.retain(|snapshot| snapshot.origin == SnapshotOrigin::Manual);
    all.sort_by_key(|snapshot| std::cmp::Reverse(snapshot.id));
    Ok(all)
}

fn is_called(snapshot: &SnapshotView, name: &str) -> bool {
    snapshot
        .name
        .as_ref()
        .is_some_and(|own| own.as_str() == name || format!("{}@{own}", snapshot.vm_name) == name)
}

/// A snapshot by its id, its name, or `SANDBOX@NAME`; the latest of those called so.
pub async fn find_snapshot(call: &Call, text: &str) -> Result<Option<SnapshotView>, Failure> {
    let id: Option<SnapshotId> = text.parse().ok().filter(|_| text.len() == 36);
    let mut all = named(call).await?.into_iter();
    Ok(all.find(|snapshot| Some(snapshot.id) == id || is_called(snapshot, text)))
}

/// Removes a snapshot, whatever came after it.
pub async fn remove(call: &Call, text: &str) -> Result<(), Refused> {
    let Some(found) = find_snapshot(call, text).await? else {
        let message = format!("there is no snapshot `{text:.80}`");
        return Err(Failure::new(ErrorCode::NotFound, message).into());
    };
    let snapshot = offshoot_types::SnapshotRef::Id(found.id);
    let permit = call.permit(Command::RemoveSnapshot { snapshot, prune: true }).await?;
    call.until_cut(call.engine.remove_snapshot(permit)).await?;
    Ok(())
}
