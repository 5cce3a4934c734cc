//! Snapshots, and what goes on from them: forks, rollbacks.

use super::{ByteStream, Client, ClientError, connection::query};
use crate::v1::{
    Change, Changed, Diff, DiffRequest, EXPORT_HASH_HEADER, ForkRequest, Forked, ImportQuery, Imported,
    RemoveSnapshotQuery, RollbackRequest, RolledBack, SetSnapshotPolicy, Snapshot, SnapshotList,
    SnapshotPolicy, SnapshotVerified, SnapshotsRemoved, TakeSnapshot,
};
use bytes::Bytes;
use futures::Stream;
use http::Method;
use offshoot_types::{SnapshotRef, VmRef};
use std::io;

/// A snapshot on its way out.
#[derive(Debug)]
pub struct SnapshotExport {
    /// Of everything that follows, in hex digits.
    pub hash: String,
    /// Ends in an error if the daemon gave up half-way.
    pub content: ByteStream,
}

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

    /// A snapshot with all it needs, as one file.
    pub async fn export_snapshot(&self, snapshot: &SnapshotRef) -> Result<SnapshotExport, ClientError> {
        let (headers, content) =
            self.stream_with_headers(&format!("/v1/snapshots/{snapshot}/export")).await?;
        let hash = headers.get(EXPORT_HASH_HEADER).and_then(|hash| hash.to_str().ok());
        let hash = hash.ok_or_else(|| ClientError::protocol("export", "the hash is missing"))?.to_owned();
        Ok(SnapshotExport { hash, content })
    }

    /// Returns once all of it was checked and its VM is there.
    pub async fn import_snapshot(
        &self,
        options: &ImportQuery,
        content: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    ) -> Result<Imported, ClientError> {
        self.upload(&query("/v1/snapshots/import", options), content).await
    }

    /// Returns once every fork runs and has said what was renewed in it.
    pub async fn fork(&self, request: &ForkRequest) -> Result<Forked, ClientError> {
        self.json(Method::POST, "/v1/forks", Some(request)).await
    }

    /// Dropping it ends the comparison, and nothing is left of it.
    pub async fn diff(&self, request: &DiffRequest) -> Result<Diff, ClientError> {
        self.json(Method::POST, "/v1/diff", Some(request)).await
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
