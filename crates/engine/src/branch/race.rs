//! The same in several forks; the VM continues as the winner.
//!
//! ```text
//! VM a --owned--> snapshot --+-- racer 1: exec ... failed
//!                            +-- racer 2: exec ... 0 (score 7)  --best--> snapshot --> a goes on from it (undo possible)
//!                            +-- racer 3: exec ... 0 (score 5)
//! ```
//! Racers live as long as the race: however it ends, a caller that leaves and a daemon that dies included, they are
//! destroyed. Until there is a winner the VM is as it was; nobody else changes it meanwhile. As many run at once as the
//! ledger has room for.

mod racer;
mod run;
mod score;

use crate::{Engine, ExecEvent, core::Authority, error, tasks::TaskKind};
use offshoot_policy::Authorized;
use offshoot_types::{Command, ErrorCode, Failure, Generation, SnapshotId, VmName};
use run::Race;
use tokio::sync::mpsc;

/// More are no race but a fork bomb.
const MOST: u32 = 64;
/// Events buffered between the race and its caller.
const EVENT_DEPTH: usize = 64;

#[derive(Debug, Clone, PartialEq)]
pub enum RaceEvent {
    /// Racers are numbered from 1.
    Started {
        racer: u32,
        name: VmName,
    },
    Exec {
        racer: u32,
        event: ExecEvent,
    },
    Scored {
        racer: u32,
        score: f64,
    },
    /// The last event.
    Ended(RaceEnd),
    /// The last event: the VM is as it was.
    Failed(Failure),
}

#[derive(Debug, Clone, PartialEq)]
pub struct RaceEnd {
    /// `None`: nobody succeeded, the VM is as it was.
    pub winner: Option<u32>,
    /// By racer; only with a score.
    pub scores: Vec<(u32, f64)>,
    pub undo: Option<SnapshotId>,
    pub generation: Generation,
}

/// Dropping it before there is a winner ends the race: the VM stays as it was, the racers go.
#[derive(Debug)]
pub struct RaceSession {
    pub(crate) events: mpsc::Receiver<RaceEvent>,
}

impl RaceSession {
    /// `None` after the last event. Cancel-safe.
    pub async fn next(&mut self) -> Option<RaceEvent> {
        self.events.recv().await
    }
}

impl Engine {
    /// Runs the race ([`Command::Race`]). Returns once the VM belongs to it.
    pub async fn race(&self, permit: Authorized<Command>) -> Result<RaceSession, Failure> {
        let (command, grant) = permit.into_parts();
        let Command::Race { vm, count, spec, score } = command else {
            return Err(error::wrong_permit("race", command.action()));
        };
        if !(1..=MOST).contains(&count) {
            let problem = format!("{count} racers were asked for: use 1 to {MOST}");
            return Err(Failure::new(ErrorCode::InvalidArgument, problem));
        }
        let (core, within) = (self.core().clone(), self.transaction());
        let handle = core.manager.find(&vm, &grant.actor().owner())?;
        let authority = Authority::Granted(Box::new(grant));
        self.core()
            .detached(TaskKind::Acceptor, async move {
                let (events, receiver) = mpsc::channel(EVENT_DEPTH);
                let race = Race { core, handle, authority, count, spec: *spec, score, within, events };
                race.begin().await?;
                Ok(RaceSession { events: receiver })
            })
            .await
    }
}
