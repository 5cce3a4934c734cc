//! Advisory file locks. The kernel releases them when the holder dies, however it dies.

use crate::Cancel;
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use std::{
    fs::{File, OpenOptions},
    io,
    os::fd::OwnedFd,
    path::Path,
    thread,
};

/// Held until dropped.
#[derive(Debug)]
pub(crate) struct FileLock {
    _file: File,
}

impl FileLock {
    pub(crate) fn exclusive(path: &Path) -> io::Result<Self> {
        Self::take(path, FlockOperation::LockExclusive)
    }

    pub(crate) fn shared(path: &Path) -> io::Result<Self> {
        Self::take(path, FlockOperation::LockShared)
    }

    /// `None` if someone else holds it.
    pub(crate) fn try_exclusive(path: &Path) -> io::Result<Option<Self>> {
        match Self::take(path, FlockOperation::NonBlockingLockExclusive) {
            Ok(lock) => Ok(Some(lock)),
            Err(e) if e.raw_os_error() == Some(Errno::WOULDBLOCK.raw_os_error()) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Waits for the lock until cancelled; `None` means cancelled.
    ///
    /// `flock` cannot be interrupted from another thread, so a thread of its own waits for it and says so by closing
    /// a pipe. If nobody wants the lock any more when that thread gets it, it is dropped there.
    pub(crate) fn exclusive_unless(path: &Path, cancel: &Cancel) -> io::Result<Option<Self>> {
        if let Some(lock) = Self::try_exclusive(path)? {
            return Ok(Some(lock));
        }
        let (done, closes_when_done): (OwnedFd, OwnedFd) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let path = path.to_owned();
        let (send, receive) = std::sync::mpsc::sync_channel(1);
        thread::Builder::new().name("image-lock".into()).spawn(move || {
            // A failed send means that the waiter was cancelled: the lock goes with the message.
            let _ = send.send(Self::exclusive(&path));
            drop(closes_when_done);
        })?;
        if cancel.or_readable(&done)? {
            return Ok(None);
        }
        receive.recv().map_err(io::Error::other)?.map(Some)
    }

    fn take(path: &Path, operation: FlockOperation) -> io::Result<Self> {
        // Opened for reading where writing is not allowed: flock asks for no access mode.
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .or_else(|denied| File::open(path).map_err(|_| denied))?;
        loop {
            match flock(&file, operation) {
                Ok(()) => return Ok(Self { _file: file }),
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}
