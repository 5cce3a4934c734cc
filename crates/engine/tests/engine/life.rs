//! VMs that rest by themselves, wake when somebody asks, and whose time is up.

use crate::{host::Faults, stage::*};
use jiff::Timestamp;
use offshoot_engine::{Engine, OnShutdown, OperationPage};
use offshoot_types::{
    AutoSnapshot, Command, ErrorCode, FileAccess, Life, LifeChange, OnTimeout, OperationKind, SnapshotPolicy,
    TimeLimit, VmId, VmState, VmStateName, Wake,
};
use std::time::Duration;

/// Long enough to be seen running, short enough to wait for.
const SHORT: Duration = Duration::from_millis(150);
const LIMIT: Duration = Duration::from_secs(30);

async fn living(engine: &Engine, life: Life) -> VmId {
    let mut spec = spec("a");
    spec.life = life;
    let id = run(engine, Command::Create { spec }).await.unwrap().vm.unwrap();
    run(engine, Command::Start { vm: named("a") }).await.unwrap();
    id
}

async fn idle(engine: &Engine) -> VmId {
    living(engine, Life { idle_suspend: Some(SHORT), ..Life::default() }).await
}

/// Returns when its time is up from then on.
async fn change(engine: &Engine, life: LifeChange) -> Option<Timestamp> {
    engine.set_life(permit(engine, Command::SetLife { vm: named("a"), life })).await.unwrap().1
}

async fn reached(engine: &Engine, state: VmStateName) {
    let view = wait_for(engine, "a", &[state], LIMIT).await;
    assert_eq!(view.state.name(), state, "in time");
}

/// The reasons of the operations of a kind, newest first.
async fn reasons(engine: &Engine, kind: OperationKind) -> Vec<String> {
    let inspect = Command::Inspect { vm: Some(named("a")) };
    let all = engine.operations(permit(engine, inspect), OperationPage::default()).await.unwrap();
    all.into_iter().filter(|one| one.kind == kind).map(|one| one.reason).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_of_which_nothing_is_asked_rests_and_goes_on_where_it_was_when_something_is() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    idle(&engine).await;
    program(&engine, "a", &["note", "1"]).await;
    reached(&engine, VmStateName::Suspended).await;
    eventually("its process is ended", || stage.host.processes().is_empty()).await;
    assert!(
        reasons(&engine, OperationKind::Suspend).await[0].starts_with("nothing was asked of it for 0.15")
    );
    assert_eq!(program(&engine, "a", &["notes"]).await, "1", "the caller sees no more than latency");
    assert_eq!(reasons(&engine, OperationKind::Start).await[0], "a request needs it");
    // Again, and for each kind of use.
    reached(&engine, VmStateName::Suspended).await;
    let read = Command::Files { vm: named("a"), access: FileAccess::Read, path: "/f".into() };
    let access = engine.guest(permit(&engine, read)).await.unwrap();
    assert_eq!(view(&engine, "a").await.state, VmState::Running);
    access.complete(Ok(())).await;
    reached(&engine, VmStateName::Suspended).await;
    let begin = Command::Begin { vm: named("a"), parent: None, deadline: LIMIT };
    let open = engine.begin_transaction(permit(&engine, begin)).await.unwrap();
    let end = Command::Commit { vm: named("a"), transaction: open.id };
    engine.within(open.id).commit_transaction(permit(&engine, end)).await.unwrap();
    // A snapshot wakes it too, whoever wants it.
    reached(&engine, VmStateName::Suspended).await;
    snapshot(&engine, "a", Some("kept")).await.unwrap();
    reached(&engine, VmStateName::Suspended).await;
    let policy = SnapshotPolicy { auto: AutoSnapshot::BeforeExec, rollback_on_failure: false };
    let set = Command::SetPolicy { vm: named("a"), policy: policy.into() };
    engine.set_policy(permit(&engine, set)).await.unwrap();
    assert_eq!(program(&engine, "a", &["notes"]).await, "1");
    run(&engine, Command::Destroy { vm: named("a") }).await.unwrap();
    let kept = snapshots(&engine).await.into_iter().find(|one| one.name.is_some()).expect("it was asked for");
    remove_snapshot(&engine, kept.id).await.unwrap();
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_under_way_keeps_it_awake() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    let id = idle(&engine).await;
    let process = stage.host.process(id);
    let running = exec(&engine, "a", &["sleep", "1000"]).await.unwrap();
    let awake = async |what: &str| {
        tokio::time::timeout(SHORT * 4, wait_for(&engine, "a", &[VmStateName::Suspending], LIMIT))
            .await
            .expect_err(what);
        assert!(process.is_alive(), "{what}");
    };
    awake("a program runs").await;
    let read = Command::Files { vm: named("a"), access: FileAccess::Read, path: "/f".into() };
    let access = engine.guest(permit(&engine, read)).await.unwrap();
    drop(running);
    awake("a file is open").await;
    let begin = Command::Begin { vm: named("a"), parent: None, deadline: LIMIT };
    let open = engine.begin_transaction(permit(&engine, begin)).await.unwrap();
    drop(access);
    awake("a transaction is open").await;
    let end = Command::RollbackTransaction { vm: named("a"), transaction: open.id };
    engine.within(open.id).rollback_transaction(permit(&engine, end)).await.unwrap();
    reached(&engine, VmStateName::Suspended).await;
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_suspended_stays_so_unless_its_setting_says_otherwise() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    idle(&engine).await;
    program(&engine, "a", &["note", "1"]).await;
    reached(&engine, VmStateName::Suspended).await;
    run(&engine, Command::Resume { vm: named("a") }).await.unwrap();
    change(&engine, LifeChange { idle_suspend: Some(TimeLimit::None), ..LifeChange::default() }).await;
    run(&engine, Command::Suspend { vm: named("a") }).await.unwrap();
    let refused = exec(&engine, "a", &["notes"]).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::WrongState);
    assert!(refused.message.contains("offshoot resume a"), "{refused:?}");
    // The same if it has suspended itself already.
    run(&engine, Command::Resume { vm: named("a") }).await.unwrap();
    change(&engine, LifeChange { idle_suspend: Some(TimeLimit::After(SHORT)), ..LifeChange::default() })
        .await;
    reached(&engine, VmStateName::Suspended).await;
    run(&engine, Command::Suspend { vm: named("a") }).await.unwrap();
    assert_eq!(exec(&engine, "a", &["notes"]).await.unwrap_err().code, ErrorCode::WrongState);
    change(&engine, LifeChange { idle_suspend: Some(TimeLimit::None), ..LifeChange::default() }).await;
    change(&engine, LifeChange { wake: Some(Wake::Always), ..LifeChange::default() }).await;
    assert_eq!(program(&engine, "a", &["notes"]).await, "1");
    let never = LifeChange {
        idle_suspend: Some(TimeLimit::After(SHORT)),
        wake: Some(Wake::Never),
        ..LifeChange::default()
    };
    change(&engine, never).await;
    reached(&engine, VmStateName::Suspended).await;
    assert_eq!(exec(&engine, "a", &["notes"]).await.unwrap_err().code, ErrorCode::WrongState);
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_come_while_it_goes_to_rest_wait_and_are_answered() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    idle(&engine).await;
    program(&engine, "a", &["note", "1"]).await;
    for _ in 0..3 {
        wait_for(&engine, "a", &[VmStateName::Suspending, VmStateName::Suspended], LIMIT).await;
        let asked = (0..4).map(|_| program(&engine, "a", &["notes"]));
        assert_eq!(futures::future::join_all(asked).await, ["1"; 4]);
    }
    assert_eq!(stage.host.most_of_one_vm(), 1);
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wake_that_fails_is_the_callers_answer_and_can_be_tried_again() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    idle(&engine).await;
    program(&engine, "a", &["note", "1"]).await;
    reached(&engine, VmStateName::Suspended).await;
    stage.host.set_faults(Faults { restore_fails: true, ..Faults::default() });
    assert_eq!(exec(&engine, "a", &["notes"]).await.unwrap_err().code, ErrorCode::Backend);
    assert_eq!(view(&engine, "a").await.state, VmState::Suspended);
    stage.host.set_faults(Faults::default());
    assert_eq!(program(&engine, "a", &["notes"]).await, "1");
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_dies_while_a_vm_goes_to_rest_leaves_one_that_wakes() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    idle(&engine).await;
    program(&engine, "a", &["note", "1"]).await;
    // In the middle of it or, if that was missed, just after.
    wait_for(&engine, "a", &[VmStateName::Suspending, VmStateName::Suspended], LIMIT).await;
    engine.crash().await;
    let engine = stage.engine().await;
    engine.settled().await;
    assert_eq!(program(&engine, "a", &["notes"]).await, "1", "{:?}", view(&engine, "a").await);
    reached(&engine, VmStateName::Suspended).await;
    engine.crash().await;
    let engine = stage.engine().await;
    assert_eq!(program(&engine, "a", &["notes"]).await, "1", "why it is suspended is on the disk");
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_whose_disk_is_its_memory_is_suspended_where_it_was_to_be_stopped() {
    let stage = Stage::new();
    stage.host.set_faults(Faults { no_disk: true, ..Faults::default() });
    let engine = stage.engine().await;
    let life = Life { timeout: Some(SHORT), on_timeout: OnTimeout::Stop, ..Life::default() };
    living(&engine, life).await;
    reached(&engine, VmStateName::Suspended).await;
    create_running(&engine, "b").await;
    let report = engine.shutdown(OnShutdown::StopVms { grace: GRACE }).await;
    assert!(report.not_stopped.is_empty() && report.left_running.is_empty(), "{report:?}");
    drop(engine);
    assert!(stage.host.processes().is_empty());
    let engine = stage.engine().await;
    for name in ["a", "b"] {
        assert_eq!(view(&engine, name).await.state.name(), VmStateName::Suspended);
    }
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_whose_time_is_up_is_suspended_stopped_or_destroyed_as_it_was_told() {
    for (on_timeout, state) in [
        (OnTimeout::Suspend, VmStateName::Suspended),
        (OnTimeout::Stop, VmStateName::Stopped),
        (OnTimeout::Destroy, VmStateName::Destroyed),
    ] {
        let stage = Stage::new();
        let engine = stage.engine().await;
        let life = Life { timeout: Some(SHORT), on_timeout, ..Life::default() };
        living(&engine, life).await;
        // Work does not hold it up.
        let running = exec(&engine, "a", &["sleep", "1000"]).await;
        match state {
            VmStateName::Destroyed => {
                let gone =
                    async || engine.vms(permit(&engine, Command::Inspect { vm: None })).unwrap().is_empty();
                while !gone().await {
                    tokio::task::yield_now().await;
                }
            }
            state => {
                reached(&engine, state).await;
                let view = view(&engine, "a").await;
                assert_eq!(view.deadline, None, "it does not run any more");
                assert_eq!(
                    reasons(
                        &engine,
                        match state {
                            VmStateName::Suspended => OperationKind::Suspend,
                            _ => OperationKind::Stop,
                        }
                    )
                    .await[0],
                    "its time is up"
                );
            }
        }
        drop(running);
        leave(engine).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_survives_the_daemon_and_can_be_moved() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    let hour = Duration::from_secs(3600);
    living(&engine, Life { timeout: Some(hour), ..Life::default() }).await;
    let first = view(&engine, "a").await.deadline.expect("it runs");
    engine.crash().await;
    let engine = stage.engine().await;
    assert_eq!(view(&engine, "a").await.deadline, Some(first));
    change(&engine, LifeChange { timeout: Some(TimeLimit::After(hour * 2)), ..LifeChange::default() }).await;
    let extended = view(&engine, "a").await.deadline.expect("it runs");
    assert!(extended > first);
    let soon = LifeChange { timeout: Some(TimeLimit::After(SHORT)), ..LifeChange::default() };
    let due = change(&engine, soon).await.expect("it runs");
    leave(engine).await;
    eventually("it passes while no daemon runs", || Timestamp::now() > due).await;
    let engine = stage.engine().await;
    reached(&engine, VmStateName::Suspended).await;
    // A request wakes it, and its time begins anew.
    change(&engine, LifeChange { timeout: Some(TimeLimit::After(hour)), ..LifeChange::default() }).await;
    assert_eq!(view(&engine, "a").await.deadline, None);
    program(&engine, "a", &["note", "1"]).await;
    assert!(view(&engine, "a").await.deadline.is_some());
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_is_let_to_end_before_the_time_of_its_vm_is_up() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    living(&engine, Life::default()).await;
    let begin = Command::Begin { vm: named("a"), parent: None, deadline: LIMIT };
    let open = engine.begin_transaction(permit(&engine, begin)).await.unwrap();
    change(&engine, LifeChange { timeout: Some(TimeLimit::After(SHORT)), ..LifeChange::default() }).await;
    let within = engine.within(open.id);
    tokio::time::timeout(SHORT * 4, wait_for(&engine, "a", &[VmStateName::Suspending], LIMIT))
        .await
        .expect_err("a transaction is open");
    program(&within, "a", &["note", "1"]).await;
    let end = Command::Commit { vm: named("a"), transaction: open.id };
    within.commit_transaction(permit(&within, end)).await.unwrap();
    reached(&engine, VmStateName::Suspended).await;
    assert_eq!(program(&engine, "a", &["notes"]).await, "1");
    leave(engine).await;
}
