//! Copies of a running state: all of them and each a machine of its own, or none.

use crate::{host::Faults, stage::*};
use offshoot_engine::{Checkpoint, Fault, Phase};
use offshoot_types::{
    Command, ErrorCode, ForkSource, Lifetime, OperationKind, OperationOutcome, OperationState, VmStateName,
};
use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

fn of(vm: &str) -> ForkSource {
    ForkSource::Vm(named(vm))
}

#[tokio::test(flavor = "multi_thread")]
async fn forks_of_a_running_vm_go_on_from_its_state_as_machines_of_their_own() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    let source = create_running(&engine, "a").await;
    program(&engine, "a", &["note", "41"]).await;
    program(&engine, "a", &["save", "disk"]).await;
    let open = exec(&engine, "a", &["cat"]).await.unwrap();
    let made = fork(&engine, of("a"), None, 3).await.unwrap();
    let names: Vec<_> = made.forks.iter().map(|fork| fork.name.as_str()).collect();
    assert_eq!(names, ["a-1", "a-2", "a-3"]);
    let mut machines = HashSet::new();
    let mut entropy = HashSet::new();
    for made in &made.forks {
        let name = made.name.as_str();
        let told = made.attestations.as_ref().expect("a fork attests");
        assert_eq!(told.hostname, name);
        machines.insert(told.machine_id.clone());
        let process = stage.host.process(made.vm);
        entropy.insert(process.guest.thaws.lock().unwrap()[0].entropy.0.to_vec());
        assert!(!process.guest.is_frozen());
        // It is kept, so what its guest flushes is flushed.
        assert_eq!(process.durability, offshoot_provider::Durability::Flushed);
        program(&engine, name, &["note", "+1"]).await;
        assert_eq!(program(&engine, name, &["notes"]).await, "41+1");
        program(&engine, name, &["save", name]).await;
        assert_eq!(program(&engine, name, &["saved"]).await, format!("disk{name}"));
        assert_eq!(view(&engine, name).await.lifetime, Lifetime::Kept);
    }
    assert_eq!((machines.len(), entropy.len()), (3, 3), "no two share identity or entropy");
    // The source goes on undisturbed, its open exec too.
    assert!(!stage.host.process(source).guest.is_frozen());
    assert_eq!(program(&engine, "a", &["notes"]).await, "41");
    assert_eq!(program(&engine, "a", &["saved"]).await, "disk");
    open.input().stdin("x".into()).await.unwrap();
    open.input().end_stdin().await.unwrap();
    assert_eq!(output(open).await.0, b"x");
    assert_eq!(stage.host.most_of_one_vm(), 1, "no two write to one layer");
    // They are VMs like any other: they outlive the daemon.
    leave(engine).await;
    let engine = stage.engine().await;
    assert_eq!(program(&engine, "a-2", &["notes"]).await, "41+1");
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn forks_are_called_as_asked_or_by_the_next_free_number() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    create_running(&engine, "a").await;
    create(&engine, "a-2").await;
    let named = |report: offshoot_engine::ForkReport| -> Vec<String> {
        report.forks.iter().map(|fork| fork.name.to_string()).collect()
    };
    assert_eq!(named(fork(&engine, of("a"), Some("one"), 1).await.unwrap()), ["one"]);
    assert_eq!(named(fork(&engine, of("a"), Some("many"), 2).await.unwrap()), ["many-1", "many-2"]);
    assert_eq!(named(fork(&engine, of("a"), None, 2).await.unwrap()), ["a-1", "a-3"]);
    let taken = fork(&engine, of("a"), Some("one"), 1).await.unwrap_err();
    assert_eq!(taken.code, ErrorCode::AlreadyExists, "{taken:?}");
    let none = fork(&engine, of("a"), None, 0).await.unwrap_err();
    assert_eq!(none.code, ErrorCode::InvalidArgument);
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_of_a_fork_of_a_snapshot_holds_all_of_it() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    create_running(&engine, "a").await;
    program(&engine, "a", &["note", "1"]).await;
    snapshot(&engine, "a", Some("s")).await.unwrap();
    program(&engine, "a", &["note", "not this"]).await;
    let source = ForkSource::Snapshot("a@s".parse().unwrap());
    fork(&engine, source, Some("b"), 1).await.unwrap();
    program(&engine, "b", &["note", "2"]).await;
    program(&engine, "b", &["save", "b"]).await;
    snapshot(&engine, "b", Some("t")).await.unwrap();
    fork(&engine, of("b"), Some("c"), 1).await.unwrap();
    let source = ForkSource::Snapshot("b@t".parse().unwrap());
    fork(&engine, source, Some("d"), 2).await.unwrap();
    for name in ["c", "d-1", "d-2"] {
        assert_eq!(program(&engine, name, &["notes"]).await, "12", "{name}");
        assert_eq!(program(&engine, name, &["saved"]).await, "b", "{name}");
    }
    for name in ["d-1", "b", "d-2", "a", "c"] {
        run(&engine, Command::Destroy { vm: named(name) }).await.unwrap();
    }
    for kept in snapshots(&engine).await.into_iter().rev() {
        remove_snapshot(&engine, kept.id).await.unwrap();
    }
    leave(engine).await;
    stage.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_of_a_disk_boots_under_an_identity_of_its_own() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    create(&engine, "a").await;
    let made = fork(&engine, of("a"), Some("b"), 1).await.unwrap();
    assert_eq!(made.forks[0].attestations.as_ref().unwrap().hostname, "b");
    assert_eq!(view(&engine, "b").await.state.name(), VmStateName::Running);
    leave(engine).await;
}

/// Fails closed: whatever keeps one of them from being renewed, nobody gets any.
#[tokio::test(flavor = "multi_thread")]
async fn if_one_fork_does_not_confirm_none_is_left() {
    for faults in [
        Faults { guest_stale: true, ..Faults::default() },
        Faults { restore_fails: true, ..Faults::default() },
    ] {
        let stage = Stage::new();
        let engine = stage.engine().await;
        let source = create_running(&engine, "a").await;
        stage.host.set_faults(faults.clone());
        let refused = fork(&engine, of("a"), None, 3).await.unwrap_err();
        let code = if faults.guest_stale { ErrorCode::Thaw } else { ErrorCode::Backend };
        assert_eq!(refused.code, code, "{refused:?}");
        let vms = engine.vms(permit(&engine, Command::Inspect { vm: None })).unwrap();
        assert_eq!(vms.len(), 1, "{vms:?}");
        assert_eq!(stage.host.processes().len(), 1);
        assert!(!stage.host.process(source).guest.is_frozen());
        run(&engine, Command::Destroy { vm: named("a") }).await.unwrap();
        leave(engine).await;
        stage.assert_nothing_left().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_whose_processes_ran_on_is_not_forked() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    let id = create_running(&engine, "a").await;
    stage.host.process(id).guest.restless.store(true, Ordering::SeqCst);
    let refused = fork(&engine, of("a"), None, 1).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Snapshot);
    assert!(refused.message.contains("ran on"), "{refused:?}");
    assert_eq!(snapshots(&engine).await, [], "what was taken for it is gone");
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ledger_admits_all_forks_or_none() {
    let mut stage = Stage::new();
    stage.limits.memory = offshoot_types::Bytes(3 * (128 << 20));
    let engine = stage.engine().await;
    create_running(&engine, "a").await;
    let refused = fork(&engine, of("a"), None, 3).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::NoResource, "{refused:?}");
    assert_eq!(stage.host.processes().len(), 1);
    assert_eq!(fork(&engine, of("a"), None, 2).await.unwrap().forks.len(), 2);
    leave(engine).await;
}

/// The daemon dies when the first fork runs and the second does not yet.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_in_the_middle_of_a_fork_leaves_none() {
    let (reached, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let (armed, forks) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let stage = Stage::new().at_checkpoints({
        let armed = armed.clone();
        move |checkpoint| {
            let here = Checkpoint { kind: OperationKind::Start, step: "running", phase: Phase::BeforeAct };
            let second = armed.load(Ordering::SeqCst)
                && checkpoint == here
                && forks.fetch_add(1, Ordering::SeqCst) == 1;
            let reached = reached.clone();
            Box::pin(async move {
                if second {
                    reached.send(()).unwrap();
                    std::future::pending::<()>().await;
                }
                Fault::Continue
            })
        }
    });
    let engine = stage.engine().await;
    create_running(&engine, "a").await;
    program(&engine, "a", &["note", "on"]).await;
    armed.store(true, Ordering::SeqCst);
    let asked = tokio::spawn({
        let engine = engine.clone();
        async move { fork(&engine, of("a"), None, 2).await }
    });
    seen.recv().await.unwrap();
    asked.abort();
    let operations = engine.operations(permit(&engine, Command::Inspect { vm: None }), Default::default());
    let operation = operations.await.unwrap().into_iter().find(|o| o.kind == OperationKind::Fork).unwrap();
    engine.crash().await;
    armed.store(false, Ordering::SeqCst);
    let engine = stage.engine().await;
    engine.settled().await;
    let ended = engine.wait(operation.id, None).await.unwrap().state;
    assert_eq!(ended, OperationState::Ended { outcome: OperationOutcome::Interrupted { undone: true } });
    eventually("only the source is left", || {
        engine.vms(permit(&engine, Command::Inspect { vm: None })).unwrap().len() == 1
            && stage.host.processes().len() == 1
    })
    .await;
    assert_eq!(program(&engine, "a", &["notes"]).await, "on");
    run(&engine, Command::Destroy { vm: named("a") }).await.unwrap();
    leave(engine).await;
    stage.assert_nothing_left().await;
}
