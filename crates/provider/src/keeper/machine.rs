//! What a keeper keeps: a virtual machine or a sandbox, whatever runs it.

use super::wire::{Checkpoint, Checkpointed};
use crate::{BootStep, Exit, StopReport, StopStep, process::ProcessId};
use async_trait::async_trait;
use std::{
    fmt::{Debug, Display},
    io,
    os::fd::OwnedFd,
    path::PathBuf,
    time::{Duration, Instant},
};
use tokio::sync::watch;

use super::{
    child::{Child, LEFTOVERS},
    log::KeeperLog,
};

/// Why a machine could not be started or never answered.
#[derive(Debug)]
pub(crate) struct StartError {
    pub step: BootStep,
    pub message: String,
}

impl StartError {
    pub fn new(step: BootStep, what: &str, error: impl Display) -> Self {
        Self { step, message: format!("{what}: {error}") }
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error("the VMM has ended")]
    Ended(Exit),
    #[error("the VMM has not answered after {after:?}")]
    Late { after: Duration },
    /// Asked for what cannot be.
    #[error("{0}")]
    Refused(String),
    /// The host failed us.
    #[error("{0}")]
    Failed(String),
}

impl CallError {
    pub fn failed(what: &str, error: &io::Error) -> Self {
        Self::Failed(format!("cannot {what}: {error}"))
    }
}

/// A state that was taken.
#[derive(Debug)]
pub(super) struct Taken {
    pub said: Checkpointed,
    pub delta: Option<OwnedFd>,
    /// The CPUs ran before and stand still now.
    pub held: bool,
}

/// A running machine. Its calls may come at once; each has a deadline of its own.
#[async_trait]
pub(super) trait Machine: Debug + Send + Sync {
    /// Its first process.
    fn id(&self) -> &ProcessId;

    /// The other processes it is made of.
    fn companions(&self) -> Vec<ProcessId>;

    fn exit(&self) -> watch::Receiver<Option<Exit>>;

    /// The last words of the VMM itself.
    fn stderr_lines(&self) -> Vec<String>;

    /// Ends the connection to the guest there is and returns one end of a new one.
    async fn reopen_channel(&self) -> io::Result<OwnedFd>;

    async fn pause(&self) -> Result<(), CallError>;

    async fn resume(&self) -> Result<(), CallError>;

    async fn is_paused(&self) -> Result<bool, CallError>;

    /// Takes the state while the guest stands still. Whatever fails: it goes on if it ran before.
    async fn checkpoint(&self, plan: &Checkpoint) -> Result<Taken, CallError>;

    /// Reads what lies below the layer that is written to from other files with the same content.
    async fn restack(&self, layers: &[PathBuf]) -> Result<(), CallError>;

    /// Ends it. `None` if it outlived every rung, which only a process stuck in the kernel does.
    async fn stop(&self, grace: Duration) -> Option<StopReport>;
}

/// The rungs by which a machine is ended, climbed one at a time until it has.
pub(super) struct Ladder<'a> {
    child: &'a Child,
    log: &'a KeeperLog,
    steps: Vec<(StopStep, Duration)>,
}

impl<'a> Ladder<'a> {
    pub fn new(child: &'a Child, log: &'a KeeperLog) -> Self {
        Self { child, log, steps: Vec::new() }
    }

    /// Asks by `asked` and waits. Whoever could not even be asked is not waited for.
    pub async fn climb(
        &mut self,
        step: StopStep,
        limit: Duration,
        asked: impl Future<Output = Result<(), String>>,
    ) -> Option<StopReport> {
        let begun = Instant::now();
        let asked = asked.await;
        let left = if asked.is_ok() { limit.saturating_sub(begun.elapsed()) } else { LEFTOVERS };
        let exit = self.child.ended_within(left).await;
        let took = begun.elapsed();
        self.steps.push((step, took));
        let outcome = if exit.is_some() { "the VMM ended" } else { "no effect" };
        let said = asked.err().map(|error| format!(" ({error})")).unwrap_or_default();
        self.log.line(format_args!("stop: {step:?} for {took:?}: {outcome}{said}"));
        exit.map(|exit| StopReport { steps: std::mem::take(&mut self.steps), exit })
    }
}
