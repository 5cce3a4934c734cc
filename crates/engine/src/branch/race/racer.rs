//! One racer: a fork that lives as long as the race, and what it runs.

use super::{RaceEvent, score};
use crate::{
    ExecEvent, OnDrop,
    branch::temporary::{self, Temporary, TemporaryFork},
    core::{Authority, Core},
    manager::VmHandle,
    saga::thaw::Identity,
    session,
    tasks::TaskKind,
};
use offshoot_types::{
    Bytes, Command, ErrorCode, ExecArgv, ExecLimits, ExecSpec, ExecStatus, Failure, ForkSource, OperationId,
    SnapshotId, SnapshotRef, VmName, VmRef,
};
use std::sync::Arc;
use tokio::sync::mpsc;

/// Why a racer is destroyed.
const OVER: &str = "its race is over";

/// A fork of this race. Dropping it has it destroyed.
#[derive(Debug)]
pub(super) struct Racer {
    pub number: u32,
    pub fork: Temporary,
}

/// How a racer finished.
pub(super) enum Finish {
    /// With its score, if there is one to be had.
    Succeeded(Racer, Option<f64>),
    /// Why not, as the end of a sentence.
    Lost(String),
    /// The ledger has no room for one more now.
    NoRoom(Failure),
}

/// What all racers of one race have in common.
pub(super) struct Track {
    pub core: Arc<Core>,
    pub vm: VmHandle,
    pub authority: Authority,
    /// What they continue from.
    pub from: SnapshotId,
    pub operation: OperationId,
    pub spec: ExecSpec,
    pub score: Option<ExecArgv>,
    pub events: mpsc::Sender<RaceEvent>,
}

impl Track {
    pub async fn run(&self, number: u32) -> (u32, Finish) {
        (number, self.race(number).await)
    }

    async fn race(&self, number: u32) -> Finish {
        let racer = match self.fork(number).await {
            Ok(racer) => racer,
            Err(failure) if failure.code == ErrorCode::NoResource => return Finish::NoRoom(failure),
            Err(failure) => return Finish::Lost(self.gives_up(number, failure).await),
        };
        self.tell(RaceEvent::Started { racer: number, name: racer.fork.handle.name.clone() }).await;
        let finish = self.run_and_score(&racer).await;
        match finish {
            Ok(score) => Finish::Succeeded(racer, score),
            Err(why) => {
                // Gone before the next one asks for its place.
                racer.fork.destroy().await;
                Finish::Lost(why)
            }
        }
    }

    async fn run_and_score(&self, racer: &Racer) -> Result<Option<f64>, String> {
        let number = racer.number;
        match self.exec(racer, self.spec.clone(), |event| RaceEvent::Exec { racer: number, event }).await {
            Ok(status) if status.success() => {}
            Ok(status) => return Err(ended(status)),
            Err(failure) => return Err(format!("failed: {}", failure.message)),
        }
        let Some(program) = &self.score else { return Ok(None) };
        match self.scored(racer, program).await {
            Ok(score) => {
                self.tell(RaceEvent::Scored { racer: number, score }).await;
                Ok(Some(score))
            }
            Err(failure) => Err(self.gives_up(number, failure).await),
        }
    }

    async fn fork(&self, number: u32) -> Result<Racer, Failure> {
        let Authority::Granted(grant) = &self.authority else {
            return Err(Failure::new(ErrorCode::Internal, "a race that nobody was permitted"));
        };
        let asked = TemporaryFork {
            source: ForkSource::Snapshot(SnapshotRef::Id(self.from)),
            name: name(&self.vm.name, self.operation, number)?,
            identity: Identity::New,
            within: None,
            over: OVER,
        };
        let fork = Temporary::fork(&self.core, (**grant).clone(), asked).await?;
        Ok(Racer { number, fork })
    }

    /// Before its command ran, or after it had succeeded.
    async fn gives_up(&self, number: u32, failure: Failure) -> String {
        let why = format!("failed: {}", failure.message);
        self.tell(RaceEvent::Exec { racer: number, event: ExecEvent::Failed(failure) }).await;
        why
    }

    async fn tell(&self, event: RaceEvent) {
        // A caller that has left ends the race elsewhere.
        let _ = self.events.send(event).await;
    }

    /// Runs a program in the racer to its end; its events go where `as_event` says.
    async fn exec(
        &self,
        racer: &Racer,
        spec: ExecSpec,
        as_event: impl Fn(ExecEvent) -> RaceEvent,
    ) -> Result<ExecStatus, Failure> {
        let (_, mut events, sink) = session::channels(OnDrop::Kill);
        self.start(racer, spec, sink).await?;
        loop {
            let event = events.next().await.unwrap_or_else(|| lost(&racer.fork.handle.name));
            let end = match &event {
                ExecEvent::Ended(end) => Some(Ok(end.status)),
                ExecEvent::Failed(failure) => Some(Err(failure.clone())),
                ExecEvent::Detached => return Err(taken(&racer.fork.handle.name)),
                ExecEvent::Started { .. } | ExecEvent::Output { .. } | ExecEvent::Lost { .. } => None,
            };
            self.tell(as_event(event)).await;
            if let Some(end) = end {
                return end;
            }
        }
    }

    async fn start(&self, racer: &Racer, spec: ExecSpec, sink: session::Sink) -> Result<(), Failure> {
        let command = Command::Exec { vm: VmRef::Id(racer.fork.handle.id), spec: Box::new(spec.clone()) };
        let (core, handle, authority) =
            (self.core.clone(), racer.fork.handle.clone(), self.authority.clone());
        // Also if the race ends meanwhile: what was written down of it is brought to an end.
        self.core
            .detached(TaskKind::Acceptor, async move {
                core.exec_into(&handle, authority, command, spec, None, sink).await.map(drop)
            })
            .await
    }

    async fn scored(&self, racer: &Racer, program: &ExecArgv) -> Result<f64, Failure> {
        let limits = ExecLimits { max_output: Some(Bytes(score::MOST_BYTES)), ..self.spec.limits.clone() };
        let spec = ExecSpec { argv: program.clone(), stdin: false, pty: None, limits, ..self.spec.clone() };
        let (_, mut events, sink) = session::channels(OnDrop::Kill);
        self.start(racer, spec, sink).await?;
        let mut printed = Vec::new();
        loop {
            match events.next().await.unwrap_or_else(|| lost(&racer.fork.handle.name)) {
                ExecEvent::Output { stream: crate::OutputStream::Stdout, data, .. } => {
                    printed.extend_from_slice(&data);
                }
                ExecEvent::Output { .. } | ExecEvent::Started { .. } | ExecEvent::Lost { .. } => {}
                ExecEvent::Ended(end) if end.status.success() && !end.truncated => break,
                ExecEvent::Ended(end) => {
                    let message = format!("the score of racer {} {}", racer.number, ended(end.status));
                    return Err(Failure::new(ErrorCode::ExecFailed, message));
                }
                ExecEvent::Failed(failure) => return Err(failure),
                ExecEvent::Detached => return Err(taken(&racer.fork.handle.name)),
            }
        }
        score::parse(&printed).ok_or_else(|| {
            let shown = String::from_utf8_lossy(&printed);
            let message = format!(
                "the score of racer {} is no number: `{}`",
                racer.number,
                shown.trim().escape_debug()
            );
            Failure::new(ErrorCode::ExecFailed, message)
        })
    }
}

/// Told apart from those of other races of the VM.
fn name(vm: &VmName, race: OperationId, number: u32) -> Result<VmName, Failure> {
    let race = race.simple();
    temporary::name(vm, &format!("race-{}-{number}", &race[race.len() - 8..]))
}

fn ended(status: ExecStatus) -> String {
    match status {
        ExecStatus::Exited(code) => format!("exited with {code}"),
        ExecStatus::Signaled(signal) => format!("was ended by signal {signal}"),
        ExecStatus::TimedOut => "ran out of time".into(),
    }
}

fn taken(name: &VmName) -> Failure {
    let message = format!("somebody else attached to the process of racer `{name}`");
    Failure::new(ErrorCode::Interrupted, message)
}

fn lost(name: &VmName) -> ExecEvent {
    let message = format!("the process of racer `{name}` was cut off");
    ExecEvent::Failed(Failure::new(ErrorCode::Interrupted, message))
}
