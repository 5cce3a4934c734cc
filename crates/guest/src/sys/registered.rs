//! Descriptors the runtime waits for, on a kernel that brings back what was forgotten.
//!
//! The runtime gives the kernel the address of its own note on a descriptor, and frees the note once the kernel was told to
//! forget it. gVisor's kernel forgets; but in a state that was saved afterwards and is continued, its `epoll` reports such
//! descriptors once more (seen with releases of 2024), and the runtime would use what is freed. So there a note is never
//! freed: half a kilobyte for each stream of a process, once it has ended.

use rustix::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::{
    mem::ManuallyDrop,
    ops::{Deref, DerefMut},
    sync::atomic::{AtomicBool, Ordering},
};

static NOTES_STAY: AtomicBool = AtomicBool::new(false);

/// From now on the runtime's notes on descriptors stay. For a process whose kernel is gVisor's, before its first.
pub fn keep_notes() {
    NOTES_STAY.store(true, Ordering::Relaxed);
}

/// Whether [`keep_notes`] was called.
pub fn notes_stay() -> bool {
    NOTES_STAY.load(Ordering::Relaxed)
}

/// Something that owns one descriptor and the runtime's note on it.
#[derive(Debug)]
pub struct Registered<T: AsRawFd>(ManuallyDrop<T>);

/// A descriptor the runtime waits for.
pub type AsyncFd = Registered<tokio::io::unix::AsyncFd<OwnedFd>>;

impl<T: AsRawFd> Registered<T> {
    pub fn new(owner: T) -> Self {
        Self(ManuallyDrop::new(owner))
    }
}

impl<T: AsRawFd> Deref for Registered<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: AsRawFd> DerefMut for Registered<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<T: AsRawFd + AsFd> AsFd for Registered<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl<T: AsRawFd> Drop for Registered<T> {
    fn drop(&mut self) {
        if notes_stay() {
            // Closing makes the kernel forget.
            // SAFETY: the owner is neither used nor dropped any more, so its descriptor is this one's alone.
            drop(unsafe { OwnedFd::from_raw_fd(self.0.as_raw_fd()) });
        } else {
            // SAFETY: it is dropped once, here, and not used afterwards.
            unsafe { ManuallyDrop::drop(&mut self.0) };
        }
    }
}
