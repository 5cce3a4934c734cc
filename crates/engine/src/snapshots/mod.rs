//! What is kept of snapshots outside the record: bytes of those being written, memories to restore from, trust.
//!
//! ```text
//! taken --> Volatile: device state in `.new-<id>`, pages in memory     (usable by this daemon only)
//!             | persist: write, hash, flush, authenticate, rename
//!             v
//!           durable: snapshots/<id>/{manifest.json, device.state, ram.delta} + its disk layers
//!             | check: the manifest, then each part once per file and change
//!             v
//!           Source: what a restore needs
//! ```
//! What a durable snapshot is made of may be replaced by what says the same: when one below it is removed, and when layers
//! of its disk are merged ([`restage`]).

mod export;
mod import;
mod manifest;
mod memory;
mod persist;
mod prune;
mod remove;
mod restage;
mod shorten;
mod source;
mod uses;
mod verify;

pub use export::Export;
pub(crate) use import::{Arrival, Incoming, snapshot_of_import};
pub(crate) use manifest::DEVICE_STATE;
use manifest::Manifest;
use shorten::Grown;
pub use shorten::Merging;
pub(crate) use shorten::keep_shallow;
pub(crate) use source::{Source, memory_failure, not_found};
use uses::{Held, Uses};

use crate::{host_key::HostKey, sync::lock};
use memory::Memories;
use offshoot_provider::{memory::Delta, parts::Trusted};
use offshoot_types::{ErrorCode, Failure, SnapshotId};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
};
use tokio::sync::{Notify, OnceCell, RwLock, watch};

#[derive(Debug, Default)]
pub(crate) struct Snapshots {
    volatile: Mutex<HashMap<SnapshotId, Arc<Volatile>>>,
    memories: Memories,
    trusted: Arc<Trusted>,
    key: OnceCell<HostKey>,
    uses: Uses,
    /// One merge at a time: each takes as much memory as what it merges.
    merging: tokio::sync::Mutex<()>,
    /// Whose disks are to be looked at, for layers to merge.
    pub grown: Grown,
    /// Taken by a policy since this daemon began.
    unasked: AtomicU32,
    many_unasked: Notify,
}

/// So many snapshots that nobody asked for are taken before the old ones among them are looked for: a VM that keeps itself
/// before each command takes thousands an hour.
const MANY: u32 = 8;

/// A snapshot whose bytes are not all on the disk yet.
#[derive(Debug)]
pub(crate) struct Volatile {
    pub id: SnapshotId,
    /// `None`: disk only.
    pub delta: Option<Arc<Delta>>,
    /// Held for reading while something opens its files, for writing while they are moved to their place.
    files: Arc<RwLock<()>>,
    /// How writing it ended.
    written: watch::Sender<Option<Result<(), Failure>>>,
}

impl Volatile {
    pub fn new(id: SnapshotId, delta: Option<Arc<Delta>>) -> Self {
        Self { id, delta, files: Arc::default(), written: watch::Sender::new(None) }
    }

    /// Resolves once it is durable, or will never be.
    pub async fn written(&self) -> Result<(), Failure> {
        let mut written = self.written.subscribe();
        match written.wait_for(Option::is_some).await {
            Ok(ended) => ended.clone().unwrap_or(Ok(())),
            Err(_) => Err(crate::error::shutting_down()),
        }
    }
}

impl Snapshots {
    /// From now on it can be restored by this daemon.
    pub fn insert(&self, volatile: Volatile) -> Arc<Volatile> {
        let (id, volatile) = (volatile.id, Arc::new(volatile));
        lock(&self.volatile).insert(id, volatile.clone());
        volatile
    }

    /// One was taken without being asked for.
    pub fn count_unasked(&self) {
        if self.unasked.fetch_add(1, Ordering::Relaxed) % MANY == MANY - 1 {
            self.many_unasked.notify_one();
        }
    }

    /// Resolves whenever many have been.
    pub async fn many_unasked(&self) {
        self.many_unasked.notified().await;
    }

    pub fn volatile(&self, id: SnapshotId) -> Option<Arc<Volatile>> {
        lock(&self.volatile).get(&id).cloned()
    }

    /// It will never be durable; whoever waits for that is told.
    pub fn give_up(&self, id: SnapshotId) {
        let volatile = lock(&self.volatile).remove(&id);
        if let Some(volatile) = volatile {
            let failure = Failure::new(ErrorCode::Snapshot, format!("snapshot {id} was taken back"));
            volatile.written.send_if_modified(|written| {
                let first = written.is_none();
                written.get_or_insert(Err(failure));
                first
            });
        }
        self.memories.forget(id);
    }

    fn forget(&self, id: SnapshotId) {
        lock(&self.volatile).remove(&id);
        self.memories.forget(id);
    }
}
