//! The virtio-serial port to the host, as an async byte pipe that never ends and never spins. In a sandbox it is a socket,
//! which the agent has as its standard input.
//!
//! ```text
//! port --(edge-triggered)--> private epoll --(readable)--> runtime --> watcher task --> wake reader and writer
//! ```
//! While the host has the port closed, reads answer 0 and writes would block: both just wait, because a host
//! that is gone may come back. The port then reports hang-up for as long as that lasts, which wakes a
//! level-triggered wait endlessly and which the runtime remembers as final. The private epoll turns every change
//! of the port (data, space, host gone, host back) into one edge, and nothing in between costs anything.
//!
//! gVisor's kernel (seen with 20240729) may forget for ever to report a socket of the host's that becomes ready while a
//! saved state is loaded: once in hundreds of times under load. So space, which there always is, is asked for only by a
//! writer that waits for it; and what has waited for a second is looked at, and reported by a new epoll if it was forgotten.

use crate::{
    init::InitError,
    sys::{self, AsyncFd},
    task::OwnedTask,
};
use futures::task::AtomicWaker;
use rustix::{
    event::{PollFd, PollFlags, Timespec, epoll},
    fd::OwnedFd,
    fs::{CWD, Mode, OFlags, openat},
    io::Errno,
};
use std::{
    fs, io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

/// The device node of the virtio port the host gave this name.
pub fn find(name: &str) -> Result<Option<PathBuf>, InitError> {
    // Absent until the driver is loaded.
    let Ok(ports) = fs::read_dir("/sys/class/virtio-ports") else { return Ok(None) };
    for port in ports.flatten() {
        // The name arrives by a message of its own, after the port.
        let Ok(found) = fs::read_to_string(port.path().join("name")) else { continue };
        if found.trim_end() == name {
            let node = Path::new("/dev").join(port.file_name());
            return Ok(node.exists().then_some(node));
        }
    }
    Ok(None)
}

/// Where the host is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// A virtio-serial port.
    Device(PathBuf),
    /// A stream socket, in a sandbox.
    StandardInput,
}

/// Between two looks at a socket that nothing is heard of.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// For an edge that is on its way.
const ON_ITS_WAY: Duration = Duration::from_millis(50);

/// The open port. Reading never sees an end; writing waits while the host is away.
#[derive(Debug)]
pub struct Port {
    watched: Arc<Watched>,
    _watcher: OwnedTask,
}

#[derive(Debug)]
struct Watched {
    port: OwnedFd,
    /// Whether the kernel may forget to report.
    forgetful: bool,
    reader: Side,
    writer: Side,
    edges: Mutex<Edges>,
}

#[derive(Debug, Default)]
struct Side {
    waker: AtomicWaker,
    /// The last attempt could do nothing.
    waits: AtomicBool,
}

#[derive(Debug)]
struct Edges {
    epoll: Arc<AsyncFd>,
    /// What is reported as of now.
    reported: epoll::EventFlags,
    /// Those that have forgotten. Not closed: to take out what is wrongly noted as listed empties the runtime's list of all
    /// that is ready.
    forgotten: Vec<Arc<AsyncFd>>,
}

impl Port {
    pub fn open(way: &Way) -> io::Result<Self> {
        match way {
            Way::Device(path) => {
                let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
                Self::from_fd(openat(CWD, path, flags, Mode::empty())?, false)
            }
            Way::StandardInput => {
                // What is started gets descriptors of its own in place of ours.
                let socket = rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3)?;
                rustix::io::ioctl_fionbio(&socket, true)?;
                Self::from_fd(socket, true)
            }
        }
    }

    fn from_fd(port: OwnedFd, forgetful: bool) -> io::Result<Self> {
        let edges = Mutex::new(Edges::of(&port, idle(forgetful))?);
        let (reader, writer) = (Side::default(), Side::default());
        let watched = Arc::new(Watched { port, forgetful, reader, writer, edges });
        let watcher = OwnedTask::spawn("port watcher", watch(Arc::clone(&watched)));
        Ok(Self { watched, _watcher: watcher })
    }
}

/// What is reported while nobody waits to write.
fn idle(forgetful: bool) -> epoll::EventFlags {
    let data = epoll::EventFlags::IN | epoll::EventFlags::ET;
    if forgetful { data } else { data | epoll::EventFlags::OUT }
}

impl Edges {
    fn of(port: &OwnedFd, reported: epoll::EventFlags) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, port, epoll::EventData::new_u64(0), reported)?;
        let epoll = Arc::new(sys::async_fd(epoll, Interest::READABLE)?);
        Ok(Self { epoll, reported, forgotten: Vec::new() })
    }
}

impl Side {
    fn wake(&self) {
        self.waits.store(false, Ordering::Relaxed);
        self.waker.wake();
    }
}

impl Watched {
    fn edges(&self) -> std::sync::MutexGuard<'_, Edges> {
        self.edges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the next edge is to tell of space, too. If there is some, there is an edge at once.
    fn report_space(&self, wanted: bool) -> io::Result<()> {
        let idle = idle(self.forgetful);
        let reported = if wanted { idle | epoll::EventFlags::OUT } else { idle };
        let mut edges = self.edges();
        if edges.reported != reported {
            epoll::modify(edges.epoll.get_ref(), &self.port, epoll::EventData::new_u64(0), reported)?;
            edges.reported = reported;
        }
        Ok(())
    }

    /// Whether somebody waits for what is there.
    fn is_overlooked(&self) -> bool {
        let mut wanted = PollFlags::empty();
        wanted.set(PollFlags::IN, self.reader.waits.load(Ordering::Relaxed));
        wanted.set(PollFlags::OUT, self.writer.waits.load(Ordering::Relaxed));
        let mut port = [PollFd::new(&self.port, wanted)];
        let there = rustix::event::poll(&mut port, Some(&Timespec::default()));
        there.is_ok_and(|count| count > 0) && port[0].revents().intersects(wanted)
    }

    /// In place of an epoll that has forgotten the port, or that the runtime's own has forgotten.
    fn renew(&self) -> io::Result<()> {
        let mut edges = self.edges();
        let new = Edges::of(&self.port, edges.reported)?.epoll;
        let old = std::mem::replace(&mut edges.epoll, new);
        edges.forgotten.push(old);
        Ok(())
    }

    fn wake(&self) {
        self.reader.wake();
        self.writer.wake();
    }
}

/// Passes every edge on to both sides.
async fn watch(watched: Arc<Watched>) {
    loop {
        let epoll = Arc::clone(&watched.edges().epoll);
        let edge = epoll.readable();
        let edge = match watched.forgetful {
            true => tokio::time::timeout(LOOK_AGAIN, edge).await,
            // No timer: each costs an emulated processor.
            false => Ok(edge.await),
        };
        match edge {
            Ok(Ok(mut ready)) => {
                let mut events =
                    [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) };
                        2];
                // Consuming the edge may fail only by interruption; the next round tries again.
                if epoll::wait(epoll.get_ref(), &mut events[..], Some(&Timespec::default())).is_ok() {
                    ready.clear_ready();
                }
                watched.wake();
            }
            Ok(Err(_closed)) => return,
            Err(_elapsed) => {
                let forgotten = watched.is_overlooked()
                    && tokio::time::timeout(ON_ITS_WAY, epoll.readable()).await.is_err();
                // Without descriptors to be had it is tried again in a second.
                if forgotten && watched.renew().is_ok() {
                    watched.wake();
                }
            }
        }
    }
}

impl AsyncRead for Port {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Watched { port, reader, .. } = &*self.watched;
        // Registered before the attempt: an edge in between wakes us again.
        reader.waker.register(cx.waker());
        loop {
            let chunk = buffer.initialize_unfilled();
            if chunk.is_empty() {
                return Poll::Ready(Ok(()));
            }
            match rustix::io::read(port, chunk) {
                Ok(0) | Err(Errno::AGAIN) => {
                    reader.waits.store(true, Ordering::Relaxed);
                    return Poll::Pending;
                }
                Ok(count) => {
                    reader.waits.store(false, Ordering::Relaxed);
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Poll::Ready(Err(errno.into())),
            }
        }
    }
}

impl AsyncWrite for Port {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let Watched { port, writer, .. } = &*self.watched;
        writer.waker.register(cx.waker());
        loop {
            match rustix::io::write(port, data) {
                Ok(0) | Err(Errno::AGAIN) => {
                    writer.waits.store(true, Ordering::Relaxed);
                    return match self.watched.report_space(true) {
                        Ok(()) => Poll::Pending,
                        Err(error) => Poll::Ready(Err(error)),
                    };
                }
                Ok(count) => {
                    writer.waits.store(false, Ordering::Relaxed);
                    return Poll::Ready(self.watched.report_space(false).map(|()| count));
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Poll::Ready(Err(errno.into())),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The driver hands every write to the host at once.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn port() -> (Port, tokio::net::UnixStream) {
        let (ours, host) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        host.set_nonblocking(true).unwrap();
        let port = Port::from_fd(ours.into(), true).unwrap();
        (port, tokio::net::UnixStream::from_std(host).unwrap())
    }

    /// As a kernel leaves it that has forgotten the port.
    fn forget(watched: &Watched) {
        let nothing = epoll::EventFlags::ET;
        epoll::modify(watched.edges().epoll.get_ref(), &watched.port, epoll::EventData::new_u64(0), nothing)
            .unwrap();
    }

    #[tokio::test]
    async fn much_goes_both_ways_and_space_is_asked_for_only_while_it_lacks() {
        const SIZE: usize = 3_000_001;
        let (mut port, host) = port();
        let (mut read, mut write) = host.into_split();
        let data: Vec<u8> = (0..SIZE).map(|n| (n % 251) as u8).collect();
        let echo = async { tokio::io::copy(&mut read, &mut write).await };
        let (mut back, mut chunks) = (Vec::new(), data.chunks(1 << 20));
        // What is on its way fits nowhere, so one direction is stuck until the other moves.
        let (mut reader, mut writer) = tokio::io::split(&mut port);
        let there = async {
            for chunk in chunks.by_ref() {
                writer.write_all(chunk).await.unwrap();
            }
        };
        let and_back = async {
            let mut buffer = vec![0; 70_000];
            while back.len() < SIZE {
                let count = reader.read(&mut buffer).await.unwrap();
                back.extend_from_slice(&buffer[..count]);
            }
        };
        tokio::select! {
            _ = async { tokio::join!(there, and_back) } => {}
            ended = echo => panic!("the echo ended: {ended:?}"),
        }
        assert!(back == data);
        assert_eq!(port.watched.edges().reported, idle(true));
    }

    #[tokio::test]
    async fn a_port_that_the_kernel_has_forgotten_is_found_again_and_reported_from_then_on() {
        let (mut port, mut host) = port();
        forget(&port.watched);
        let mut read = [0; 5];
        let begun = std::time::Instant::now();
        let (wrote, got) = tokio::join!(host.write_all(b"hello"), port.read_exact(&mut read));
        wrote.unwrap();
        got.unwrap();
        assert_eq!(&read, b"hello");
        assert!(begun.elapsed() >= LOOK_AGAIN, "an edge was seen that could not be");
        let first = Arc::as_ptr(&port.watched.edges().epoll);
        for _ in 0..10 {
            host.write_all(b"again").await.unwrap();
            port.read_exact(&mut read).await.unwrap();
        }
        assert_eq!(Arc::as_ptr(&port.watched.edges().epoll), first, "once is enough");

        // A writer that waits for space, too.
        let (mut seen, block) = (vec![0; 1 << 20], vec![7; 1 << 20]);
        let watched = Arc::clone(&port.watched);
        let host_reads = async {
            while !watched.writer.waits.load(Ordering::Relaxed) {
                tokio::task::yield_now().await;
            }
            forget(&watched);
            host.read_exact(&mut seen).await
        };
        let (wrote, got) = tokio::join!(port.write_all(&block), host_reads);
        wrote.unwrap();
        got.unwrap();
    }

    #[tokio::test]
    async fn nothing_is_renewed_for_data_that_nobody_wants_yet() {
        let (port, mut host) = port();
        host.write_all(b"unread").await.unwrap();
        let first = Arc::as_ptr(&port.watched.edges().epoll);
        tokio::time::sleep(LOOK_AGAIN * 2 + ON_ITS_WAY).await;
        assert_eq!(Arc::as_ptr(&port.watched.edges().epoll), first);
    }
}
