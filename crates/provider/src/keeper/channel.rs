//! The channel to the guest agent: a socket on which the VMM accepts one connection at a time.
//!
//! The keeper makes the connection and keeps it open whether or not a daemon lives, so the guest never sees a
//! closed port (a closed port wakes the guest without end). A daemon gets a duplicate; when one asks, the old
//! connection is shut down, which the old holder sees as the end, and a new one is made at once.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::Mutex,
};

#[derive(Debug)]
pub(crate) struct Channel {
    path: PathBuf,
    current: Mutex<Option<UnixStream>>,
}

impl Channel {
    /// The listening socket is for the VMM.
    pub fn bind(path: &Path) -> io::Result<(Self, OwnedFd)> {
        let listener = UnixListener::bind(path)?.into_std()?;
        Ok((Self { path: path.to_owned(), current: Mutex::new(None) }, listener.into()))
    }

    /// Connects for the first time: the socket listens already, so this waits for nobody.
    pub async fn open(&self) -> io::Result<()> {
        self.reopen().await.map(drop)
    }

    /// Ends the connection there is and returns a duplicate of a new one.
    pub async fn reopen(&self) -> io::Result<OwnedFd> {
        let mut current = self.current.lock().await;
        if let Some(old) = current.take() {
            // Not merely closed: a daemon may hold a duplicate.
            match rustix::net::shutdown(&old, rustix::net::Shutdown::Both) {
                Ok(()) | Err(rustix::io::Errno::NOTCONN) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let new = UnixStream::connect(&self.path).await?;
        let duplicate = new.as_fd().try_clone_to_owned()?;
        *current = Some(new);
        Ok(duplicate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[tokio::test]
    async fn reopening_ends_the_old_connection_whoever_holds_it() {
        let directory = tempfile::tempdir().unwrap();
        let (channel, listener) = Channel::bind(&directory.path().join("channel.sock")).unwrap();
        let listener = std::os::unix::net::UnixListener::from(listener);
        listener.set_nonblocking(false).unwrap();
        channel.open().await.unwrap();
        let mut vmm = listener.accept().unwrap().0;
        let first = channel.reopen().await.unwrap();
        assert_eq!(vmm.read(&mut [0; 8]).unwrap(), 0, "the VMM sees the end");
        let mut vmm = listener.accept().unwrap().0;
        let second = channel.reopen().await.unwrap();
        assert_eq!(vmm.read(&mut [0; 8]).unwrap(), 0);

        let mut first = std::os::unix::net::UnixStream::from(first);
        first.set_nonblocking(false).unwrap();
        assert_eq!(first.read(&mut [0; 8]).unwrap(), 0, "so does the earlier daemon");
        let mut vmm = listener.accept().unwrap().0;
        let mut second = std::os::unix::net::UnixStream::from(second);
        second.write_all(b"hello").unwrap();
        let mut read = [0; 5];
        vmm.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"hello");
    }
}
