//! What a VM's driver shares with those who talk to its guest.

use crate::{
    branch::transactions::{Openings, Ownership},
    execs::Execs,
    sync::lock,
    work::Work,
};
use offshoot_provider::vm::Dialer;
use std::sync::Mutex;

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
        }
    }
}

impl VmShared {
    /// The way to the present process, to measure it.
    pub fn dialer(&self) -> Option<Dialer> {
        lock(&self.dialer).clone()
    }
    pub fn set_dialer(&self, dialer: Option<Dialer>) {
        *lock(&self.dialer) = dialer;
    }
}
