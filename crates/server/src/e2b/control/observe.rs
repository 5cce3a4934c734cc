//! What sandboxes use, and what happened to them.

use super::{
    asked::{Id, Query},
    error::{Refused, invalid},
    view,
    wire::{LogEntry, Metric, State},
};
use crate::http::Call;
use axum::Json;
use jiff::Timestamp;
use offshoot_engine::{VmView, guest_failure};
use offshoot_types::{Command, ErrorCode, EventId, Failure, FileAccess, VmRef};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Most entries of one answer.
const MAX_ENTRIES: usize = 1000;
/// Sandboxes that are measured for one request, each by its guest.
const MAX_MEASURED: usize = 100;

/// As it is now: no history is kept. None of one that rests.
pub async fn metrics(call: Call, Id(id): Id) -> Result<Json<Vec<Metric>>, Refused> {
    let vm = view::find(&call, &id).await?;
    match view::state(&vm) {
        Some(State::Running) => Ok(Json(vec![measured(&call, &vm).await?])),
        _ => Ok(Json(Vec::new())),
    }
}

pub async fn metrics_of_many(call: Call, query: Query) -> Result<Json<Value>, Refused> {
    let asked: BTreeSet<&str> = query.all("sandbox_ids").collect();
    if asked.len() > MAX_MEASURED {
        return Err(invalid("sandbox_ids", format!("more than {MAX_MEASURED} of them")));
    }
    let mut sandboxes = BTreeMap::new();
    for id in asked {
        let Ok(vm) = view::find(&call, id).await else { continue };
        if view::state(&vm) != Some(State::Running) {
            continue;
        }
        match measured(&call, &vm).await {
            Ok(metric) => sandboxes.insert(id.to_owned(), metric),
            // It went to rest meanwhile, or is gone.
            Err(failure) if matches!(failure.code, ErrorCode::NotFound | ErrorCode::WrongState) => continue,
            Err(failure) => return Err(failure.into()),
        };
    }
    Ok(Json(json!({ "sandboxes": sandboxes })))
}

async fn measured(call: &Call, vm: &VmView) -> Result<Metric, Failure> {
    // The figures are its kernel's own, and whoever may read its files may read them.
    let path = "/proc/meminfo".into();
    let command = Command::Files { vm: VmRef::Id(vm.id), access: FileAccess::Read, path };
    let guest = call.engine.guest(call.permit(command).await?).await?;
    let used = guest.client().usage().await.map_err(|error| guest_failure(&vm.name, &error));
    guest.complete(used.clone().map(drop)).await;
    let used = used?;
    let now = Timestamp::now();
    Ok(Metric {
        timestamp: now,
        timestamp_unix: now.as_second(),
        cpu_count: used.cpus,
        cpu_used_pct: used.cpu_used_percent,
        mem_used: used.memory_used,
        mem_total: used.memory_total,
        mem_cache: used.memory_cached,
        disk_used: used.disk_used,
        disk_total: used.disk_total,
    })
}

pub async fn logs(call: Call, Id(id): Id, query: Query) -> Result<Json<Value>, Refused> {
    let entries = entries(&call, &id, &query).await?;
    let lines: Vec<Value> =
        entries.iter().map(|entry| json!({ "timestamp": entry.timestamp, "line": entry.message })).collect();
    Ok(Json(json!({ "logs": lines, "logEntries": entries })))
}

pub async fn logs_v2(call: Call, Id(id): Id, query: Query) -> Result<Json<Value>, Refused> {
    let mut entries = entries(&call, &id, &query).await?;
    if query.get("direction") == Some("backward") {
        entries.reverse();
    }
    Ok(Json(json!({ "logs": entries })))
}

/// What was done with the VM, in order.
async fn entries(call: &Call, id: &str, query: &Query) -> Result<Vec<LogEntry>, Refused> {
    let vm = view::find(call, id).await?;
    let since: i64 = query.parsed("start")?.or(query.parsed("cursor")?).unwrap_or(0);
    let limit = query.parsed("limit")?.unwrap_or(MAX_ENTRIES).clamp(1, MAX_ENTRIES);
    let (level, search) = (query.get("level"), query.get("search"));
    let permit = call.permit(Command::Inspect { vm: Some(VmRef::Id(vm.id)) }).await?;
    let mut events = call.engine.events(permit, Some(EventId(0))).await?;
    let mut found = Vec::new();
    while found.len() < limit {
        let Some(event) = events.next_present().await? else { break };
        let entry = entry(event.into());
        let wanted = entry.timestamp.as_millisecond() >= since
            && level.is_none_or(|level| entry.level == level)
            && search.is_none_or(|text| entry.message.contains(text));
        if wanted {
            found.push(entry);
        }
    }
    Ok(found)
}

fn entry(event: offshoot_api::v1::Event) -> LogEntry {
    let timestamp = event.at;
    let document = serde_json::to_value(&event).expect("an event is plain data");
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let fields: BTreeMap<String, String> = document
        .as_object()
        .map(|map| map.iter().map(|(key, value)| (key.clone(), text(value))).collect())
        .unwrap_or_default();
    let level = match fields.get("event").map(String::as_str) {
        Some("warning") => "warn",
        _ if fields.get("outcome").is_some_and(|outcome| outcome == "failed") => "error",
        _ => "info",
    };
    let words = ["event", "kind", "from", "to", "reason", "outcome", "message", "name"];
    let message: Vec<&str> = words.iter().filter_map(|word| fields.get(*word).map(String::as_str)).collect();
    LogEntry { timestamp, message: message.join(" "), level, fields }
}
