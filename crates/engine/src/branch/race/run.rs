//! The task of one race.

use super::{
    RaceEnd, RaceEvent,
    racer::{Finish, Racer, Track},
    score,
};
use crate::{
    branch::transactions::{
        Claimant, Purpose,
        state::{self, Keeping},
    },
    core::{Authority, Core},
    error,
    manager::VmHandle,
    operations::Ticket,
    tasks::TaskKind,
};
use futures::{StreamExt, stream::FuturesUnordered};
use jiff::Timestamp;
use offshoot_types::{
    ErrorCode, ExecArgv, ExecSpec, Failure, OperationKind, OperationOutcome, TransactionId,
};
use std::{collections::BTreeMap, collections::VecDeque, sync::Arc};
use tokio::sync::mpsc;

/// What is asked for.
pub(super) struct Race {
    pub core: Arc<Core>,
    pub handle: VmHandle,
    pub authority: Authority,
    pub count: u32,
    pub spec: ExecSpec,
    pub score: Option<ExecArgv>,
    /// The transaction it is run in.
    pub within: Option<TransactionId>,
    pub events: mpsc::Sender<RaceEvent>,
}

/// A race that owns its VM.
struct Running {
    race: Race,
    /// As which it owns the VM.
    id: TransactionId,
    ticket: Ticket,
}

/// What the racers came to.
#[derive(Default)]
struct Field {
    best: Option<(Racer, f64)>,
    scores: BTreeMap<u32, f64>,
    /// Of those that did not succeed, why.
    lost: BTreeMap<u32, String>,
}

impl Field {
    /// Nobody has run yet.
    fn is_untouched(&self) -> bool {
        self.best.is_none() && self.lost.is_empty()
    }
}

impl Race {
    /// Makes the VM the race's and starts its task.
    pub async fn begin(self) -> Result<(), Failure> {
        let (core, handle) = (self.core.clone(), self.handle.clone());
        core.manager.check_open()?;
        let ownership = &handle.shared.ownership;
        let turn = ownership.turn.lock().await;
        let id = TransactionId::new();
        let claimant = Claimant {
            id,
            parent: self.within,
            purpose: Purpose::Race,
            actor: self.authority.actor(),
            deadline: Timestamp::MAX,
        };
        let claim = ownership.claim(claimant).map_err(|refused| refused.failure(&handle.name))?;
        core.settled(&handle).await?;
        let vm = Some((handle.id, &handle.name));
        let reason = format!("{} racers {}", self.count, crate::exec::reason(&self.spec));
        let new = core.new_operation(&self.authority, OperationKind::Race, vm, &handle.owner, reason);
        let ticket = core.opened(core.store.begin_operation(new).await?.into_operation());
        if claim.open(None, None).is_err() {
            let failure = error::vm_gone(&handle.name);
            core.close(ticket, OperationOutcome::Failed { failure: failure.clone() }).await;
            return Err(failure);
        }
        drop(turn);
        let scope = crate::core::scope(ticket.operation());
        core.tasks.spawn(TaskKind::Race, scope, Running { race: self, id, ticket }.run());
        Ok(())
    }
}

impl Running {
    async fn run(self) {
        let (core, handle, events) =
            (self.race.core.clone(), self.race.handle.clone(), self.race.events.clone());
        let closing = core.closing.clone();
        // Until there is a winner it can be cut off anywhere: whoever drops a racer has it destroyed.
        let field = tokio::select! {
            biased;
            // The VM is as it was; the next daemon destroys the racers.
            () = closing.cancelled() => return,
            () = events.closed() => {
                let message = format!("the caller left before the race of VM `{}` had a winner", handle.name);
                Err(Failure::new(ErrorCode::Interrupted, message))
            }
            field = self.compete() => field,
        };
        // From here on it is carried out whoever is there to see it.
        let ended = match field {
            Ok(field) => self.conclude(field).await,
            Err(failure) => Err(failure),
        };
        handle.shared.ownership.ended(self.id);
        let outcome = match &ended {
            Ok((_, Ok(()))) => OperationOutcome::Done,
            Ok((_, Err(failure))) | Err(failure) => OperationOutcome::Failed { failure: failure.clone() },
        };
        core.close(self.ticket, outcome).await;
        let event = match ended {
            Ok((end, _)) => RaceEvent::Ended(end),
            Err(failure) => RaceEvent::Failed(failure),
        };
        // A caller that has left does not want to know.
        let _ = events.send(event).await;
    }

    /// Lets the racers run, as many at once as there is room for, until one has won.
    async fn compete(&self) -> Result<Field, Failure> {
        let Race { core, handle, authority, count, spec, score, events, .. } = &self.race;
        let from = state::keep(core, handle, authority.clone(), Some(self.id), Keeping::RACE).await?;
        let track = Track {
            core: core.clone(),
            vm: handle.clone(),
            authority: authority.clone(),
            from,
            operation: self.ticket.id(),
            spec: spec.clone(),
            score: score.clone(),
            events: events.clone(),
        };
        let mut field = Field::default();
        let mut waiting: VecDeque<u32> = (1..=*count).collect();
        let mut running = FuturesUnordered::new();
        // How many the ledger had room for, once it had none for one more.
        let mut room = usize::MAX;
        loop {
            while running.len() < room
                && let Some(number) = waiting.pop_front()
            {
                running.push(track.run(number));
            }
            let Some((number, finish)) = running.next().await else { return Ok(field) };
            match finish {
                // Nobody of the race holds anything that could be given to it.
                Finish::NoRoom(failure) if running.is_empty() && field.is_untouched() => return Err(failure),
                Finish::NoRoom(failure) if running.is_empty() => {
                    field.lost.insert(number, format!("found no room: {}", failure.message));
                }
                Finish::NoRoom(_) => {
                    room = running.len().max(1);
                    waiting.push_front(number);
                }
                Finish::Lost(why) => drop(field.lost.insert(number, why)),
                Finish::Succeeded(racer, None) => {
                    field.best = Some((racer, 0.0));
                    return Ok(field);
                }
                Finish::Succeeded(racer, Some(score)) => {
                    field.scores.insert(number, score);
                    let beaten = field.best.as_ref().is_some_and(|(best, best_score)| {
                        !score::better((number, score), (best.number, *best_score))
                    });
                    let out = if beaten {
                        Some(racer)
                    } else {
                        field.best.replace((racer, score)).map(|(racer, _)| racer)
                    };
                    if let Some(out) = out {
                        out.fork.destroy().await;
                    }
                }
            }
        }
    }

    /// The VM continues as the winner.
    async fn conclude(&self, field: Field) -> Result<(RaceEnd, Result<(), Failure>), Failure> {
        let Race { core, handle, authority, .. } = &self.race;
        let Field { best, scores, lost } = field;
        let scores = scores.into_iter().collect();
        let Some((winner, _)) = best else {
            let generation = handle.view.borrow().generation;
            let end = RaceEnd { winner: None, scores, undo: None, generation };
            return Ok((end, Err(nobody(handle, &lost))));
        };
        let number = winner.number;
        let switched = async {
            let won =
                state::keep(core, &winner.fork.handle, authority.clone(), None, Keeping::WINNER).await?;
            state::go_back(core, handle, authority.clone(), self.id, won).await
        };
        let switched = switched.await;
        // Whether it became the VM or not: nobody needs the racer any more.
        winner.fork.destroy().await;
        let went = switched?;
        Ok((RaceEnd { winner: Some(number), scores, undo: went.undo, generation: went.generation }, Ok(())))
    }
}

fn nobody(handle: &VmHandle, lost: &BTreeMap<u32, String>) -> Failure {
    let each: Vec<String> = lost.iter().map(|(racer, why)| format!("racer {racer} {why}")).collect();
    let message = format!("nobody won the race of VM `{}`: {}", handle.name, each.join(", "));
    Failure::new(ErrorCode::ExecFailed, message).hint("the VM is as it was")
}
