//! One run: step after step, each followed by a look at everything.

use crate::{
    acts::{self, Deed, named},
    expectation::Asked,
    invariants::{self, Facts},
    log::Log,
    model::{Content, FILES, Kept, Model},
    schedule::{Act, Schedule, Step, Verb, When},
    trouble::Met,
    verdict::{Verdict, judge},
    world::{World, permit},
};
use offshoot_engine::{Engine, OnShutdown};
use offshoot_store::AuditVerdict;
use offshoot_types::{
    Command, ErrorCode, Failure, OperationId, SnapshotId, SnapshotRef, TimeLimit, VmStateName,
};
use std::time::Duration;
use tokio::time::Instant;

/// No command takes longer, whatever goes wrong: every deadline together.
const STUCK: Duration = Duration::from_secs(3600);
/// Until everything that goes on by itself has ended: retries, backoffs, files being removed.
const REST: Duration = Duration::from_secs(600);
/// Before a daemon whose disk was full is ended.
const REST_FULL: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(500);
/// VMs that are created; forks come on top.
const CREATED: [&str; 3] = ["vm-0", "vm-1", "vm-2"];
/// More VMs are not forked.
const MOST: usize = 7;

type Answers = Vec<Result<(), Failure>>;

pub async fn run(schedule: Schedule, log: Log) -> Result<(), String> {
    let world = World::new(log.clone());
    let engine = Some(world.engine().await?);
    let mut run = Run { world, engine, model: Model::default(), log, names: 0 };
    for (n, step) in schedule.steps.into_iter().enumerate() {
        run.step(n, step).await.map_err(|error| format!("step {n}: {error}"))?;
    }
    run.end().await.map_err(|error| format!("at the end: {error}"))
}

struct Run {
    world: World,
    engine: Option<Engine>,
    model: Model,
    log: Log,
    /// Given so far: no name is used twice.
    names: u32,
}

impl Run {
    fn engine(&self) -> &Engine {
        self.engine.as_ref().expect("one lives between steps")
    }

    async fn step(&mut self, n: usize, step: Step) -> Result<(), String> {
        self.keep_awake().await?;
        let mut deeds: Vec<Deed> = Vec::new();
        for act in &step.acts {
            // Those that change what others on the same VM mean are alone there.
            let clash =
                |deed: &Deed, other: &Deed| other.vm == deed.vm && !(other.verb.mixes() && deed.verb.mixes());
            if let Some(deed) = self.deed(*act)
                && !deeds.iter().any(|other| clash(&deed, other))
            {
                deeds.push(deed);
            }
        }
        let words: Vec<String> = deeds.iter().map(|deed| self.words(deed)).collect();
        self.log.line(format!("{n} {}", words.join(", ")));
        let mark = self.newest().await?;

        self.world.board.arm(step.troubles);
        let mut crash = self.world.board.meet(When::Before).await;
        let mut answers = None;
        if !crash {
            answers = self.perform(&deeds).await?;
            crash = answers.is_none() || self.world.board.meet(When::After).await;
        }
        if crash {
            self.crash().await?;
        }
        let met = self.world.board.calm().await;
        let facts = self.rest(met).await?;
        let mut verdicts = judge(self.engine(), &deeds, answers.as_deref(), mark, &facts).await?;
        for verdict in verdicts.iter_mut().filter(|verdict| met.failed && **verdict == Verdict::Completed) {
            // Or not taken back, because an undo failed.
            *verdict = Verdict::Unsure;
        }
        for (words, verdict) in words.iter().zip(&verdicts) {
            self.log.line(format!("    {words} -> {verdict:?}"));
        }
        self.model.take_over(&Asked { deeds: &deeds, verdicts: &verdicts, met }, &facts)?;
        let named = |name: &str| deeds.iter().any(|deed| deed.vm == name || deed.makes(name));
        self.look_inside(&facts, |name| crash || met.any || named(name)).await?;
        self.log_state(&facts);
        Ok(())
    }

    /// Nothing rests in this step because it was to rest in an earlier one that was cut off.
    async fn keep_awake(&self) -> Result<(), String> {
        let vms = self.engine().vms(permit(self.engine(), Command::Inspect { vm: None }));
        for vm in vms.map_err(|failure| failure.to_string())? {
            if vm.life.idle_suspend.is_some() {
                let lifted = acts::set_idle(self.engine(), vm.name.as_str(), TimeLimit::None).await;
                lifted.map_err(|failure| failure.to_string())?;
            }
        }
        Ok(())
    }

    /// The answers, or `None` if the daemon is to die before all are there.
    async fn perform(&self, deeds: &[Deed]) -> Result<Option<Answers>, String> {
        let engine = self.engine().clone();
        let each = deeds.iter().map(async |deed| {
            let ended = tokio::time::timeout(STUCK, deed.perform(&engine)).await;
            ended.map_err(|_elapsed| format!("{} is stuck", self.words(deed)))
        });
        tokio::select! {
            biased;
            () = self.world.board.crashed() => Ok(None),
            ended = futures::future::join_all(each) => ended.into_iter().collect::<Result<_, _>>().map(Some),
        }
    }

    /// The daemon dies; the next one starts and brings everything in order, unless it dies in the middle of that.
    async fn crash(&mut self) -> Result<(), String> {
        loop {
            let engine = self.engine.take().expect("one lives");
            engine.crash().await;
            self.log.line("    the daemon died");
            if let Some(visit) = self.world.board.again() {
                self.world.board.arm_again(visit);
            }
            let engine = self.world.engine().await?;
            let died = tokio::select! {
                biased;
                () = self.world.board.crashed() => true,
                settled = tokio::time::timeout(STUCK, engine.settled()) => {
                    settled.map_err(|_elapsed| "the recovery is stuck".to_owned())?;
                    false
                }
            };
            self.engine = Some(engine);
            if !died {
                return Ok(());
            }
        }
    }

    /// Waits until nothing goes on any more and every invariant holds. What a full disk kept from being written is
    /// brought in order by the next daemon at the latest.
    async fn rest(&mut self, met: Met) -> Result<Facts, String> {
        if met.full {
            if let Ok(facts) = self.rest_within(REST_FULL).await {
                return Ok(facts);
            }
            self.crash().await?;
        }
        self.rest_within(REST).await
    }

    async fn rest_within(&self, limit: Duration) -> Result<Facts, String> {
        let until = Instant::now() + limit;
        loop {
            match invariants::check(&self.world, self.engine()).await {
                Err(_) if Instant::now() < until => tokio::time::sleep(LOOK).await,
                checked => return checked,
            }
        }
    }

    /// What an act of the schedule means now; `None` if it means nothing.
    fn deed(&mut self, act: Act) -> Option<Deed> {
        let mut pick = act.pick;
        let mut below = |bound: usize| {
            let chosen = pick as usize % bound.max(1);
            pick /= 8;
            chosen
        };
        let there: Vec<&str> = self.model.vms.keys().map(String::as_str).collect();
        // Now and then what makes no sense is asked all the same.
        let sense = below(8) > 0;
        let names: Vec<&str> = match act.verb {
            Verb::Create if sense => CREATED.into_iter().filter(|name| !there.contains(name)).collect(),
            _ if sense => there,
            _ => CREATED.into(),
        };
        let vm = names.get(act.slot as usize % names.len().max(1))?.to_string();
        let snapshots =
            self.model.kept.iter().filter(|(_, kept)| act.verb != Verb::RollbackTo || kept.vm == vm);
        let snapshots: Vec<SnapshotId> = snapshots.map(|(id, _)| *id).collect();
        let needs = matches!(act.verb, Verb::RollbackTo | Verb::RemoveSnapshot | Verb::ForkSnapshot);
        let full = act.verb.forks() && self.model.vms.len() >= MOST;
        if full || (needs && snapshots.is_empty()) {
            return None;
        }
        self.names += 1;
        // By bits that choose nothing else, so that every seed still does what it did otherwise.
        let verb = match (act.verb, act.pick >> 30) {
            (Verb::Start, 3) => Verb::Rebase,
            (Verb::Echo, 1..) | (Verb::Suspend | Verb::Resume, 0) => Verb::Rest,
            (verb, _) => verb,
        };
        Some(Deed {
            verb,
            snapshot: needs.then(|| snapshots[below(snapshots.len())]),
            count: 1 + below(2) as u32,
            file: FILES[below(FILES.len())],
            value: self.names.to_string(),
            name: format!("{}{}", if act.verb.forks() { "fork" } else { "s" }, self.names),
            vm,
        })
    }

    fn words(&self, deed: &Deed) -> String {
        let Deed { verb, vm, .. } = deed;
        let ordinal = deed.snapshot.and_then(|id| self.model.kept.get(&id)).map_or(0, |kept| kept.ordinal);
        match verb {
            Verb::Write => format!("{verb:?} {vm} {}={}", deed.file, deed.value),
            verb if verb.transacts() => format!("{verb:?} {vm} {}={}", deed.file, deed.value),
            Verb::SetVariable => format!("{verb:?} {vm} x={}", deed.value),
            Verb::Snapshot | Verb::SnapshotDisk => format!("{verb:?} {vm}@{}", deed.name),
            Verb::RemoveSnapshot => format!("{verb:?} #{ordinal}"),
            Verb::RollbackTo => format!("{verb:?} {vm} #{ordinal}"),
            Verb::Fork => format!("{verb:?} {vm} {:?}", deed.forks()),
            Verb::ForkSnapshot => format!("{verb:?} #{ordinal} {:?}", deed.forks()),
            _ => format!("{verb:?} {vm}"),
        }
    }

    async fn newest(&self) -> Result<Option<OperationId>, String> {
        let inspect = permit(self.engine(), Command::Inspect { vm: None });
        let operations = self.engine().operations(inspect, Default::default()).await;
        Ok(operations.map_err(|failure| failure.to_string())?.first().map(|operation| operation.id))
    }

    /// Reads the guests of VMs that run.
    async fn look_inside(&mut self, facts: &Facts, chosen: impl Fn(&str) -> bool) -> Result<(), String> {
        let engine = self.engine().clone();
        for (name, machine) in &mut self.model.vms {
            let runs = facts.vm(name).is_some_and(|vm| vm.state.name() == VmStateName::Running);
            if runs && chosen(name) {
                look_at(&engine, name, &mut machine.content).await?;
            }
        }
        Ok(())
    }

    fn log_state(&self, facts: &Facts) {
        for (name, machine) in &self.model.vms {
            let generation = facts.vm(name).map_or(0, |vm| vm.generation.0);
            self.log.line(format!(
                "    {name} {:?} g{generation} {}",
                machine.state,
                machine.content.words()
            ));
        }
        let kept = self.model.kept.values().map(|kept| format!("#{} of {}", kept.ordinal, kept.vm));
        let kept: Vec<String> = kept.collect();
        if !kept.is_empty() {
            self.log.line(format!("    kept: {}", kept.join(", ")));
        }
    }

    /// Everything that was kept can be continued from, everything can be let go of, and nothing is left.
    async fn end(mut self) -> Result<(), String> {
        for (id, kept) in self.model.kept.clone().into_iter().filter(|(_, kept)| !kept.damaged) {
            self.continue_from(id, kept).await?;
        }
        for (name, machine) in self.model.vms.clone() {
            let (mut content, vm) = (machine.content, named(&name));
            let begin = match machine.state {
                VmStateName::Paused => Command::Resume { vm },
                _ => Command::Start { vm },
            };
            let begun = acts::submit(self.engine(), begin).await;
            match begun {
                // The destroy that failed has succeeded meanwhile.
                Err(failure) if machine.doomed && failure.code == ErrorCode::NotFound => {
                    self.model.vms.remove(&name);
                    continue;
                }
                begun => begun.map_err(|failure| format!("{name} does not start: {failure:?}"))?,
            }
            look_at(self.engine(), &name, &mut content).await?;
        }
        for name in self.model.vms.keys() {
            self.destroy(name).await?;
        }
        self.remove_all().await?;
        self.rest(Met::default()).await?;
        let engine = self.engine.take().expect("one lives");
        let used = engine.store().ledger().await.map_err(|error| error.to_string())?;
        if used != Default::default() {
            let left = engine.store().read(|view| {
                let left = view.snapshots(None)?.into_iter();
                left.map(|one| Ok((view.snapshot_users(one.id)?, one))).collect::<Result<Vec<_>, _>>()
            });
            let left = left.await.map_err(|error| error.to_string())?;
            return Err(format!("the ledger still promises {used:?}, for {left:?}"));
        }
        let audit = engine.store().audit_verify(None).await.map_err(|error| error.to_string())?;
        if !matches!(audit, AuditVerdict::Intact(_)) {
            return Err(format!("the audit: {audit:?}"));
        }
        engine.shutdown(OnShutdown::LeaveVms).await;
        if !self.world.host.machines().is_empty() {
            return Err(format!("machines are left: {:?}", self.world.host.machines()));
        }
        let state = self.world.state();
        for dir in [state.join("vms"), state.join("disks"), state.join("snapshots"), self.world.runtime()] {
            let left = invariants::names(&dir);
            if !left.is_empty() {
                return Err(format!("{} holds {left:?}", dir.display()));
            }
        }
        self.log.line("nothing is left");
        Ok(())
    }

    /// Every byte of a snapshot is as it was written, and a fork of it holds what was expected.
    async fn continue_from(&self, id: SnapshotId, mut kept: Kept) -> Result<(), String> {
        let (engine, shown) = (self.engine(), format!("snapshot #{}", kept.ordinal));
        let command = Command::VerifySnapshot { snapshot: SnapshotRef::Id(id) };
        let found = engine.verify_snapshot(permit(engine, command)).await;
        // A destroy that failed has succeeded meanwhile, and its VM's own snapshots went with it.
        let doomed = self.model.vms.get(&kept.vm).is_some_and(|machine| machine.doomed);
        let may_go = |failure: &Failure| doomed && !kept.manual && failure.code == ErrorCode::NotFound;
        if found.as_ref().is_err_and(may_go) {
            return Ok(());
        }
        let found = found.map_err(|failure| format!("{shown} cannot be verified: {failure:?}"))?;
        if !found.faults.is_empty() {
            return Err(format!("{shown}: {:?}", found.faults));
        }
        // What did not stand still is not forked.
        if !kept.quiesced {
            return Ok(());
        }
        let deed = Deed {
            verb: Verb::ForkSnapshot,
            vm: kept.vm.clone(),
            snapshot: Some(id),
            name: "check".into(),
            count: 1,
            file: FILES[0],
            value: String::new(),
        };
        match deed.perform(engine).await {
            Err(failure) if may_go(&failure) => return Ok(()),
            forked => forked.map_err(|failure| format!("{shown} cannot be forked: {failure:?}"))?,
        }
        look_at(engine, "check", &mut kept.content).await.map_err(|error| format!("{shown}: {error}"))?;
        self.destroy("check").await
    }

    async fn destroy(&self, name: &str) -> Result<(), String> {
        let destroyed = acts::submit(self.engine(), Command::Destroy { vm: named(name) }).await;
        destroyed.map_err(|failure| format!("{name} cannot be destroyed: {failure:?}"))
    }

    /// Children before parents: each round some go, until none are left.
    async fn remove_all(&self) -> Result<(), String> {
        loop {
            let inspect = permit(self.engine(), Command::Inspect { vm: None });
            let left = self.engine().snapshots(inspect).await.map_err(|failure| failure.to_string())?;
            if left.is_empty() {
                return Ok(());
            }
            let mut refused = Vec::new();
            for snapshot in left.iter().rev() {
                match acts::remove(self.engine(), snapshot.id).await {
                    Err(failure) if failure.code != ErrorCode::NotFound => refused.push(failure),
                    _ => {}
                }
            }
            if refused.len() == left.len() {
                return Err(format!("snapshots cannot be removed: {refused:?}"));
            }
        }
    }
}

/// Compares what a guest holds with what is expected, and remembers it.
async fn look_at(engine: &Engine, name: &str, content: &mut Content) -> Result<(), String> {
    let unread = |what: &str, failure: Failure| format!("{name}: {what} cannot be read: {failure:?}");
    for file in FILES {
        let found = acts::read(engine, named(name), file).await.map_err(|failure| unread(file, failure))?;
        content.found_file(file, found).map_err(|error| format!("{name}: {error}"))?;
    }
    match acts::variable(engine, named(name)).await {
        Ok(found) => content.found_variable(found).map_err(|error| format!("{name}: {error}")),
        Err(failure) if failure.code == ErrorCode::Unsupported => Ok(()),
        Err(failure) => Err(unread("the variable", failure)),
    }
}
