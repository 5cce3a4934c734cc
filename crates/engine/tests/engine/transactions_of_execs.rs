//! One exec as a transaction, because its caller tries it or because its VM's policy says so; and what is promised to
//! those who come from systems that broke it.

use crate::{fake::*, stage::*, transactions::*};
use offshoot_engine::{Engine, ExecEvent, TryEnd, TryEvent, TrySession};
use offshoot_provider::{Exit, fake::CheckpointFault};
use offshoot_types::{
    AutoSnapshot, Command, ExecArgv, ExecStatus, RollbackCause, RollbackTo, SnapshotOrigin, SnapshotPolicy,
    TransactionEnd, TrySpec, VmStateName,
};
use std::time::{Duration, Instant};

fn spec(script: &str) -> TrySpec {
    TrySpec { exec: *shell(script), check: None, timeout: None }
}
async fn start(engine: &Engine, spec: TrySpec) -> TrySession {
    let command = Command::Try { vm: named("a"), spec: Box::new(spec) };
    engine.try_exec(permit(engine, command)).await.unwrap()
}
async fn all(mut session: TrySession) -> Vec<TryEvent> {
    let mut events = Vec::new();
    while let Some(event) = tokio::time::timeout(SOON, session.next()).await.expect("an event in time") {
        events.push(event);
    }
    events
}
async fn tried(engine: &Engine, spec: TrySpec) -> TryEnd {
    match all(start(engine, spec).await).await.pop() {
        Some(TryEvent::Ended(end)) => end,
        other => panic!("{other:?}"),
    }
}
#[tokio::test(flavor = "multi_thread")]
async fn a_try_that_succeeds_is_kept_and_one_that_fails_is_as_if_it_had_not_been() {
    let fake = Fake::new();
    let (engine, _) = fake.running().await;
    sh(&engine, "mkdir /workspace && echo 1 > /workspace/f").await;
    let events = all(start(&engine, spec("echo out; rm -rf /workspace; exit 7")).await).await;
    let TryEvent::Begun { transaction, .. } = events[0] else { panic!("{events:?}") };
    assert!(
        events.iter().any(|event| matches!(event, TryEvent::Exec(ExecEvent::Output { .. }))),
        "{events:?}"
    );
    let Some(TryEvent::Ended(end)) = events.last() else { panic!("{events:?}") };
    assert_eq!(
        *end,
        TryEnd {
            transaction,
            end: rolled_back(RollbackCause::Failed { status: 7 }),
            status: Some(ExecStatus::Exited(7))
        }
    );
    assert_eq!(file(&engine, "/workspace/f").await.as_deref(), Some("1"));

    let end = tried(&engine, spec("echo 2 > /workspace/f")).await;
    assert_eq!((end.end, end.status), (TransactionEnd::Committed, Some(ExecStatus::Exited(0))));
    assert_eq!(file(&engine, "/workspace/f").await.as_deref(), Some("2"));
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_that_fails_a_program_that_is_none_and_time_that_is_up_roll_back() {
    let fake = Fake::new();
    let (engine, _) = fake.running().await;
    sh(&engine, "echo 0 > /f").await;
    let check = |script: &str| Some(ExecArgv::Shell(script.into()));
    let end = tried(&engine, TrySpec { check: check("exit 3"), ..spec("echo 1 > /f") }).await;
    assert_eq!(end.end, rolled_back(RollbackCause::CheckFailed { status: 3 }));
    assert_eq!(end.status, Some(ExecStatus::Exited(0)));
    let end = tried(&engine, TrySpec { check: check("nonesuch"), ..spec("echo 1 > /f") }).await;
    assert_eq!(end.end, rolled_back(RollbackCause::CheckFailed { status: 127 }));
    let end = tried(&engine, spec("nonesuch")).await;
    assert_eq!((end.end, end.status), (rolled_back(RollbackCause::Failed { status: 127 }), None));
    assert_eq!(file(&engine, "/f").await.as_deref(), Some("0"));

    // The time is that of command and check together.
    let timeout = Some(Duration::from_millis(400));
    let began = Instant::now();
    let end = tried(&engine, TrySpec { timeout, check: check("sleep 600"), ..spec("echo 1 > /f") }).await;
    assert_eq!(end.end, rolled_back(RollbackCause::Deadline));
    assert!(began.elapsed() < SOON);
    assert_eq!(file(&engine, "/f").await.as_deref(), Some("0"));
    let end = tried(&engine, TrySpec { check: check("cat /f"), ..spec("echo 1 > /f") }).await;
    assert_eq!(end.end, TransactionEnd::Committed);
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_leaves_a_try_rolls_it_back() {
    let fake = Fake::new();
    let (engine, _) = fake.running().await;
    sh(&engine, "echo 0 > /f").await;
    let mut session = start(&engine, spec("echo 1 > /f; sleep 600")).await;
    loop {
        if let Some(TryEvent::Exec(ExecEvent::Started { .. })) = session.next().await {
            break;
        }
    }
    drop(session);
    all_ended(&engine).await;
    assert_eq!(file(&engine, "/f").await.as_deref(), Some("0"));
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_crashes_in_a_try_is_rolled_back_and_runs() {
    let fake = Fake::new();
    let (engine, id) = fake.running().await;
    sh(&engine, "echo 0 > /f").await;
    let mut session = start(&engine, spec("echo 1 > /f; sleep 600")).await;
    loop {
        if let Some(TryEvent::Exec(ExecEvent::Started { .. })) = session.next().await {
            break;
        }
    }
    assert!(fake.host.end(id, Exit::GuestPanic { line: "Kernel panic".into() }));
    let Some(TryEvent::Ended(end)) = all(session).await.pop() else { panic!("no end") };
    assert_eq!(end.end, rolled_back(RollbackCause::GuestCrashed));
    wait_for(&engine, "a", &[VmStateName::Running], SOON).await;
    assert_eq!(file(&engine, "/f").await.as_deref(), Some("0"));
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemons_death_in_the_middle_of_a_try_rolls_it_back() {
    let fake = Fake::new();
    let (engine, _) = fake.running().await;
    sh(&engine, "echo 0 > /f").await;
    let mut session = start(&engine, spec("echo 1 > /f; sleep 600")).await;
    loop {
        if let Some(TryEvent::Exec(ExecEvent::Started { .. })) = session.next().await {
            break;
        }
    }
    engine.crash().await;
    drop(session);
    let engine = fake.stage.engine().await;
    assert_eq!(file(&engine, "/f").await.as_deref(), Some("0"));
    leave(engine).await;
}

// ---- promises to those who come from systems that broke them

/// The snapshot a try goes back to is older than anything it did.
#[tokio::test(flavor = "multi_thread")]
async fn snapshot_before_not_after() {
    let fake = Fake::new();
    let (engine, _) = fake.running().await;
    let events = all(start(&engine, spec("echo 1 > /f")).await).await;
    let TryEvent::Begun { snapshot, .. } = events[0] else { panic!("{events:?}") };
    let command = Command::Rollback {
        vm: named("a"),
        to: RollbackTo::Snapshot(offshoot_types::SnapshotRef::Id(snapshot)),
    };
    engine.rollback(permit(&engine, command)).await.unwrap();
    assert_eq!(file(&engine, "/f").await, None);
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn history_marks_undone_entries() {
    let fake = Fake::new();
    let (engine, id) = fake.running().await;
    sh(&engine, "echo kept").await;
    tried(&engine, spec("echo undone; exit 1")).await;
    leave(engine).await;
    let store = fake.stage.record().await;
    let undone = store.read(move |view| view.undone(id)).await.unwrap();
    let mut reasons = Vec::new();
    for operation in undone.keys() {
        reasons.push(store.operation(*operation).await.unwrap().unwrap().reason);
    }
    assert_eq!(reasons, ["run as root: echo undone; exit 1"], "marked, and not deleted");
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn timeout_default_never_destroys() {
    let fake = Fake::new();
    let (engine, id) = fake.running().await;
    sh(&engine, "echo 0 > /f").await;
    let end =
        tried(&engine, TrySpec { timeout: Some(Duration::from_millis(200)), ..spec("sleep 600") }).await;
    assert_eq!(end.end, rolled_back(RollbackCause::Deadline));
    assert_eq!(view(&engine, "a").await.id, id);
    assert_eq!(file(&engine, "/f").await.as_deref(), Some("0"));
    let snapshots =
        engine.snapshots(permit(&engine, Command::Inspect { vm: Some(named("a")) })).await.unwrap();
    assert!(
        snapshots.iter().any(|snapshot| snapshot.origin == SnapshotOrigin::Undo),
        "and what it left is kept"
    );
    leave(engine).await;
}

// ---- snapshots nobody asks for

async fn set_policy(engine: &Engine, auto: AutoSnapshot, rollback_on_failure: bool) {
    let policy = SnapshotPolicy { auto, rollback_on_failure };
    engine
        .set_policy(permit(engine, Command::SetPolicy { vm: named("a"), policy: policy.into() }))
        .await
        .unwrap();
    assert_eq!(view(engine, "a").await.policy, policy);
}
async fn snapshots(engine: &Engine) -> usize {
    engine.snapshots(permit(engine, Command::Inspect { vm: Some(named("a")) })).await.unwrap().len()
}
async fn back_to_newest(engine: &Engine) {
    let command = Command::Rollback { vm: named("a"), to: RollbackTo::Newest };
    engine.rollback(permit(engine, command)).await.unwrap();
}

/// A hook that runs before a tool need not ask: the destructive command itself is preceded by a snapshot.
#[tokio::test(flavor = "multi_thread")]
async fn pre_tool_hook_snapshots_first() {
    let fake = Fake::new();
    let (engine, _) = fake.running().await;
    set_policy(&engine, AutoSnapshot::BeforeRisky, false).await;
    sh(&engine, "mkdir /workspace && echo 1 > /workspace/f").await;
    value(&engine, "main", "x = 1; x").await;
    assert_eq!(snapshots(&engine).await, 0, "nothing risky was done");
    sh(&engine, "rm -rf /workspace").await;
    value(&engine, "main", "x = 2; x").await;
    assert_eq!((snapshots(&engine).await, file(&engine, "/workspace/f").await), (1, None));
    back_to_newest(&engine).await;
    assert_eq!(file(&engine, "/workspace/f").await.as_deref(), Some("1"));
    assert_eq!(value(&engine, "main", "x").await, "1", "memory too");
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn before_exec_every_exec_has_a_snapshot_of_its_own_or_does_not_run() {
    let fake = Fake::new();
    let (engine, _) = fake.running().await;
    set_policy(&engine, AutoSnapshot::BeforeExec, false).await;
    sh(&engine, "echo 1 > /f").await;
    sh(&engine, "echo 2 > /f").await;
    assert_eq!(snapshots(&engine).await, 2);
    fake.host.inject_checkpoint(CheckpointFault::Refuse);
    sh_in(&engine, "a", "echo 3 > /f").await.unwrap_err();
    set_policy(&engine, AutoSnapshot::Never, false).await;
    assert_eq!(file(&engine, "/f").await.as_deref(), Some("2"), "without its snapshot it was not run");
    back_to_newest(&engine).await;
    assert_eq!(file(&engine, "/f").await.as_deref(), Some("1"));
    leave(engine).await;
}

/// With the policy of a system that kept only what had failed, there is still something good to go back to.
#[tokio::test(flavor = "multi_thread")]
async fn rollback_after_default_config_succeeds() {
    let fake = Fake::new();
    let (engine, _) = fake.running().await;
    sh(&engine, "echo good > /f").await;
    set_policy(&engine, AutoSnapshot::OnFailure, true).await;
    let (_, status) = sh(&engine, "echo bad > /f; exit 1").await;
    assert_eq!(status, ExecStatus::Exited(1), "the caller is told how it ended");
    assert_eq!(file(&engine, "/f").await.as_deref(), Some("good"));
    // And with no policy at all, a try has one of its own.
    set_policy(&engine, AutoSnapshot::Never, false).await;
    tried(&engine, spec("echo bad > /f; exit 1")).await;
    assert_eq!(file(&engine, "/f").await.as_deref(), Some("good"));
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn auto_rollback_never_restores_failed_state() {
    let fake = Fake::new();
    let (engine, _) = fake.running().await;
    sh(&engine, "echo 0 > /f").await;
    for auto in [AutoSnapshot::Never, AutoSnapshot::BeforeExec, AutoSnapshot::OnFailure] {
        set_policy(&engine, auto, true).await;
        for round in 1..3 {
            sh(&engine, &format!("echo {round} > /f; exit 1")).await;
            assert_eq!(file(&engine, "/f").await.as_deref(), Some("0"), "{auto:?}");
        }
        sh(&engine, "echo 0 > /f; echo kept > /g").await;
        assert_eq!(file(&engine, "/g").await.as_deref(), Some("kept"), "what succeeds is kept");
    }
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_failure_left_is_kept_to_look_at() {
    let fake = Fake::new();
    let (engine, _) = fake.running().await;
    set_policy(&engine, AutoSnapshot::OnFailure, false).await;
    sh(&engine, "echo fine > /f").await;
    sh(&engine, "echo failed > /f; exit 1").await;
    let kept = async {
        while snapshots(&engine).await == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await
        }
    };
    tokio::time::timeout(SOON, kept).await.expect("it is kept");
    assert_eq!(snapshots(&engine).await, 1, "of the failure only");
    sh(&engine, "echo later > /f").await;
    back_to_newest(&engine).await;
    assert_eq!(file(&engine, "/f").await.as_deref(), Some("failed"));
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_that_is_rolled_back_can_be_left_to_itself() {
    let fake = Fake::new();
    let (engine, _) = fake.running().await;
    set_policy(&engine, AutoSnapshot::BeforeExec, true).await;
    let command = Command::Exec { vm: named("a"), spec: shell("echo 1 > /f; sleep 0.2") };
    let mut session = engine.exec(permit(&engine, command)).await.unwrap();
    assert!(matches!(session.next().await, Some(ExecEvent::Started { .. })));
    session.detach();
    all_ended(&engine).await;
    assert_eq!(file(&engine, "/f").await.as_deref(), Some("1"), "it ended well, with nobody there to see it");
    leave(engine).await;
}

/// Nobody waits for the next round of housekeeping: a VM that is kept before each command is kept some twenty times.
#[tokio::test(flavor = "multi_thread")]
async fn automatic_snapshots_are_let_go_as_they_come() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    create_running(&engine, "a").await;
    set_policy(&engine, AutoSnapshot::BeforeExec, false).await;
    for number in 0..60 {
        program(&engine, "a", &["note", &number.to_string()]).await;
    }
    let kept = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            let kept = snapshots(&engine).await;
            if kept <= 28 {
                return kept;
            }
            tokio::task::yield_now().await;
        }
    });
    assert!(kept.await.expect("they are let go") >= 20);
    set_policy(&engine, AutoSnapshot::Never, false).await;
    rollback(&engine, "a", RollbackTo::Newest).await.unwrap();
    let notes: String = (0..59).map(|number| number.to_string()).collect();
    assert_eq!(program(&engine, "a", &["notes"]).await, notes, "the newest is whole");
    leave(engine).await;
}
