//! `daemon.json`: who holds the state directory. A note for people and error messages; the lock is what counts.

use offshoot_api::v1::DaemonRecord;
use std::{
    fs, io,
    path::{Path, PathBuf},
};

const NAME: &str = "daemon.json";

/// Removes the note when dropped, and the directory of the daemon's socket unless VMs have theirs in it.
///
/// Belongs to the [`StateDirLock`](offshoot_engine::StateDirLock): without it these are the next daemon's.
#[derive(Debug)]
pub struct RecordFile {
    note: PathBuf,
    runtime_dir: Option<PathBuf>,
}

impl RecordFile {
    /// Written beside and renamed: a reader sees an old note or a new one, never half of one.
    pub fn write(state_dir: &Path, record: &DaemonRecord) -> io::Result<Self> {
        let path = state_dir.join(NAME);
        let beside = state_dir.join(".daemon.json.new");
        fs::write(&beside, serde_json::to_vec_pretty(record)?)?;
        fs::rename(&beside, &path)?;
        Ok(Self { note: path, runtime_dir: record.socket.parent().map(Path::to_owned) })
    }
}

impl Drop for RecordFile {
    fn drop(&mut self) {
        // The next daemon overwrites what stays behind.
        let _gone = fs::remove_file(&self.note);
        if let Some(runtime_dir) = &self.runtime_dir {
            let _gone_or_in_use = fs::remove_dir(runtime_dir);
        }
    }
}

/// What the holder of the lock wrote, if it can be read.
pub fn read(state_dir: &Path) -> Option<DaemonRecord> {
    serde_json::from_slice(&fs::read(state_dir.join(NAME)).ok()?).ok()
}
