//! Where an engine keeps its things, and the lock that makes it the only one there.
//!
//! ```text
//! <state>/daemon.lock                      flock, held as long as an engine lives
//! <state>/offshoot.db                      the store
//! <state>/disks/<layer>.qcow2              one layer of a data disk, kept while a VM or a snapshot needs it
//! <state>/snapshots/<id>/                  manifest.json, device.state, ram.delta; `.new-<id>` until it is durable,
//!                                          `.merged-<id>` while some of it is replaced
//! <state>/history/<id>.stdout, .stderr     what a program said, where that is more than its record keeps
//! <state>/keys/                            keys of this host: of snapshots' manifests, of access tokens
//! <state>/vms/<id>/g<generation>/          one boot: console.log, the provider's records
//! <runtime>/<12 hex of the id>/g<generation>/  sockets of one boot
//! ```

use offshoot_types::{Generation, LayerId, SnapshotId, VmId};
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use std::{
    any::Any,
    fs, io,
    os::fd::OwnedFd,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

pub(crate) const LOCK: &str = "daemon.lock";
pub(crate) const DATABASE: &str = "offshoot.db";
pub(crate) const VMS: &str = "vms";
pub(crate) const DISKS: &str = "disks";
pub(crate) const SNAPSHOTS: &str = "snapshots";
pub(crate) const KEYS: &str = "keys";
pub(crate) const HISTORY: &str = "history";
/// In there: what manifests of snapshots are authenticated with.
pub(crate) const SNAPSHOTS_KEY: &str = "snapshots.key";
/// Where the first layer of VMs made by an early version lies, in the VM's own directory.
pub(crate) const DATA_DISK: &str = "disk.qcow2";
pub(crate) const NEW_SNAPSHOT: &str = ".new-";
/// What is to take the place of a snapshot's files, or has.
pub(crate) const MERGED_SNAPSHOT: &str = ".merged-";
pub(crate) const RUNTIME_DIGITS: usize = 12;
pub(crate) const CONSOLE: &str = "console.log";
/// What it was before it was full.
pub(crate) const CONSOLE_BEFORE: &str = "console.log.1";

/// How often a contended lock is tried again: flock has no wait with a deadline.
const LOCK_POLL: Duration = Duration::from_millis(20);

#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("another daemon holds state directory {}", dir.display())]
    Held { dir: PathBuf },
    #[error("cannot prepare state directory {}", dir.display())]
    Prepare {
        dir: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot lock {}", path.display())]
    Lock {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Proof that no other engine works on this state directory. The kernel drops it with the process, however
/// that ends; it is closed on exec, so no child can keep it.
#[derive(Debug)]
pub struct StateDirLock {
    dir: PathBuf,
    /// Before the lock, as fields are dropped in order.
    until_released: Vec<Box<dyn Any + Send>>,
    _lock: OwnedFd,
}

impl StateDirLock {
    /// Makes the directory (0700) if needed and takes the lock, or says at once that somebody has it.
    pub fn acquire(dir: &Path) -> Result<Self, LockError> {
        let prepare = |source| LockError::Prepare { dir: dir.into(), source };
        make_private_dir(dir).map_err(prepare)?;
        let dir = dir.canonicalize().map_err(prepare)?;
        let path = dir.join(LOCK);
        let failed =
            |source: rustix::io::Errno| LockError::Lock { path: path.clone(), source: source.into() };
        let lock = open(&path, OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC, Mode::from_raw_mode(0o600))
            .map_err(failed)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { dir, until_released: Vec::new(), _lock: lock }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(LockError::Held { dir }),
            Err(errno) => Err(failed(errno)),
        }
    }

    /// As [`acquire`](Self::acquire), trying until `wait` has passed: for taking over from a daemon that was
    /// asked to leave.
    pub async fn acquire_within(dir: &Path, wait: Duration) -> Result<Self, LockError> {
        let until = Instant::now() + wait;
        loop {
            match Self::acquire(dir) {
                Err(LockError::Held { .. }) if Instant::now() < until => tokio::time::sleep(LOCK_POLL).await,
                result => return result,
            }
        }
    }

    /// The canonical state directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Drops `guard` just before the lock is released: whoever takes it next finds tidied up, and nothing of
    /// theirs is tidied away.
    pub fn keep_until_released(&mut self, guard: impl Send + 'static) {
        self.until_released.push(Box::new(guard));
    }
}

/// Makes `dir` and its parents; `dir` itself ends up 0700.
pub(crate) fn make_private_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let mode = fs::metadata(dir)?.permissions().mode();
    if mode & 0o077 != 0 {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// Paths below the state and runtime directories. Pure: makes nothing.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub state: PathBuf,
    pub runtime: PathBuf,
}

impl Layout {
    pub fn database(&self) -> PathBuf {
        self.state.join(DATABASE)
    }
    pub fn vms(&self) -> PathBuf {
        self.state.join(VMS)
    }
    pub fn vm(&self, id: VmId) -> PathBuf {
        self.vms().join(id.simple())
    }
    pub fn disks(&self) -> PathBuf {
        self.state.join(DISKS)
    }
    /// Relative to the state directory, as the record has it.
    pub fn layer_name(id: LayerId) -> String {
        format!("{DISKS}/{}.qcow2", id.simple())
    }
    /// What programs said.
    pub fn history(&self) -> PathBuf {
        self.state.join(HISTORY)
    }
    pub fn snapshots(&self) -> PathBuf {
        self.state.join(SNAPSHOTS)
    }
    /// A durable snapshot.
    pub fn snapshot(&self, id: SnapshotId) -> PathBuf {
        self.snapshots().join(id.simple())
    }
    /// A snapshot that is being taken or written.
    pub fn new_snapshot(&self, id: SnapshotId) -> PathBuf {
        self.snapshots().join(format!("{NEW_SNAPSHOT}{}", id.simple()))
    }
    /// What is to take the place of a snapshot's files.
    pub fn merged_snapshot(&self, id: SnapshotId) -> PathBuf {
        self.snapshots().join(format!("{MERGED_SNAPSHOT}{}", id.simple()))
    }
    pub fn keys(&self) -> PathBuf {
        self.state.join(KEYS)
    }
    pub fn boot(&self, id: VmId, generation: Generation) -> PathBuf {
        self.vm(id).join(format!("g{generation}"))
    }
    /// Unix socket paths are limited to 108 bytes, so ids are cut to twelve digits: the random tail of a UUIDv7.
    pub fn runtime_vm(&self, id: VmId) -> PathBuf {
        let hex = id.simple();
        self.runtime.join(&hex[hex.len() - RUNTIME_DIGITS..])
    }
    pub fn runtime_boot(&self, id: VmId, generation: Generation) -> PathBuf {
        self.runtime_vm(id).join(format!("g{generation}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lock_on_one_directory_is_refused_until_the_first_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let first = StateDirLock::acquire(&state).unwrap();
        assert!(matches!(StateDirLock::acquire(&state), Err(LockError::Held { .. })));
        drop(first);
        StateDirLock::acquire(&state).unwrap();
        assert_eq!(fs::metadata(&state).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn what_is_kept_until_release_goes_while_nobody_else_can_have_the_lock() {
        struct Guard(PathBuf, std::sync::mpsc::Sender<bool>);
        impl Drop for Guard {
            fn drop(&mut self) {
                let held = matches!(StateDirLock::acquire(&self.0), Err(LockError::Held { .. }));
                self.1.send(held).unwrap();
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let mut lock = StateDirLock::acquire(dir.path()).unwrap();
        let (held, told) = std::sync::mpsc::channel();
        lock.keep_until_released(Guard(dir.path().into(), held));
        drop(lock);
        assert_eq!(told.try_iter().collect::<Vec<bool>>(), [true]);
        StateDirLock::acquire(dir.path()).unwrap();
    }

    #[tokio::test]
    async fn a_takeover_waits_for_the_lock_and_gives_up_at_its_deadline() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateDirLock::acquire(dir.path()).unwrap();
        let wait = Duration::from_millis(60);
        let refused = StateDirLock::acquire_within(dir.path(), wait).await;
        assert!(matches!(refused, Err(LockError::Held { .. })));
        let (second, ()) =
            tokio::join!(StateDirLock::acquire_within(dir.path(), Duration::from_secs(10)), async move {
                drop(first)
            });
        second.unwrap();
    }
}
