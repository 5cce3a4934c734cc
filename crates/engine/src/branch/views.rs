//! What callers see of snapshots, forks and rollbacks.

use jiff::Timestamp;
use offshoot_types::{
    Attestations, Bytes, Generation, OperationId, SnapshotId, SnapshotKind, SnapshotName, SnapshotOrigin,
    SnapshotState, VmId, VmName,
};
use std::time::Duration;

/// One snapshot as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotView {
    pub id: SnapshotId,
    /// Of whose state it is; that VM may have been destroyed since.
    pub vm: VmId,
    pub vm_name: VmName,
    pub name: Option<SnapshotName>,
    pub origin: SnapshotOrigin,
    pub kind: SnapshotKind,
    pub state: SnapshotState,
    pub parent: Option<SnapshotId>,
    pub note: Option<String>,
    /// What it alone takes on the host's disk: device state, pages and disk layer.
    pub size: Bytes,
    pub created: Timestamp,
    /// Whether the guest had its processes stand still: only such a snapshot can be forked.
    pub quiesced: bool,
    /// Of the VM. A full snapshot restores all of it.
    pub memory: offshoot_types::MemMib,
    /// Whether the VM's present state descends from this snapshot directly.
    pub current: bool,
    /// How long the VM stood still for it; known to whoever took it.
    pub paused: Option<Duration>,
    /// The operation that took it.
    pub operation: Option<OperationId>,
}

/// What reading every byte of a snapshot found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verification {
    pub snapshot: SnapshotId,
    /// Names of the parts that were read, the disk's layers included.
    pub parts: Vec<String>,
    pub bytes: Bytes,
    /// What is missing or differs, one sentence each; empty: every byte is as it was written.
    pub faults: Vec<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ForkReport {
    pub operation: OperationId,
    pub snapshot: SnapshotId,
    /// How long a running source stood still for it.
    pub paused: Option<Duration>,
    pub forks: Vec<ForkedVm>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ForkedVm {
    pub vm: VmId,
    pub name: VmName,
    pub generation: Generation,
    /// `None` for a fork of a disk-only snapshot: it booted, nothing of it was shared.
    pub attestations: Option<Attestations>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct RollbackReport {
    pub operation: OperationId,
    pub vm: VmId,
    pub to: SnapshotId,
    /// What the VM left, for `undo`; `None` if there was nothing to keep.
    pub undo: Option<SnapshotId>,
    /// From now on; handles of an older one are refused.
    pub generation: Generation,
    /// Execs that began after the snapshot: history marks them as undone.
    pub undone: Vec<OperationId>,
    /// `None` if the VM does not run.
    pub attestations: Option<Attestations>,
    pub warning: Option<String>,
}
