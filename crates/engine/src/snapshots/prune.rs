//! Removing a snapshot from the middle of the tree: what differs from it is merged with it first.
//!
//! ```text
//!   base <-- pages of S <-- pages of C          base <-- pages of S and C
//!              S               C         --->                 C
//! ```
//! Each child is merged by itself, then S is removed: whatever fails on the way, every snapshot is complete.

use super::restage::{Restage, Staged};
use crate::{
    core::Core,
    snapshots::{not_found, persist::blocking, source::memory_failure},
};
use offshoot_provider::memory::Delta;
use offshoot_store::{SnapshotRecord, SnapshotUser, StoreError};
use offshoot_types::{Actor, ErrorCode, Failure, OperationId, SnapshotId, SnapshotState};
use std::sync::Arc;

impl Core {
    /// Removes a snapshot although others came after it or differ from it. Returns those that were merged with it. Refused
    /// while a VM or a transaction needs it: their memory cannot be replaced under them.
    pub async fn prune_snapshot(
        &self,
        id: SnapshotId,
        operation: OperationId,
        actor: &Actor,
    ) -> Result<Vec<SnapshotId>, Failure> {
        let _alone = self.snapshots.merging.lock().await;
        if let Some(volatile) = self.snapshots.volatile(id) {
            volatile.written().await?;
        }
        let (snapshot, users) = self.pruned(id).await?;
        let mut children = Vec::new();
        let mut by = Vec::new();
        for user in users {
            match user {
                SnapshotUser::Child(child) | SnapshotUser::Base { base: child, .. } => children.push(child),
                other => by.push(other.to_string()),
            }
        }
        if !by.is_empty() {
            return Err(in_use(id, &by));
        }
        if snapshot.state == SnapshotState::Damaged && !children.is_empty() {
            let by: Vec<String> = children.iter().map(|child| format!("snapshot {child}")).collect();
            let message = format!("snapshot {id} is damaged, and cannot be merged into {}", by.join(", "));
            return Err(Failure::new(ErrorCode::Snapshot, message)
                .hint("they cannot be restored either: remove them first"));
        }
        for child in &children {
            self.merge_into(&snapshot, *child).await?;
        }
        match self.remove_snapshot(id, true, operation, actor).await {
            Ok(()) => Ok(children),
            // Somebody came to need it since; what it is told is not to prune it.
            Err(failure) if failure.code == ErrorCode::InUse => {
                Err(failure.hint("what needs it came while it was merged: try again when that has ended"))
            }
            Err(failure) => Err(failure),
        }
    }

    async fn pruned(&self, id: SnapshotId) -> Result<(SnapshotRecord, Vec<SnapshotUser>), Failure> {
        let read = self.store.read(move |view| Ok((view.snapshot(id)?, view.snapshot_users(id)?)));
        let (snapshot, users) = read.await?;
        Ok((snapshot.ok_or_else(|| not_found(id))?, users))
    }

    /// Makes a snapshot that differs from `below` differ from what `below` differs from.
    async fn merge_into(&self, below: &SnapshotRecord, child: SnapshotId) -> Result<(), Failure> {
        if let Some(volatile) = self.snapshots.volatile(child) {
            volatile.written().await?;
        }
        let (id, base) = (below.id, below.memory_base);
        let (restage, delta) = {
            // As long as they are read nobody changes them; merged they are without holding anybody up.
            let _readings = (self.snapshots.uses.read(child).await, self.snapshots.uses.read(id).await);
            let Some(record) = self.store.read(move |view| view.snapshot(child)).await? else {
                return Ok(());
            };
            if record.memory_base != Some(id) {
                return Ok(());
            }
            if record.state == SnapshotState::Damaged {
                let message =
                    format!("snapshot {child} is damaged, and cannot be merged with snapshot {id} below it");
                return Err(Failure::new(ErrorCode::Snapshot, message).hint("remove it first"));
            }
            let (lower, upper) = (self.delta(below).await?, self.delta(&record).await?);
            let merged = blocking(move || {
                Delta::merge(&lower, id, &upper).map_err(|error| memory_failure(child, &error))
            });
            let delta = Arc::new(merged.await?);
            let mut manifest = self.manifest(&record).await?;
            manifest.memory_base = base;
            (Restage { snapshot: record, manifest, delta: Some(delta.clone()) }, delta)
        };
        let known = restage.snapshot.manifest.clone();
        let placed = async {
            let staged = self.stage(restage).await?;
            let alone = self.snapshots.uses.alone(&[child]).await?;
            let write = move |tx: &offshoot_store::Tx<'_>, staged: &[Staged]| {
                // What was merged must be what is there.
                let unchanged = tx.snapshot(child)?.is_some_and(|now| now.manifest == known);
                match staged {
                    [Staged { manifest, size, .. }] if unchanged => {
                        tx.rebase_snapshot(child, base, manifest, *size)
                    }
                    _ => Err(StoreError::NotFound { what: "snapshot", id: child.to_string() }),
                }
            };
            self.put_in_place(&alone, vec![staged], write).await?;
            self.snapshots.memories.replace_delta(child, &delta);
            Ok(())
        };
        let placed = placed.await;
        self.unstage(&[child]).await;
        placed
    }
}

fn in_use(id: SnapshotId, by: &[String]) -> Failure {
    let message = format!("snapshot {id} is needed by {}, and cannot be merged into that", by.join(", "));
    Failure::new(ErrorCode::InUse, message).hint(
        "stop or destroy a VM that maps its memory or continues from it, or roll it back elsewhere; end a transaction",
    )
}
