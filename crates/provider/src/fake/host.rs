//! What outlives a daemon: the machines of a fake host, and the faults a test has put in.

use super::{guest::Guest, machine::Machine};
use crate::{BootPlan, BootStep, Exit, InstanceRecord, StopStep};
use offshoot_types::{Generation, IsolationClass, ProviderKind, VmId};
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// What goes wrong at the next boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootFault {
    /// It fails at this step, having taken back what it made.
    Fail(BootStep),
    /// It fails at this step and leaves the machine running: `undo` names it.
    FailAndLeave(BootStep),
    /// It succeeds, but the guest's agent never answers.
    SilentGuest,
    /// It succeeds, but the VMM obeys no rung of the stop ladder before this one.
    Stubborn(StopStep),
}

/// A host in memory. Clones are the same host: a test keeps one and gives each "daemon" a provider on it.
#[derive(Debug, Clone, Default)]
pub struct FakeHost {
    state: Arc<Mutex<State>>,
}

type Key = (VmId, Generation);

#[derive(Debug, Default)]
struct State {
    machines: HashMap<Key, Arc<Machine>>,
    faults: VecDeque<BootFault>,
    lost_replies: usize,
    boots: u64,
    isolation: Option<IsolationClass>,
}

pub(super) enum Refusal {
    InUse,
    DiskInUse(InstanceRecord),
}

impl FakeHost {
    pub fn new() -> Self {
        Self::default()
    }

    /// The next boots meet these faults, one each, in this order.
    pub fn inject(&self, fault: BootFault) {
        self.state().faults.push_back(fault);
    }

    /// The next `count` calls to instances are carried out, but the caller never learns of it.
    pub fn lose_replies(&self, count: usize) {
        self.state().lost_replies = count;
    }

    /// The class this host claims; `EmulatedVm` unless set.
    pub fn set_isolation(&self, isolation: IsolationClass) {
        self.state().isolation = Some(isolation);
    }

    pub fn isolation(&self) -> IsolationClass {
        self.state().isolation.unwrap_or(IsolationClass::EmulatedVm)
    }

    /// As by `kill -9` from outside; whether there was one to kill.
    pub fn kill_vmm(&self, vm: VmId) -> bool {
        self.end(vm, Exit::Signal(libc::SIGKILL))
    }

    /// Ends the VM's machine in a given way; whether one ran.
    pub fn end(&self, vm: VmId, exit: Exit) -> bool {
        let running: Vec<_> = self.running().into_iter().filter(|machine| machine.record.vm == vm).collect();
        for machine in &running {
            machine.end(exit.clone());
        }
        !running.is_empty()
    }

    /// The VMs whose machines run, daemon or no daemon.
    pub fn running_vms(&self) -> Vec<VmId> {
        let mut vms: Vec<VmId> = self.running().iter().map(|machine| machine.record.vm).collect();
        vms.sort();
        vms
    }

    fn running(&self) -> Vec<Arc<Machine>> {
        self.state().machines.values().filter(|machine| machine.exit().is_none()).cloned().collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn take_fault(&self) -> Option<BootFault> {
        self.state().faults.pop_front()
    }

    pub(super) fn take_lost_reply(&self) -> bool {
        let mut state = self.state();
        let lost = state.lost_replies > 0;
        state.lost_replies = state.lost_replies.saturating_sub(1);
        lost
    }

    pub(super) fn start(&self, plan: &BootPlan, fault: Option<BootFault>) -> Result<Arc<Machine>, Refusal> {
        let key = (plan.vm, plan.generation);
        let isolation = self.isolation();
        let mut state = self.state();
        for machine in state.machines.values().filter(|machine| machine.exit().is_none()) {
            if (machine.record.vm, machine.record.generation) == key {
                return Err(Refusal::InUse);
            }
            if machine.disk.top() == plan.disk.top() {
                return Err(Refusal::DiskInUse(machine.record.clone()));
            }
        }
        state.boots += 1;
        let record = InstanceRecord {
            provider: ProviderKind::Fake,
            isolation,
            vm: plan.vm,
            generation: plan.generation,
            state_dir: plan.state_dir.clone(),
            runtime_dir: plan.runtime_dir.clone(),
            memory_base: None,
        };
        let guest = Guest::new(format!("fake-boot-{}", state.boots), plan.memory.bytes().0);
        let yields_to = match fault {
            Some(BootFault::Stubborn(step)) => step,
            _ => StopStep::VmmQuit,
        };
        let silent = fault == Some(BootFault::SilentGuest);
        let machine = Machine::start(record, plan.disk.clone(), guest, silent, yields_to);
        state.machines.insert(key, machine.clone());
        Ok(machine)
    }

    pub(super) fn find(&self, record: &InstanceRecord) -> Option<Arc<Machine>> {
        self.state().machines.get(&(record.vm, record.generation)).cloned()
    }

    pub(super) fn forget(&self, record: &InstanceRecord) -> Option<Arc<Machine>> {
        self.state().machines.remove(&(record.vm, record.generation))
    }
}
