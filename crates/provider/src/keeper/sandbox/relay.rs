//! The channel to the agent in a sandbox: one socket, of which the sandbox has one end for its whole life. A sandbox is
//! given no other, for one that it was passed later could not be part of a saved state.
//!
//! ```text
//! agent <--its stdin and stdout--> keeper --relay--> connection --> a daemon
//! ```
//! Opening again ends the connection there was, and what was on its way in the relay is lost. While nobody is
//! connected nothing is read: an agent with much to say waits.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};
use tokio::{net::UnixStream, sync::Mutex, task::JoinHandle};

use crate::task::{Task, spawn};

/// Moved at once. Nothing waits for the buffer to fill.
const BUFFER: usize = 64 * 1024;

#[derive(Debug)]
pub(super) struct Relay {
    agent: Arc<UnixStream>,
    current: Mutex<Option<JoinHandle<()>>>,
}

impl Relay {
    pub fn new(agent: UnixStream) -> Self {
        Self { agent: Arc::new(agent), current: Mutex::new(None) }
    }

    /// Ends the connection there is and returns one end of a new one.
    pub async fn reopen(&self) -> io::Result<OwnedFd> {
        let mut current = self.current.lock().await;
        if let Some(old) = current.take() {
            old.abort();
            // Until its last bytes are moved, or not: two relays at once would mix theirs.
            let _aborted = old.await;
        }
        let (ours, theirs) = UnixStream::pair()?;
        let theirs = theirs.as_fd().try_clone_to_owned()?;
        let agent = self.agent.clone();
        *current = Some(spawn(Task::Relay, async move {
            // Either end's end is the connection's; the daemon sees it by its own descriptor.
            tokio::select! {
                _ = pump(&agent, &ours) => {}
                _ = pump(&ours, &agent) => {}
            }
        }));
        Ok(theirs)
    }
}

/// Moves bytes until there are no more.
async fn pump(from: &UnixStream, to: &UnixStream) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        from.readable().await?;
        let mut data = match from.try_read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => &buffer[..length],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        while !data.is_empty() {
            to.writable().await?;
            match to.try_write(data) {
                Ok(length) => data = &data[length..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn stream(fd: OwnedFd) -> UnixStream {
        let stream = std::os::unix::net::UnixStream::from(fd);
        stream.set_nonblocking(true).unwrap();
        UnixStream::from_std(stream).unwrap()
    }

    #[tokio::test]
    async fn opening_again_ends_the_connection_there_was_and_the_agent_notices_nothing() {
        let (ours, mut agent) = UnixStream::pair().unwrap();
        let relay = Relay::new(ours);
        let mut read = [0; 5];
        let mut first = stream(relay.reopen().await.unwrap());
        first.write_all(b"hello").await.unwrap();
        agent.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"hello");

        let mut second = stream(relay.reopen().await.unwrap());
        assert_eq!(first.read(&mut read).await.unwrap(), 0, "the earlier daemon sees the end");
        agent.write_all(b"again").await.unwrap();
        second.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"again");

        // A daemon that leaves takes nothing with it that was said afterwards.
        drop(second);
        let mut third = stream(relay.reopen().await.unwrap());
        agent.write_all(b"later").await.unwrap();
        third.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"later");
    }

    #[tokio::test]
    async fn more_than_fits_on_the_way_arrives_whole_both_ways_at_once() {
        const SIZE: usize = 3_000_001;
        let (ours, agent) = UnixStream::pair().unwrap();
        let relay = Relay::new(ours);
        let daemon = stream(relay.reopen().await.unwrap());
        let data: Vec<u8> = (0..SIZE).map(|n| (n % 251) as u8).collect();
        let exchange = |stream: UnixStream| {
            let data = data.clone();
            async move {
                let (mut read, mut write) = stream.into_split();
                let mut seen = vec![0; SIZE];
                let (wrote, got) = tokio::join!(write.write_all(&data), read.read_exact(&mut seen));
                wrote.unwrap();
                got.unwrap();
                assert!(seen == data);
                (read, write)
            }
        };
        tokio::join!(exchange(daemon), exchange(agent));
    }
}
