//! Operations.

use super::{
    bounded_wait,
    error::{ApiError, LookupErrors, ReadErrors},
    extract::{OperationPath, Query},
    request::Call,
};
use axum::Json;
use offshoot_api::v1::{self, OperationQuery};
use offshoot_engine::OperationPage;
use offshoot_types::Command;

/// The latest operations, newest first.
#[utoipa::path(get, path = "/v1/operations", tag = "operations", operation_id = "list_operations",
    responses((status = 200, body = v1::OperationList), ReadErrors))]
pub async fn list(call: Call) -> Result<Json<v1::OperationList>, ApiError> {
    let permit = call.permit(Command::Inspect { vm: None }).await?;
    let operations = call.engine.operations(permit, OperationPage::default()).await?;
    Ok(Json(v1::OperationList { operations: operations.into_iter().map(Into::into).collect() }))
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
