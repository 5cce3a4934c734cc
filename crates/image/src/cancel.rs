//! Cancelling a build from another thread or a signal handler's task.

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, eventfd, poll},
    fd::{AsFd, BorrowedFd, OwnedFd},
    io::Errno,
};
use std::{io, sync::Arc};

/// A switch that goes from off to on once. Everything slow in a build waits on it too, so cancelling takes effect at
/// once: child processes are ended and temporary files removed before the build returns.
#[derive(Debug, Clone)]
pub struct Cancel {
    event: Arc<OwnedFd>,
}

impl Cancel {
    pub fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { event: Arc::new(event) })
    }

    /// May be called any number of times.
    pub fn cancel(&self) {
        // Fails only if the counter is full, when the event is set already.
        let _ = rustix::io::write(&*self.event, &1_u64.to_ne_bytes());
    }

    pub fn is_cancelled(&self) -> bool {
        let mut fds = [PollFd::new(&*self.event, PollFlags::IN)];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(poll(&mut fds, Some(&now)), Ok(1))
    }

    /// Readable once cancelled, for waiting on several things.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        (*self.event).as_fd()
    }

    /// Waits until `fd` is readable or closed (`false`) or this is cancelled (`true`).
    pub(crate) fn or_readable(&self, fd: impl AsFd) -> io::Result<bool> {
        let fd = fd.as_fd();
        loop {
            let mut fds =
                [PollFd::new(&*self.event, PollFlags::IN), PollFd::from_borrowed_fd(fd, PollFlags::IN)];
            match poll(&mut fds, None) {
                Ok(_) => return Ok(!fds[0].revents().is_empty()),
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cancelling_wakes_a_waiter_and_stays() {
        let cancel = Cancel::new().unwrap();
        assert!(!cancel.is_cancelled());
        let (quiet, _keeps_it_open) = rustix::pipe::pipe().unwrap();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| cancel.or_readable(&quiet).unwrap());
            cancel.cancel();
            assert!(waiter.join().unwrap());
        });
        cancel.cancel();
        assert!(cancel.is_cancelled());
    }
}
