//! Every saga, every step: repeated, failed, its undo repeated, no undo failed; then nothing is left over.

use crate::{host::Host, stage::*};
use offshoot_engine::{Checkpoint, Engine, Fault, OnShutdown, Phase, steps_of};
use offshoot_types::{
    Command, ErrorCode, Failure, Operation, OperationKind, OperationOutcome, OperationState, RollbackTo,
    VmState, VmStateName,
};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

pub const SAGAS: [OperationKind; 11] = [
    OperationKind::Create,
    OperationKind::Start,
    OperationKind::Stop,
    OperationKind::Restart,
    OperationKind::Pause,
    OperationKind::Resume,
    OperationKind::Snapshot,
    OperationKind::Rollback,
    OperationKind::Suspend,
    OperationKind::Rebase,
    OperationKind::Destroy,
];

/// Brings VM `a` to where `kind` can be asked for.
pub async fn prepare(engine: &Engine, kind: OperationKind) {
    match kind {
        OperationKind::Create => {}
        OperationKind::Start => drop(create(engine, "a").await),
        OperationKind::Resume => {
            create_running(engine, "a").await;
            run(engine, Command::Pause { vm: named("a") }).await.unwrap();
        }
        OperationKind::Rollback => {
            create_running(engine, "a").await;
            program(engine, "a", &["note", "one"]).await;
            program(engine, "a", &["save", "one"]).await;
            snapshot(engine, "a", Some("first")).await.unwrap();
            program(engine, "a", &["note", "two"]).await;
            program(engine, "a", &["save", "two"]).await;
        }
        OperationKind::Rebase => {
            create_running(engine, "a").await;
            program(engine, "a", &["note", "one"]).await;
            program(engine, "a", &["save", "one"]).await;
        }
        _ => drop(create_running(engine, "a").await),
    }
}

/// Asks for `kind` and waits for its outcome.
pub async fn perform(host: &Host, engine: &Engine, kind: OperationKind) -> Result<(), Failure> {
    match kind {
        OperationKind::Rebase => rebase(host, engine).await,
        OperationKind::Snapshot => snapshot(engine, "a", Some("second")).await.map(drop),
        OperationKind::Rollback => {
            let to = RollbackTo::Snapshot("a@first".parse().unwrap());
            rollback(engine, "a", to).await.map(drop)
        }
        _ => run(engine, command(kind)).await.map(drop),
    }
}

/// Has the VM find that it has much memory of its own, and waits for what it does about it.
pub async fn rebase(host: &Host, engine: &Engine) -> Result<(), Failure> {
    let before = newest(engine, OperationKind::Rebase).await;
    host.swell();
    // It looks again once it was used.
    program(engine, "a", &["true"]).await;
    let until = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        let newest = newest(engine, OperationKind::Rebase)
            .await
            .filter(|one| Some(one.id) != before.as_ref().map(|b| b.id));
        if let Some(operation) = newest {
            return match engine.wait(operation.id, Some(Duration::from_secs(60))).await?.state {
                OperationState::Ended { outcome: OperationOutcome::Failed { failure } } => Err(failure),
                OperationState::Ended { .. } => Ok(()),
                other => panic!("{other:?} after a minute"),
            };
        }
        assert!(tokio::time::Instant::now() < until, "it is not moved");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The latest operation of a kind.
pub async fn newest(engine: &Engine, kind: OperationKind) -> Option<Operation> {
    let permit = permit(engine, Command::Inspect { vm: None });
    let operations = engine.operations(permit, Default::default()).await.unwrap();
    operations.into_iter().find(|operation| operation.kind == kind)
}

pub fn command(kind: OperationKind) -> Command {
    let vm = named("a");
    match kind {
        OperationKind::Create => Command::Create { spec: spec("a") },
        OperationKind::Start => Command::Start { vm },
        OperationKind::Stop => Command::Stop { vm, grace: GRACE },
        OperationKind::Restart => Command::Restart { vm, grace: GRACE },
        OperationKind::Pause => Command::Pause { vm },
        OperationKind::Resume => Command::Resume { vm },
        OperationKind::Suspend => Command::Suspend { vm },
        OperationKind::Destroy => Command::Destroy { vm },
        _ => unreachable!("{kind} is no saga of these tests"),
    }
}

/// Where a VM is after `kind` succeeded.
pub fn goal(kind: OperationKind) -> Option<VmStateName> {
    Some(match kind {
        OperationKind::Create | OperationKind::Stop => VmStateName::Stopped,
        OperationKind::Start
        | OperationKind::Restart
        | OperationKind::Resume
        | OperationKind::Snapshot
        | OperationKind::Rebase
        | OperationKind::Rollback => VmStateName::Running,
        OperationKind::Pause => VmStateName::Paused,
        OperationKind::Suspend => VmStateName::Suspended,
        _ => return None,
    })
}

/// The state of VM `a`; `None` if there is none.
pub fn state(engine: &Engine) -> Option<VmState> {
    let views = engine.vms(permit(engine, Command::Inspect { vm: None })).unwrap();
    views.into_iter().find(|view| view.name.as_str() == "a").map(|view| view.state)
}

/// Once `kind` has been armed, one fault at one checkpoint; notes whether it was reached.
#[derive(Clone, Default)]
struct Trap {
    set: Arc<Mutex<Option<(Checkpoint, Fault)>>>,
    sprung: Arc<Mutex<u32>>,
    undo_failures: Arc<Mutex<Vec<Checkpoint>>>,
}

impl Trap {
    fn stage(&self) -> Stage {
        let trap = self.clone();
        Stage::new().at_checkpoints(move |checkpoint| {
            let set = trap.set.lock().unwrap().clone();
            let fault = match set {
                Some((at, fault)) if at == checkpoint => {
                    *trap.sprung.lock().unwrap() += 1;
                    fault
                }
                _ => Fault::Continue,
            };
            Box::pin(async move { fault })
        })
    }
    fn arm(&self, kind: OperationKind, step: &'static str, phase: Phase, fault: Fault) {
        *self.set.lock().unwrap() = Some((Checkpoint { kind, step, phase }, fault));
    }
    fn disarm(&self) {
        *self.set.lock().unwrap() = None;
    }
    fn sprung(&self) -> u32 {
        *self.sprung.lock().unwrap()
    }
}

fn failure() -> Fault {
    Fault::Fail(Failure::new(ErrorCode::Backend, "on purpose"))
}

async fn clean_up(stage: &Stage, engine: Engine) {
    for kept in snapshots(&engine).await {
        // Its own pages may be what a running VM maps: that is asked again when the VM is gone.
        let _ = remove_snapshot(&engine, kept.id).await;
    }
    if state(&engine).is_some() {
        run(&engine, Command::Destroy { vm: named("a") }).await.unwrap();
    }
    for kept in snapshots(&engine).await.into_iter().rev() {
        remove_snapshot(&engine, kept.id).await.unwrap();
    }
    engine.shutdown(OnShutdown::LeaveVms).await;
    drop(engine);
    stage.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_step_of_every_saga_may_be_repeated() {
    for kind in SAGAS {
        for (step, _) in steps_of(kind) {
            let trap = Trap::default();
            let stage = trap.stage();
            let engine = stage.engine().await;
            prepare(&engine, kind).await;
            trap.arm(kind, step, Phase::AfterAct, Fault::Repeat);
            perform(&stage.host, &engine, kind).await.unwrap_or_else(|f| panic!("{kind}/{step}: {f:?}"));
            assert_eq!(trap.sprung(), 1, "{kind}/{step}");
            assert_eq!(state(&engine).map(|s| s.name()), goal(kind), "{kind}/{step}");
            assert!(stage.host.most_of_one_vm() <= 1, "{kind}/{step}: two processes on one disk");
            clean_up(&stage, engine).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_at_every_step_unwinds_and_leaves_nothing_over() {
    for kind in SAGAS {
        for (step, _) in steps_of(kind) {
            for phase in [Phase::BeforeAct, Phase::AfterAct] {
                let trap = Trap::default();
                let stage = trap.stage();
                let engine = stage.engine().await;
                prepare(&engine, kind).await;
                let before = state(&engine);
                trap.arm(kind, step, phase, failure());
                let done = perform(&stage.host, &engine, kind).await;
                let refused = done.expect_err(&format!("{kind}/{step} {phase:?}"));
                assert_eq!(refused.message, "on purpose", "{kind}/{step}");
                assert!(!refused.cause.unwrap_or_default().contains("not taken back"), "{kind}/{step}");
                trap.disarm();
                at_rest_after_failure(&stage, &engine, kind, before, &format!("{kind}/{step} {phase:?}"));
                clean_up(&stage, engine).await;
            }
        }
    }
}

/// A failed change leaves a VM in a state that has an exit, and no process to a state that has none.
fn at_rest_after_failure(
    stage: &Stage,
    engine: &Engine,
    kind: OperationKind,
    before: Option<VmState>,
    at: &str,
) {
    let after = state(engine);
    match kind {
        OperationKind::Create => assert_eq!(after, None, "{at}"),
        OperationKind::Start => {
            assert!(matches!(after, Some(VmState::Stopped | VmState::Failed(_))), "{at}: {after:?}");
            assert!(stage.host.processes().is_empty(), "{at}: the boot was not taken back");
        }
        // What the VMM was told may have been done: the state is what it was or what was asked for.
        OperationKind::Pause | OperationKind::Resume => {
            let possible = [before.map(|s| s.name()), goal(kind)];
            assert!(possible.contains(&after.as_ref().map(VmState::name)), "{at}: {after:?}");
        }
        // It runs on as it was, and nothing of the attempt is left.
        OperationKind::Snapshot | OperationKind::Rollback | OperationKind::Rebase => {
            assert_eq!(after.map(|s| s.name()), Some(VmStateName::Running), "{at}");
        }
        // As it was, or where it was to be: its memory was on the disk already.
        OperationKind::Suspend => {
            let runs =
                stage.host.processes().iter().any(|process| process.is_alive() && !process.is_paused());
            match after.as_ref().map(VmState::name) {
                Some(VmStateName::Running) => assert!(runs, "{at}: it does not go on"),
                Some(VmStateName::Suspended) => assert!(!runs, "{at}: it goes on"),
                other => panic!("{at}: {other:?}"),
            }
        }
        OperationKind::Destroy if after.is_none() => {}
        _ => {
            let settled = after.as_ref().is_some_and(|state| {
                !matches!(state.name(), VmStateName::Stopping | VmStateName::Starting | VmStateName::Creating)
            });
            assert!(settled, "{at}: {after:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_undo_may_be_repeated() {
    for kind in SAGAS {
        let steps = steps_of(kind);
        let Some((last, _)) = steps.last().copied() else { continue };
        for (step, _) in steps.iter().filter(|(_, undone)| *undone) {
            let repeated = Arc::new(Mutex::new(0));
            let armed = Arc::new(Mutex::new(false));
            let stage = Stage::new().at_checkpoints({
                let (repeated, armed, step) = (repeated.clone(), armed.clone(), *step);
                move |checkpoint| {
                    let on = *armed.lock().unwrap() && checkpoint.kind == kind;
                    let fault = match checkpoint.phase {
                        // Not the very last: after the last move the change is complete.
                        Phase::BeforeAct if on && checkpoint.step == last => failure(),
                        Phase::AfterUndo if on && checkpoint.step == step => {
                            *repeated.lock().unwrap() += 1;
                            Fault::Repeat
                        }
                        _ => Fault::Continue,
                    };
                    Box::pin(async move { fault })
                }
            });
            let engine = stage.engine().await;
            prepare(&engine, kind).await;
            *armed.lock().unwrap() = true;
            let refused = perform(&stage.host, &engine, kind).await.unwrap_err();
            assert_eq!(refused.message, "on purpose", "{kind}/{step}");
            assert!(refused.cause.is_none(), "{kind}/{step}: {refused:?}");
            assert_eq!(*repeated.lock().unwrap(), 1, "{kind}/{step}");
            *armed.lock().unwrap() = false;
            clean_up(&stage, engine).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_undo_is_reported_and_the_others_are_done_all_the_same() {
    for (kind, step) in [(OperationKind::Create, "directories"), (OperationKind::Start, "record")] {
        let trap = Trap::default();
        let armed = trap.clone();
        let stage = Stage::new().at_checkpoints(move |checkpoint| {
            let last = steps_of(kind).last().map(|(name, _)| *name);
            let on = armed.set.lock().unwrap().is_some() && checkpoint.kind == kind;
            let fault = match checkpoint.phase {
                Phase::BeforeAct if on && Some(checkpoint.step) == last => failure(),
                Phase::BeforeUndo if on && checkpoint.step == step => {
                    armed.undo_failures.lock().unwrap().push(checkpoint);
                    failure()
                }
                _ => Fault::Continue,
            };
            Box::pin(async move { fault })
        });
        let engine = stage.engine().await;
        prepare(&engine, kind).await;
        trap.arm(kind, step, Phase::BeforeUndo, failure());
        let refused = perform(&stage.host, &engine, kind).await.unwrap_err();
        assert!(refused.cause.unwrap().contains(&format!("not taken back: {step}")), "{kind}");
        assert_eq!(trap.undo_failures.lock().unwrap().len(), 1);
        trap.disarm();
        if kind == OperationKind::Start {
            let Some(VmState::Failed(why)) = state(&engine) else { panic!("{:?}", state(&engine)) };
            assert!(why.reason.contains("left over"), "{why:?}");
        }
        // A destroy finds what is left, whatever the row says.
        if kind == OperationKind::Start {
            clean_up(&stage, engine).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn creating_has_deadline() {
    for kind in [OperationKind::Create, OperationKind::Start] {
        for (step, _) in steps_of(kind) {
            let armed = Arc::new(Mutex::new(false));
            let mut stage = Stage::new().at_checkpoints({
                let armed = armed.clone();
                move |checkpoint| {
                    let hang = *armed.lock().unwrap()
                        && (checkpoint.kind, checkpoint.step, checkpoint.phase)
                            == (kind, step, Phase::BeforeAct);
                    Box::pin(async move {
                        if hang {
                            std::future::pending::<()>().await;
                        }
                        Fault::Continue
                    })
                }
            });
            let soon = Duration::from_millis(150);
            (stage.deadlines.create, stage.deadlines.boot, stage.deadlines.start_overhead) =
                (soon, soon, soon);
            stage.deadlines.thaw = soon;
            let engine = stage.engine().await;
            prepare(&engine, kind).await;
            *armed.lock().unwrap() = true;
            let failure = perform(&stage.host, &engine, kind).await.unwrap_err();
            assert_eq!(failure.code, ErrorCode::Timeout, "{kind}/{step}");
            assert!(failure.message.contains(step) && failure.hint.is_some(), "{failure:?}");
            assert!(stage.host.processes().is_empty(), "{kind}/{step}");
            *armed.lock().unwrap() = false;
            clean_up(&stage, engine).await;
        }
    }
}
