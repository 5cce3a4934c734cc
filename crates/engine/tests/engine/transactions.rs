//! Transactions: what is kept, what is undone, who may do what meanwhile, and every way in which one ends. Those around
//! one exec are in `transactions_of_execs`.

use crate::{fake::*, stage::*};
use offshoot_engine::{Engine, OperationPage, TransactionView};
use offshoot_policy::{Denial, DenialKind};
use offshoot_provider::{
    BootStep, Exit,
    fake::{BootFault, CheckpointFault},
};
use offshoot_types::{
    Command, ErrorCode, Failure, FileAccess, ForkSource, OperationKind, OperationOutcome, OperationState,
    RollbackCause, SnapshotKind, TransactionEnd, TransactionId, TransactionState, VmStateName,
};
use std::time::Duration;

pub const LONG: Duration = Duration::from_secs(600);

pub async fn begin_for(engine: &Engine, deadline: Duration) -> Result<TransactionView, Failure> {
    let command = Command::Begin { vm: named("a"), parent: None, deadline };
    engine.begin_transaction(permit(engine, command)).await
}
pub async fn begin(engine: &Engine) -> (Engine, TransactionView) {
    let view = begin_for(engine, LONG).await.unwrap();
    (engine.within(view.id), view)
}
pub async fn savepoint(engine: &Engine, parent: TransactionId) -> Result<TransactionView, Failure> {
    let command = Command::Begin { vm: named("a"), parent: Some(parent), deadline: LONG };
    engine.begin_transaction(permit(engine, command)).await
}
pub async fn commit(engine: &Engine, transaction: TransactionId) -> Result<TransactionView, Failure> {
    engine.commit_transaction(permit(engine, Command::Commit { vm: named("a"), transaction })).await
}
pub async fn roll_back(engine: &Engine, transaction: TransactionId) -> Result<TransactionView, Failure> {
    let command = Command::RollbackTransaction { vm: named("a"), transaction };
    engine.rollback_transaction(permit(engine, command)).await
}
pub async fn undo(engine: &Engine) -> Result<(), Failure> {
    engine.rollback(permit(engine, Command::Undo { vm: named("a") })).await.map(drop)
}
pub async fn open(engine: &Engine) -> Vec<TransactionView> {
    engine.transactions(permit(engine, Command::Inspect { vm: Some(named("a")) })).await.unwrap()
}
/// Returns once none is open any more.
pub async fn all_ended(engine: &Engine) {
    let ended = async {
        while !open(engine).await.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await
        }
    };
    tokio::time::timeout(SOON, ended).await.expect("it ends");
}

pub fn rolled_back(cause: RollbackCause) -> TransactionEnd {
    TransactionEnd::RolledBack { cause }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_keeps_what_was_done_and_undo_takes_it_back() {
    let fake = Fake::new();
    let (engine, _) = fake.running().await;
    sh(&engine, "echo before > /f").await;
    let (within, view) = begin(&engine).await;
    assert_eq!((view.state, view.end), (TransactionState::Open, None));
    sh(&within, "echo after > /f").await;
    let view = commit(&engine, view.id).await.unwrap();
    assert_eq!((view.state, view.end), (TransactionState::Committed, Some(TransactionEnd::Committed)));
    assert_eq!(file(&engine, "/f").await.as_deref(), Some("after"));
    undo(&engine).await.unwrap();
    assert_eq!(file(&engine, "/f").await.as_deref(), Some("before"));
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_takes_back_disk_and_memory_and_undo_brings_them_again() {
    let fake = Fake::new();
    let (engine, _) = fake.running().await;
    value(&engine, "main", "x = 1; x").await;
    sh(&engine, "echo 1 > /f").await;
    let (within, view) = begin(&engine).await;
    sh(&within, "echo 2 > /f").await;
    value(&within, "main", "x = 2; x").await;
    let view = roll_back(&engine, view.id).await.unwrap();
    assert_eq!(view.end, Some(rolled_back(RollbackCause::Asked)));
    assert_eq!(file(&engine, "/f").await.as_deref(), Some("1"));
    assert_eq!(value(&engine, "main", "x").await, "1");
    undo(&engine).await.unwrap();
    assert_eq!(file(&engine, "/f").await.as_deref(), Some("2"));
    assert_eq!(value(&engine, "main", "x").await, "2");
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_transaction_owns_its_vm() {
    let fake = Fake::new();
    let (engine, _) = fake.running().await;
    sh(&engine, "echo x > /f").await;
    let (within, view) = begin(&engine).await;
    let refused = sh_in(&engine, "a", "true").await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::InTransaction);
    let (id, deadline) = (view.id.to_string(), view.deadline.to_string());
    assert!(refused.message.contains(&id) && refused.message.contains(&deadline), "{refused:?}");
    for command in [
        Command::Stop { vm: named("a"), grace: GRACE },
        Command::Restart { vm: named("a"), grace: GRACE },
        Command::Pause { vm: named("a") },
        Command::Destroy { vm: named("a") },
    ] {
        assert_eq!(
            run(&engine, command.clone()).await.unwrap_err().code,
            ErrorCode::InTransaction,
            "{command:?}"
        );
    }
    assert_eq!(begin_for(&engine, LONG).await.unwrap_err().code, ErrorCode::InTransaction);
    // Neither kept nor copied: what is not committed is nobody else's.
    let (kind, name, note) = (SnapshotKind::Full, None, None);
    let keep = Command::Snapshot { vm: named("a"), name, kind, note };
    assert_eq!(engine.snapshot(permit(&engine, keep)).await.unwrap_err().code, ErrorCode::InTransaction);
    let copy = Command::Fork { source: ForkSource::Vm(named("a")), name: None, count: 1 };
    assert_eq!(engine.fork(permit(&engine, copy)).await.unwrap_err().code, ErrorCode::InTransaction);
    assert_eq!(undo(&engine).await.unwrap_err().code, ErrorCode::InTransaction);
    let code = run_code(&engine, code("main", "1")).await.unwrap_err();
    assert_eq!(code.code, ErrorCode::InTransaction);
    let write = Command::Files { vm: named("a"), access: FileAccess::Write, path: "/f".into() };
    assert_eq!(engine.guest(permit(&engine, write)).await.unwrap_err().code, ErrorCode::InTransaction);
    // Reads pass.
    let read = Command::Files { vm: named("a"), access: FileAccess::Read, path: "/f".into() };
    engine.guest(permit(&engine, read)).await.unwrap();
    assert_eq!(view_of(&engine).await, VmStateName::Running);
    assert_eq!(open(&engine).await.len(), 1);
    // Within it everything goes on.
    run(&within, Command::Pause { vm: named("a") }).await.unwrap();
    run(&within, Command::Resume { vm: named("a") }).await.unwrap();
    assert_eq!(sh_in(&within, "a", "cat /f").await.unwrap().0, "x\n");
    commit(&engine, view.id).await.unwrap();
    sh(&engine, "true").await;
    let over = sh_in(&within, "a", "true").await.unwrap_err();
    assert_eq!(over.code, ErrorCode::WrongState, "nothing is done outside of what was to hold it: {over:?}");
    leave(engine).await;
}

async fn view_of(engine: &Engine) -> VmStateName {
    view(engine, "a").await.state.name()
}

#[tokio::test(flavor = "multi_thread")]
async fn savepoints_nest_and_an_outer_end_ends_those_within() {
    let fake = Fake::new();
    let (engine, _) = fake.running().await;
    sh(&engine, "echo 0 > /f").await;
    let (outer, first) = begin(&engine).await;
    sh(&outer, "echo 1 > /f").await;
    // Asked from within, a transaction is a savepoint.
    let inner = outer
        .begin_transaction(permit(&engine, Command::Begin { vm: named("a"), parent: None, deadline: LONG }))
        .await
        .unwrap();
    assert_eq!(inner.parent, Some(first.id));
    sh(&engine.within(inner.id), "echo 2 > /f").await;
    let wrong = savepoint(&engine, first.id).await.unwrap_err();
    assert!(wrong.message.contains("innermost"), "{wrong:?}");
    roll_back(&engine, inner.id).await.unwrap();
    assert_eq!(file(&outer, "/f").await.as_deref(), Some("1"));

    let second = savepoint(&engine, first.id).await.unwrap();
    sh(&engine.within(second.id), "echo 3 > /f").await;
    commit(&engine, second.id).await.unwrap();
    assert_eq!(file(&outer, "/f").await.as_deref(), Some("3"));

    let third = savepoint(&engine, first.id).await.unwrap();
    sh(&engine.within(third.id), "echo 4 > /f").await;
    roll_back(&engine, first.id).await.unwrap();
    assert_eq!(file(&engine, "/f").await.as_deref(), Some("0"));
    assert!(open(&engine).await.is_empty(), "what lies in it has ended with it");
    let ended = commit(&engine, third.id).await.unwrap_err();
    assert!(ended.message.contains("has been rolled back"), "{ended:?}");
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_nobody_ends_is_rolled_back_at_its_deadline() {
    let fake = Fake::new();
    let (engine, _) = fake.running().await;
    sh(&engine, "echo 0 > /f").await;
    let view = begin_for(&engine, Duration::from_millis(300)).await.unwrap();
    sh(&engine.within(view.id), "echo 1 > /f").await;
    all_ended(&engine).await;
    assert_eq!(file(&engine, "/f").await.as_deref(), Some("0"));
    let late = commit(&engine, view.id).await.unwrap_err();
    assert_eq!(late.code, ErrorCode::WrongState);
    assert!(late.message.contains("its time was up"), "{late:?}");
    for wrong in [Duration::ZERO, Duration::MAX] {
        assert_eq!(begin_for(&engine, wrong).await.unwrap_err().code, ErrorCode::InvalidArgument);
    }
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commit_and_deadline_race_and_exactly_one_wins() {
    let fake = Fake::new();
    let (engine, _) = fake.running().await;
    for wait in [0, 20, 40, 60, 80] {
        sh(&engine, "echo 0 > /f").await;
        let view = begin_for(&engine, Duration::from_millis(60)).await.unwrap();
        let wrote = sh_in(&engine.within(view.id), "a", "echo 1 > /f").await.is_ok();
        tokio::time::sleep(Duration::from_millis(wait)).await;
        let committed = commit(&engine, view.id).await;
        all_ended(&engine).await;
        let expected = if committed.is_ok() && wrote { "1" } else { "0" };
        assert_eq!(file(&engine, "/f").await.as_deref(), Some(expected), "{committed:?}");
    }
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_of_the_guest_rolls_back() {
    let fake = Fake::new();
    let (engine, id) = fake.running().await;
    sh(&engine, "echo 0 > /f").await;
    let (within, view) = begin(&engine).await;
    sh(&within, "echo 1 > /f").await;
    assert!(fake.host.end(id, Exit::GuestPanic { line: "Kernel panic".into() }));
    all_ended(&engine).await;
    wait_for(&engine, "a", &[VmStateName::Running], SOON).await;
    assert_eq!(file(&engine, "/f").await.as_deref(), Some("0"));
    let ended = commit(&engine, view.id).await.unwrap_err();
    assert!(ended.message.contains("the guest crashed"), "{ended:?}");
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denial_within_it_rolls_back_and_a_strangers_does_not() {
    let fake = Fake::new();
    let (engine, _) = fake.running().await;
    sh(&engine, "echo 0 > /f").await;
    let (within, view) = begin(&engine).await;
    sh(&within, "echo 1 > /f").await;
    let denial = |actor| {
        let stranger = offshoot_types::Actor::LocalUser { uid: 4242, owner: Default::default() };
        let command = Command::Stop { vm: named("a"), grace: GRACE };
        let offshoot_policy::Decision::Deny(denial) =
            policy().decide(&stranger, command, &offshoot_policy::Facts::NONE)
        else {
            panic!("a stranger is denied")
        };
        assert_eq!(denial.kind, DenialKind::Rule);
        Denial { actor, ..denial }
    };
    let stranger = offshoot_types::Actor::LocalUser { uid: 4242, owner: Default::default() };
    within.record_denial(&denial(stranger)).await;
    engine.record_denial(&denial(actor())).await;
    assert_eq!(open(&engine).await.len(), 1, "neither a stranger's nor one from outside");
    within.record_denial(&denial(actor())).await;
    assert!(open(&engine).await.is_empty());
    assert_eq!(file(&engine, "/f").await.as_deref(), Some("0"));
    let ended = commit(&engine, view.id).await.unwrap_err();
    assert!(ended.message.contains("policy denied"), "{ended:?}");
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_death_of_the_daemon_rolls_back_before_the_next_request() {
    let fake = Fake::new();
    let (engine, _) = fake.running().await;
    sh(&engine, "echo 0 > /f").await;
    value(&engine, "main", "x = 1; x").await;
    let (outer, first) = begin(&engine).await;
    sh(&outer, "echo 1 > /f").await;
    let inner = savepoint(&engine, first.id).await.unwrap();
    sh(&engine.within(inner.id), "echo 2 > /f").await;
    value(&engine.within(inner.id), "main", "x = 2; x").await;
    drop(outer);
    engine.crash().await;
    let engine = fake.stage.engine().await;
    assert_eq!(file(&engine, "/f").await.as_deref(), Some("0"), "the next request finds it rolled back");
    assert_eq!(value(&engine, "main", "x").await, "1");
    assert!(open(&engine).await.is_empty());
    let ended = commit(&engine, first.id).await.unwrap_err();
    assert!(ended.message.contains("the daemon ended in the middle of it"), "{ended:?}");
    let operations = engine
        .operations(permit(&engine, Command::Inspect { vm: Some(named("a")) }), OperationPage::default())
        .await
        .unwrap();
    let undone = OperationState::Ended { outcome: OperationOutcome::Interrupted { undone: true } };
    let transactions: Vec<_> =
        operations.iter().filter(|operation| operation.kind == OperationKind::Transaction).collect();
    assert_eq!(transactions.len(), 2);
    assert!(transactions.iter().all(|operation| operation.state == undone), "{transactions:?}");
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_that_fails_at_the_daemons_start_keeps_the_vm_owned_and_is_tried_again() {
    let fake = Fake::new();
    let (engine, _) = fake.running().await;
    sh(&engine, "echo 0 > /f").await;
    let (within, view) = begin(&engine).await;
    sh(&within, "echo 1 > /f").await;
    drop(within);
    engine.crash().await;
    // Of the start's own attempt and of the first one after it.
    fake.host.inject_restore(BootFault::Fail(BootStep::Vmm));
    fake.host.inject_restore(BootFault::Fail(BootStep::Vmm));
    let engine = fake.stage.engine().await;
    let refused = sh_in(&engine, "a", "true").await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::InTransaction, "{refused:?}");
    assert_eq!(open(&engine).await[0].state, TransactionState::RollingBack);
    all_ended(&engine).await;
    let free = async { while sh_in(&engine, "a", "true").await.is_err() {} };
    tokio::time::timeout(SOON, free).await.expect("the VM is given back");
    assert_eq!(file(&engine, "/f").await.as_deref(), Some("0"));
    let ended = commit(&engine, view.id).await.unwrap_err();
    assert!(ended.message.contains("the daemon ended in the middle of it"), "{ended:?}");
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_that_fails_leaves_the_vm_running_owned_and_is_tried_again() {
    let fake = Fake::new();
    let (engine, _) = fake.running().await;
    sh(&engine, "echo 0 > /f").await;
    let (within, view) = begin(&engine).await;
    sh(&within, "echo 1 > /f").await;
    fake.host.inject_restore(BootFault::Fail(BootStep::Vmm));
    let failed = roll_back(&engine, view.id).await.unwrap_err();
    assert!(failed.message.contains("is not rolled back yet"), "{failed:?}");
    // The VM is as it was, and nobody changes it meanwhile.
    let read = Command::Files { vm: named("a"), access: FileAccess::Read, path: "/f".into() };
    engine.guest(permit(&engine, read)).await.unwrap();
    assert_eq!(sh_in(&engine, "a", "true").await.unwrap_err().code, ErrorCode::InTransaction);
    assert_eq!(sh_in(&within, "a", "true").await.unwrap_err().code, ErrorCode::WrongState);
    assert_eq!(commit(&engine, view.id).await.unwrap_err().code, ErrorCode::WrongState);
    all_ended(&engine).await;
    assert_eq!(file(&engine, "/f").await.as_deref(), Some("0"));
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_whose_rollback_cannot_succeed_can_still_be_destroyed() {
    let fake = Fake::new();
    let (engine, _) = fake.running().await;
    let (_within, view) = begin(&engine).await;
    for _ in 0..64 {
        fake.host.inject_restore(BootFault::Fail(BootStep::Vmm));
    }
    roll_back(&engine, view.id).await.unwrap_err();
    run(&engine, Command::Destroy { vm: named("a") }).await.unwrap();
    let operations = engine
        .operations(permit(&engine, Command::Inspect { vm: None }), OperationPage::default())
        .await
        .unwrap();
    let open = operations.iter().filter(|operation| !matches!(operation.state, OperationState::Ended { .. }));
    eventually_none(&engine, open.map(|operation| operation.id).collect()).await;
    leave(engine).await;
}

async fn eventually_none(engine: &Engine, operations: Vec<offshoot_types::OperationId>) {
    for id in operations {
        let ended = engine.wait(id, Some(SOON)).await.unwrap();
        assert!(matches!(ended.state, OperationState::Ended { .. }), "{ended:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_whose_snapshot_cannot_be_taken_does_not_begin() {
    let fake = Fake::new();
    let (engine, _) = fake.running().await;
    fake.host.inject_checkpoint(CheckpointFault::Refuse);
    assert!(begin_for(&engine, LONG).await.is_err());
    assert!(open(&engine).await.is_empty());
    sh(&engine, "true").await;
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pre_rollback_snapshot_failure_aborts() {
    let fake = Fake::new();
    let (engine, id) = fake.running().await;
    sh(&engine, "echo 0 > /f").await;
    let (within, view) = begin(&engine).await;
    sh(&within, "echo 1 > /f").await;
    let before = fake.host.running_vms();
    fake.host.inject_checkpoint(CheckpointFault::Refuse);
    roll_back(&engine, view.id).await.unwrap_err();
    assert_eq!((fake.host.running_vms(), before), (vec![id], vec![id]), "it runs on as it was");
    all_ended(&engine).await;
    assert_eq!(
        file(&engine, "/f").await.as_deref(),
        Some("0"),
        "and is rolled back once its state can be kept"
    );
    leave(engine).await;
}
