//! What a VM's driver shares with those who talk to its guest.

use crate::{
    branch::transactions::{Openings, Ownership},
    execs::Execs,
    sync::lock,
    work::Work,
};
use offshoot_provider::vm::Dialer;
use std::sync::{
    Mutex,
    atomic::{AtomicBool, Ordering},
};

#[derive(Debug)]
pub(crate) struct VmShared {
    pub execs: Execs,
    /// What was admitted to the guest and has not begun there.
    pub openings: Openings,
    /// Whose the VM is while a transaction or a race is under way.
    pub ownership: Ownership,
    /// What others do with it now.
    pub work: Work,
    dialer: Mutex<Option<Dialer>>,
    /// Layers of its disk were merged since its process was told of them.
    shorter: AtomicBool,
}

impl Default for VmShared {
    fn default() -> Self {
        let work = Work::default();
        Self {
            execs: Execs::default(),
            openings: Openings::default(),
            ownership: Ownership::of(work.clone()),
            work,
            dialer: Mutex::default(),
            shorter: AtomicBool::default(),
        }
    }
}

impl VmShared {
    /// The way to the present process, to measure it.
    pub fn dialer(&self) -> Option<Dialer> {
        lock(&self.dialer).clone()
    }
    /// Its process may read the disk from fewer files.
    pub fn disk_is_shorter(&self) {
        self.shorter.store(true, Ordering::SeqCst);
    }
    /// Whether that is so; told once.
    pub fn take_shorter(&self) -> bool {
        self.shorter.swap(false, Ordering::SeqCst)
    }
    pub fn set_dialer(&self, dialer: Option<Dialer>) {
        *lock(&self.dialer) = dialer;
    }
}
