//! The pool never fails a start, and never leaves anything: dead and stale instances, templates that cannot be made,
//! and a daemon that dies at every step of a claim and of making an instance.

use crate::{host::Faults, pool::*, stage::*};
use offshoot_engine::{Checkpoint, Engine, Fault, OnShutdown, Phase, PoolTemplate, steps_of};
use offshoot_provider::Exit;
use offshoot_types::{Command, ErrorCode, Failure, OperationKind, StartedFrom, VmState, VmStateName};
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU32, Ordering},
};
use tokio::sync::mpsc;

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_died_is_not_claimed() {
    let stage = stage();
    let engine = warm(&stage).await;
    let died = stage.host.processes().pop().unwrap();
    died.end(Exit::Signal(9));
    create_running(&engine, "b").await;
    // Another one may have been made meanwhile; the dead one is nobody's.
    assert_ne!(last_start(&engine, "b").await.from, StartedFrom::Boot);
    ready(&engine, 1).await;
    eventually("what died is cleared away", || {
        stage.host.processes().iter().all(|process| !Arc::ptr_eq(process, &died))
    })
    .await;
    run(&engine, Command::Destroy { vm: named("b") }).await.unwrap();
    ends_clean(&stage, engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_does_not_confirm_is_ended_and_the_vm_starts_all_the_same() {
    let stage = stage();
    let engine = warm(&stage).await;
    let stale = stage.host.processes().pop().unwrap();
    stale.guest.stale.store(true, Ordering::SeqCst);
    create_running(&engine, "b").await;
    let start = last_start(&engine, "b").await;
    assert_eq!(start.from, StartedFrom::Template, "{start:?}");
    assert!(start.not_pooled.as_ref().unwrap().contains("could not be claimed"), "{start:?}");
    eventually("it is ended", || !stale.is_alive()).await;
    run(&engine, Command::Destroy { vm: named("b") }).await.unwrap();
    ends_clean(&stage, engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_that_cannot_be_restored_is_no_reason_not_to_start() {
    let stage = stage();
    let engine = warm(&stage).await;
    stage.host.processes().pop().unwrap().guest.stale.store(true, Ordering::SeqCst);
    stage.host.set_faults(Faults { restore_fails: true, ..Faults::default() });
    create_running(&engine, "b").await;
    let start = last_start(&engine, "b").await;
    assert_eq!(start.from, StartedFrom::Boot);
    assert!(start.not_pooled.as_ref().unwrap().contains("of another machine"), "{start:?}");
    eventually("the pool says what is wrong", || shelf(&engine).is_some_and(|shelf| shelf.trouble.is_some()))
        .await;
    stage.host.set_faults(Faults::default());
    ready(&engine, 1).await;
    assert_eq!(shelf(&engine).unwrap().trouble, None);
    assert_eq!(program(&engine, "b", &["notes"]).await, "");
    run(&engine, Command::Destroy { vm: named("b") }).await.unwrap();
    ends_clean(&stage, engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_of_another_vmm_is_made_anew() {
    let stage = stage();
    let engine = warm(&stage).await;
    let Some(PoolTemplate::Ready(old)) = shelf(&engine).map(|shelf| shelf.template) else { panic!() };
    engine.shutdown(OnShutdown::LeaveVms).await;
    drop(engine);
    stage.host.set_faults(Faults { another_vmm: true, ..Faults::default() });
    let engine = stage.engine().await;
    create_running(&engine, "b").await;
    assert_eq!(last_start(&engine, "b").await.from, StartedFrom::Boot, "it fits no more");
    ready(&engine, 1).await;
    let Some(PoolTemplate::Ready(new)) = shelf(&engine).map(|shelf| shelf.template) else { panic!() };
    assert_ne!(old, new);
    run(&engine, Command::Destroy { vm: named("b") }).await.unwrap();
    ends_clean(&stage, engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_that_cannot_be_made_is_told_and_tried_again() {
    let stage = stage();
    let engine = stage.engine().await;
    stage.host.set_faults(Faults { checkpoint_fails: true, ..Faults::default() });
    create_running(&engine, "a").await;
    let told = || shelf(&engine).and_then(|shelf| shelf.trouble);
    eventually("the pool says what is wrong", || told().is_some_and(|why| why.contains("no space left")))
        .await;
    create_running(&engine, "b").await;
    let start = last_start(&engine, "b").await;
    assert_eq!(start.from, StartedFrom::Boot, "starts work all the same");
    assert!(start.not_pooled.unwrap().contains("no template"));
    stage.host.set_faults(Faults::default());
    ready(&engine, 1).await;
    for name in ["a", "b"] {
        run(&engine, Command::Destroy { vm: named(name) }).await.unwrap();
    }
    ends_clean(&stage, engine).await;
}

/// What happens at one checkpoint of a start, from when it is armed; the pool's own starts visit the same ones.
#[derive(Clone, Default)]
struct Trap {
    at: Arc<Mutex<Option<(Checkpoint, Fault)>>>,
    /// Visits to let pass.
    pass: Arc<AtomicU32>,
    sprung: Arc<AtomicU32>,
}

impl Trap {
    fn stage(&self) -> (Stage, mpsc::UnboundedReceiver<()>) {
        let trap = self.clone();
        let (reached, seen) = mpsc::unbounded_channel();
        let stage = Stage { pool: EAGER, ..Stage::new() }.at_checkpoints(move |checkpoint| {
            let set = trap.at.lock().unwrap().clone();
            let fault = match set {
                Some((at, fault)) if at == checkpoint => {
                    let passes =
                        trap.pass.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
                    let first = passes.is_err() && trap.sprung.fetch_add(1, Ordering::SeqCst) == 0;
                    first.then_some(fault)
                }
                _ => None,
            };
            let reached = reached.clone();
            Box::pin(async move {
                match fault {
                    // Stands for the daemon's death: it goes no further.
                    Some(Fault::Continue) => {
                        reached.send(()).unwrap();
                        std::future::pending().await
                    }
                    Some(fault) => fault,
                    None => Fault::Continue,
                }
            })
        });
        (stage, seen)
    }

    fn arm(&self, step: &'static str, phase: Phase, fault: Fault, pass: u32) {
        self.pass.store(pass, Ordering::SeqCst);
        *self.at.lock().unwrap() = Some((Checkpoint { kind: OperationKind::Start, step, phase }, fault));
    }
    fn disarm(&self) {
        *self.at.lock().unwrap() = None;
    }
}

async fn state(engine: &Engine) -> VmState {
    view(engine, "b").await.state
}

#[tokio::test(flavor = "multi_thread")]
async fn every_step_of_a_claimed_start_may_be_repeated_and_may_fail() {
    let failure = || Fault::Fail(Failure::new(ErrorCode::Backend, "on purpose"));
    for (step, _) in steps_of(OperationKind::Start) {
        for (phase, fault) in
            [(Phase::AfterAct, Fault::Repeat), (Phase::BeforeAct, failure()), (Phase::AfterAct, failure())]
        {
            let at = format!("{step} {phase:?} {fault:?}");
            let trap = Trap::default();
            let (stage, _seen) = trap.stage();
            let engine = warm(&stage).await;
            create(&engine, "b").await;
            let repeats = matches!(fault, Fault::Repeat);
            trap.arm(step, phase, fault, 0);
            let started = run(&engine, Command::Start { vm: named("b") }).await;
            assert_eq!(trap.sprung.load(Ordering::SeqCst), 1, "{at}");
            trap.disarm();
            if repeats {
                started.unwrap_or_else(|failure| panic!("{at}: {failure:?}"));
                assert_eq!(last_start(&engine, "b").await.from, StartedFrom::Pool, "{at}");
                assert_eq!(program(&engine, "b", &["notes"]).await, "", "{at}");
            } else {
                assert_eq!(started.unwrap_err().message, "on purpose", "{at}");
                let state = state(&engine).await;
                assert!(matches!(state, VmState::Stopped | VmState::Failed(_)), "{at}: {state:?}");
                // Whatever it was left in, it can be started.
                run(&engine, Command::Start { vm: named("b") }).await.unwrap();
            }
            assert_eq!(stage.host.most_of_one_vm(), 1, "{at}");
            run(&engine, Command::Destroy { vm: named("b") }).await.unwrap();
            ends_clean(&stage, engine).await;
        }
    }
}

const PHASES: [Phase; 3] = [Phase::BeforeJournal, Phase::BeforeAct, Phase::AfterAct];

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_dies_at_any_step_of_a_claimed_start_leaves_a_vm_or_none() {
    for (step, _) in steps_of(OperationKind::Start) {
        for phase in PHASES {
            let at = format!("{step} {phase:?}");
            let trap = Trap::default();
            let (stage, mut reached) = trap.stage();
            let engine = warm(&stage).await;
            create(&engine, "b").await;
            trap.arm(step, phase, Fault::Continue, 0);
            let asked = tokio::spawn({
                let engine = engine.clone();
                async move { run(&engine, Command::Start { vm: named("b") }).await }
            });
            reached.recv().await.unwrap();
            asked.abort();
            let _cancelled = asked.await;
            engine.crash().await;
            trap.disarm();
            let engine = stage.engine().await;
            engine.settled().await;
            match state(&engine).await.name() {
                VmStateName::Running => {
                    assert_eq!(last_start(&engine, "b").await.from, StartedFrom::Pool, "{at}");
                    assert_eq!(program(&engine, "b", &["notes"]).await, "", "{at}");
                }
                VmStateName::Stopped => {}
                other => panic!("{at}: {other:?}"),
            }
            let runs = usize::from(state(&engine).await == VmState::Running);
            eventually("what nobody claimed is gone", || stage.host.processes().len() == runs).await;
            run(&engine, Command::Destroy { vm: named("b") }).await.unwrap();
            ends_clean(&stage, engine).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_dies_while_it_makes_an_instance_or_a_template_leaves_nothing() {
    for (step, _) in steps_of(OperationKind::Start) {
        for phase in PHASES {
            let at = format!("{step} {phase:?}");
            let trap = Trap::default();
            let (stage, mut reached) = trap.stage();
            let engine = stage.engine().await;
            // The first start is the VM's own, the second the template's, the third the instance's.
            let pass = if phase == Phase::AfterAct { 1 } else { 2 };
            trap.arm(step, phase, Fault::Continue, pass);
            create_running(&engine, "b").await;
            reached.recv().await.unwrap();
            engine.crash().await;
            trap.disarm();
            let engine = stage.engine().await;
            engine.settled().await;
            eventually(&at, || stage.host.processes().len() == 1).await;
            assert_eq!(program(&engine, "b", &["notes"]).await, "", "{at}");
            run(&engine, Command::Destroy { vm: named("b") }).await.unwrap();
            ends_clean(&stage, engine).await;
        }
    }
}
