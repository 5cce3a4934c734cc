//! The files by which daemons and keepers find each other again.
//!
//! ```text
//! state_dir/   keeper-NAME.json  the specification: its path in the keeper's command line names VM and state dir
//!              keeper.lock       locked by the keeper from before its first instruction to its last
//!              lease.pending --keeper claims--> lease.claimed      exactly one of the two renames
//!                            \--daemon revokes-> lease.revoked      succeeds
//!              keeper.json       who the keeper and the VMM are
//!              exit.json         how it ended
//!              console.log(.1), keeper.log
//! runtime_dir/ keeper.sock, channel.sock; of a sandbox, runsc/
//! ```

use super::wire::StartFailed;
use crate::{Exit, InstanceRecord, process::ProcessId};
use offshoot_types::VmName;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    fs::File,
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// None of these files is near this, whoever wrote it.
const MAX: u64 = 256 * 1024;

/// The directory in which `runsc` keeps what it knows of the sandbox, and the socket to it.
pub(super) const SANDBOX: &str = "runsc";

/// Where one instance keeps its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Files {
    state: PathBuf,
    runtime: PathBuf,
}

/// `keeper.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeeperRecord {
    pub keeper: ProcessId,
    /// Known once it was started.
    pub vmm: Option<ProcessId>,
    /// The VMM's other processes.
    #[serde(default)]
    pub companions: Vec<ProcessId>,
    /// The control groups made for them.
    #[serde(default)]
    pub cgroups: Vec<PathBuf>,
}

/// `exit.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ExitRecord {
    /// `None`: the VMM never ran.
    pub exit: Option<Exit>,
    pub start_failed: Option<StartFailed>,
    #[serde(default)]
    pub vmm_stderr: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Revocation {
    /// No keeper has claimed the lease, and none can any more.
    Revoked,
    /// A keeper was faster.
    Claimed,
}

impl Files {
    pub fn new(state: &Path, runtime: &Path) -> Self {
        Self { state: state.to_owned(), runtime: runtime.to_owned() }
    }

    pub fn of(record: &InstanceRecord) -> Self {
        Self::new(&record.state_dir, &record.runtime_dir)
    }

    pub fn spec(&self, name: &VmName) -> PathBuf {
        self.state.join(format!("keeper-{name}.json"))
    }
    pub fn lock(&self) -> PathBuf {
        self.state.join("keeper.lock")
    }
    pub fn keeper(&self) -> PathBuf {
        self.state.join("keeper.json")
    }
    pub fn exit(&self) -> PathBuf {
        self.state.join("exit.json")
    }
    pub fn keeper_log(&self) -> PathBuf {
        self.state.join("keeper.log")
    }
    pub fn console_log(&self) -> PathBuf {
        self.state.join("console.log")
    }
    pub fn keeper_socket(&self) -> PathBuf {
        self.runtime.join("keeper.sock")
    }
    pub fn channel_socket(&self) -> PathBuf {
        self.runtime.join("channel.sock")
    }
    fn pending(&self) -> PathBuf {
        self.state.join("lease.pending")
    }
    fn claimed(&self) -> PathBuf {
        self.state.join("lease.claimed")
    }
    fn revoked(&self) -> PathBuf {
        self.state.join("lease.revoked")
    }

    /// The daemon permits one start.
    pub fn grant(&self) -> io::Result<()> {
        private().create_new(true).open(self.pending()).map(drop)
    }

    /// The keeper takes the permission; `false` if it was withdrawn.
    pub fn claim(&self) -> io::Result<bool> {
        moved(std::fs::rename(self.pending(), self.claimed()))
    }

    /// The daemon withdraws the permission, or learns that it is too late.
    pub fn revoke(&self) -> io::Result<Revocation> {
        let revoked = moved(std::fs::rename(self.pending(), self.revoked()))?;
        let claimed = !revoked && self.claimed().try_exists()?;
        Ok(if claimed { Revocation::Claimed } else { Revocation::Revoked })
    }

    /// Takes the lock a living keeper holds; `None` if one does.
    pub fn try_lock(&self) -> io::Result<Option<File>> {
        let file = private().create(true).open(self.lock())?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes what an earlier start in the same directory left; only under the lock.
    pub fn clear(&self) -> io::Result<()> {
        for path in [self.pending(), self.claimed(), self.revoked(), self.keeper(), self.exit()] {
            remove(&path)?;
        }
        self.remove_sockets().map(drop)
    }

    /// The sockets that were there, and the directory of a sandbox.
    pub fn remove_sockets(&self) -> io::Result<Vec<PathBuf>> {
        let mut removed = Vec::new();
        for path in [self.keeper_socket(), self.channel_socket()] {
            if remove(&path)? {
                removed.push(path);
            }
        }
        let sandbox = self.runtime.join(SANDBOX);
        if moved(std::fs::remove_dir_all(&sandbox))? {
            removed.push(sandbox);
        }
        Ok(removed)
    }
}

fn moved(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether it was there.
pub(crate) fn remove(path: &Path) -> io::Result<bool> {
    moved(std::fs::remove_file(path))
}

fn private() -> std::fs::OpenOptions {
    let mut options = File::options();
    options.read(true).write(true).mode(0o600);
    options
}

/// Writes a document so that a reader sees the old or the new one, never a part.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T, flush: bool) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = private().create(true).truncate(true).open(&temporary)?;
    file.write_all(&serde_json::to_vec(value)?)?;
    if flush {
        file.sync_all()?;
    }
    std::fs::rename(&temporary, path)
}

/// `None` if there is no such file.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut text = Vec::new();
    file.take(MAX).read_to_end(&mut text)?;
    Ok(Some(serde_json::from_slice(&text)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(directory: &Path) -> Files {
        Files::new(directory, directory)
    }

    #[test]
    fn a_lease_is_either_claimed_or_revoked_never_both() {
        let directory = tempfile::tempdir().unwrap();
        let files = files(directory.path());
        assert_eq!(files.revoke().unwrap(), Revocation::Revoked, "none was granted");

        files.grant().unwrap();
        assert!(files.grant().is_err(), "granted once");
        assert_eq!(files.revoke().unwrap(), Revocation::Revoked);
        assert!(!files.claim().unwrap(), "too late");
        assert_eq!(files.revoke().unwrap(), Revocation::Revoked, "idempotent");

        files.clear().unwrap();
        files.grant().unwrap();
        assert!(files.claim().unwrap());
        assert_eq!(files.revoke().unwrap(), Revocation::Claimed);
        assert!(!files.claim().unwrap(), "claimed once");
    }

    #[test]
    fn many_claims_and_revocations_at_once_have_one_winner() {
        for _ in 0..200 {
            let directory = tempfile::tempdir().unwrap();
            let files = files(directory.path());
            files.grant().unwrap();
            let barrier = std::sync::Barrier::new(2);
            let (claimed, revocation) = std::thread::scope(|scope| {
                let claim = scope.spawn(|| {
                    barrier.wait();
                    files.claim().unwrap()
                });
                barrier.wait();
                let revocation = files.revoke().unwrap();
                (claim.join().unwrap(), revocation)
            });
            assert_eq!(claimed, revocation == Revocation::Claimed);
        }
    }

    #[test]
    fn the_lock_shows_whether_a_keeper_lives() {
        let directory = tempfile::tempdir().unwrap();
        let files = files(directory.path());
        let held = files.try_lock().unwrap().expect("free");
        assert!(files.try_lock().unwrap().is_none());
        drop(held);
        assert!(files.try_lock().unwrap().is_some());
    }

    #[test]
    fn a_document_is_read_back_and_a_missing_one_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("exit.json");
        assert_eq!(read_json::<ExitRecord>(&path).unwrap(), None);
        let record = ExitRecord { exit: Some(Exit::Signal(9)), start_failed: None, vmm_stderr: vec![] };
        write_json(&path, &record, true).unwrap();
        assert_eq!(read_json(&path).unwrap(), Some(record));
        std::fs::write(&path, "{").unwrap();
        assert!(read_json::<ExitRecord>(&path).is_err());
    }
}
