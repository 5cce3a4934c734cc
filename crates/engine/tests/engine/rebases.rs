//! A VM that is idle goes on in a process with a fresh base, and nobody can tell.

use crate::{
    sagas::{newest, rebase},
    stage::*,
};
use offshoot_engine::{Checkpoint, Engine, Fault, Phase, Rebasing, VmView};
use offshoot_store::SnapshotRecord;
use offshoot_types::{
    Bytes, Command, ErrorCode, EventKind, OperationKind, OperationOutcome, OperationState, RollbackTo,
    SnapshotOrigin, SnapshotState, VmId, VmState, VmStateName,
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::sync::mpsc;

async fn change(engine: &Engine, text: &str) {
    program(engine, "a", &["note", text]).await;
    program(engine, "a", &["save", text]).await;
}

/// What memory and disk hold.
async fn now(engine: &Engine) -> (String, String) {
    (program(engine, "a", &["notes"]).await, program(engine, "a", &["saved"]).await)
}

fn both(text: &str) -> (String, String) {
    (text.into(), text.into())
}

/// The bases there are, which nobody's list shows.
async fn bases(engine: &Engine) -> Vec<SnapshotRecord> {
    let all = engine.store().read(|view| view.snapshots(None)).await.unwrap();
    all.into_iter().filter(|snapshot| snapshot.origin == SnapshotOrigin::Rebase).collect()
}

async fn undo_target(engine: &Engine, vm: VmId) -> Option<offshoot_types::SnapshotId> {
    engine.store().read(move |view| view.newest_undo(vm)).await.unwrap().map(|snapshot| snapshot.id)
}

/// Everything of a view that a rebase must not change.
fn told(view: VmView) -> VmView {
    VmView {
        generation: Default::default(),
        updated: Default::default(),
        usage: None,
        operation: None,
        ..view
    }
}

async fn alone(stage: &Stage) {
    eventually("one process", || stage.host.processes().len() == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_was_moved_is_what_it_was_but_for_its_generation() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    let id = create_running(&engine, "a").await;
    change(&engine, "1").await;
    snapshot(&engine, "a", Some("first")).await.unwrap();
    change(&engine, "2").await;
    rollback(&engine, "a", RollbackTo::Newest).await.unwrap();
    change(&engine, "3").await;
    alone(&stage).await;
    let (before, old, undo) =
        (view(&engine, "a").await, stage.host.process(id), undo_target(&engine, id).await);
    let kept: Vec<_> = snapshots(&engine).await.iter().map(|kept| (kept.id, kept.parent)).collect();
    let seen = *engine.store().last_event().borrow();

    rebase(&stage.host, &engine).await.unwrap();
    alone(&stage).await;
    let (after, new) = (view(&engine, "a").await, stage.host.process(id));
    assert!(!old.is_alive() && !new.is_paused() && !new.guest.is_frozen());
    assert_eq!(after.generation, before.generation.next());
    assert_eq!(
        told(after),
        told(before),
        "also what its guest attested, when it was started and where it stands"
    );
    assert!(new.guest.thaws.lock().unwrap().is_empty(), "nothing was renewed: it is the same machine");
    assert_eq!(now(&engine).await, both("13"));
    assert_eq!(undo_target(&engine, id).await, undo);
    let still: Vec<_> = snapshots(&engine).await.iter().map(|kept| (kept.id, kept.parent)).collect();
    assert_eq!(still, kept, "nobody's list shows its base");
    let [base] = bases(&engine).await.try_into().unwrap();
    assert_eq!((base.state, new.record.memory_base), (SnapshotState::Durable, Some(base.id)));
    let events = engine.store().events(seen, 50).await.unwrap().events;
    let generation = view(&engine, "a").await.generation;
    assert!(events.iter().any(|event| event.kind == EventKind::Rebased { onto: base.id, generation }));
    assert!(!events.iter().any(|event| matches!(event.kind, EventKind::StateChanged { .. })));
    let last_good = engine.store().read(move |view| view.last_good(id)).await.unwrap().unwrap();
    assert_eq!(last_good.name.unwrap().as_str(), "first");

    // It can be kept, undone and forked like any other, also by the next daemon.
    let second = snapshot(&engine, "a", Some("second")).await.unwrap();
    assert_eq!(second.parent, kept.first().map(|(first, _)| *first));
    change(&engine, "4").await;
    leave(engine).await;
    let engine = stage.engine().await;
    assert_eq!(now(&engine).await, both("134"));
    let fork = fork(&engine, offshoot_types::ForkSource::Snapshot("a@second".parse().unwrap()), None, 1);
    let fork = fork.await.unwrap().forks[0].name.to_string();
    assert_eq!(program(&engine, &fork, &["notes"]).await, "13");
    rollback(&engine, "a", RollbackTo::Newest).await.unwrap();
    assert_eq!(now(&engine).await, both("13"));
    assert_eq!(stage.host.most_of_one_vm(), 1, "no two write to one layer");
    for name in ["a", &fork] {
        run(&engine, Command::Destroy { vm: named(name) }).await.unwrap();
    }
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_meanwhile_is_served_by_the_process_there_was() {
    let (reached, mut at_restore) = mpsc::unbounded_channel();
    let armed = Arc::new(AtomicBool::new(true));
    let hang = armed.clone();
    let stage = Stage::new().at_checkpoints(move |at| {
        let there =
            Checkpoint { kind: OperationKind::Rebase, step: "connect", phase: Phase::BeforeAct } == at;
        let (stop, reached) = (there && hang.load(Ordering::SeqCst), reached.clone());
        Box::pin(async move {
            if stop {
                reached.send(()).unwrap();
                std::future::pending::<()>().await;
            }
            Fault::Continue
        })
    });
    let engine = stage.engine().await;
    let id = create_running(&engine, "a").await;
    change(&engine, "1").await;
    let (before, old) = (view(&engine, "a").await, stage.host.process(id));
    let moving = tokio::spawn({
        let (host, engine) = (stage.host.clone(), engine.clone());
        async move { rebase(&host, &engine).await }
    });
    at_restore.recv().await.unwrap();
    assert_eq!(stage.host.processes().len(), 2);
    change(&engine, "2").await;
    let given_up = moving.await.unwrap().unwrap_err();
    assert_eq!(given_up.code, ErrorCode::Interrupted, "{given_up}");
    assert_eq!(now(&engine).await, both("12"));
    assert!(old.is_alive() && stage.host.processes().len() == 1);
    assert_eq!(told(view(&engine, "a").await), told(before.clone()));
    assert_eq!(view(&engine, "a").await.generation, before.generation);
    while !bases(&engine).await.is_empty() {
        tokio::task::yield_now().await;
    }
    // And the next time nobody comes.
    armed.store(false, Ordering::SeqCst);
    rebase(&stage.host, &engine).await.unwrap();
    assert_eq!(now(&engine).await, both("12"));
    run(&engine, Command::Destroy { vm: named("a") }).await.unwrap();
    leave(engine).await;
    stage.assert_nothing_left().await;
}

/// The VM is used again and again, and each time its memory could be looked at.
async fn is_left_alone(stage: &Stage, engine: &Engine, why: &str) {
    for _ in 0..3 {
        stage.host.swell();
        program(engine, "a", &["true"]).await;
        // Long after it would have been looked at.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // Or it would be moved as soon as it may be.
    stage.host.shrink();
    assert!(newest(engine, OperationKind::Rebase).await.is_none(), "{why}");
    assert!(bases(engine).await.is_empty(), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_is_used_or_has_no_room_beside_it_or_shall_not_be_moved_stays_where_it_is() {
    let mut stage = Stage::new();
    stage.limits.memory = Bytes((256 << 20) - 1);
    let engine = stage.engine().await;
    create_running(&engine, "a").await;
    is_left_alone(&stage, &engine, "two of it are more than the ledger has").await;
    leave(engine).await;

    stage.limits.memory = Bytes(256 << 20);
    stage.rebasing = Rebasing::OFF;
    let engine = stage.engine().await;
    is_left_alone(&stage, &engine, "it is off").await;
    leave(engine).await;

    stage.rebasing = Rebasing { idle: Some(Duration::from_millis(20)), ..Rebasing::default() };
    let engine = stage.engine().await;
    let mut process = exec(&engine, "a", &["sleep"]).await.unwrap();
    is_left_alone(&stage, &engine, "a process runs in it").await;
    process.input().kill().await.unwrap();
    while process.next().await.is_some() {}
    let begin = Command::Begin { vm: named("a"), parent: None, deadline: GRACE * 10 };
    let open = engine.begin_transaction(permit(&engine, begin)).await.unwrap();
    is_left_alone(&stage, &engine.within(open.id), "it belongs to a transaction").await;
    let end = Command::Commit { vm: named("a"), transaction: open.id };
    engine.commit_transaction(permit(&engine, end)).await.unwrap();

    rebase(&stage.host, &engine).await.unwrap();
    assert_eq!(view(&engine, "a").await.state, VmState::Running);
    run(&engine, Command::Destroy { vm: named("a") }).await.unwrap();
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_is_moved_again_and_again_has_one_base() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    create_running(&engine, "a").await;
    for text in ["1", "2", "3", "4"] {
        change(&engine, text).await;
        rebase(&stage.host, &engine).await.unwrap();
        alone(&stage).await;
    }
    assert_eq!(now(&engine).await, both("1234"));
    let until = tokio::time::Instant::now() + Duration::from_secs(30);
    while bases(&engine).await.len() > 1 {
        assert!(tokio::time::Instant::now() < until, "{:?}", bases(&engine).await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let [base] = bases(&engine).await.try_into().unwrap();
    assert_eq!(base.memory_base, None, "the ones before are part of it");
    // What is kept is complete without them.
    snapshot(&engine, "a", Some("kept")).await.unwrap();
    leave(engine).await;
    let engine = stage.engine().await;
    change(&engine, "5").await;
    rollback(&engine, "a", RollbackTo::Newest).await.unwrap();
    assert_eq!(now(&engine).await, both("1234"));
    run(&engine, Command::Destroy { vm: named("a") }).await.unwrap();
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_does_not_stand_still_stays_where_it_is() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    let id = create_running(&engine, "a").await;
    change(&engine, "1").await;
    let guest = stage.host.process(id).guest.clone();
    guest.restless.store(true, Ordering::SeqCst);
    let refused = rebase(&stage.host, &engine).await.unwrap_err();
    assert!(refused.message.contains("stand still"), "{refused}");
    assert_eq!((refused.code, now(&engine).await), (ErrorCode::Busy, both("1")));
    assert_eq!(view(&engine, "a").await.state.name(), VmStateName::Running);
    let ended = newest(&engine, OperationKind::Rebase).await.unwrap().state;
    assert!(matches!(ended, OperationState::Ended { outcome: OperationOutcome::Failed { .. } }), "{ended:?}");
    run(&engine, Command::Destroy { vm: named("a") }).await.unwrap();
    leave(engine).await;
    stage.assert_nothing_left().await;
}
