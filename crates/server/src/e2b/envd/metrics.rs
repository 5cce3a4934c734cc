//! What the sandbox uses, as its own kernel counts it, and what its programs find in their environment.

use super::files::HttpError;
use crate::{e2b::sandbox::Sandbox, http::glance};
use axum::Json;
use jiff::Timestamp;
use offshoot_guest_proto::message::Usage;
use offshoot_types::{Command, VmRef};
use serde::Serialize;
use std::collections::BTreeMap;

/// Sizes in bytes.
#[derive(Debug, Serialize)]
pub struct Metrics {
    /// Seconds since 1970.
    ts: i64,
    cpu_count: u32,
    /// Since this was last asked.
    cpu_used_pct: f64,
    mem_total: u64,
    mem_used: u64,
    mem_cache: u64,
    disk_total: u64,
    disk_used: u64,
}

pub async fn metrics(sandbox: Sandbox) -> Result<Json<Metrics>, HttpError> {
    let call = &sandbox.call;
    let permit = call.permit(Command::Inspect { vm: Some(VmRef::Id(sandbox.vm)) }).await?;
    let Usage {
        cpus: cpu_count,
        cpu_used_percent: cpu_used_pct,
        memory_total: mem_total,
        memory_used: mem_used,
        memory_cached: mem_cache,
        disk_total,
        disk_used,
    } = call.engine.usage(permit).await?;
    let ts = Timestamp::now().as_second();
    Ok(Json(Metrics { ts, cpu_count, cpu_used_pct, mem_total, mem_used, mem_cache, disk_total, disk_used }))
}

/// What was given with the sandbox; requests add to it.
pub async fn envs(sandbox: Sandbox) -> Result<Json<BTreeMap<String, String>>, HttpError> {
    Ok(Json(glance(&sandbox.call, VmRef::Id(sandbox.vm)).await?.env))
}
