//! What a change is asked for beyond its kind, and what it answers beyond its outcome.

use crate::{saga::thaw::Identity, snapshots::Source, sync::lock};
use offshoot_provider::Durability;
use offshoot_types::{
    Attestations, Generation, OperationId, SnapshotId, SnapshotKind, SnapshotName, SnapshotOrigin,
};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

/// Keep the VM's present state.
#[derive(Debug)]
pub(crate) struct SnapshotAsk {
    pub name: Option<SnapshotName>,
    /// A VM without a process has a disk only, whatever is asked.
    pub kind: SnapshotKind,
    pub origin: SnapshotOrigin,
    pub note: Option<String>,
    /// Whether the operation ends when the snapshot is usable by this daemon, rather than when it is durable.
    pub volatile: bool,
    taken: Mutex<Option<Taken>>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Taken {
    pub snapshot: SnapshotId,
    /// How long the CPUs stood still; `None` if nothing ran.
    pub paused: Option<Duration>,
}

impl SnapshotAsk {
    pub fn new(
        name: Option<SnapshotName>,
        kind: SnapshotKind,
        origin: SnapshotOrigin,
        note: Option<String>,
        volatile: bool,
    ) -> Self {
        Self { name, kind, origin, note, volatile, taken: Mutex::default() }
    }
    pub fn answer(&self, taken: Taken) {
        *lock(&self.taken) = Some(taken);
    }
    /// Once the change has succeeded.
    pub fn taken(&self) -> Option<Taken> {
        *lock(&self.taken)
    }
}

/// A fork's first start.
#[derive(Debug)]
pub(crate) struct ForkAsk {
    pub source: Arc<Source>,
    /// Of its process: it belongs to a request until all forks are ready, and may be kept for ever after.
    pub durability: Durability,
    /// Who it is to be.
    pub identity: Identity,
    thawed: Mutex<Option<Attestations>>,
}

impl ForkAsk {
    pub fn new(source: Arc<Source>, durability: Durability, identity: Identity) -> Self {
        Self { source, durability, identity, thawed: Mutex::default() }
    }
    pub fn answer(&self, thawed: Attestations) {
        *lock(&self.thawed) = Some(thawed);
    }
    /// Once the start has succeeded.
    pub fn thawed(&self) -> Option<Attestations> {
        lock(&self.thawed).clone()
    }
}

/// Where a rollback goes; looked up when its turn has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    Newest,
    LastGood,
    /// The newest undo snapshot.
    Undo,
    Snapshot(SnapshotId),
}

/// Continue from an earlier state.
#[derive(Debug)]
pub(crate) struct RollbackAsk {
    pub to: Target,
    /// It was promised when what it takes back began (a transaction, a race): the ledger is not asked again, since a VM
    /// that nobody can change any more for want of memory helps nobody.
    pub promised: bool,
    went: Mutex<Option<Went>>,
}

#[derive(Debug, Clone)]
pub(crate) struct Went {
    pub to: SnapshotId,
    pub undo: Option<SnapshotId>,
    pub generation: Generation,
    pub undone: Vec<OperationId>,
    pub attestations: Option<Attestations>,
    pub warning: Option<String>,
}

impl RollbackAsk {
    pub fn new(to: Target, promised: bool) -> Self {
        Self { to, promised, went: Mutex::default() }
    }
    pub fn answer(&self, went: Went) {
        *lock(&self.went) = Some(went);
    }
    /// Once the VM has been switched.
    pub fn went(&self) -> Option<Went> {
        lock(&self.went).clone()
    }
}
