//! Live contexts of a VM: list, restart, remove. Code runs in them on a WebSocket (`code_session`).

use super::{
    error::{ApiError, GuestErrors},
    extract::{ContextPath, Query, Vm},
    request::Call,
};
use axum::http::StatusCode;
use offshoot_api::v1::{ContextList, LiveContext, PageQuery};
use offshoot_engine::ContextView;
use offshoot_types::Command;

/// Interpreters that live in a VM.
#[utoipa::path(get, path = "/v1/vms/{vm}/contexts", tag = "contexts", operation_id = "list_contexts",
    params(("vm" = String, Path, description = "Name or id"), PageQuery),
    responses((status = 200, body = ContextList), GuestErrors))]
pub async fn list(
    call: Call,
    Vm(vm): Vm,
    Query(page): Query<PageQuery>,
) -> Result<axum::Json<ContextList>, ApiError> {
    let contexts = call.engine.contexts(call.permit(Command::Inspect { vm: Some(vm) }).await?).await?;
    let (contexts, next_cursor) = page.of(contexts, |view| view.context.to_string())?;
    let wire = |view: ContextView| {
        let (user, cwd) = view.home.map(|home| (home.user, home.cwd)).unzip();
        LiveContext {
            context: view.context,
            language: view.language,
            pid: view.pid,
            busy: view.busy,
            user,
            cwd,
            age_ms: view.age.as_millis() as u64,
        }
    };
    Ok(axum::Json(ContextList { contexts: contexts.into_iter().map(wire).collect(), next_cursor }))
}

/// End an interpreter.
#[utoipa::path(delete, path = "/v1/vms/{vm}/contexts/{context}", tag = "contexts", operation_id = "remove_context",
    params(("vm" = String, Path, description = "Name or id"), ("context" = String, Path)),
    responses((status = 204, description = "Ended"), GuestErrors))]
pub async fn remove(
    call: Call,
    Vm(vm): Vm,
    ContextPath(context): ContextPath,
) -> Result<StatusCode, ApiError> {
    let permit = call.permit(Command::RemoveContext { vm, context }).await?;
    call.until_cut(call.engine.remove_context(permit)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// End an interpreter and begin it anew, without its variables.
#[utoipa::path(post, path = "/v1/vms/{vm}/contexts/{context}/restart", tag = "contexts",
    operation_id = "restart_context",
    params(("vm" = String, Path, description = "Name or id"), ("context" = String, Path)),
    responses((status = 204, description = "Begun anew"), GuestErrors))]
pub async fn restart(
    call: Call,
    Vm(vm): Vm,
    ContextPath(context): ContextPath,
) -> Result<StatusCode, ApiError> {
    let permit = call.permit(Command::RestartContext { vm, context }).await?;
    call.until_cut(call.engine.restart_context(permit)).await?;
    Ok(StatusCode::NO_CONTENT)
}
