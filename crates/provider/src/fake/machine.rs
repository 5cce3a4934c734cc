//! One fake VM: what a keeper and its VMM are to a real one.

use super::{guest::Guest, host::FakeHost, pipe::Pausable};
use crate::{
    Diagnostics, DiskStack, Exit, GuestIo, Instance, InstanceError, InstanceRecord, StopReport, StopStep,
    Usage,
    task::{Task, spawn},
};
use async_trait::async_trait;
use offshoot_guest_proto::server;
use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::{sync::watch, task::AbortHandle};

const PIPE: usize = 64 * 1024;

#[derive(Debug)]
pub(super) struct Machine {
    pub record: InstanceRecord,
    pub disk: DiskStack,
    guest: Arc<Guest>,
    silent: bool,
    /// The rung of the stop ladder that first has an effect.
    yields_to: StopStep,
    paused: watch::Sender<bool>,
    exit: watch::Sender<Option<Exit>>,
    channel: Mutex<Option<AbortHandle>>,
}

impl Machine {
    pub fn start(
        record: InstanceRecord,
        disk: DiskStack,
        guest: Guest,
        silent: bool,
        yields_to: StopStep,
    ) -> Arc<Self> {
        let machine = Arc::new(Self {
            record,
            disk,
            guest: Arc::new(guest),
            silent,
            yields_to,
            paused: watch::Sender::new(false),
            exit: watch::Sender::new(None),
            channel: Mutex::new(None),
        });
        let mut off = machine.guest.powered_off();
        let weak = Arc::downgrade(&machine);
        spawn(Task::FakeGuest, async move {
            if off.wait_for(|off| *off).await.is_ok()
                && let Some(machine) = weak.upgrade()
            {
                machine.end(Exit::PoweredOff);
            }
        });
        machine
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
        let (services, silent) = (self.guest.clone(), self.silent);
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
        self.machine.paused.send_replace(true);
        self.answer("pausing", ())
    }

    async fn resume(&self) -> Result<(), InstanceError> {
        self.alive()?;
        self.machine.paused.send_replace(false);
        self.answer("resuming", ())
    }

    async fn is_paused(&self) -> Result<bool, InstanceError> {
        self.alive()?;
        self.answer("asking the state", *self.machine.paused.borrow())
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
            if step == self.machine.yields_to || step == StopStep::Kill {
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
        // It runs in the test's own process: nothing can be said of it alone.
        Ok(Usage::default())
    }

    async fn diagnostics(&self) -> Diagnostics {
        Diagnostics { limits: vec!["no limits: nothing runs".into()], ..Diagnostics::default() }
    }
}
