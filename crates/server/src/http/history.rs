//! The history: what was run in VMs.

use super::{
    error::{ApiError, LookupErrors, ReadErrors, WaitErrors},
    extract::{OperationPath, Query, Vm},
    history_view as view,
    request::Call,
};
use axum::{
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use offshoot_api::v1::{
    HistoryEntry, HistoryList, HistoryQuery, InvalidField, KEPT_HEADER, StreamQuery, TOTAL_HEADER,
};
use offshoot_engine::{HistoryBytes, HistoryFilter, OutputStream};
use offshoot_types::{Command, EventId, OperationId, VmRef};

/// What was run in all VMs, the destroyed ones included, newest first; the latest 100 unless `limit` says otherwise.
#[utoipa::path(get, path = "/v1/history", tag = "history", operation_id = "list_history",
    params(HistoryQuery), responses((status = 200, body = HistoryList), ReadErrors))]
pub async fn list(
    call: Call,
    Query(query): Query<HistoryQuery>,
) -> Result<axum::Json<HistoryList>, ApiError> {
    listed(&call, None, query).await
}

/// What was run in a VM, newest first. A VM that is destroyed is found by its id.
#[utoipa::path(get, path = "/v1/vms/{vm}/history", tag = "history", operation_id = "list_vm_history",
    params(("vm" = String, Path, description = "Name or id"), HistoryQuery),
    responses((status = 200, body = HistoryList), LookupErrors))]
pub async fn list_of(
    call: Call,
    Vm(vm): Vm,
    Query(query): Query<HistoryQuery>,
) -> Result<axum::Json<HistoryList>, ApiError> {
    listed(&call, Some(vm), query).await
}

async fn listed(
    call: &Call,
    vm: Option<VmRef>,
    query: HistoryQuery,
) -> Result<axum::Json<HistoryList>, ApiError> {
    let limit = query.limit()?;
    let before = query.cursor.as_deref().map(cursor).transpose()?;
    let HistoryQuery { agent, transaction, failures, undone, since, until, output, .. } = query;
    let filter = HistoryFilter {
        agent,
        transaction,
        failures,
        undone,
        since,
        until,
        before,
        output,
        ..HistoryFilter::default()
    };
    let permit = call.permit(Command::Inspect { vm }).await?;
    // One more than is shown tells whether there is a next page.
    let page = call.engine.history(permit, filter, limit as u32 + 1).await?;
    let (mut entries, total) = (page.entries, page.total);
    let next_cursor = (entries.len() > limit).then(|| entries[limit - 1].begun.0.to_string());
    entries.truncate(limit);
    let entries = entries.into_iter().map(|record| view::entry(record, output)).collect();
    Ok(axum::Json(HistoryList { entries, total, next_cursor }))
}

fn cursor(text: &str) -> Result<EventId, InvalidField> {
    text.parse().map(EventId).map_err(|error| InvalidField::new("cursor", error))
}

/// One run, with both ends of what it said.
#[utoipa::path(get, path = "/v1/history/{id}", tag = "history", operation_id = "show_history",
    params(("id" = String, Path, description = "Id of the entry, the operation or the exec: they are one")),
    responses((status = 200, body = HistoryEntry), LookupErrors))]
pub async fn show(
    call: Call,
    OperationPath(id): OperationPath,
) -> Result<axum::Json<HistoryEntry>, ApiError> {
    Ok(axum::Json(shown(&call, id).await?))
}

pub(super) async fn shown(call: &Call, id: OperationId) -> Result<HistoryEntry, ApiError> {
    let permit = call.permit(Command::InspectOperation { id }).await?;
    Ok(view::entry_with_kept(call.engine.history_entry(permit).await?))
}

/// What is kept of the standard output of one run, from its beginning.
#[utoipa::path(get, path = "/v1/history/{id}/stdout", tag = "history", operation_id = "history_stdout",
    params(("id" = String, Path, description = "Id of the entry"), StreamQuery),
    responses((status = 200, description = "The bytes", content_type = "application/octet-stream", headers(
        ("x-offshoot-kept-bytes" = u64, description = "How many are kept, from the beginning"),
        ("x-offshoot-total-bytes" = u64, description = "How many there were"))), WaitErrors))]
pub async fn stdout(
    call: Call,
    OperationPath(id): OperationPath,
    Query(query): Query<StreamQuery>,
) -> Result<Response, ApiError> {
    said(&call, id, OutputStream::Stdout, query).await
}

/// What is kept of the standard error of one run, from its beginning.
#[utoipa::path(get, path = "/v1/history/{id}/stderr", tag = "history", operation_id = "history_stderr",
    params(("id" = String, Path, description = "Id of the entry"), StreamQuery),
    responses((status = 200, description = "The bytes", content_type = "application/octet-stream", headers(
        ("x-offshoot-kept-bytes" = u64, description = "How many are kept, from the beginning"),
        ("x-offshoot-total-bytes" = u64, description = "How many there were"))), WaitErrors))]
pub async fn stderr(
    call: Call,
    OperationPath(id): OperationPath,
    Query(query): Query<StreamQuery>,
) -> Result<Response, ApiError> {
    said(&call, id, OutputStream::Stderr, query).await
}

async fn said(
    call: &Call,
    id: OperationId,
    stream: OutputStream,
    query: StreamQuery,
) -> Result<Response, ApiError> {
    let permit = call.permit(Command::InspectOperation { id }).await?;
    let length = query.length.unwrap_or(u64::MAX);
    let HistoryBytes { bytes, kept, total } =
        call.engine.history_stream(permit, stream, query.offset, length).await?;
    let mut response = bytes.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(KEPT_HEADER, kept.into());
    headers.insert(TOTAL_HEADER, total.into());
    Ok(response)
}
