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

use crate::init::InitError;
use crate::{
    sys::{self, AsyncFd},
    task::OwnedTask,
};
use futures::task::AtomicWaker;
use rustix::{
    event::epoll,
    fd::OwnedFd,
    fs::{CWD, Mode, OFlags, openat},
    io::Errno,
};
use std::{
    fs, io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
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
    /// A stream socket.
    StandardInput,
}

/// The open port. Reading never sees an end; writing waits while the host is away.
#[derive(Debug)]
pub struct Port {
    port: OwnedFd,
    wakers: Arc<Wakers>,
    _watcher: OwnedTask,
}

#[derive(Debug, Default)]
struct Wakers {
    read: AtomicWaker,
    write: AtomicWaker,
}

impl Port {
    pub fn open(way: &Way) -> io::Result<Self> {
        match way {
            Way::Device(path) => {
                let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
                Self::from_fd(openat(CWD, path, flags, Mode::empty())?)
            }
            Way::StandardInput => {
                // What is started gets descriptors of its own in place of ours.
                let socket = rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3)?;
                rustix::io::ioctl_fionbio(&socket, true)?;
                Self::from_fd(socket)
            }
        }
    }

    fn from_fd(port: OwnedFd) -> io::Result<Self> {
        let edges = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let changes = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
        epoll::add(&edges, &port, epoll::EventData::new_u64(0), changes)?;
        let edges = sys::async_fd(edges, Interest::READABLE)?;
        let wakers = Arc::new(Wakers::default());
        let watcher = OwnedTask::spawn("port watcher", watch(edges, Arc::clone(&wakers)));
        Ok(Self { port, wakers, _watcher: watcher })
    }
}

/// Passes every edge on to both sides.
async fn watch(edges: AsyncFd, wakers: Arc<Wakers>) {
    while let Ok(mut ready) = edges.readable().await {
        let mut events =
            [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 2];
        // Consuming the edge may fail only by interruption; the next round tries again.
        if epoll::wait(edges.get_ref(), &mut events[..], Some(&rustix::event::Timespec::default())).is_ok() {
            ready.clear_ready();
        }
        wakers.read.wake();
        wakers.write.wake();
    }
}

impl AsyncRead for Port {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // Registered before the attempt: an edge in between wakes us again.
        self.wakers.read.register(cx.waker());
        loop {
            let chunk = buffer.initialize_unfilled();
            if chunk.is_empty() {
                return Poll::Ready(Ok(()));
            }
            match rustix::io::read(&self.port, chunk) {
                Ok(0) | Err(Errno::AGAIN) => return Poll::Pending,
                Ok(count) => {
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
        self.wakers.write.register(cx.waker());
        loop {
            match rustix::io::write(&self.port, data) {
                Ok(0) | Err(Errno::AGAIN) => return Poll::Pending,
                Ok(count) => return Poll::Ready(Ok(count)),
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
