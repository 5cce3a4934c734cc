//! Going back, and never losing what was left.

use crate::{host::Faults, sagas::state, stage::*};
use offshoot_engine::{ExecEvent, OperationPage};
use offshoot_store::fault;
use offshoot_types::{
    Bytes, Command, ErrorCode, Failure, OperationOutcome, OperationState, RollbackTo, SnapshotKind,
    SnapshotOrigin, SnapshotRef, SnapshotState, VmState, VmStateName,
};

async fn undo(engine: &offshoot_engine::Engine) -> Result<offshoot_engine::RollbackReport, Failure> {
    engine.rollback(permit(engine, Command::Undo { vm: named("a") })).await
}

async fn now(engine: &offshoot_engine::Engine) -> (String, String) {
    (program(engine, "a", &["notes"]).await, program(engine, "a", &["saved"]).await)
}

fn both(text: &str) -> (String, String) {
    (text.into(), text.into())
}

async fn change(engine: &offshoot_engine::Engine, text: &str) {
    program(engine, "a", &["note", text]).await;
    program(engine, "a", &["save", text]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_goes_back_in_memory_and_on_disk_and_can_be_undone_and_that_too() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    let id = create_running(&engine, "a").await;
    change(&engine, "1").await;
    let first = snapshot(&engine, "a", Some("first")).await.unwrap();
    change(&engine, "2").await;
    let old = stage.host.process(id);
    let before = view(&engine, "a").await.generation;
    let back = rollback(&engine, "a", RollbackTo::Newest).await.unwrap();
    assert_eq!((back.to, back.warning.as_deref()), (first.id, None));
    assert!(back.generation > before && back.attestations.is_some());
    assert_eq!(now(&engine).await, both("1"));
    eventually("what was left is ended", || !old.is_alive() && stage.host.processes().len() == 1).await;
    let left = snapshots(&engine).await.into_iter().find(|s| Some(s.id) == back.undo).unwrap();
    assert_eq!(left.origin, SnapshotOrigin::Undo);

    let again = undo(&engine).await.unwrap();
    assert_eq!(Some(again.to), back.undo);
    assert_eq!(now(&engine).await, both("12"));
    undo(&engine).await.unwrap();
    assert_eq!(now(&engine).await, both("1"));
    assert_eq!(stage.host.most_of_one_vm(), 1, "no two write to one layer");
    let undos = snapshots(&engine).await;
    for kept in undos.iter().filter(|s| s.origin == SnapshotOrigin::Undo) {
        let shown = || async {
            let inspect = Command::InspectSnapshot { snapshot: SnapshotRef::Id(kept.id) };
            engine.snapshot_view(permit(&engine, inspect)).await.unwrap().state
        };
        while shown().await == SnapshotState::Volatile {
            tokio::task::yield_now().await;
        }
        assert_eq!(shown().await, SnapshotState::Durable);
    }
    run(&engine, Command::Destroy { vm: named("a") }).await.unwrap();
    remove_snapshot(&engine, first.id).await.unwrap();
    leave(engine).await;
    stage.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn history_marks_what_was_taken_back_until_it_is_brought_back() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    create_running(&engine, "a").await;
    snapshot(&engine, "a", Some("first")).await.unwrap();
    change(&engine, "1").await;
    let marked = || async {
        let inspect = Command::Inspect { vm: Some(named("a")) };
        let listed = engine.operations(permit(&engine, inspect), OperationPage::default()).await.unwrap();
        let marked =
            listed.into_iter().filter_map(|operation| operation.undone_by.map(|by| (operation.id, by)));
        marked.collect::<Vec<_>>()
    };
    assert_eq!(marked().await, []);
    let back = rollback(&engine, "a", RollbackTo::Newest).await.unwrap();
    let after = marked().await;
    assert_eq!(after.len(), 2, "both programs");
    assert!(after.iter().all(|(id, by)| *by == back.operation && back.undone.contains(id)), "{after:?}");
    let one = Command::InspectOperation { id: after[0].0 };
    assert_eq!(engine.operation(permit(&engine, one), None).await.unwrap().undone_by, Some(back.operation));
    undo(&engine).await.unwrap();
    assert_eq!(marked().await, [], "brought back by the undo");
    let again = undo(&engine).await.unwrap();
    let after = marked().await;
    assert_eq!(after.len(), 2);
    assert!(after.iter().all(|(_, by)| *by == again.operation), "{after:?}");
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_needs_memory_for_both_states_and_one_that_was_promised_has_it() {
    let mut stage = Stage::new();
    let one = 128 << 20;
    stage.limits.memory = Bytes(2 * one);
    let engine = stage.engine().await;
    create_running(&engine, "a").await;
    change(&engine, "1").await;
    snapshot(&engine, "a", Some("first")).await.unwrap();
    change(&engine, "2").await;
    rollback(&engine, "a", RollbackTo::Newest).await.unwrap();
    assert_eq!(now(&engine).await, both("1"));
    undo(&engine).await.unwrap();
    assert_eq!(now(&engine).await, both("12"), "what the one before left was ended first");
    let history = engine.store().ledger().await.unwrap();
    assert!(history.memory <= Bytes(2 * one), "{history:?}");
    leave(engine).await;

    stage.limits.memory = Bytes(2 * one - 1);
    let engine = stage.engine().await;
    let generation = view(&engine, "a").await.generation;
    let refused = rollback(&engine, "a", RollbackTo::Newest).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::NoResource);
    assert!(refused.message.contains("beside its present one"), "{refused}");
    let after = view(&engine, "a").await;
    assert_eq!((after.state, after.generation), (VmState::Running, generation), "it runs on as it was");
    assert_eq!(now(&engine).await, both("12"));

    let begin = Command::Begin { vm: named("a"), parent: None, deadline: GRACE * 10 };
    let open = engine.begin_transaction(permit(&engine, begin)).await.unwrap();
    let within = engine.within(open.id);
    program(&within, "a", &["note", "3"]).await;
    let end = Command::RollbackTransaction { vm: named("a"), transaction: open.id };
    within.rollback_transaction(permit(&within, end)).await.unwrap();
    assert_eq!(now(&engine).await, both("12"), "a transaction was promised to be undone");
    run(&engine, Command::Destroy { vm: named("a") }).await.unwrap();
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_restore_leaves_old_vm_running() {
    for faults in [
        Faults { restore_fails: true, ..Faults::default() },
        Faults { guest_stale: true, ..Faults::default() },
        Faults { guest_mute: true, ..Faults::default() },
        Faults { checkpoint_fails: true, ..Faults::default() },
    ] {
        let mut stage = Stage::new();
        stage.deadlines.boot = std::time::Duration::from_millis(300);
        let engine = stage.engine().await;
        let id = create_running(&engine, "a").await;
        change(&engine, "1").await;
        snapshot(&engine, "a", Some("first")).await.unwrap();
        change(&engine, "2").await;
        let session = exec(&engine, "a", &["cat"]).await.unwrap();
        let (process, before) = (stage.host.process(id), view(&engine, "a").await.generation);
        stage.host.set_faults(faults.clone());
        let refused = rollback(&engine, "a", RollbackTo::Newest).await.unwrap_err();
        assert!(!refused.cause.unwrap_or_default().contains("not taken back"), "{faults:?}");
        stage.host.set_faults(Faults::default());
        assert!(process.is_alive() && !process.is_paused() && !process.guest.is_frozen(), "{faults:?}");
        assert_eq!(view(&engine, "a").await.generation, before, "{faults:?}");
        assert_eq!(now(&engine).await, both("12"), "{faults:?}");
        session.input().stdin("on".into()).await.unwrap();
        session.input().end_stdin().await.unwrap();
        assert_eq!(output(session).await.0, b"on", "{faults:?}");
        assert_eq!(stage.host.processes().len(), 1, "{faults:?}");
        assert_eq!(snapshots(&engine).await.len(), 1, "{faults:?}: no undo snapshot of what was not left");
        // And then it works.
        rollback(&engine, "a", RollbackTo::Newest).await.unwrap();
        assert_eq!(now(&engine).await, both("1"), "{faults:?}");
        leave(engine).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_of_the_state_that_was_left_ends_with_the_reason_and_history_marks_it() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    create_running(&engine, "a").await;
    snapshot(&engine, "a", None).await.unwrap();
    let mut session = exec(&engine, "a", &["cat"]).await.unwrap();
    assert!(matches!(session.next().await, Some(ExecEvent::Started { .. })));
    let operation = session.operation;
    let back = rollback(&engine, "a", RollbackTo::Newest).await.unwrap();
    let (_, end) = output(session).await;
    let ExecEvent::Failed(failure) = end else { panic!("{end:?}") };
    assert!(failure.message.contains("taken back to an earlier state"), "{failure:?}");
    assert_eq!(back.undone, [operation]);
    let marked = engine.undone(permit(&engine, Command::Inspect { vm: Some(named("a")) })).await.unwrap();
    assert_eq!(marked.get(&operation), Some(&back.operation));
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn last_good_is_before_the_last_failed_exec_and_never_the_failed_state() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    create_running(&engine, "a").await;
    change(&engine, "good").await;
    let good = snapshot(&engine, "a", Some("good")).await.unwrap();
    change(&engine, "bad").await;
    let (_, end) = output(exec(&engine, "a", &["exit", "3"]).await.unwrap()).await;
    assert!(matches!(end, ExecEvent::Ended(_)));
    snapshot(&engine, "a", Some("bad")).await.unwrap();
    let back = rollback(&engine, "a", RollbackTo::LastGood).await.unwrap();
    assert_eq!(back.to, good.id);
    assert_eq!(now(&engine).await, both("good"));
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_that_a_full_disk_kept_out_of_the_record_counts_once_there_is_room() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    create_running(&engine, "a").await;
    change(&engine, "good").await;
    let good = snapshot(&engine, "a", Some("good")).await.unwrap();
    change(&engine, "bad").await;
    let mut session = exec(&engine, "a", &["cat"]).await.unwrap();
    assert!(matches!(session.next().await, Some(ExecEvent::Started { .. })));
    let store = engine.store();
    let pages = fault::page_count(store).await.unwrap();
    fault::limit_pages(store, Some(pages)).await.unwrap();
    let full = loop {
        match exec(&engine, "a", &["true"]).await {
            Ok(one) => drop(output(one).await),
            Err(failure) => break failure,
        }
    };
    assert_eq!(full.code, ErrorCode::NoResource, "{full:?}");
    let (operation, input) = (session.operation, session.input().clone());
    input.signal(15).await.unwrap();
    assert!(matches!(output(session).await.1, ExecEvent::Ended(_)), "its caller is told all the same");
    let ended = engine.wait(operation, None).await.unwrap();
    let OperationState::Ended { outcome: OperationOutcome::Failed { failure } } = ended.state else {
        panic!("the record was to have no room: {ended:?}")
    };
    assert_eq!(failure.code, ErrorCode::NoResource);
    let recorded = async || store.operation(operation).await.unwrap().unwrap().state;
    assert!(!matches!(recorded().await, OperationState::Ended { .. }));
    fault::limit_pages(store, None).await.unwrap();
    let written = async {
        while !matches!(recorded().await, OperationState::Ended { outcome: OperationOutcome::Done }) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), written).await.expect("it is written");
    let back = rollback(&engine, "a", RollbackTo::LastGood).await.unwrap();
    assert_eq!(back.to, good.id);
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_without_a_process_is_taken_back_too_and_a_full_snapshot_makes_it_run() {
    for end in ["stopped", "suspended", "failed"] {
        let stage = Stage::new();
        let engine = stage.engine().await;
        let id = create_running(&engine, "a").await;
        change(&engine, "1").await;
        snapshot(&engine, "a", Some("first")).await.unwrap();
        change(&engine, "2").await;
        match end {
            "stopped" => drop(run(&engine, Command::Stop { vm: named("a"), grace: GRACE }).await.unwrap()),
            "suspended" => drop(run(&engine, Command::Suspend { vm: named("a") }).await.unwrap()),
            _ => {
                stage.host.process(id).end(offshoot_provider::Exit::Signal(9));
                wait_for(&engine, "a", &[VmStateName::Failed], std::time::Duration::from_secs(5)).await;
            }
        }
        let to = RollbackTo::Snapshot("a@first".parse().unwrap());
        let back = rollback(&engine, "a", to).await.unwrap();
        assert_eq!(state(&engine), Some(VmState::Running), "{end}");
        assert_eq!(now(&engine).await, both("1"), "{end}");
        assert!(back.attestations.is_some() && back.undo.is_some(), "{end}");
        undo(&engine).await.unwrap();
        // Memory is kept only of what had one.
        assert_eq!(program_or_start(&engine).await, if end == "suspended" { "12" } else { "" }, "{end}");
        assert_eq!(program(&engine, "a", &["saved"]).await, "12", "{end}");
        leave(engine).await;
    }
}

async fn program_or_start(engine: &offshoot_engine::Engine) -> String {
    if state(engine) == Some(VmState::Stopped) {
        run(engine, Command::Start { vm: named("a") }).await.unwrap();
    }
    program(engine, "a", &["notes"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_vm_goes_back_to_a_disk_by_booting_from_it() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    create_running(&engine, "a").await;
    change(&engine, "1").await;
    take(&engine, "a", Some("disk"), SnapshotKind::DiskOnly).await.unwrap();
    change(&engine, "2").await;
    let back = rollback(&engine, "a", RollbackTo::Newest).await.unwrap();
    assert!(back.attestations.is_none(), "it booted");
    assert_eq!(now(&engine).await, (String::new(), "1".into()));
    undo(&engine).await.unwrap();
    assert_eq!(now(&engine).await, both("12"));
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_to_go_back_to_is_said_so() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    create_running(&engine, "a").await;
    for (asked, words) in [
        (rollback(&engine, "a", RollbackTo::Newest).await, "has no snapshot"),
        (rollback(&engine, "a", RollbackTo::LastGood).await, "has no snapshot from before"),
        (undo(&engine).await, "nothing to undo"),
    ] {
        let refused = asked.unwrap_err();
        assert_eq!(refused.code, ErrorCode::NotFound);
        assert!(refused.message.contains(words), "{refused:?}");
    }
    leave(engine).await;
}
