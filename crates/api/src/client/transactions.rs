//! Transactions. What is done in one is asked of [`Client::within`].

use super::{Client, ClientError};
use crate::v1::{BeginTransaction, Transaction, TransactionList};
use http::Method;
use offshoot_types::{TransactionId, VmRef};

impl Client {
    pub async fn begin(&self, vm: &VmRef, request: &BeginTransaction) -> Result<Transaction, ClientError> {
        self.json(Method::POST, &format!("/v1/vms/{vm}/transactions"), Some(request)).await
    }

    /// Open ones, outermost first.
    pub async fn transactions(&self, vm: &VmRef) -> Result<TransactionList, ClientError> {
        self.get(&format!("/v1/vms/{vm}/transactions")).await
    }

    pub async fn commit(&self, vm: &VmRef, transaction: TransactionId) -> Result<Transaction, ClientError> {
        self.end(vm, transaction, "commit").await
    }

    pub async fn rollback_transaction(
        &self,
        vm: &VmRef,
        transaction: TransactionId,
    ) -> Result<Transaction, ClientError> {
        self.end(vm, transaction, "rollback").await
    }

    async fn end(
        &self,
        vm: &VmRef,
        transaction: TransactionId,
        how: &str,
    ) -> Result<Transaction, ClientError> {
        let path = format!("/v1/vms/{vm}/transactions/{transaction}/{how}");
        self.json(Method::POST, &path, None::<&()>).await
    }
}
