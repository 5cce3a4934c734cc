//! One fake VM: what a keeper and its VMM are to a real one.

use super::{
    devices::Devices,
    disks::Disks,
    guest::Guest,
    host::{CheckpointFault, FakeHost, FakeMachine},
    pipe::Pausable,
    state::StateError,
};
use crate::{
    AfterCheckpoint, Checkpoint, CheckpointPlan, Diagnostics, DiskStack, Exit, GuestIo, Instance,
    InstanceError, InstanceRecord, StopReport, StopStep, Usage,
    memory::{Base, Delta},
    task::{Task, spawn},
};
use async_trait::async_trait;
use offshoot_guest_proto::server;
use offshoot_types::Bytes;
use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{sync::watch, task::AbortHandle, time::Instant};

const PIPE: usize = 64 * 1024;

/// What a machine is made with.
#[derive(Debug)]
pub(super) struct Hardware {
    pub disk: DiskStack,
    pub disks: Disks,
    pub memory: Bytes,
    /// What its memory began with; its checkpoints are against this.
    pub base: Option<Arc<Base>>,
    pub silent: bool,
    /// The rung of the stop ladder that first has an effect.
    pub yields_to: StopStep,
}

#[derive(Debug)]
pub(super) struct Machine {
    pub record: InstanceRecord,
    hardware: Hardware,
    /// As it is now: checkpoints put new layers on top.
    disk: Mutex<DiskStack>,
    /// Whether the guest may have written to the top layer: it has run since that was put there.
    used: AtomicBool,
    guest: Arc<Guest>,
    paused: watch::Sender<bool>,
    exit: watch::Sender<Option<Exit>>,
    channel: Mutex<Option<AbortHandle>>,
    /// One checkpoint at a time.
    taking: tokio::sync::Mutex<()>,
}

impl Machine {
    pub fn start(record: InstanceRecord, hardware: Hardware, guest: Guest) -> Arc<Self> {
        let machine = Arc::new(Self {
            record,
            disk: Mutex::new(hardware.disk.clone()),
            used: AtomicBool::new(true),
            hardware,
            guest: Arc::new(guest),
            paused: watch::Sender::new(false),
            exit: watch::Sender::new(None),
            channel: Mutex::new(None),
            taking: tokio::sync::Mutex::default(),
        });
        let mut power = machine.guest.power();
        let weak = Arc::downgrade(&machine);
        spawn(Task::FakeGuest, async move {
            let ended = power.wait_for(Option::is_some).await.ok().and_then(|exit| exit.clone());
            if let Some(exit) = ended
                && let Some(machine) = weak.upgrade()
            {
                machine.end(exit);
            }
        });
        machine
    }

    pub fn disk(&self) -> DiskStack {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn look(&self) -> FakeMachine {
        FakeMachine {
            vm: self.record.vm,
            generation: self.record.generation,
            runs: self.exit().is_none(),
            paused: *self.paused.borrow(),
            frozen: self.guest.world.still.borrow().frozen,
            layer: self.disk().top().cloned(),
        }
    }

    fn set_paused(&self, paused: bool) {
        if !paused {
            self.used.store(true, Ordering::SeqCst);
        }
        self.guest.set_paused(paused);
        self.paused.send_replace(paused);
    }

    /// What was written so far is on the layer it was written to.
    fn write_back(&self) -> io::Result<()> {
        match self.disk().top() {
            Some(top) => self.hardware.disks.write(top, self.guest.world.files.all()),
            None => Ok(()),
        }
    }

    /// From here on it writes to `layer`; what it wrote before stays below.
    fn put_layer(&self, layer: &Path) -> Result<(), TakeError> {
        if self.disk().top().is_some_and(|top| top == layer) {
            return match self.used.load(Ordering::SeqCst) {
                false => Ok(()),
                true => Err(TakeError::Written(layer.to_owned())),
            };
        }
        self.write_back().map_err(TakeError::Disk)?;
        self.disk.lock().unwrap_or_else(PoisonError::into_inner).layers.insert(0, layer.to_owned());
        self.used.store(false, Ordering::SeqCst);
        Ok(())
    }

    /// The first end counts.
    pub fn end(&self, exit: Exit) {
        let first = self.exit.send_if_modified(|known| {
            let first = known.is_none();
            if first {
                *known = Some(exit);
            }
            first
        });
        if first {
            self.guest.execs.kill_all();
            // A machine whose disk takes no more ends all the same, as a real one does.
            let _ = self.write_back();
            self.cut_channel();
        }
    }

    pub fn exit(&self) -> Option<Exit> {
        self.exit.borrow().clone()
    }

    fn cut_channel(&self) {
        if let Some(serving) = self.channel.lock().unwrap_or_else(PoisonError::into_inner).take() {
            serving.abort();
        }
    }

    fn open_channel(&self) -> Box<dyn GuestIo> {
        let (host, guest) = tokio::io::duplex(PIPE);
        let guest_end = Pausable::new(guest, self.paused.subscribe());
        let (services, silent) = (self.guest.clone(), self.hardware.silent);
        let serving = spawn(Task::FakeGuest, async move {
            if silent {
                // The port is open and nobody reads.
                let _held = guest_end;
                return std::future::pending().await;
            }
            server::serve(guest_end, services).await;
        });
        self.cut_channel();
        *self.channel.lock().unwrap_or_else(PoisonError::into_inner) = Some(serving.abort_handle());
        Box::new(host)
    }

    async fn ended_within(&self, limit: Duration) -> Option<Exit> {
        let mut exit = self.exit.subscribe();
        match tokio::time::timeout(limit, exit.wait_for(Option::is_some)).await {
            Ok(Ok(exit)) => exit.clone(),
            _ => None,
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum TakeError {
    #[error(transparent)]
    State(StateError),
    /// Its memory and what is below the layer are not of one instant.
    #[error("the VM has written to the layer `{}`: the state to be taken is below it", .0.display())]
    Written(PathBuf),
    #[error("the disk layer cannot be written")]
    Disk(#[source] io::Error),
    #[error("the device state cannot be written")]
    Write(#[source] io::Error),
}

impl Machine {
    /// The state of a machine that stands still.
    fn take(&self, plan: &CheckpointPlan) -> Result<(Option<Delta>, Bytes), TakeError> {
        self.put_layer(&plan.next_layer)?;
        if !plan.memory {
            return Ok((None, Bytes(0)));
        }
        let Hardware { base, memory, .. } = &self.hardware;
        let delta = self.guest.store().delta(base.as_deref(), *memory).map_err(TakeError::State)?;
        let below = self.disk().layers.split_off(1);
        let stamp = self.hardware.disks.newest(&below).map(|written| written.stamp);
        let devices = Devices { memory: *memory, disk: stamp };
        let written = devices.write(&plan.dir).map_err(TakeError::Write)?;
        Ok((Some(delta), written))
    }
}

/// A daemon's handle on a machine; dropping it does nothing to the machine.
#[derive(Debug)]
pub(super) struct FakeInstance {
    pub machine: Arc<Machine>,
    pub host: FakeHost,
}

impl FakeInstance {
    fn alive(&self) -> Result<(), InstanceError> {
        match self.machine.exit() {
            Some(exit) => Err(InstanceError::Ended { exit }),
            None => Ok(()),
        }
    }

    /// What was done is done, whether or not the caller hears of it.
    fn answer<T>(&self, operation: &'static str, value: T) -> Result<T, InstanceError> {
        if self.host.take_lost_reply() {
            let source = io::Error::new(io::ErrorKind::ConnectionReset, "the keeper was lost in the middle");
            return Err(InstanceError::Io { operation, source });
        }
        Ok(value)
    }
}

#[async_trait]
impl Instance for FakeInstance {
    fn record(&self) -> &InstanceRecord {
        &self.machine.record
    }

    async fn channel(&self) -> Result<Box<dyn GuestIo>, InstanceError> {
        self.alive()?;
        self.answer("opening the channel", self.machine.open_channel())
    }

    async fn pause(&self) -> Result<(), InstanceError> {
        self.alive()?;
        self.machine.set_paused(true);
        self.answer("pausing", ())
    }

    async fn resume(&self) -> Result<(), InstanceError> {
        self.alive()?;
        self.machine.set_paused(false);
        self.answer("resuming", ())
    }

    async fn is_paused(&self) -> Result<bool, InstanceError> {
        self.alive()?;
        self.answer("asking the state", *self.machine.paused.borrow())
    }

    async fn checkpoint(&self, plan: &CheckpointPlan) -> Result<Checkpoint, InstanceError> {
        const OPERATION: &str = "taking a checkpoint";
        self.alive()?;
        let machine = &self.machine;
        let _alone = machine.taking.lock().await;
        let fault = self.host.take_checkpoint_fault();
        match fault {
            Some(CheckpointFault::Refuse) => {
                let message = "a fault was injected".to_owned();
                return Err(InstanceError::Refused { operation: OPERATION, message });
            }
            Some(CheckpointFault::Timeout) => {
                return Err(InstanceError::Timeout { operation: OPERATION, after: Duration::ZERO });
            }
            Some(CheckpointFault::CrashBefore) => machine.end(Exit::Signal(libc::SIGSEGV)),
            Some(CheckpointFault::CrashAfterSwitch) => {
                // It dies whether or not there was anything to switch to.
                let _ = machine.put_layer(&plan.next_layer);
                machine.end(Exit::Signal(libc::SIGSEGV));
            }
            None => {}
        }
        self.alive()?;
        let was_paused = *machine.paused.borrow();
        let begun = Instant::now();
        machine.set_paused(true);
        let taken = machine.take(plan);
        let failed = taken.is_err();
        if !was_paused && (failed || plan.then == AfterCheckpoint::Continue) {
            machine.set_paused(false);
        }
        let paused = if was_paused { Duration::ZERO } else { begun.elapsed() };
        let refused = |error: TakeError| match error {
            TakeError::Disk(source) | TakeError::Write(source) => {
                InstanceError::Io { operation: OPERATION, source }
            }
            other => InstanceError::Refused { operation: OPERATION, message: other.to_string() },
        };
        let (memory, device_state) = taken.map_err(refused)?;
        self.answer(OPERATION, Checkpoint { memory, paused, device_state })
    }

    async fn restack(&self, layers: &[PathBuf]) -> Result<(), InstanceError> {
        const OPERATION: &str = "reading the disk from other layers";
        self.alive()?;
        {
            let mut disk = self.machine.disk.lock().unwrap_or_else(PoisonError::into_inner);
            let place = layers.iter().position(|layer| Some(layer) == disk.top());
            let Some(place) = place else {
                let message = "the layer it writes to is not part of the disk given".to_owned();
                return Err(InstanceError::Refused { operation: OPERATION, message });
            };
            disk.layers = layers[place..].to_vec();
        }
        self.answer(OPERATION, ())
    }

    async fn stop(&self, grace: Duration) -> Result<StopReport, InstanceError> {
        let mut steps = Vec::new();
        if let Some(exit) = self.machine.exit() {
            return Ok(StopReport { steps, exit });
        }
        let paused = *self.machine.paused.borrow();
        if !paused && !grace.is_zero() {
            let begun = Instant::now();
            let ended = self.machine.ended_within(grace).await;
            steps.push((StopStep::GuestShutdown, begun.elapsed()));
            if let Some(exit) = ended {
                return self.answer("stopping", StopReport { steps, exit });
            }
        }
        for (step, exit) in [
            (StopStep::VmmQuit, Exit::Code(0)),
            (StopStep::Term, Exit::Code(0)),
            (StopStep::Kill, Exit::Signal(libc::SIGKILL)),
        ] {
            steps.push((step, Duration::ZERO));
            if step == self.machine.hardware.yields_to || step == StopStep::Kill {
                self.machine.end(exit);
                break;
            }
        }
        let exit = self.machine.exit().unwrap_or(Exit::Code(0));
        self.answer("stopping", StopReport { steps, exit })
    }

    fn exit(&self) -> watch::Receiver<Option<Exit>> {
        self.machine.exit.subscribe()
    }

    async fn usage(&self) -> Result<Usage, InstanceError> {
        self.alive()?;
        // It runs in the test's own process: nothing can be said of it alone, but that it has a little memory of its own.
        Ok(Usage { own_memory: Some(Bytes(1 << 20)), ..Usage::default() })
    }

    async fn diagnostics(&self) -> Diagnostics {
        Diagnostics { limits: vec!["no limits: nothing runs".into()], ..Diagnostics::default() }
    }
}
