//! Transactions: begin, list, commit, roll back. What is done in one carries its id in the header
//! `Offshoot-Transaction`.

use super::{
    error::{ApiError, BranchErrors, LookupErrors},
    extract::{Json, Query, TransactionPath, Vm},
    request::Call,
    view,
};
use offshoot_api::v1::{BeginTransaction, PageQuery, Transaction, TransactionList};
use offshoot_types::Command;

/// Begin a transaction, or a savepoint within the one that is open. It owns the VM: other changes are refused unless
/// they carry its id. After its deadline it is rolled back.
#[utoipa::path(post, path = "/v1/vms/{vm}/transactions", tag = "transactions", operation_id = "begin_transaction",
    request_body = BeginTransaction, params(("vm" = String, Path, description = "Name or id")),
    responses((status = 200, body = Transaction), BranchErrors))]
pub async fn begin(
    call: Call,
    Vm(vm): Vm,
    Json(request): Json<BeginTransaction>,
) -> Result<axum::Json<Transaction>, ApiError> {
    let deadline = request.deadline()?;
    let parent = request.parent.or(call.within);
    let permit = call.permit(Command::Begin { vm, parent, deadline }).await?;
    let begun = call.until_cut(call.engine.begin_transaction(permit)).await?;
    Ok(axum::Json(view::transaction(begun)))
}

/// A VM's open transactions, outermost first.
#[utoipa::path(get, path = "/v1/vms/{vm}/transactions", tag = "transactions", operation_id = "list_transactions",
    params(("vm" = String, Path, description = "Name or id"), PageQuery),
    responses((status = 200, body = TransactionList), LookupErrors))]
pub async fn list(
    call: Call,
    Vm(vm): Vm,
    Query(page): Query<PageQuery>,
) -> Result<axum::Json<TransactionList>, ApiError> {
    let open = call.engine.transactions(call.permit(Command::Inspect { vm: Some(vm) }).await?).await?;
    let (open, next_cursor) = page.of(open, |transaction| transaction.id.to_string())?;
    let transactions = open.into_iter().map(view::transaction).collect();
    Ok(axum::Json(TransactionList { transactions, next_cursor }))
}

/// Keep what was done in a transaction; `undo` can still take it back.
#[utoipa::path(post, path = "/v1/vms/{vm}/transactions/{transaction}/commit", tag = "transactions",
    operation_id = "commit_transaction",
    params(("vm" = String, Path, description = "Name or id"), ("transaction" = String, Path)),
    responses((status = 200, body = Transaction), BranchErrors))]
pub async fn commit(
    call: Call,
    Vm(vm): Vm,
    TransactionPath(transaction): TransactionPath,
) -> Result<axum::Json<Transaction>, ApiError> {
    let permit = call.permit(Command::Commit { vm, transaction }).await?;
    let ended = call.until_cut(call.engine.commit_transaction(permit)).await?;
    Ok(axum::Json(view::transaction(ended)))
}

/// Take back what was done in a transaction.
#[utoipa::path(post, path = "/v1/vms/{vm}/transactions/{transaction}/rollback", tag = "transactions",
    operation_id = "rollback_transaction",
    params(("vm" = String, Path, description = "Name or id"), ("transaction" = String, Path)),
    responses((status = 200, body = Transaction), BranchErrors))]
pub async fn rollback(
    call: Call,
    Vm(vm): Vm,
    TransactionPath(transaction): TransactionPath,
) -> Result<axum::Json<Transaction>, ApiError> {
    let permit = call.permit(Command::RollbackTransaction { vm, transaction }).await?;
    let ended = call.until_cut(call.engine.rollback_transaction(permit)).await?;
    Ok(axum::Json(view::transaction(ended)))
}
