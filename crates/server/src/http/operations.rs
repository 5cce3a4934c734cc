//! Operations.

use super::{
    bounded_wait,
    error::{ApiError, LookupErrors, ReadErrors},
    extract::{OperationPath, Query},
    request::Call,
};
use axum::Json;
use offshoot_api::v1::{self, InvalidField, OperationQuery, PageQuery};
use offshoot_engine::OperationPage;
use offshoot_types::{Command, OperationId};

/// Operations, newest first; the latest 100 unless `limit` says otherwise.
#[utoipa::path(get, path = "/v1/operations", tag = "operations", operation_id = "list_operations",
    params(PageQuery), responses((status = 200, body = v1::OperationList), ReadErrors))]
pub async fn list(call: Call, Query(page): Query<PageQuery>) -> Result<Json<v1::OperationList>, ApiError> {
    let before = page.cursor.as_deref().map(cursor).transpose()?;
    let limit = page.limit()?.unwrap_or(OperationPage::default().limit as usize);
    let permit = call.permit(Command::Inspect { vm: None }).await?;
    // One more than is shown tells whether there is a next page.
    let more = OperationPage { before, limit: limit as u32 + 1 };
    let mut operations = call.engine.operations(permit, more).await?;
    let next_cursor = (operations.len() > limit).then(|| operations[limit - 1].id.to_string());
    operations.truncate(limit);
    let operations = operations.into_iter().map(Into::into).collect();
    Ok(Json(v1::OperationList { operations, next_cursor }))
}

fn cursor(text: &str) -> Result<OperationId, InvalidField> {
    text.parse().map_err(|error| InvalidField::new("cursor", error))
}

/// One operation; with `wait_ms`, once it has ended.
#[utoipa::path(get, path = "/v1/operations/{id}", tag = "operations", operation_id = "show_operation",
    params(("id" = String, Path, description = "Operation id"), OperationQuery),
    responses((status = 200, body = v1::Operation), LookupErrors))]
pub async fn show(
    call: Call,
    OperationPath(id): OperationPath,
    Query(query): Query<OperationQuery>,
) -> Result<Json<v1::Operation>, ApiError> {
    let read = async |wait| {
        let permit = call.permit(Command::InspectOperation { id }).await?;
        call.engine.operation(permit, wait).await
    };
    let operation = match query.wait_ms {
        None => read(None).await?,
        // A daemon that ends answers with the operation as it stands; its caller asks the next one.
        wait_ms => tokio::select! {
            waited = read(Some(bounded_wait(wait_ms))) => waited?,
            () = call.app.shutdown.requested() => read(None).await?,
        },
    };
    Ok(Json(operation.into()))
}
