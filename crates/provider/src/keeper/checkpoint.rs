//! Taking a running VM's state.
//!
//! ```text
//! the VMM opens the new layer; what the guest wrote is flushed; room is made for the copy
//! |-- CPUs stand still ------------------------------------------------------------------------|
//! | device state --> copy of the written pages --> device state again: the same? --> new layer |
//! |                       ^------------------------------- no -----------------/               |
//! |--------------------------------------------------------------------------------------------|
//! ```
//! With the CPUs stopped a VMM still moves bytes from the guest's outgoing queue to whoever reads the channel, and marks
//! them as taken in guest memory. So memory and devices are of one instant only if the devices were the same before
//! and after the copy. That comes to rest by itself: a guest that stands still sends nothing more, and the clock of its
//! board stands still with it.
//!
//! Whatever fails: the CPUs go on if they ran before, and the VM writes to its old layer or to the new one above it.

use super::{
    disk::{Disk, Next},
    guest_memory::GuestMemory,
    machine::{CallError, Taken},
    qemu::Qemu,
    qmp::Command,
    wire::{Checkpoint, Checkpointed, DeltaFile},
};
use crate::{
    AfterCheckpoint,
    memory::{Delta, DeltaWriter},
};
use std::{
    fmt,
    fs::File,
    io::{self, Read},
    os::fd::OwnedFd,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

/// The largest device state that is read back; ours are 20 KiB.
const MAX_DEVICE_STATE: u64 = 16 << 20;
/// A copy takes milliseconds, and what was on its way out is a few KiB.
const ATTEMPTS: usize = 10;
const DEVICE_STATE: &str = "device.state";

/// Where the time went, for the log: a step and the end of it.
#[derive(Debug)]
struct Steps {
    begun: Instant,
    ended: Vec<(&'static str, Duration)>,
}

impl Steps {
    fn begin() -> Self {
        Self { begun: Instant::now(), ended: Vec::new() }
    }

    fn end(&mut self, step: &'static str) {
        self.ended.push((step, self.begun.elapsed()));
    }
}

impl fmt::Display for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut before = Duration::ZERO;
        for (step, at) in &self.ended {
            write!(f, " {step} {:.1}", (*at - before).as_secs_f64() * 1e3)?;
            before = *at;
        }
        f.write_str(" ms")
    }
}

/// Memory and devices of one instant.
struct State {
    delta: Delta,
    /// In bytes.
    device_state: u64,
}

pub(super) async fn take(running: &Qemu, plan: &Checkpoint) -> Result<Taken, CallError> {
    let mut disk = running.disk.lock().await;
    let mut next = disk.prepare(&running.vmm, &plan.next_layer).await?;
    let taken = stand_still(running, plan, &mut disk, &mut next).await;
    if let Some(unused) = next
        && let Err(error) = disk.discard(&running.vmm, unused).await
    {
        // The VMM keeps an empty file open that nothing refers to.
        running.log.line(format_args!("the unused layer was not closed: {error}"));
    }
    match &taken {
        Ok(taken) => running.log.line(format_args!("state taken: {:?}", taken.said)),
        Err(error) => running.log.line(format_args!("no state was taken: {error}")),
    }
    taken
}

async fn stand_still(
    running: &Qemu,
    plan: &Checkpoint,
    disk: &mut Disk,
    next: &mut Option<Next>,
) -> Result<Taken, CallError> {
    let vmm = &running.vmm;
    disk.flush().await.map_err(|error| CallError::failed("flush the data disk", &error))?;
    let mut room = if plan.memory { Some(prepare_copy(running).await?) } else { None };
    let ran = !vmm.is_paused().await?;
    let mut steps = Steps::begin();
    let stood = async {
        if ran {
            vmm.pause().await?;
            steps.end("stop");
        }
        take_state(running, plan, disk, next, room.take(), &mut steps).await
    };
    let state = stood.await;
    let goes_on = ran && (state.is_err() || plan.then == AfterCheckpoint::Continue);
    if goes_on {
        disk.in_use();
        let resumed = vmm.resume().await;
        if let Err(error) = &resumed {
            running.log.line(format_args!("the CPUs were told to go on and do not: {error}"));
        }
        // Of two failures the first one says why.
        if state.is_ok() {
            resumed?;
        }
    }
    let paused = if ran { steps.begun.elapsed() } else { Duration::ZERO };
    steps.end("go on");
    running.log.line(format_args!("took{steps}"));
    let state = state?;
    let delta = state.as_ref().map(|state| {
        let (memory, runs) = (state.delta.size().0, state.delta.runs().len() as u64);
        DeltaFile { memory, runs }
    });
    let said = Checkpointed {
        paused_us: paused.as_micros() as u64,
        device_state: state.as_ref().map_or(0, |state| state.device_state),
        delta,
    };
    let file = state.map(|state| state.delta.file().try_clone().map(OwnedFd::from)).transpose();
    let delta = file.map_err(|error| CallError::failed("pass the memory on", &error))?;
    Ok(Taken { said, delta, held: ran && !goes_on })
}

async fn take_state(
    running: &Qemu,
    plan: &Checkpoint,
    disk: &mut Disk,
    next: &mut Option<Next>,
    room: Option<DeltaWriter>,
    steps: &mut Steps,
) -> Result<Option<State>, CallError> {
    let state = match room {
        Some(room) => Some(memory_and_devices(running, &plan.dir, room, steps).await?),
        None => None,
    };
    if let Some(layer) = next.take()
        && let Err((layer, error)) = disk.switch(&running.vmm, layer).await
    {
        *next = Some(layer);
        return Err(error);
    }
    steps.end("disk");
    Ok(state)
}

fn guest_memory(running: &Qemu) -> Result<Arc<GuestMemory>, CallError> {
    running.memory.clone().map_err(CallError::Refused)
}

/// On another thread than the one on which the answers of the VMM are read.
async fn beside<T: Send + 'static>(
    running: &Qemu,
    what: &str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, CallError> {
    let done = tokio::task::spawn_blocking(work).await;
    match done.map_err(io::Error::other).and_then(|done| done) {
        Ok(done) => Ok(done),
        Err(error) => Err(running.vmm.explain(what, &error).await),
    }
}

async fn prepare_copy(running: &Qemu) -> Result<DeltaWriter, CallError> {
    let (memory, base) = (guest_memory(running)?, running.memory_base);
    beside(running, "prepare a copy of the guest's memory", move || memory.prepare(base)).await
}

async fn memory_and_devices(
    running: &Qemu,
    dir: &Path,
    mut room: DeltaWriter,
    steps: &mut Steps,
) -> Result<State, CallError> {
    let path = dir.join(DEVICE_STATE);
    let memory = guest_memory(running)?;
    let mut before = save_devices(running, &path).await?;
    steps.end("devices");
    for _ in 0..ATTEMPTS {
        let copied = memory.clone();
        let delta = beside(running, "copy the guest's memory", move || copied.delta(room)).await?;
        steps.end("memory");
        let after = save_devices(running, &path).await?;
        steps.end("devices");
        if before == after {
            return Ok(State { delta, device_state: after.len() as u64 });
        }
        before = after;
        room = prepare_copy(running).await?;
    }
    Err(CallError::Failed("the VMM's devices did not come to rest while its CPUs stood still".into()))
}

async fn save_devices(running: &Qemu, path: &Path) -> Result<Vec<u8>, CallError> {
    running.vmm.ask(Command::XenSaveDevicesState { filename: path.to_owned(), live: false }).await?;
    let mut state = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_DEVICE_STATE + 1).read_to_end(&mut state));
    match read {
        Ok(length) if length as u64 <= MAX_DEVICE_STATE => Ok(state),
        Ok(_) => Err(CallError::Failed("the device state is too large to be one".into())),
        Err(error) => Err(CallError::failed("read the device state", &error)),
    }
}
