//! A log file that never grows past its limit: when full it becomes `NAME.1`, replacing the one before.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Mutex,
};

#[derive(Debug)]
pub(crate) struct RotatingFile {
    path: PathBuf,
    file: File,
    written: u64,
    limit: u64,
}

impl RotatingFile {
    pub fn open(path: &Path, limit: u64) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        let written = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, written, limit })
    }

    pub fn write(&mut self, data: &[u8]) -> io::Result<()> {
        for part in data.chunks(self.limit as usize) {
            if self.written + part.len() as u64 > self.limit {
                self.rotate()?;
            }
            self.file.write_all(part)?;
            self.written += part.len() as u64;
        }
        Ok(())
    }

    /// By renaming: whoever follows the file sees another inode and reads the old one to its end.
    fn rotate(&mut self) -> io::Result<()> {
        let mut old = self.path.clone().into_os_string();
        old.push(".1");
        std::fs::rename(&self.path, old)?;
        *self = Self::open(&self.path, self.limit)?;
        Ok(())
    }
}

/// The keeper's own log. A keeper that cannot log goes on: its VM matters more.
#[derive(Debug)]
pub(crate) struct KeeperLog {
    file: Mutex<Option<RotatingFile>>,
    started: std::time::Instant,
}

impl KeeperLog {
    const LIMIT: u64 = 256 * 1024;

    pub fn open(path: &Path) -> Self {
        Self {
            file: Mutex::new(RotatingFile::open(path, Self::LIMIT).ok()),
            started: std::time::Instant::now(),
        }
    }

    pub fn line(&self, text: impl std::fmt::Display) {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let line = format!(
            "{}.{:03} +{:.3}s {text}\n",
            now.as_secs(),
            now.subsec_millis(),
            self.started.elapsed().as_secs_f64()
        );
        if let Ok(mut file) = self.file.lock()
            && let Some(file) = &mut *file
        {
            let _ = file.write(line.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_most_two_files_of_the_limit_are_kept_and_the_latest_bytes_are_among_them() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.log");
        let mut log = RotatingFile::open(&path, 100).unwrap();
        for number in 0..100 {
            log.write(format!("line {number:04}\n").as_bytes()).unwrap();
        }
        log.write(&[b'x'; 250]).unwrap();
        let sizes: Vec<u64> = std::fs::read_dir(directory.path())
            .unwrap()
            .map(|e| e.unwrap().metadata().unwrap().len())
            .collect();
        assert_eq!(sizes.len(), 2);
        assert!(sizes.iter().all(|size| *size <= 100), "{sizes:?}");
        assert!(std::fs::read(&path).unwrap().ends_with(b"x"));
    }

    #[test]
    fn an_existing_log_is_continued() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.log");
        RotatingFile::open(&path, 100).unwrap().write(b"one\n").unwrap();
        RotatingFile::open(&path, 100).unwrap().write(b"two\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"one\ntwo\n");
    }
}
