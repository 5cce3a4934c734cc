//! What outlives a daemon: the machines of a fake host, and the faults a test has put in.

use super::{
    disks::Disks,
    files::Files,
    guest::Guest,
    machine::{Hardware, Machine},
    state::Stored,
};
use crate::{BootPlan, BootStep, Exit, InstanceRecord, StopStep, disk::DiskError, memory::Base};
use offshoot_types::{Generation, IsolationClass, ProviderKind, VmId};
use std::{
    collections::{HashMap, VecDeque},
    path::{Path, PathBuf},
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

/// What goes wrong at the next checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckpointFault {
    /// The VMM refuses; the VM runs on as it was.
    Refuse,
    /// No answer comes in time; the VM runs on as it was.
    Timeout,
    /// The VMM dies before it did anything.
    CrashBefore,
    /// The VMM dies when it has switched to the new disk layer and nothing else.
    CrashAfterSwitch,
}

/// What goes wrong in a guest, the next time it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestFault {
    FailFreeze,
    /// No answer ever comes.
    SilentFreeze,
    FailThaw,
    SilentThaw,
}

/// Faults that guests have yet to meet.
#[derive(Debug, Clone, Default)]
pub(super) struct GuestFaults(Arc<Mutex<Vec<GuestFault>>>);

impl GuestFaults {
    fn waiting(&self) -> MutexGuard<'_, Vec<GuestFault>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this fault waits; it is met once.
    pub fn take(&self, fault: GuestFault) -> bool {
        let mut waiting = self.waiting();
        match waiting.iter().position(|other| *other == fault) {
            Some(at) => {
                waiting.remove(at);
                true
            }
            None => false,
        }
    }
}

/// A machine as one sees it from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FakeMachine {
    pub vm: VmId,
    pub generation: Generation,
    /// One that has ended is there until somebody reclaims it or hears of its end.
    pub runs: bool,
    pub paused: bool,
    /// The guest's user processes were told to stand still.
    pub frozen: bool,
    /// The disk layer it writes to.
    pub layer: Option<PathBuf>,
}

/// A host in memory. Clones are the same host: a test keeps one and gives each "daemon" a provider on it.
#[derive(Debug, Clone, Default)]
pub struct FakeHost {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// By the directory each was started in: whose it is may change (see the engine's warm pool).
    machines: HashMap<PathBuf, Arc<Machine>>,
    faults: VecDeque<BootFault>,
    restore_faults: VecDeque<BootFault>,
    checkpoint_faults: VecDeque<CheckpointFault>,
    guest_faults: GuestFaults,
    disks: Disks,
    lost_replies: usize,
    boots: u64,
    isolation: Option<IsolationClass>,
}

pub(super) enum Refusal {
    InUse,
    DiskInUse(InstanceRecord),
    /// What was stored makes no sense.
    NoGuest,
}

impl FakeHost {
    pub fn new() -> Self {
        Self::default()
    }

    /// The next boots meet these faults, one each, in this order.
    pub fn inject(&self, fault: BootFault) {
        self.state().faults.push_back(fault);
    }

    /// The next restores meet these faults.
    pub fn inject_restore(&self, fault: BootFault) {
        self.state().restore_faults.push_back(fault);
    }

    /// The next checkpoints meet these faults.
    pub fn inject_checkpoint(&self, fault: CheckpointFault) {
        self.state().checkpoint_faults.push_back(fault);
    }

    /// The next guest that is asked for it meets this fault.
    pub fn inject_guest(&self, fault: GuestFault) {
        self.state().guest_faults.waiting().push(fault);
    }

    /// The next `count` calls to instances are carried out, but the caller never learns of it.
    pub fn lose_replies(&self, count: usize) {
        self.state().lost_replies = count;
    }

    /// Takes back every fault that nothing has met yet.
    pub fn heal(&self) {
        let mut state = self.state();
        state.faults.clear();
        state.restore_faults.clear();
        state.checkpoint_faults.clear();
        state.guest_faults.waiting().clear();
        state.lost_replies = 0;
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

    /// Everything of a machine that is not reclaimed, by VM and generation.
    pub fn machines(&self) -> Vec<FakeMachine> {
        let state = self.state();
        let mut machines: Vec<_> = state.machines.values().map(|machine| machine.look()).collect();
        machines.sort_by_key(|machine| (machine.vm, machine.generation));
        machines
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

    /// See [`crate::Provider::merge_layers`].
    pub(super) fn merge(&self, layers: &[PathBuf], to: &Path) -> Result<(), DiskError> {
        let state = self.state();
        let mut written = state.machines.values().filter(|machine| machine.exit().is_none());
        if let Some(path) =
            written.find_map(|machine| layers.iter().find(|layer| machine.disk().top() == Some(layer)))
        {
            return Err(DiskError::Written { path: path.clone() });
        }
        state.disks.merge(layers, to)
    }

    /// The stamp of what a machine has written to the newest of these layers that holds anything.
    pub(super) fn stamp(&self, layers: &[PathBuf]) -> Option<String> {
        self.state().disks.newest(layers).map(|written| written.stamp)
    }

    pub(super) fn take_fault(&self) -> Option<BootFault> {
        self.state().faults.pop_front()
    }

    pub(super) fn take_restore_fault(&self) -> Option<BootFault> {
        self.state().restore_faults.pop_front()
    }

    pub(super) fn take_checkpoint_fault(&self) -> Option<CheckpointFault> {
        self.state().checkpoint_faults.pop_front()
    }

    pub(super) fn take_lost_reply(&self) -> bool {
        let mut state = self.state();
        let lost = state.lost_replies > 0;
        state.lost_replies = state.lost_replies.saturating_sub(1);
        lost
    }

    /// Starts a machine: from its disk, or from a state of its memory over `base`.
    pub(super) fn start(
        &self,
        plan: &BootPlan,
        fault: Option<BootFault>,
        from: Option<(Stored, Option<Arc<Base>>)>,
    ) -> Result<Arc<Machine>, Refusal> {
        let key = (plan.vm, plan.generation);
        let isolation = self.isolation();
        let mut state = self.state();
        for machine in state.machines.values().filter(|machine| machine.exit().is_none()) {
            if (machine.record.vm, machine.record.generation) == key {
                return Err(Refusal::InUse);
            }
            if machine.disk().top() == plan.disk.top() {
                return Err(Refusal::DiskInUse(machine.record.clone()));
            }
        }
        let (memory, faults) = (plan.memory.bytes().0, state.guest_faults.clone());
        let (guest, base) = match from {
            None => {
                state.boots += 1;
                let written = state.disks.newest(&plan.disk.layers);
                let files = written.map_or_else(Files::default, |written| Files::of(written.files));
                let boot_id = format!("fake-boot-{}", state.boots);
                (Guest::new(boot_id, plan.vm, memory, files, faults), None)
            }
            Some((stored, base)) => (Guest::restore(stored, memory, faults).ok_or(Refusal::NoGuest)?, base),
        };
        let record = InstanceRecord {
            provider: ProviderKind::Fake,
            isolation,
            vm: plan.vm,
            generation: plan.generation,
            state_dir: plan.state_dir.clone(),
            runtime_dir: plan.runtime_dir.clone(),
            memory_base: base.as_ref().map(|base| base.id()),
        };
        let yields_to = match fault {
            Some(BootFault::Stubborn(step)) => step,
            _ => StopStep::VmmQuit,
        };
        let hardware = Hardware {
            disk: plan.disk.clone(),
            disks: state.disks.clone(),
            memory: plan.memory.bytes(),
            base,
            silent: fault == Some(BootFault::SilentGuest),
            yields_to,
        };
        let machine = Machine::start(record, hardware, guest);
        state.machines.insert(plan.state_dir.clone(), machine.clone());
        Ok(machine)
    }

    pub(super) fn find(&self, record: &InstanceRecord) -> Option<Arc<Machine>> {
        self.state().machines.get(&record.state_dir).cloned()
    }

    pub(super) fn forget(&self, record: &InstanceRecord) -> Option<Arc<Machine>> {
        self.state().machines.remove(&record.state_dir)
    }
}
