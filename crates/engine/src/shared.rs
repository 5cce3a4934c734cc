//! What a VM's driver shares with those who talk to its guest.

use crate::{
    branch::transactions::{Openings, Ownership},
    execs::Execs,
    sync::lock,
};
use offshoot_provider::vm::Dialer;
use std::sync::Mutex;

#[derive(Debug, Default)]
pub(crate) struct VmShared {
    pub execs: Execs,
    /// What was admitted to the guest and has not begun there.
    pub openings: Openings,
    /// Whose the VM is while a transaction or a race is under way.
    pub ownership: Ownership,
    dialer: Mutex<Option<Dialer>>,
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
