//! `/health`, `/v1/health`, `/v1/openapi.json`, `/v1/daemon`.

use super::{
    error::{ApiError, ReadErrors, StopErrors},
    extract::Json,
    openapi::openapi_json,
    request::Call,
    view,
};
use axum::{
    http::header,
    response::{IntoResponse, Response},
};
use offshoot_api::v1::{self, DaemonMode, StopDaemon};
use offshoot_types::{Command, ErrorCode, Failure};
use std::sync::OnceLock;

/// Whether the daemon answers.
#[utoipa::path(get, path = "/v1/health", tag = "daemon", operation_id = "health",
    responses((status = 200, body = v1::Health), ReadErrors))]
pub async fn health(call: Call) -> Result<axum::Json<v1::Health>, ApiError> {
    let _read = call.permit(Command::Inspect { vm: None }).await?;
    let version = call.app.record.version.clone();
    Ok(axum::Json(v1::Health { status: "ok".into(), version, pid: call.app.record.pid }))
}

/// Whether anything answers here; says nothing else, and needs no key.
#[utoipa::path(get, path = "/health", tag = "daemon", operation_id = "alive", security(()),
    responses((status = 200, body = v1::Alive)))]
pub async fn alive() -> axum::Json<v1::Alive> {
    axum::Json(v1::Alive { status: "ok".into() })
}

/// As `/health`.
#[utoipa::path(get, path = "/healthz", tag = "daemon", operation_id = "alive_too", security(()),
    responses((status = 200, body = v1::Alive)))]
pub async fn alive_too() -> axum::Json<v1::Alive> {
    alive().await
}

/// This document.
#[utoipa::path(get, path = "/v1/openapi.json", tag = "daemon", operation_id = "openapi",
    responses((status = 200, description = "OpenAPI 3.1", body = serde_json::Value), ReadErrors))]
pub async fn openapi(call: Call) -> Result<Response, ApiError> {
    static TEXT: OnceLock<String> = OnceLock::new();
    let _read = call.permit(Command::Inspect { vm: None }).await?;
    let text = TEXT.get_or_init(openapi_json).as_str();
    Ok(([(header::CONTENT_TYPE, "application/json")], text).into_response())
}

/// Who serves, since when, and what keeps it busy.
#[utoipa::path(get, path = "/v1/daemon", tag = "daemon", operation_id = "show_daemon",
    responses((status = 200, body = v1::Daemon), ReadErrors))]
pub async fn status(call: Call) -> Result<axum::Json<v1::Daemon>, ApiError> {
    let read = call.permit(Command::Inspect { vm: None }).await?;
    let own = call.engine.own_vms(&read).await?;
    let census = call.engine.census();
    Ok(axum::Json(v1::Daemon {
        record: call.app.record.clone(),
        images_dir: call.app.images.root().to_path_buf(),
        vms: census.vms as u64,
        live_vms: census.live as u64,
        operations: census.operations as u64,
        execs: census.execs as u64,
        connections: call.app.activity.count() as u64,
        pool: view::pool(call.engine.pool(read)?, own),
    }))
}

/// End the daemon. VMs live on unless `vms`.
#[utoipa::path(post, path = "/v1/daemon/stop", tag = "daemon", operation_id = "stop_daemon", request_body = StopDaemon,
    responses((status = 202, body = v1::Stopping), StopErrors))]
pub async fn stop(call: Call, Json(request): Json<StopDaemon>) -> Result<Response, ApiError> {
    let permit = call.permit(Command::StopDaemon { vms: request.vms }).await?;
    let record = &call.app.record;
    if request.handover && record.mode == DaemonMode::Explicit {
        let message = format!("`offshoot serve` runs already, as process {}", record.pid);
        return Err(Failure::new(ErrorCode::Busy, message)
            .hint("stop it first with `offshoot daemon stop`, or use another --state-dir")
            .into());
    }
    call.app.shutdown.request(permit);
    let stopping = v1::Stopping { pid: record.pid };
    Ok((axum::http::StatusCode::ACCEPTED, axum::Json(stopping)).into_response())
}
