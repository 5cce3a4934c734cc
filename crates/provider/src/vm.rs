//! A handle on a VM that knows its state at compile time.
//!
//! ```text
//!  Provider::boot / adopt --> Vm<Running> --pause--> Vm<Paused>
//!                                 ^  |                  |  |
//!                                 |  +------resume------+  |
//!                                 |         (back)         |
//!                               stop <---------------------+
//!                                 |
//!                                 v
//!                             StopReport          (no handle is left: a stopped VM has no process)
//! ```
//! Every move consumes the handle, so there is no call on a state that has passed. A move that fails gives the
//! handle back unchanged together with the error, because the VM is still what it was.

use crate::{
    AfterCheckpoint, Checkpoint, CheckpointPlan, Diagnostics, Exit, GuestIo, Instance, InstanceError,
    InstanceRecord, StopReport, Usage,
};
use std::{fmt, marker::PhantomData, path::PathBuf, sync::Arc, time::Duration};
use tokio::sync::watch;

mod sealed {
    pub trait State {}
}

/// The guest's CPUs run.
#[derive(Debug)]
pub enum Running {}
/// The guest's CPUs stand still; its memory and devices are kept.
#[derive(Debug)]
pub enum Paused {}

/// A state a live VM can be in.
pub trait State: sealed::State + Send + Sync + 'static {
    const NAME: &'static str;
}
impl sealed::State for Running {}
impl sealed::State for Paused {}
impl State for Running {
    const NAME: &'static str = "running";
}
impl State for Paused {
    const NAME: &'static str = "paused";
}

/// A live VM in state `S`.
pub struct Vm<S: State> {
    instance: Arc<dyn Instance>,
    state: PhantomData<fn() -> S>,
}

/// What a failed move returns: the handle in its old state, and why.
pub type Kept<S> = (Vm<S>, InstanceError);

impl<S: State> fmt::Debug for Vm<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vm").field("state", &S::NAME).field("instance", &self.instance).finish()
    }
}

impl<S: State> Vm<S> {
    fn assume(instance: Arc<dyn Instance>) -> Self {
        Self { instance, state: PhantomData }
    }

    /// Opens channels to the guest while the handle is elsewhere; valid as long as the VMM lives.
    pub fn dialer(&self) -> Dialer {
        Dialer { instance: self.instance.clone() }
    }

    pub fn record(&self) -> &InstanceRecord {
        self.instance.record()
    }

    /// `Some` once the VMM has ended, whatever the handle's state says.
    pub fn exit(&self) -> watch::Receiver<Option<Exit>> {
        self.instance.exit()
    }

    pub async fn usage(&self) -> Result<Usage, InstanceError> {
        self.instance.usage().await
    }

    pub async fn diagnostics(&self) -> Diagnostics {
        self.instance.diagnostics().await
    }

    /// See [`Instance::stop`]. On failure the VM may or may not be gone: reclaim it.
    pub async fn stop(self, grace: Duration) -> Result<StopReport, Kept<S>> {
        match self.instance.stop(grace).await {
            Ok(report) => Ok(report),
            Err(error) => Err((self, error)),
        }
    }
}

impl<S: State> Vm<S> {
    /// Takes the state and goes on as before. See [`Instance::checkpoint`].
    pub async fn checkpoint(&self, plan: &CheckpointPlan) -> Result<Checkpoint, InstanceError> {
        self.instance.checkpoint(&CheckpointPlan { then: AfterCheckpoint::Continue, ..plan.clone() }).await
    }

    /// See [`Instance::restack`].
    pub async fn restack(&self, layers: &[PathBuf]) -> Result<(), InstanceError> {
        self.instance.restack(layers).await
    }
}

impl Vm<Running> {
    /// Takes the state and stands still: what was taken stays the truth until the VM is resumed.
    pub async fn checkpoint_and_hold(
        self,
        plan: &CheckpointPlan,
    ) -> Result<(Vm<Paused>, Checkpoint), Kept<Running>> {
        let plan = CheckpointPlan { then: AfterCheckpoint::Hold, ..plan.clone() };
        match self.instance.checkpoint(&plan).await {
            Ok(checkpoint) => Ok((Vm::assume(self.instance), checkpoint)),
            Err(error) => Err((self, error)),
        }
    }

    /// For an instance as `Provider::boot` or `Provider::restore` returns it.
    pub fn booted(instance: Box<dyn Instance>) -> Self {
        Self::assume(instance.into())
    }

    /// A new channel to the guest agent; see [`Instance::channel`].
    pub async fn channel(&self) -> Result<Box<dyn GuestIo>, InstanceError> {
        self.instance.channel().await
    }

    pub async fn pause(self) -> Result<Vm<Paused>, Kept<Running>> {
        match self.instance.pause().await {
            Ok(()) => Ok(Vm::assume(self.instance)),
            Err(error) => Err((self, error)),
        }
    }
}

impl Vm<Paused> {
    pub async fn resume(self) -> Result<Vm<Running>, Kept<Paused>> {
        match self.instance.resume().await {
            Ok(()) => Ok(Vm::assume(self.instance)),
            Err(error) => Err((self, error)),
        }
    }
}

/// The way to a guest for whoever keeps the connection to it, without the power to change the VM's state.
#[derive(Clone)]
pub struct Dialer {
    instance: Arc<dyn Instance>,
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Dialer").field(&self.instance.record().vm).finish()
    }
}

impl Dialer {
    /// A new channel to the guest agent; see [`Instance::channel`]. While the VM is paused nobody answers on it.
    pub async fn channel(&self) -> Result<Box<dyn GuestIo>, InstanceError> {
        self.instance.channel().await
    }

    /// `Some` once the VMM has ended.
    pub fn exit(&self) -> watch::Receiver<Option<Exit>> {
        self.instance.exit()
    }

    /// Reads figures only; works in any state.
    pub async fn usage(&self) -> Result<Usage, InstanceError> {
        self.instance.usage().await
    }
}

/// An adopted VM, in the state its VMM says it is in.
#[derive(Debug)]
pub enum Adopted {
    Running(Vm<Running>),
    Paused(Vm<Paused>),
}

impl Adopted {
    /// For an instance as `Provider::adopt` returns it.
    pub async fn observe(instance: Box<dyn Instance>) -> Result<Self, (Box<dyn Instance>, InstanceError)> {
        match instance.is_paused().await {
            Ok(true) => Ok(Self::Paused(Vm::assume(instance.into()))),
            Ok(false) => Ok(Self::Running(Vm::assume(instance.into()))),
            Err(error) => Err((instance, error)),
        }
    }
}
