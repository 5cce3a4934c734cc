//! Snapshots, and what goes on from them: forks, rollbacks.

use super::{Client, ClientError, connection::query};
use crate::v1::{
    Change, Changed, ForkRequest, Forked, RemoveSnapshotQuery, RollbackRequest, RolledBack,
    SetSnapshotPolicy, Snapshot, SnapshotList, SnapshotPolicy, SnapshotVerified, SnapshotsRemoved,
    TakeSnapshot,
};
use http::Method;
use offshoot_types::{SnapshotRef, VmRef};

impl Client {
    /// Returns once the snapshot is durable.
    pub async fn snapshot(&self, vm: &VmRef, request: &TakeSnapshot) -> Result<Snapshot, ClientError> {
        self.json(Method::POST, &format!("/v1/vms/{vm}/snapshots"), Some(request)).await
    }

    /// Of all VMs, the destroyed ones included.
    pub async fn snapshots(&self) -> Result<SnapshotList, ClientError> {
        self.get("/v1/snapshots").await
    }

    pub async fn snapshots_of(&self, vm: &VmRef) -> Result<SnapshotList, ClientError> {
        self.get(&format!("/v1/vms/{vm}/snapshots")).await
    }

    /// Changes when snapshots of a VM are taken without being asked for; returns how that is now.
    pub async fn set_snapshot_policy(
        &self,
        vm: &VmRef,
        change: &SetSnapshotPolicy,
    ) -> Result<SnapshotPolicy, ClientError> {
        self.json(Method::PATCH, &format!("/v1/vms/{vm}/snapshot-policy"), Some(change)).await
    }

    pub async fn show_snapshot(&self, snapshot: &SnapshotRef) -> Result<Snapshot, ClientError> {
        self.get(&format!("/v1/snapshots/{snapshot}")).await
    }

    pub async fn remove_snapshot(
        &self,
        snapshot: &SnapshotRef,
        options: &RemoveSnapshotQuery,
    ) -> Result<SnapshotsRemoved, ClientError> {
        let path = query(&format!("/v1/snapshots/{snapshot}"), options);
        self.json(Method::DELETE, &path, None::<&()>).await
    }

    /// Reads every byte of it.
    pub async fn verify_snapshot(&self, snapshot: &SnapshotRef) -> Result<SnapshotVerified, ClientError> {
        self.json(Method::POST, &format!("/v1/snapshots/{snapshot}/verify"), None::<&()>).await
    }

    /// Returns once every fork runs and has said what was renewed in it.
    pub async fn fork(&self, request: &ForkRequest) -> Result<Forked, ClientError> {
        self.json(Method::POST, "/v1/forks", Some(request)).await
    }

    pub async fn rollback(&self, vm: &VmRef, request: &RollbackRequest) -> Result<RolledBack, ClientError> {
        self.json(Method::POST, &format!("/v1/vms/{vm}/rollback"), Some(request)).await
    }

    /// Takes back the last rollback, commit or race.
    pub async fn undo(&self, vm: &VmRef) -> Result<RolledBack, ClientError> {
        self.json(Method::POST, &format!("/v1/vms/{vm}/undo"), None::<&()>).await
    }

    pub async fn suspend(&self, vm: &VmRef, change: &Change) -> Result<Changed, ClientError> {
        self.json(Method::POST, &format!("/v1/vms/{vm}/suspend"), Some(change)).await
    }
}
