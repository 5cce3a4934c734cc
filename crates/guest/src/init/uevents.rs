//! Waiting for devices: the kernel's own announcements instead of polling.

use super::{InitError, Step};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fd::{AsFd, OwnedFd},
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SocketFlags, SocketType, bind, netlink, netlink::SocketAddrNetlink, recv,
        socket_with,
    },
};
use std::time::Instant;

/// A socket on which the kernel announces devices.
#[derive(Debug)]
pub struct Uevents(OwnedFd);

impl Uevents {
    pub fn open() -> Result<Self, InitError> {
        /// The group of the kernel's own announcements, as opposed to those udev passes on.
        const KERNEL_GROUP: u32 = 1;
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            Some(netlink::KOBJECT_UEVENT),
        )
        .step("open", "uevent socket")?;
        bind(&socket, &SocketAddrNetlink::new(0, KERNEL_GROUP)).step("bind", "uevent socket")?;
        Ok(Self(socket))
    }

    /// Calls `probe` now and after every announcement until it finds something.
    pub fn wait_for<T>(
        &self,
        what: &str,
        deadline: Instant,
        mut probe: impl FnMut() -> Result<Option<T>, InitError>,
    ) -> Result<T, InitError> {
        loop {
            // Old announcements are dropped before the probe, so one that comes after it is not missed.
            self.drain()?;
            if let Some(found) = probe()? {
                return Ok(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(InitError::Missing { what: what.to_owned(), after: super::DEVICE_DEADLINE });
            }
            let timeout = Timespec::try_from(left).ok();
            match poll(&mut [PollFd::new(&self.0, PollFlags::IN)], timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno).step("poll", "uevent socket"),
            }
        }
    }

    fn drain(&self) -> Result<(), InitError> {
        let mut buffer = [0_u8; 4096];
        loop {
            match recv(self.0.as_fd(), &mut buffer, RecvFlags::empty()) {
                // Lost announcements do not matter: the probe looks at the devices themselves.
                Ok(_) | Err(Errno::NOBUFS | Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(errno) => return Err(errno).step("read", "uevent socket"),
            }
        }
    }
}
