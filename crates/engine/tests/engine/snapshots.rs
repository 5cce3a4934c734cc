//! Keeping states: what is kept, what is refused, what is left when it fails.

use crate::{host::Faults, sagas::state, stage::*};
use offshoot_engine::{Checkpoint, Engine, Fault, OnShutdown, Phase};
use offshoot_types::{
    Command, ErrorCode, OperationKind, RollbackTo, SnapshotKind, SnapshotOrigin, SnapshotRef, SnapshotState,
    VmState, VmStateName,
};
use std::{
    collections::HashSet,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_a_running_vm_is_durable_and_the_vm_runs_on() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    let id = create_running(&engine, "a").await;
    let session = exec(&engine, "a", &["cat"]).await.unwrap();
    program(&engine, "a", &["save", "kept"]).await;
    let kept = snapshot(&engine, "a", Some("first")).await.unwrap();
    assert_eq!(
        (kept.kind, kept.state, kept.origin),
        (SnapshotKind::Full, SnapshotState::Durable, SnapshotOrigin::Manual)
    );
    assert!(kept.quiesced && kept.current && kept.paused.is_some() && kept.size.0 > 0, "{kept:?}");
    let dir = stage.state().join("snapshots").join(kept.id.simple());
    for part in ["manifest.json", "device.state", "ram.delta"] {
        assert!(dir.join(part).is_file(), "{part}");
    }
    let process = stage.host.process(id);
    assert!(!process.guest.is_frozen() && !process.is_paused());
    // The exec that was open goes on.
    session.input().stdin("still here".into()).await.unwrap();
    session.input().end_stdin().await.unwrap();
    assert_eq!(output(session).await.0, b"still here");
    assert_eq!(program(&engine, "a", &["saved"]).await, "kept");

    let second = snapshot(&engine, "a", None).await.unwrap();
    assert_eq!((second.parent, second.name.as_ref()), (Some(kept.id), None));
    let listed: Vec<_> = snapshots(&engine).await.into_iter().map(|s| (s.id, s.current)).collect();
    assert_eq!(listed, [(kept.id, false), (second.id, true)]);
    let shown = Command::InspectSnapshot { snapshot: "a@first".parse().unwrap() };
    assert_eq!(engine.snapshot_view(permit(&engine, shown)).await.unwrap().id, kept.id);
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn same_second_snapshots_distinct() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    create_running(&engine, "a").await;
    let taken = futures::future::join_all((0..4).map(|_| snapshot(&engine, "a", None))).await;
    let ids: HashSet<_> = taken.into_iter().map(|taken| taken.unwrap().id).collect();
    assert_eq!(ids.len(), 4);
    let first = snapshot(&engine, "a", Some("same")).await.unwrap();
    let refused = snapshot(&engine, "a", Some("same")).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::AlreadyExists, "{refused:?}");
    remove_snapshot(&engine, first.id).await.unwrap();
    let again = snapshot(&engine, "a", Some("same")).await.unwrap();
    assert_ne!(again.id, first.id, "ids are never used again");
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_vm_is_kept_as_its_disk_and_a_paused_one_stays_paused() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    create(&engine, "a").await;
    let disk = snapshot(&engine, "a", Some("disk")).await.unwrap();
    assert_eq!((disk.kind, disk.state), (SnapshotKind::DiskOnly, SnapshotState::Durable));
    run(&engine, Command::Start { vm: named("a") }).await.unwrap();
    let only = take(&engine, "a", None, SnapshotKind::DiskOnly).await.unwrap();
    assert_eq!(only.kind, SnapshotKind::DiskOnly);
    run(&engine, Command::Pause { vm: named("a") }).await.unwrap();
    let paused = snapshot(&engine, "a", Some("paused")).await.unwrap();
    assert!(
        paused.kind == SnapshotKind::Full && !paused.quiesced,
        "a paused guest cannot be told to stand still"
    );
    assert_eq!(state(&engine), Some(VmState::Paused));
    let refused = take(&engine, "a", None, SnapshotKind::DiskOnly).await.unwrap_err();
    assert!(refused.message.contains("does not run"), "its page cache would be lost: {refused:?}");
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_whose_guest_does_not_flush_it_is_not_kept_without_the_memory() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    let id = create_running(&engine, "a").await;
    let guest = stage.host.process(id).guest.clone();
    guest.flush_fails.store(true, std::sync::atomic::Ordering::SeqCst);
    let refused = take(&engine, "a", Some("disk"), SnapshotKind::DiskOnly).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Unavailable, "{refused:?}");
    assert_eq!(state(&engine), Some(VmState::Running));
    snapshot(&engine, "a", Some("disk")).await.expect("the name is free, and a memory needs no flush");
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_does_not_stand_still_is_kept_all_the_same_and_marked() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    let id = create_running(&engine, "a").await;
    let guest = stage.host.process(id).guest.clone();
    guest.restless.store(true, std::sync::atomic::Ordering::SeqCst);
    let kept = snapshot(&engine, "a", Some("restless")).await.unwrap();
    assert!(!kept.quiesced && kept.state == SnapshotState::Durable);
    let back = rollback(&engine, "a", RollbackTo::Newest).await.unwrap();
    assert!(back.warning.unwrap().contains("did not stand still"));
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_fails_leaves_the_vm_running_and_nothing_else() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    let id = create_running(&engine, "a").await;
    stage.host.set_faults(Faults { checkpoint_fails: true, ..Faults::default() });
    let refused = snapshot(&engine, "a", None).await.unwrap_err();
    assert!(refused.cause.is_none() && refused.message.contains("no space left"), "{refused:?}");
    assert_eq!(snapshots(&engine).await, []);
    assert!(!stage.host.process(id).guest.is_frozen());
    assert_eq!(std::fs::read_dir(stage.state().join("snapshots")).unwrap().count(), 0);
    stage.host.set_faults(Faults::default());
    // The layer it had been given is used by the next one.
    program(&engine, "a", &["save", "x"]).await;
    snapshot(&engine, "a", Some("now")).await.unwrap();
    program(&engine, "a", &["save", "y"]).await;
    rollback(&engine, "a", RollbackTo::Newest).await.unwrap();
    assert_eq!(program(&engine, "a", &["saved"]).await, "x");
    leave(engine).await;
}

/// A disk on which nothing more fits: the quota refuses the snapshot when its size is known.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_does_not_fit_leaves_nothing_and_the_vm_running() {
    let mut stage = Stage::new();
    stage.limits.snapshots_per_vm = Some(offshoot_types::Bytes(1));
    let engine = stage.engine().await;
    let id = create_running(&engine, "a").await;
    let refused = snapshot(&engine, "a", None).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::NoResource, "{refused:?}");
    assert_eq!(snapshots(&engine).await, []);
    assert_eq!(std::fs::read_dir(stage.state().join("snapshots")).unwrap().count(), 0);
    assert!(!stage.host.process(id).guest.is_frozen());
    assert_eq!(program(&engine, "a", &["echo", "alive"]).await, "alive");
    run(&engine, Command::Destroy { vm: named("a") }).await.unwrap();
    leave(engine).await;
    stage.assert_nothing_left().await;
}

fn flip(path: &Path, at: u64) {
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

async fn layer_files(stage: &Stage) -> Vec<PathBuf> {
    std::fs::read_dir(stage.state().join("disks")).unwrap().map(|e| e.unwrap().path()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_byte_authenticated() {
    for part in ["manifest.json", "device.state", "ram.delta", "disk"] {
        let stage = Stage::new();
        let engine = stage.engine().await;
        let id = create_running(&engine, "a").await;
        program(&engine, "a", &["save", "bytes"]).await;
        let kept = snapshot(&engine, "a", Some("good")).await.unwrap();
        let path = match part {
            "disk" => stage.state().join("disks").join(format!("{}.qcow2", id.simple())),
            part => stage.state().join("snapshots").join(kept.id.simple()).join(part),
        };
        assert!(part != "disk" || layer_files(&stage).await.contains(&path));
        let middle = std::fs::metadata(&path).unwrap().len() / 2;
        // A restart: nothing of it is in memory any more.
        engine.crash().await;
        let engine = stage.engine().await;
        flip(&path, middle);
        let process = stage.host.process(id);
        let verify = Command::VerifySnapshot { snapshot: SnapshotRef::Id(kept.id) };
        let refused = rollback(&engine, "a", RollbackTo::Newest).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::Snapshot, "{part}: {refused:?}");
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(refused.message.contains(name), "{part}: {refused:?}");
        assert!(process.is_alive() && !process.guest.is_frozen(), "{part}");
        assert_eq!(program(&engine, "a", &["saved"]).await, "bytes");
        let found = engine.verify_snapshot(permit(&engine, verify)).await.unwrap();
        assert!(found.faults.iter().any(|fault| fault.contains(name)), "{part}: {found:?}");
        assert_eq!(snapshots(&engine).await[0].state, SnapshotState::Damaged, "{part}");
        leave(engine).await;
    }
}

/// Nothing of the VM is touched: the VMM that would load the state never starts.
#[tokio::test(flavor = "multi_thread")]
async fn restore_preflight() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    let id = create_running(&engine, "a").await;
    snapshot(&engine, "a", Some("good")).await.unwrap();
    engine.crash().await;
    stage.host.set_faults(Faults { another_vmm: true, ..Faults::default() });
    let engine = stage.engine().await;
    let (process, boots) = (stage.host.process(id), stage.host.boots());
    let refused = rollback(&engine, "a", RollbackTo::Newest).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Snapshot);
    assert!(refused.message.contains("the VMM was one, here it is another"), "{refused:?}");
    assert!(process.is_alive() && !process.guest.is_frozen() && stage.host.boots() == boots);
    stage.host.set_faults(Faults::default());
    rollback(&engine, "a", RollbackTo::Newest).await.unwrap();
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_reads_every_part_of_a_good_snapshot() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    create_running(&engine, "a").await;
    snapshot(&engine, "a", None).await.unwrap();
    let kept = snapshot(&engine, "a", Some("second")).await.unwrap();
    let verify = Command::VerifySnapshot { snapshot: "a@second".parse().unwrap() };
    let found = engine.verify_snapshot(permit(&engine, verify)).await.unwrap();
    assert_eq!((found.snapshot, found.faults.len()), (kept.id, 0), "{found:?}");
    assert_eq!(found.parts.len(), 4, "two layers, device state, pages: {found:?}");
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_with_a_live_lease_is_removed() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    create_running(&engine, "a").await;
    let kept = snapshot(&engine, "a", Some("base")).await.unwrap();
    rollback(&engine, "a", RollbackTo::Newest).await.unwrap();
    let refused = remove_snapshot(&engine, kept.id).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::InUse);
    assert!(refused.message.contains("the running VM a"), "{refused:?}");
    let dir = stage.state().join("snapshots").join(kept.id.simple());
    assert!(dir.join("manifest.json").is_file(), "its files are where they were");
    let child = snapshot(&engine, "a", Some("child")).await.unwrap();
    run(&engine, Command::Stop { vm: named("a"), grace: GRACE }).await.unwrap();
    let refused = remove_snapshot(&engine, kept.id).await.unwrap_err();
    assert!(refused.message.contains(&child.id.to_string()), "{refused:?}");
    // Also what the rollback left, which came after it.
    for later in snapshots(&engine).await.into_iter().rev() {
        remove_snapshot(&engine, later.id).await.unwrap();
    }
    assert!(!dir.exists());
    run(&engine, Command::Destroy { vm: named("a") }).await.unwrap();
    leave(engine).await;
    stage.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn destroy_keeps_what_somebody_asked_for_and_removes_what_nobody_did() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    create_running(&engine, "a").await;
    program(&engine, "a", &["save", "kept"]).await;
    let kept = snapshot(&engine, "a", Some("good")).await.unwrap();
    let back = rollback(&engine, "a", RollbackTo::Newest).await.unwrap();
    assert!(
        snapshots(&engine).await.iter().any(|s| Some(s.id) == back.undo && s.origin == SnapshotOrigin::Undo)
    );
    run(&engine, Command::Destroy { vm: named("a") }).await.unwrap();
    let left: Vec<_> = snapshots(&engine).await.into_iter().map(|s| s.id).collect();
    assert_eq!(left, [kept.id]);
    // What it needs is there: a VM can be made of it.
    let source = "a@good".parse().map(offshoot_types::ForkSource::Snapshot).unwrap();
    fork(&engine, source, Some("again"), 1).await.unwrap();
    assert_eq!(program(&engine, "again", &["saved"]).await, "kept");
    run(&engine, Command::Destroy { vm: named("again") }).await.unwrap();
    remove_snapshot(&engine, kept.id).await.unwrap();
    leave(engine).await;
    stage.assert_nothing_left().await;
}

/// The daemon dies while the guest stands still: the next one sets it going, with nobody asking for anything.
#[tokio::test(flavor = "multi_thread")]
async fn a_guest_left_standing_still_is_set_going_by_the_next_daemon() {
    let (reached, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let armed = Arc::new(Mutex::new(true));
    let stage = Stage::new().at_checkpoints({
        let armed = armed.clone();
        move |checkpoint| {
            let here = Checkpoint { kind: OperationKind::Snapshot, step: "take", phase: Phase::BeforeAct };
            let stop = *armed.lock().unwrap() && checkpoint == here;
            let reached = reached.clone();
            Box::pin(async move {
                if stop {
                    reached.send(()).unwrap();
                    std::future::pending::<()>().await;
                }
                Fault::Continue
            })
        }
    });
    let engine = stage.engine().await;
    let id = create_running(&engine, "a").await;
    let asked = tokio::spawn({
        let engine = engine.clone();
        async move { snapshot(&engine, "a", None).await }
    });
    seen.recv().await.unwrap();
    let process = stage.host.process(id);
    assert!(process.guest.is_frozen());
    asked.abort();
    engine.crash().await;
    *armed.lock().unwrap() = false;
    let engine = stage.engine().await;
    eventually("the guest goes on", || !process.guest.is_frozen()).await;
    assert_eq!(snapshots(&engine).await, []);
    assert_eq!(program(&engine, "a", &["echo", "on"]).await, "on");
    leave(engine).await;
}

/// Any number of states above each other stay exact, on the disk and in memory, also over restarts of the daemon.
#[tokio::test(flavor = "multi_thread")]
async fn a_deep_chain_stays_exact() {
    let stage = Stage::new();
    let mut engine = stage.engine().await;
    create_running(&engine, "a").await;
    let (mut expected, mut states) = (String::new(), Vec::new());
    for depth in 0..8 {
        let word = format!("<{depth}>");
        program(&engine, "a", &["note", &word]).await;
        program(&engine, "a", &["save", &word]).await;
        expected.push_str(&word);
        let kept = snapshot(&engine, "a", Some(&format!("s{depth}"))).await.unwrap();
        states.push((kept.id, expected.clone()));
        if depth % 2 == 1 {
            // Continues on the newest snapshot: the next one is a difference to it.
            rollback(&engine, "a", RollbackTo::Newest).await.unwrap();
        }
        if depth % 3 == 2 {
            engine = again(&stage, engine).await;
        }
    }
    for (id, expected) in states.iter().rev().chain(&states) {
        rollback(&engine, "a", RollbackTo::Snapshot(SnapshotRef::Id(*id))).await.unwrap();
        assert_eq!(program(&engine, "a", &["notes"]).await, *expected);
        assert_eq!(program(&engine, "a", &["saved"]).await, *expected);
        engine = again(&stage, engine).await;
    }
    wait_for(&engine, "a", &[VmStateName::Running], Duration::from_secs(5)).await;
    leave(engine).await;
}

async fn again(stage: &Stage, engine: Engine) -> Engine {
    engine.shutdown(OnShutdown::LeaveVms).await;
    drop(engine);
    stage.engine().await
}
