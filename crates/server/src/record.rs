//! `daemon.json`: who holds the state directory. A note for people and error messages; the lock is what counts.

use offshoot_api::v1::DaemonRecord;
use std::{
    fs, io,
    path::{Path, PathBuf},
};

const NAME: &str = "daemon.json";

/// Removes the note when dropped.
#[derive(Debug)]
pub struct RecordFile(PathBuf);

impl RecordFile {
    /// Written beside and renamed: a reader sees an old note or a new one, never half of one.
    pub fn write(state_dir: &Path, record: &DaemonRecord) -> io::Result<Self> {
        let path = state_dir.join(NAME);
        let beside = state_dir.join(".daemon.json.new");
        fs::write(&beside, serde_json::to_vec_pretty(record)?)?;
        fs::rename(&beside, &path)?;
        Ok(Self(path))
    }
}

impl Drop for RecordFile {
    fn drop(&mut self) {
        // The next daemon overwrites what stays behind.
        let _gone = fs::remove_file(&self.0);
    }
}

/// What the holder of the lock wrote, if it can be read.
pub fn read(state_dir: &Path) -> Option<DaemonRecord> {
    serde_json::from_slice(&fs::read(state_dir.join(NAME)).ok()?).ok()
}
