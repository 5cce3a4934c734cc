//! Who reads a snapshot's files now, so that nobody moves them away under a reader.
//!
//! A reader holds each file set while it reads it; whoever changes one has it alone. A restore that has read all it
//! needs still counts as a user until it has ended: removing what it continues from is refused.

use crate::sync::lock;
use offshoot_types::{ErrorCode, Failure, SnapshotId};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock},
    time::Instant,
};

/// How long a change of snapshots waits for those who read them.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks. A change never queues: whoever comes meanwhile to read is not held up by it.
const LOOK: Duration = Duration::from_millis(5);

#[derive(Debug, Default)]
pub(super) struct Uses {
    entries: Mutex<HashMap<SnapshotId, Weak<Use>>>,
}

#[derive(Debug, Default)]
struct Use {
    files: Arc<RwLock<()>>,
    restores: AtomicUsize,
}

/// While it is held, what is restored from is not removed.
#[derive(Debug)]
pub(crate) struct Held(Arc<Use>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.restores.fetch_sub(1, Ordering::SeqCst);
    }
}

/// While it is held, the files stay what they are.
pub(super) struct Reading {
    usage: Arc<Use>,
    _files: OwnedRwLockReadGuard<()>,
}

impl Reading {
    /// From now on, also after the reading.
    pub fn hold(&self) -> Held {
        self.usage.restores.fetch_add(1, Ordering::SeqCst);
        Held(self.usage.clone())
    }
}

/// While it is held, nobody else reads or changes these snapshots.
pub(super) struct Alone {
    entries: Vec<(SnapshotId, Arc<Use>, OwnedRwLockWriteGuard<()>)>,
}

impl Alone {
    /// That nothing is being restored from any of them.
    pub fn unused(&self) -> Result<(), Failure> {
        for (id, usage, _) in &self.entries {
            if usage.restores.load(Ordering::SeqCst) > 0 {
                let message = format!("snapshot {id} is needed by a VM that is just being restored from it");
                return Err(Failure::new(ErrorCode::InUse, message).hint("try again when that has ended"));
            }
        }
        Ok(())
    }
}

impl Uses {
    fn of(&self, id: SnapshotId) -> Arc<Use> {
        let mut entries = lock(&self.entries);
        if let Some(found) = entries.get(&id).and_then(Weak::upgrade) {
            return found;
        }
        entries.retain(|_, usage| usage.strong_count() > 0);
        let usage = Arc::default();
        entries.insert(id, Arc::downgrade(&usage));
        usage
    }

    pub async fn read(&self, id: SnapshotId) -> Reading {
        let usage = self.of(id);
        let files = usage.files.clone().read_owned().await;
        Reading { usage, _files: files }
    }

    /// All of them at once, or none: two changes never wait for each other.
    pub async fn alone(&self, ids: &[SnapshotId]) -> Result<Alone, Failure> {
        let until = Instant::now() + PATIENCE;
        loop {
            let mut entries = Vec::new();
            let busy = ids.iter().find(|id| {
                let usage = self.of(**id);
                match usage.files.clone().try_write_owned() {
                    Ok(files) => {
                        entries.push((**id, usage, files));
                        false
                    }
                    Err(_) => true,
                }
            });
            let Some(busy) = busy else { return Ok(Alone { entries }) };
            if Instant::now() >= until {
                let message = format!("snapshot {busy} is being read, for {PATIENCE:?} without a break");
                return Err(Failure::new(ErrorCode::Busy, message).hint("try again later"));
            }
            drop(entries);
            tokio::time::sleep(LOOK).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_change_waits_for_readers_and_readers_for_a_change_but_not_for_one_that_waits() {
        let uses = Uses::default();
        let (a, b) = (SnapshotId::new(), SnapshotId::new());
        let reading = uses.read(a).await;
        let both = [a, b];
        let change = uses.alone(&both);
        tokio::pin!(change);
        assert!(futures::poll!(&mut change).is_pending());
        // Nobody is held up by a change that waits itself, on either of them.
        drop((uses.read(a).await, uses.read(b).await));
        drop(reading);
        let alone = change.await.unwrap();
        let read = uses.read(b);
        tokio::pin!(read);
        assert!(futures::poll!(&mut read).is_pending());
        drop(alone);
        drop(read.await);
        let _for_ever = uses.read(a).await;
        assert_eq!(uses.alone(&both).await.err().map(|failure| failure.code), Some(ErrorCode::Busy));
    }

    #[tokio::test]
    async fn what_is_restored_from_is_in_use_until_the_restore_has_ended() {
        let uses = Uses::default();
        let id = SnapshotId::new();
        let held = uses.read(id).await.hold();
        let alone = uses.alone(&[id]).await.unwrap();
        assert_eq!(alone.unused().unwrap_err().code, ErrorCode::InUse);
        drop(held);
        alone.unused().unwrap();
    }
}
