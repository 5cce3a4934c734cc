//! The daemon dies at every instruction that matters; the next one finds nothing half done.

use crate::{
    sagas::{SAGAS, goal, newest, perform, prepare, state},
    stage::*,
};
use offshoot_engine::{Checkpoint, Engine, ExecEvent, ExecState, Fault, Phase, steps_of};
use offshoot_provider::Exit;
use offshoot_types::{
    Command, ExecId, ExecStatus, OperationKind, OperationOutcome, OperationState, VmState, VmStateName,
};
use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::sync::mpsc;

/// A stage whose engines stop dead at one checkpoint and say so.
pub fn stage_that_stops(at: Arc<Mutex<Option<Checkpoint>>>) -> (Stage, mpsc::UnboundedReceiver<()>) {
    let (reached, seen) = mpsc::unbounded_channel();
    let stage = Stage::new().at_checkpoints(move |checkpoint| {
        let stop = *at.lock().unwrap() == Some(checkpoint);
        let reached = reached.clone();
        Box::pin(async move {
            if stop {
                reached.send(()).unwrap();
                std::future::pending::<()>().await;
            }
            Fault::Continue
        })
    });
    (stage, seen)
}

/// Whatever the crash, these hold once the next engine has settled.
fn assert_whole(stage: &Stage, engine: &Engine, at: &str) {
    let settled = state(engine);
    let processes = stage.host.processes();
    assert!(stage.host.most_of_one_vm() <= 1, "{at}: two processes on one disk");
    match settled.as_ref().map(VmState::name) {
        Some(VmStateName::Running | VmStateName::Paused) => {
            assert!(processes.len() == 1 && processes[0].is_alive(), "{at}: {processes:?}");
        }
        Some(VmStateName::Stopped | VmStateName::Suspended) | None => {
            assert!(processes.is_empty(), "{at}: {processes:?}")
        }
        other => panic!("{at}: {other:?} is half a state"),
    }
    let files = std::fs::read_dir(stage.state().join("vms")).unwrap().count();
    assert_eq!(files, usize::from(settled.is_some()), "{at}: a directory for each VM and no other");
}

#[tokio::test(flavor = "multi_thread")]
async fn kill9_everywhere() {
    for kind in SAGAS {
        for (step, _) in steps_of(kind) {
            for phase in [Phase::BeforeJournal, Phase::BeforeAct, Phase::AfterAct] {
                let name = format!("{kind}/{step} {phase:?}");
                let at = Arc::new(Mutex::new(None));
                let (stage, mut reached) = stage_that_stops(at.clone());
                let engine = stage.engine().await;
                prepare(&engine, kind).await;
                *at.lock().unwrap() = Some(Checkpoint { kind, step, phase });
                let asked = tokio::spawn({
                    let (host, engine) = (stage.host.clone(), engine.clone());
                    async move { perform(&host, &engine, kind).await }
                });
                reached.recv().await.unwrap();
                // Whoever asked has gone with the daemon.
                asked.abort();
                let _cancelled = asked.await;
                let operation = newest(&engine, kind).await.unwrap().id;
                engine.crash().await;

                *at.lock().unwrap() = None;
                let engine = stage.engine().await;
                tokio::time::timeout(Duration::from_secs(20), engine.settled()).await.expect("it settles");
                let ended = engine.wait(operation, Some(Duration::ZERO)).await.unwrap();
                let OperationState::Ended { outcome: OperationOutcome::Interrupted { undone } } = ended.state
                else {
                    panic!("{name}: {ended:?}")
                };
                // What a rollback left is ended once it is kept.
                eventually("one process at most", || stage.host.processes().len() <= 1).await;
                assert_whole(&stage, &engine, &name);
                let now = state(&engine).map(|state| state.name());
                if undone {
                    let before = match kind {
                        OperationKind::Start => Some(VmStateName::Stopped),
                        OperationKind::Snapshot
                        | OperationKind::Rollback
                        | OperationKind::Rebase
                        | OperationKind::Suspend => Some(VmStateName::Running),
                        _ => None,
                    };
                    assert_eq!(now, before, "{name}: undone");
                } else {
                    assert_eq!(now, goal(kind), "{name}: completed");
                }
                if now == Some(VmStateName::Running) {
                    let (_, end) = output(exec(&engine, "a", &["true"]).await.unwrap()).await;
                    assert!(matches!(end, ExecEvent::Ended(_)), "{name}: {end:?}");
                }
                if kind == OperationKind::Rollback {
                    let (notes, saved) = if undone { ("onetwo", "onetwo") } else { ("one", "one") };
                    assert_eq!(program(&engine, "a", &["notes"]).await, notes, "{name}");
                    assert_eq!(program(&engine, "a", &["saved"]).await, saved, "{name}");
                    if !undone {
                        // What it left is not lost with the daemon that had it in memory.
                        let undo = Command::Undo { vm: named("a") };
                        engine
                            .rollback(permit(&engine, undo))
                            .await
                            .unwrap_or_else(|f| panic!("{name}: {f:?}"));
                        assert_eq!(program(&engine, "a", &["notes"]).await, "onetwo", "{name}");
                        assert_eq!(program(&engine, "a", &["saved"]).await, "onetwo", "{name}");
                    }
                }
                if kind == OperationKind::Rebase {
                    assert_eq!(program(&engine, "a", &["notes"]).await, "one", "{name}");
                    assert_eq!(program(&engine, "a", &["saved"]).await, "one", "{name}");
                }
                if now.is_some() {
                    run(&engine, Command::Destroy { vm: named("a") }).await.unwrap();
                }
                for kept in snapshots(&engine).await.into_iter().rev() {
                    remove_snapshot(&engine, kept.id).await.unwrap();
                }
                leave(engine).await;
                stage.assert_nothing_left().await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_while_unwinding_is_unwound_by_the_next_start() {
    for kind in [
        OperationKind::Create,
        OperationKind::Start,
        OperationKind::Snapshot,
        OperationKind::Suspend,
        OperationKind::Rollback,
        OperationKind::Rebase,
    ] {
        let undone: Vec<_> = steps_of(kind).into_iter().filter(|(_, undone)| *undone).collect();
        let last = steps_of(kind).last().unwrap().0;
        for (step, _) in undone {
            for phase in [Phase::BeforeUndo, Phase::AfterUndo] {
                let (reached, mut seen) = mpsc::unbounded_channel();
                let armed = Arc::new(Mutex::new(false));
                let stage = Stage::new().at_checkpoints({
                    let armed = armed.clone();
                    move |checkpoint| {
                        let on = *armed.lock().unwrap() && checkpoint.kind == kind;
                        let reached = reached.clone();
                        Box::pin(async move {
                            if on && checkpoint.phase == Phase::BeforeAct && checkpoint.step == last {
                                let failure = offshoot_types::Failure::new(
                                    offshoot_types::ErrorCode::Backend,
                                    "on purpose",
                                );
                                return Fault::Fail(failure);
                            }
                            if on && checkpoint.phase == phase && checkpoint.step == step {
                                reached.send(()).unwrap();
                                std::future::pending::<()>().await;
                            }
                            Fault::Continue
                        })
                    }
                });
                let engine = stage.engine().await;
                prepare(&engine, kind).await;
                *armed.lock().unwrap() = true;
                tokio::spawn({
                    let (host, engine) = (stage.host.clone(), engine.clone());
                    async move { perform(&host, &engine, kind).await }
                });
                seen.recv().await.unwrap();
                engine.crash().await;
                *armed.lock().unwrap() = false;
                let engine = stage.engine().await;
                engine.settled().await;
                assert_whole(&stage, &engine, &format!("{kind}/{step} {phase:?}"));
                leave(engine).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_accepted_operation_that_was_never_begun_is_not_lost() {
    // The driver is held by a pause that hangs; the stop and the start behind it are on disk, not begun.
    let at = Arc::new(Mutex::new(None));
    let (stage, mut reached) = stage_that_stops(at.clone());
    let engine = stage.engine().await;
    create_running(&engine, "a").await;
    let step = Checkpoint { kind: OperationKind::Pause, step: "pause", phase: Phase::BeforeAct };
    *at.lock().unwrap() = Some(step);
    engine.submit(permit(&engine, Command::Pause { vm: named("a") })).await.unwrap();
    reached.recv().await.unwrap();
    let stop = engine.submit(permit(&engine, Command::Stop { vm: named("a"), grace: GRACE })).await.unwrap();
    engine.crash().await;
    *at.lock().unwrap() = None;
    let engine = stage.engine().await;
    engine.settled().await;
    let stop = engine.wait(stop.id, None).await.unwrap();
    let completed = OperationOutcome::Interrupted { undone: false };
    assert_eq!(stop.state, OperationState::Ended { outcome: completed });
    assert_eq!(state(&engine), Some(VmState::Stopped));
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn daemon_restart_keeps_vms() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    let mut ids = Vec::new();
    for n in 0..20 {
        ids.push(create_running(&engine, &format!("vm-{n}")).await);
    }
    run(&engine, Command::Pause { vm: named("vm-7") }).await.unwrap();
    let before: Vec<_> = engine.vms(permit(&engine, Command::Inspect { vm: None })).unwrap();
    let boots = stage.host.boots();
    engine.crash().await;

    let began = Instant::now();
    let engine = stage.engine().await;
    let took = began.elapsed();
    assert!(took < Duration::from_secs(1), "adopted in {took:?}");
    let after: Vec<_> = engine.vms(permit(&engine, Command::Inspect { vm: None })).unwrap();
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(
            (before.id, &before.state, before.generation, before.started_at),
            (after.id, &after.state, after.generation, after.started_at),
            "undisturbed"
        );
    }
    assert_eq!((stage.host.boots(), stage.host.processes().len()), (boots, 20));
    assert_eq!(engine.census().live, 20);
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_ended_while_no_daemon_lived_is_told_apart_by_its_exit() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    let (a, b) = (create_running(&engine, "a").await, create_running(&engine, "b").await);
    engine.crash().await;
    stage.host.process(a).end(Exit::Signal(9));
    stage.host.process(b).end(Exit::PoweredOff);
    let engine = stage.engine().await;
    let VmState::Failed(why) = view(&engine, "a").await.state else { panic!() };
    assert_eq!(why.reason, "the VMM was ended by signal 9");
    assert_eq!(view(&engine, "b").await.state, VmState::Stopped);
    assert!(stage.host.processes().is_empty());
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_outlives_the_daemon_and_is_attachable_by_its_id() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    let id = create_running(&engine, "a").await;
    let mut session = exec(&engine, "a", &["cat"]).await.unwrap();
    let exec_id: ExecId = session.exec;
    assert!(matches!(session.next().await, Some(ExecEvent::Started { .. })));
    session.input().stdin("before ".into()).await.unwrap();
    let Some(ExecEvent::Output { data, .. }) = session.next().await else { panic!() };
    assert_eq!(&data[..], b"before ");
    engine.crash().await;
    assert_eq!(stage.host.process(id).guest.running(), 1, "it runs on without a daemon");

    let engine = stage.engine().await;
    let listed = engine.execs(permit(&engine, Command::Inspect { vm: Some(named("a")) })).await.unwrap();
    assert_eq!((listed[0].id, &listed[0].state), (exec_id, &ExecState::Running));
    let attach = permit(&engine, Command::Attach { vm: named("a"), exec: exec_id });
    let session = engine.attach(attach, Default::default()).await.unwrap();
    session.input().stdin("after".into()).await.unwrap();
    session.input().end_stdin().await.unwrap();
    let (all, end) = output(session).await;
    assert_eq!(all, b"before after");
    assert!(matches!(end, ExecEvent::Ended(end) if end.status == ExecStatus::Exited(0)));
    let operation = offshoot_types::OperationId::from_uuid(*exec_id.as_uuid());
    let operation = engine.wait(operation, Some(Duration::from_secs(10))).await.unwrap();
    assert_eq!(operation.state, OperationState::Ended { outcome: OperationOutcome::Done });
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_whose_vm_died_with_the_daemon_is_recorded_as_interrupted() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    let id = create_running(&engine, "a").await;
    let mut session = exec(&engine, "a", &["cat"]).await.unwrap();
    session.next().await.unwrap();
    let operation = session.operation;
    engine.crash().await;
    stage.host.process(id).end(Exit::Signal(9));
    let engine = stage.engine().await;
    engine.settled().await;
    let operation = engine.wait(operation, None).await.unwrap();
    assert!(matches!(
        operation.state,
        OperationState::Ended { outcome: OperationOutcome::Interrupted { undone: false } }
    ));
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strays_of_a_destroyed_vm_are_removed_and_unknown_files_are_reported_and_kept() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    let id = create(&engine, "a").await;
    run(&engine, Command::Destroy { vm: named("a") }).await.unwrap();
    leave(engine).await;
    let vms = stage.state().join("vms");
    let (ours, unknown, note) =
        (vms.join(id.simple()), vms.join(offshoot_types::VmId::new().simple()), vms.join("notes.txt"));
    for dir in [&ours, &unknown] {
        std::fs::create_dir(dir).unwrap();
        std::fs::write(dir.join("disk.qcow2"), "data").unwrap();
    }
    std::fs::write(&note, "mine").unwrap();
    let engine = stage.engine().await;
    assert!(!ours.exists() && unknown.exists() && note.exists());
    let from = Some(offshoot_types::EventId(0));
    let mut events = engine.events(permit(&engine, Command::Inspect { vm: None }), from).await.unwrap();
    let mut warned = Vec::new();
    while warned.len() < 2 {
        let event = tokio::time::timeout(Duration::from_secs(5), events.next()).await.unwrap().unwrap();
        if let offshoot_types::EventKind::Warning { message } = event.kind {
            warned.push(message);
        }
    }
    for path in [&unknown, &note] {
        assert!(warned.iter().any(|w| w.contains(path.to_str().unwrap())), "{warned:?}");
    }
    leave(engine).await;
}
