//! `Running <-> Paused`: the CPUs stand still, memory stays. One step each; the VMM is asked what it did if the
//! step was cut off.

use super::{Change, OnCrash, Saga, StepFuture, Undo, step};
use crate::machine::{Found, Machine, Power};
use offshoot_types::{ErrorCode, Failure, OperationKind, VmState};

pub(crate) const PAUSE: Saga = Saga {
    kind: OperationKind::Pause,
    steps: &[&[step("pause", pause, OBSERVED)]],
    on_crash: OnCrash::Complete,
};

pub(crate) const RESUME: Saga = Saga {
    kind: OperationKind::Resume,
    steps: &[&[step("resume", resume, OBSERVED)]],
    on_crash: OnCrash::Complete,
};

const OBSERVED: Undo = Undo::Nothing("the driver asks the VMM which state it is in");

fn pause<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        let paused = match take(machine).await? {
            Power::Running(vm) => vm.pause().await.map_err(|(_, error)| error),
            Power::Paused(vm) => Ok(vm),
        };
        // After an error nobody knows which of the two it is: without a handle, the VMM is asked.
        let vm = paused.map_err(|error| machine.vmm_failure("pause", &error))?;
        put_back(machine, Power::Paused(vm));
        machine.move_to(VmState::Paused, change).await
    })
}

fn resume<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        let resumed = match take(machine).await? {
            Power::Paused(vm) => vm.resume().await.map_err(|(_, error)| error),
            Power::Running(vm) => Ok(vm),
        };
        let vm = resumed.map_err(|error| machine.vmm_failure("resume", &error))?;
        put_back(machine, Power::Running(vm));
        machine.move_to(VmState::Running, change).await
    })
}

/// The typed handle. One that was lost in a cut-off move is found again by asking the VMM.
pub(crate) async fn take(machine: &mut Machine) -> Result<Power, Failure> {
    if machine.live.as_ref().is_none_or(|live| live.power.is_none())
        && let Found::Unknown(failure) = machine.find_process().await
    {
        return Err(failure);
    }
    machine.live.as_mut().and_then(|live| live.power.take()).ok_or_else(|| {
        Failure::new(ErrorCode::Backend, format!("the process of VM `{}` is gone", machine.name()))
            .hint(format!("`offshoot status {}` shows its state", machine.name()))
    })
}

pub(crate) fn put_back(machine: &mut Machine, power: Power) {
    if let Some(live) = &mut machine.live {
        live.power = Some(power);
    }
}
