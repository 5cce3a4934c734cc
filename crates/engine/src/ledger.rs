//! Who holds how much. Entries are keyed by VM, so reserving or releasing twice is the same as once: a saga
//! step may be repeated.
//!
//! ```text
//! admit(vm, disk)        counts the VM and its disk, before anything of it exists
//! power_on(vm, memory)   counts its memory, before its process exists
//! power_off(vm)          after the process was observed gone
//! remove(vm)             after its files were removed
//! ```

use crate::Limits;
use offshoot_types::{Bytes, DiskMib, ErrorCode, Failure, MemMib, VmId};
use std::collections::HashMap;

#[derive(Debug, Default)]
pub(crate) struct Ledger {
    limits: Limits,
    entries: HashMap<VmId, Entry>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    disk: DiskMib,
    /// `None` without a process.
    memory: Option<MemMib>,
}

/// What the ledger refused, with the numbers that refused it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Exhausted {
    #[error("there are {count} VMs already, and the limit is {limit}")]
    Vms { count: usize, limit: u32 },
    #[error("{wanted} of disk is asked for, {held} of {limit} is taken")]
    Disk { wanted: Bytes, held: Bytes, limit: Bytes },
    #[error("{wanted} of memory is asked for, {held} of {limit} is taken")]
    Memory { wanted: Bytes, held: Bytes, limit: Bytes },
    #[error("{wanted} of memory is asked for, and one VM may have at most {limit}")]
    MemoryPerVm { wanted: Bytes, limit: Bytes },
}

impl From<Exhausted> for Failure {
    fn from(exhausted: Exhausted) -> Self {
        let hint = match &exhausted {
            Exhausted::Vms { .. } => "destroy a VM you no longer need (`offshoot list` shows them)",
            Exhausted::Disk { .. } => "ask for a smaller disk, or destroy a VM you no longer need",
            Exhausted::Memory { .. } => "ask for less memory, or stop a VM (`offshoot list` shows them)",
            Exhausted::MemoryPerVm { .. } => "ask for less memory",
        };
        Failure::new(ErrorCode::NoResource, exhausted.to_string()).hint(hint)
    }
}

impl Ledger {
    pub fn new(limits: Limits) -> Self {
        Self { limits, entries: HashMap::new() }
    }

    /// Takes a place and a disk for a VM that is to be created. Its memory must be possible at all, though it
    /// is taken only by [`power_on`](Self::power_on).
    pub fn admit(&mut self, vm: VmId, disk: DiskMib, memory: MemMib) -> Result<(), Exhausted> {
        if self.entries.contains_key(&vm) {
            return Ok(());
        }
        if let Some(limit) = self.limits.max_vms
            && self.entries.len() >= limit as usize
        {
            return Err(Exhausted::Vms { count: self.entries.len(), limit });
        }
        if let Some(limit) = self.limits.memory_per_vm
            && memory > limit
        {
            return Err(Exhausted::MemoryPerVm { wanted: memory.bytes(), limit: limit.bytes() });
        }
        if let Some(limit) = self.limits.memory
            && memory.bytes() > limit
        {
            return Err(Exhausted::MemoryPerVm { wanted: memory.bytes(), limit });
        }
        if let Some(limit) = self.limits.disk {
            let (wanted, held) = (disk.bytes(), self.disk());
            if held.0.saturating_add(wanted.0) > limit.0 {
                return Err(Exhausted::Disk { wanted, held, limit });
            }
        }
        self.entries.insert(vm, Entry { disk, memory: None });
        Ok(())
    }

    /// Counts a VM found in the store, whatever the limits say now: it exists.
    pub fn restore(&mut self, vm: VmId, disk: DiskMib, memory: Option<MemMib>) {
        self.entries.insert(vm, Entry { disk, memory });
    }

    pub fn power_on(&mut self, vm: VmId, memory: MemMib) -> Result<(), Exhausted> {
        let others: u64 =
            self.entries.iter().filter(|(id, _)| **id != vm).filter_map(|(_, e)| e.memory).map(|m| m.bytes().0).sum();
        if let Some(limit) = self.limits.memory
            && others.saturating_add(memory.bytes().0) > limit.0
        {
            return Err(Exhausted::Memory { wanted: memory.bytes(), held: Bytes(others), limit });
        }
        if let Some(entry) = self.entries.get_mut(&vm) {
            entry.memory = Some(memory);
        }
        Ok(())
    }

    pub fn power_off(&mut self, vm: VmId) {
        if let Some(entry) = self.entries.get_mut(&vm) {
            entry.memory = None;
        }
    }

    pub fn remove(&mut self, vm: VmId) {
        self.entries.remove(&vm);
    }

    pub fn vms(&self) -> usize {
        self.entries.len()
    }
    pub fn memory(&self) -> Bytes {
        Bytes(self.entries.values().filter_map(|e| e.memory).map(|m| m.bytes().0).sum())
    }
    pub fn disk(&self) -> Bytes {
        Bytes(self.entries.values().map(|e| e.disk.bytes().0).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mem(mib: u64) -> MemMib {
        MemMib::from_mib(mib).unwrap()
    }
    fn disk(mib: u64) -> DiskMib {
        DiskMib::from_mib(mib).unwrap()
    }

    #[test]
    fn a_vm_that_is_still_being_created_counts_and_a_repeated_reservation_does_not() {
        let mut ledger = Ledger::new(Limits { max_vms: Some(1), ..Limits::default() });
        let (a, b) = (VmId::new(), VmId::new());
        ledger.admit(a, disk(64), mem(128)).unwrap();
        ledger.admit(a, disk(64), mem(128)).unwrap();
        assert_eq!(ledger.admit(b, disk(64), mem(128)), Err(Exhausted::Vms { count: 1, limit: 1 }));
        ledger.remove(a);
        ledger.remove(a);
        ledger.admit(b, disk(64), mem(128)).unwrap();
    }

    #[test]
    fn memory_is_held_by_processes_only_and_disk_until_removal() {
        let limits = Limits { memory: Some(Bytes(256 << 20)), disk: Some(Bytes(128 << 20)), ..Limits::default() };
        let mut ledger = Ledger::new(limits);
        let (a, b) = (VmId::new(), VmId::new());
        ledger.admit(a, disk(64), mem(256)).unwrap();
        ledger.admit(b, disk(64), mem(128)).unwrap();
        assert!(matches!(ledger.admit(VmId::new(), disk(64), mem(128)), Err(Exhausted::Disk { .. })));
        ledger.power_on(a, mem(256)).unwrap();
        ledger.power_on(a, mem(256)).unwrap();
        assert!(matches!(ledger.power_on(b, mem(128)), Err(Exhausted::Memory { .. })));
        ledger.power_off(a);
        ledger.power_on(b, mem(128)).unwrap();
        assert_eq!((ledger.memory(), ledger.disk()), (Bytes(128 << 20), Bytes(128 << 20)));
    }

    #[test]
    fn more_memory_than_all_vms_together_may_have_is_refused_at_once() {
        let mut ledger = Ledger::new(Limits { memory: Some(Bytes(256 << 20)), ..Limits::default() });
        let refused = ledger.admit(VmId::new(), disk(64), mem(512)).unwrap_err();
        assert_eq!(Failure::from(refused).code, ErrorCode::NoResource);
        assert_eq!(ledger.vms(), 0);
    }
}
