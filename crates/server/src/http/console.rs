//! The console log of a VM.

use super::{
    error::{ApiError, LookupErrors},
    extract::{Query, Vm},
    request::Call,
};
use axum::{
    body::Body,
    http::header,
    response::{IntoResponse, Response},
};
use futures::stream;
use offshoot_engine::Follow;
use offshoot_types::Command;
use serde::Deserialize;
use utoipa::IntoParams;

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ConsoleQuery {
    /// Go on while the VM has a process.
    #[serde(default)]
    follow: bool,
}

/// What the VM's kernel and agent wrote on its console in its present or latest boot. Guest data.
#[utoipa::path(get, path = "/v1/vms/{vm}/console", tag = "vms", operation_id = "console",
    params(("vm" = String, Path, description = "Name or id"), ConsoleQuery),
    responses((status = 200, description = "Bytes, as they come", content_type = "application/octet-stream"),
        LookupErrors))]
pub async fn console(
    call: Call,
    Vm(vm): Vm,
    Query(query): Query<ConsoleQuery>,
) -> Result<Response, ApiError> {
    let console = call.engine.console(call.permit(Command::Inspect { vm: Some(vm) }).await?).await?;
    let follow = if query.follow { Follow::Yes } else { Follow::No };
    let app = call.app;
    let bytes = stream::unfold((console, app), move |(mut console, app)| async move {
        let next = tokio::select! {
            next = console.next(follow) => next,
            () = app.shutdown.requested() => Ok(None),
        };
        let item = next.transpose()?;
        Some((item, (console, app)))
    });
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], Body::from_stream(bytes)).into_response())
}
