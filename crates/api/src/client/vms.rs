//! VMs: making, moving, waiting, destroying.

use super::{ByteStream, Client, ClientError, connection::query};
use crate::v1::{
    Change, Changed, CollectRequest, CreateVm, DestroyQuery, ExecList, ExecResult, Life, MAX_WAIT_MS,
    Operation, OperationList, OperationQuery, PageQuery, SetLife, Vm, VmList, WaitOutcome, WaitQuery,
};
use http::Method;
use offshoot_types::{OperationId, VmRef, VmStateName};
use std::time::{Duration, Instant};

impl Client {
    pub async fn create(&self, request: &CreateVm) -> Result<Changed, ClientError> {
        self.json(Method::POST, "/v1/vms", Some(request)).await
    }

    pub async fn vms(&self) -> Result<VmList, ClientError> {
        self.vms_page(&PageQuery::default()).await
    }

    pub async fn vms_page(&self, page: &PageQuery) -> Result<VmList, ClientError> {
        self.get(&query("/v1/vms", page)).await
    }

    pub async fn vm(&self, vm: &VmRef) -> Result<Vm, ClientError> {
        self.get(&format!("/v1/vms/{vm}")).await
    }

    pub async fn destroy(&self, vm: &VmRef, options: &DestroyQuery) -> Result<Changed, ClientError> {
        let path = query(&format!("/v1/vms/{vm}"), options);
        self.json(Method::DELETE, &path, None::<&()>).await
    }

    pub async fn start(&self, vm: &VmRef, change: &Change) -> Result<Changed, ClientError> {
        self.change(vm, "start", change).await
    }

    pub async fn stop(&self, vm: &VmRef, change: &Change) -> Result<Changed, ClientError> {
        self.change(vm, "stop", change).await
    }

    pub async fn restart(&self, vm: &VmRef, change: &Change) -> Result<Changed, ClientError> {
        self.change(vm, "restart", change).await
    }

    pub async fn pause(&self, vm: &VmRef, change: &Change) -> Result<Changed, ClientError> {
        self.change(vm, "pause", change).await
    }

    pub async fn resume(&self, vm: &VmRef, change: &Change) -> Result<Changed, ClientError> {
        self.change(vm, "resume", change).await
    }

    async fn change(&self, vm: &VmRef, verb: &str, change: &Change) -> Result<Changed, ClientError> {
        self.json(Method::POST, &format!("/v1/vms/{vm}/{verb}"), Some(change)).await
    }

    /// Changes when a VM rests by itself and how long it may run; returns how that is now.
    pub async fn set_life(&self, vm: &VmRef, change: &SetLife) -> Result<Life, ClientError> {
        self.json(Method::PATCH, &format!("/v1/vms/{vm}/life"), Some(change)).await
    }

    /// One long poll; the server answers after at most [`MAX_WAIT_MS`].
    pub async fn wait_once(&self, vm: &VmRef, wait: &WaitQuery) -> Result<WaitOutcome, ClientError> {
        self.get(&query(&format!("/v1/vms/{vm}/wait"), wait)).await
    }

    /// Waits until the VM is in `state`, for as long as `timeout` says (forever if `None`).
    pub async fn wait(
        &self,
        vm: &VmRef,
        state: VmStateName,
        timeout: Option<Duration>,
    ) -> Result<Vm, ClientError> {
        let begun = Instant::now();
        loop {
            let timeout_ms = Some(slice("wait", begun, timeout)?);
            let wait = WaitQuery { state: Some(state.to_string()), newer_than: None, timeout_ms };
            let outcome = self.wait_once(vm, &wait).await?;
            if outcome.reached {
                return Ok(outcome.vm);
            }
        }
    }

    /// Runs a process and collects its (bounded) output.
    pub async fn exec_collect(
        &self,
        vm: &VmRef,
        request: &CollectRequest,
    ) -> Result<ExecResult, ClientError> {
        self.json(Method::POST, &format!("/v1/vms/{vm}/exec"), Some(request)).await
    }

    pub async fn execs(&self, vm: &VmRef) -> Result<ExecList, ClientError> {
        self.get(&format!("/v1/vms/{vm}/execs")).await
    }

    /// The VM's console log; with `follow` the stream goes on until it is dropped or the VM is destroyed.
    pub async fn console(&self, vm: &VmRef, follow: bool) -> Result<ByteStream, ClientError> {
        self.stream(&format!("/v1/vms/{vm}/console?follow={follow}")).await
    }

    /// The latest ones.
    pub async fn operations(&self) -> Result<OperationList, ClientError> {
        self.operations_page(&PageQuery::default()).await
    }

    pub async fn operations_page(&self, page: &PageQuery) -> Result<OperationList, ClientError> {
        self.get(&query("/v1/operations", page)).await
    }

    /// With `wait`, returns when it has ended or that time is up (bounded by [`MAX_WAIT_MS`]).
    pub async fn operation(&self, id: OperationId, wait: Option<Duration>) -> Result<Operation, ClientError> {
        let wait_ms = wait.map(|wait| (wait.as_millis() as u64).min(MAX_WAIT_MS));
        self.get(&query(&format!("/v1/operations/{id}"), &OperationQuery { wait_ms })).await
    }

    /// Waits until an operation has ended, for as long as `timeout` says (forever if `None`).
    pub async fn settle(&self, id: OperationId, timeout: Option<Duration>) -> Result<Operation, ClientError> {
        let begun = Instant::now();
        loop {
            let wait = Duration::from_millis(slice("operation", begun, timeout)?);
            let operation = self.operation(id, Some(wait)).await?;
            if operation.ended() {
                return Ok(operation);
            }
        }
    }
}

/// How long the next long poll may take, or `Timeout` once the whole time is up.
fn slice(operation: &'static str, begun: Instant, timeout: Option<Duration>) -> Result<u64, ClientError> {
    let Some(timeout) = timeout else { return Ok(MAX_WAIT_MS) };
    match timeout.checked_sub(begun.elapsed()) {
        Some(left) if !left.is_zero() => Ok((left.as_millis() as u64).clamp(1, MAX_WAIT_MS)),
        _ => Err(ClientError::Timeout { operation, after: timeout }),
    }
}
