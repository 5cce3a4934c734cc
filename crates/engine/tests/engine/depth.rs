//! Disks that are kept before every command, for ever: layers that nobody names become one.

use crate::stage::*;
use offshoot_engine::{Checkpoint, Engine, Fault, Merging, OnShutdown, Phase};
use offshoot_types::{
    AutoSnapshot, Command, ErrorCode, Failure, ForkSource, OperationKind, RollbackTo, SnapshotId,
    SnapshotOrigin, SnapshotPolicy, SnapshotRef, SnapshotState,
};
use std::{
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    sync::{Arc, Mutex},
};
use tokio::sync::mpsc;

/// More than automatic snapshots that are kept, those that are let go together, and what is merged together.
const DEEPEST: usize = 64;

fn layers(stage: &Stage) -> usize {
    fs::read_dir(stage.state().join("disks")).unwrap().count()
}

async fn depth(stage: &Stage) -> usize {
    let store = stage.record().await;
    let vm = store.vms().await.unwrap().remove(0);
    let chain = store.layer_chain(vm.layer.unwrap()).await.unwrap().len();
    store.close().await;
    chain
}

async fn again(stage: &Stage, engine: Engine) -> Engine {
    engine.shutdown(OnShutdown::LeaveVms).await;
    drop(engine);
    stage.engine().await
}

#[tokio::test(flavor = "multi_thread")]
async fn three_hundred_snapshots_before_commands_leave_a_shallow_disk_and_every_byte() {
    let stage = Stage::new();
    let mut engine = stage.engine().await;
    create_running(&engine, "a").await;
    let policy = SnapshotPolicy { auto: AutoSnapshot::BeforeExec, rollback_on_failure: false };
    engine
        .set_policy(permit(&engine, Command::SetPolicy { vm: named("a"), policy: policy.into() }))
        .await
        .unwrap();
    let mut expected = String::new();
    for number in 0..300 {
        let word = format!("{number},");
        program(&engine, "a", &["save", &word]).await;
        expected.push_str(&word);
        if number % 50 == 49 {
            eventually("what nobody names is merged", || layers(&stage) <= DEEPEST).await;
        }
        if number == 150 {
            engine = again(&stage, engine).await;
        }
    }
    assert_eq!(program(&engine, "a", &["saved"]).await, expected, "the process reads on what it has open");
    assert!(layers(&stage) <= DEEPEST + 2);
    let automatic: Vec<_> =
        snapshots(&engine).await.into_iter().filter(|s| s.origin == SnapshotOrigin::Auto).collect();
    assert!((20..=32).contains(&automatic.len()), "{}", automatic.len());
    engine.shutdown(OnShutdown::LeaveVms).await;
    drop(engine);
    assert!(depth(&stage).await <= DEEPEST);

    // What is left of them is whole: the oldest that is kept, and the newest.
    let engine = stage.engine().await;
    let policy = SnapshotPolicy { auto: AutoSnapshot::Never, rollback_on_failure: false };
    engine
        .set_policy(permit(&engine, Command::SetPolicy { vm: named("a"), policy: policy.into() }))
        .await
        .unwrap();
    for kept in &automatic {
        let verify = Command::VerifySnapshot { snapshot: SnapshotRef::Id(kept.id) };
        let found = engine.verify_snapshot(permit(&engine, verify)).await.unwrap();
        assert!(found.faults.is_empty(), "{found:?}");
    }
    for kept in [automatic.first().unwrap(), automatic.last().unwrap()] {
        rollback(&engine, "a", RollbackTo::Snapshot(SnapshotRef::Id(kept.id))).await.unwrap();
        let saved = program(&engine, "a", &["saved"]).await;
        assert!(expected.starts_with(&saved) && saved.len() > expected.len() / 2, "{saved}");
    }
    run(&engine, Command::Destroy { vm: named("a") }).await.unwrap();
    for kept in snapshots(&engine).await.into_iter().rev() {
        remove_snapshot(&engine, kept.id).await.unwrap();
    }
    leave(engine).await;
    stage.assert_nothing_left().await;
}

/// Where a merge may be cut off.
const PLACES: [&str; 5] = ["record", "write", "place", "seal", "placed"];

fn at(step: &'static str) -> Checkpoint {
    Checkpoint { kind: OperationKind::Reconcile, step, phase: Phase::BeforeAct }
}

type Trouble = Arc<Mutex<Option<(Checkpoint, Fault)>>>;

/// A stage that merges four layers, and on whose engines there may be trouble at one checkpoint: a failure, or, for
/// `Fault::Repeat`, none of it ever ends. It tells of each visit.
fn stage(trouble: &Trouble) -> (Stage, mpsc::UnboundedReceiver<()>) {
    let (reached, seen) = mpsc::unbounded_channel();
    let trouble = trouble.clone();
    let mut stage = Stage::new().at_checkpoints(move |checkpoint| {
        let fault =
            trouble.lock().unwrap().clone().filter(|(at, _)| *at == checkpoint).map(|(_, fault)| fault);
        let reached = reached.clone();
        Box::pin(async move {
            let Some(fault) = fault else { return Fault::Continue };
            reached.send(()).unwrap();
            match fault {
                Fault::Repeat => std::future::pending().await,
                fault => fault,
            }
        })
    });
    stage.merging = Merging { above: 3, at_least: 4 };
    (stage, seen)
}

/// Six snapshots of a VM that runs, each of a disk with one word more, and then none of those in the middle.
async fn six(engine: &Engine) -> [SnapshotId; 2] {
    create_running(engine, "a").await;
    let mut ids = Vec::new();
    for word in ["1", "2", "3", "4", "5", "6"] {
        program(engine, "a", &["save", word]).await;
        ids.push(snapshot(engine, "a", None).await.unwrap().id);
    }
    for id in &ids[1..5] {
        let command = Command::RemoveSnapshot { snapshot: SnapshotRef::Id(*id), prune: true };
        engine.remove_snapshot(permit(engine, command)).await.unwrap();
    }
    [ids[0], ids[5]]
}

/// What is there is whole: the process and its disk, the snapshots, and what is made of them.
async fn assert_whole(engine: &Engine, [first, last]: [SnapshotId; 2], at: &str) {
    assert_eq!(program(engine, "a", &["saved"]).await, "123456", "{at}");
    for (id, expected) in [(first, "1"), (last, "123456")] {
        let verify = Command::VerifySnapshot { snapshot: SnapshotRef::Id(id) };
        let found = engine.verify_snapshot(permit(engine, verify)).await.unwrap();
        assert!(found.faults.is_empty(), "{at}: {found:?}");
        fork(engine, ForkSource::Snapshot(SnapshotRef::Id(id)), Some("f"), 1).await.unwrap();
        assert_eq!(program(engine, "f", &["saved"]).await, expected, "{at}");
        run(engine, Command::Destroy { vm: named("f") }).await.unwrap();
    }
}

/// The top, one for each snapshot, and one instead of four; or all of them.
const MERGED: usize = 4;
const APART: usize = 7;

async fn assert_merges(stage: &Stage, engine: &Engine, ids: [SnapshotId; 2], at: &str) {
    // The next snapshot has it tried again; it adds a layer.
    if layers(stage) != MERGED {
        let again = snapshot(engine, "a", None).await.unwrap().id;
        eventually("it is merged after all", || layers(stage) == MERGED + 1).await;
        remove_snapshot(engine, again).await.unwrap();
    }
    assert_whole(engine, ids, at).await;
    // From the record and the files alone, also once the process reads the new stack.
    rollback(engine, "a", RollbackTo::Snapshot(SnapshotRef::Id(ids[0]))).await.unwrap();
    assert_eq!(program(engine, "a", &["saved"]).await, "1", "{at}");
    rollback(engine, "a", RollbackTo::Snapshot(SnapshotRef::Id(ids[1]))).await.unwrap();
    assert_eq!(program(engine, "a", &["saved"]).await, "123456", "{at}");
}

async fn take_down(stage: &Stage, engine: Engine) {
    run(&engine, Command::Destroy { vm: named("a") }).await.unwrap();
    for kept in snapshots(&engine).await.into_iter().rev() {
        remove_snapshot(&engine, kept.id).await.unwrap();
    }
    leave(engine).await;
    stage.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_dies_in_a_merge_leaves_a_whole_disk_and_the_next_one_merges() {
    for place in PLACES {
        let trouble = Trouble::default();
        let (stage, mut reached) = stage(&trouble);
        let engine = stage.engine().await;
        *trouble.lock().unwrap() = Some((at(place), Fault::Repeat));
        let ids = six(&engine).await;
        reached.recv().await.unwrap();
        engine.crash().await;
        *trouble.lock().unwrap() = None;
        let engine = stage.engine().await;
        engine.settled().await;
        let expected = if place == "placed" { MERGED } else { APART };
        eventually("nothing is left of it", || layers(&stage) == expected).await;
        assert_whole(&engine, ids, place).await;
        assert_merges(&stage, &engine, ids, place).await;
        take_down(&stage, engine).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merge_that_fails_leaves_everything_as_it_was() {
    for place in PLACES {
        let trouble = Trouble::default();
        let (stage, mut reached) = stage(&trouble);
        let engine = stage.engine().await;
        let failure = Failure::new(ErrorCode::NoResource, "the disk is full");
        *trouble.lock().unwrap() = Some((at(place), Fault::Fail(failure)));
        let ids = six(&engine).await;
        reached.recv().await.unwrap();
        let expected = if place == "placed" { MERGED } else { APART };
        eventually("nothing is left of it", || layers(&stage) == expected).await;
        assert_whole(&engine, ids, place).await;
        *trouble.lock().unwrap() = None;
        assert_merges(&stage, &engine, ids, place).await;
        take_down(&stage, engine).await;
    }
}

/// It is written while the manifests of the others are sealed anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_becomes_durable_meanwhile_lists_what_is_there() {
    let (reached, mut seen) = mpsc::unbounded_channel();
    let go_on = Arc::new(tokio::sync::Semaphore::new(0));
    let mut stage = Stage::new().at_checkpoints({
        let go_on = go_on.clone();
        move |checkpoint| {
            let (reached, go_on) = (reached.clone(), go_on.clone());
            Box::pin(async move {
                if checkpoint == at("seal") {
                    // Nobody looks any more once the test has ended.
                    let _ = reached.send(());
                    go_on.acquire().await.unwrap().forget();
                }
                Fault::Continue
            })
        }
    });
    stage.merging = Merging { above: 3, at_least: 4 };
    let engine = stage.engine().await;
    let ids = six(&engine).await;
    seen.recv().await.unwrap();
    let meanwhile = snapshot(&engine, "a", None).await.unwrap().id;
    go_on.add_permits(1000);
    // It adds a layer.
    eventually("it is merged", || layers(&stage) == MERGED + 1).await;
    assert_whole(&engine, [ids[0], meanwhile], "meanwhile").await;
    assert_whole(&engine, ids, "the others").await;
    take_down(&stage, engine).await;
}

/// A hash of what a merge read would vouch for whatever had become of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_layer_is_not_merged_into_one_that_is_vouched_for() {
    let trouble = Trouble::default();
    let (stage, mut reached) = stage(&trouble);
    let engine = stage.engine().await;
    *trouble.lock().unwrap() = Some((at("record"), Fault::Fail(Failure::new(ErrorCode::Busy, "not yet"))));
    let [first, last] = six(&engine).await;
    reached.recv().await.unwrap();
    *trouble.lock().unwrap() = None;
    leave(engine).await;
    let store = stage.record().await;
    let layer = store.snapshot(last).await.unwrap().unwrap().layer;
    let chain = store.layer_chain(layer).await.unwrap();
    store.close().await;
    let path = stage.state().join(&chain[2].path);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::File::options().append(true).open(&path).unwrap().write_all(b"!").unwrap();

    let engine = stage.engine().await;
    // Has it tried: what is found is written down, and nothing is merged.
    snapshot(&engine, "a", None).await.unwrap();
    let state = async |id| snapshots(&engine).await.into_iter().find(|kept| kept.id == id).unwrap().state;
    assert_eq!(state(first).await, SnapshotState::Durable);
    let damaged = async {
        while state(last).await != SnapshotState::Damaged {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), damaged).await.expect("it is found");
    assert!(layers(&stage) >= APART);
    leave(engine).await;
}
