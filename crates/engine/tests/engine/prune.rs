//! Removing snapshots from the middle of the tree, and replacing what the others are made of.

use crate::stage::*;
use offshoot_engine::{Engine, OnShutdown};
use offshoot_types::{
    Command, ErrorCode, Failure, ForkSource, RollbackTo, SnapshotId, SnapshotKind, SnapshotRef, VmStateName,
};
use std::{
    fs,
    path::{Path, PathBuf},
};

async fn prune(engine: &Engine, id: SnapshotId) -> Result<Vec<SnapshotId>, Failure> {
    let command = Command::RemoveSnapshot { snapshot: SnapshotRef::Id(id), prune: true };
    engine.remove_snapshot(permit(engine, command)).await
}

async fn back_to(engine: &Engine, id: SnapshotId) -> String {
    rollback(engine, "a", RollbackTo::Snapshot(SnapshotRef::Id(id))).await.unwrap();
    let (notes, saved) = (program(engine, "a", &["notes"]).await, program(engine, "a", &["saved"]).await);
    assert_eq!(notes, saved, "memory and disk are of one instant");
    notes
}

async fn mark(engine: &Engine, word: &str) {
    program(engine, "a", &["note", word]).await;
    program(engine, "a", &["save", word]).await;
}

/// `base <- middle <- (left, right <- leaf)`: each differs from the one before it, and nothing runs.
async fn tree(engine: &Engine) -> [SnapshotId; 5] {
    create_running(engine, "a").await;
    let mut ids = Vec::new();
    for (word, from) in [("b", None), ("m", None), ("l", Some(1)), ("r", Some(1)), ("f", None)] {
        if let Some(from) = from {
            back_to(engine, ids[from]).await;
        }
        mark(engine, word).await;
        let kept = snapshot(engine, "a", Some(word)).await.unwrap();
        ids.push(kept.id);
        // Several forks share its complete memory; whoever continues on that differs from it.
        fork(engine, ForkSource::Snapshot(SnapshotRef::Id(kept.id)), Some("x"), 2).await.unwrap();
        for name in ["x-1", "x-2"] {
            run(engine, Command::Destroy { vm: named(name) }).await.unwrap();
        }
        back_to(engine, kept.id).await;
    }
    run(engine, Command::Stop { vm: named("a"), grace: GRACE }).await.unwrap();
    // What rollbacks left is of no interest here.
    for left in snapshots(engine).await.into_iter().rev().filter(|left| left.name.is_none()) {
        remove_snapshot(engine, left.id).await.unwrap();
    }
    ids.try_into().unwrap()
}

async fn parents(engine: &Engine) -> Vec<(SnapshotId, Option<SnapshotId>)> {
    snapshots(engine).await.into_iter().map(|s| (s.id, s.parent)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_came_after_is_merged_into_them_and_nothing_else_changes() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    let [base, middle, left, right, leaf] = tree(&engine).await;
    let refused = remove_snapshot(&engine, middle).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::InUse);
    for child in [left, right] {
        assert!(refused.message.contains(&child.to_string()), "{refused:?}");
    }
    assert!(refused.hint.as_deref().is_some_and(|hint| hint.contains("--prune")), "{refused:?}");

    assert_eq!(prune(&engine, middle).await.unwrap(), [middle]);
    assert_eq!(
        parents(&engine).await,
        [(base, None), (left, Some(base)), (right, Some(base)), (leaf, Some(right))]
    );
    // The root too: its children are against zeros then.
    prune(&engine, base).await.unwrap();
    assert_eq!(parents(&engine).await, [(left, None), (right, None), (leaf, Some(right))]);
    for round in 0..2 {
        for (id, expected) in [(left, "bml"), (right, "bmr"), (leaf, "bmrf")] {
            let verify = Command::VerifySnapshot { snapshot: SnapshotRef::Id(id) };
            let found = engine.verify_snapshot(permit(&engine, verify)).await.unwrap();
            assert!(found.faults.is_empty(), "{round} {expected}: {found:?}");
        }
    }
    run(&engine, Command::Start { vm: named("a") }).await.unwrap();
    assert_eq!(back_to(&engine, leaf).await, "bmrf");
    assert_eq!(back_to(&engine, left).await, "bml");
    // Read from the disk, not from what the daemon that merged them remembers.
    engine.shutdown(OnShutdown::LeaveVms).await;
    drop(engine);
    let engine = stage.engine().await;
    assert_eq!(back_to(&engine, leaf).await, "bmrf");
    assert_eq!(back_to(&engine, right).await, "bmr");
    run(&engine, Command::Destroy { vm: named("a") }).await.unwrap();
    for kept in snapshots(&engine).await.into_iter().rev() {
        remove_snapshot(&engine, kept.id).await.unwrap();
    }
    leave(engine).await;
    stage.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_vm_runs_on_or_continues_from_is_not_merged_under_it() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    let [base, ..] = tree(&engine).await;
    run(&engine, Command::Start { vm: named("a") }).await.unwrap();
    back_to(&engine, base).await;
    let refused = prune(&engine, base).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::InUse);
    assert!(refused.message.contains("the running VM a"), "{refused:?}");
    assert!(refused.hint.is_some_and(|hint| !hint.contains("--prune")), "it was tried already");
    assert_eq!(back_to(&engine, base).await, "b");
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_part_keeps_what_depends_on_it_from_being_merged() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    let [base, middle, left, right, _] = tree(&engine).await;
    engine.shutdown(OnShutdown::LeaveVms).await;
    drop(engine);
    let path = stage.state().join("snapshots").join(left.simple()).join("ram.delta");
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&path, bytes).unwrap();
    let engine = stage.engine().await;
    let refused = prune(&engine, middle).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Snapshot, "{refused:?}");
    assert!(refused.message.contains(&left.to_string()), "{refused:?}");
    // Nothing is lost: what is whole is as it was, and goes once the damaged one is gone.
    run(&engine, Command::Start { vm: named("a") }).await.unwrap();
    assert_eq!(back_to(&engine, middle).await, "bm");
    assert_eq!(back_to(&engine, base).await, "b");
    assert_eq!(back_to(&engine, right).await, "bmr");
    run(&engine, Command::Stop { vm: named("a"), grace: GRACE }).await.unwrap();
    remove_snapshot(&engine, left).await.unwrap();
    prune(&engine, middle).await.unwrap();
    run(&engine, Command::Start { vm: named("a") }).await.unwrap();
    assert_eq!(back_to(&engine, right).await, "bmr");
    leave(engine).await;
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).unwrap()),
        }
    }
}

/// A daemon that dies while it replaces files leaves record and files of before, of after, or the record of before with
/// the files of after: each is put in order before anything is read.
#[tokio::test(flavor = "multi_thread")]
async fn a_merge_cut_off_anywhere_leaves_what_was_or_what_was_to_be() {
    for (record_is_new, files_are_new) in [(false, false), (false, true), (true, true)] {
        let at = format!("record new: {record_is_new}, files new: {files_are_new}");
        let stage = Stage::new();
        let engine = stage.engine().await;
        let [_, middle, left, ..] = tree(&engine).await;
        engine.shutdown(OnShutdown::LeaveVms).await;
        drop(engine);
        let (state, before) = (stage.state(), stage.dir.path().join("before"));
        copy(&state, &before);
        let engine = stage.engine().await;
        prune(&engine, middle).await.unwrap();
        engine.shutdown(OnShutdown::LeaveVms).await;
        drop(engine);
        let own = |root: &Path, name: String| -> PathBuf { root.join("snapshots").join(name) };
        let (present, old) =
            (own(&state, left.simple().to_string()), own(&before, left.simple().to_string()));
        let merged = own(&state, format!(".merged-{}", left.simple()));
        if !record_is_new {
            for name in ["offshoot.db", "offshoot.db-wal", "offshoot.db-shm"] {
                let _ = fs::remove_file(state.join(name));
                if before.join(name).exists() {
                    fs::copy(before.join(name), state.join(name)).unwrap();
                }
            }
            copy(&own(&before, middle.simple().to_string()), &own(&state, middle.simple().to_string()));
        }
        if files_are_new {
            copy(&old, &merged);
        } else {
            fs::rename(&present, &merged).unwrap();
            copy(&old, &present);
        }
        let engine = stage.engine().await;
        assert!(!merged.exists(), "{at}");
        let there = snapshots(&engine).await.iter().any(|kept| kept.id == middle);
        assert_eq!(there, !record_is_new, "{at}");
        run(&engine, Command::Start { vm: named("a") }).await.unwrap();
        assert_eq!(back_to(&engine, left).await, "bml", "{at}");
        if there {
            assert_eq!(back_to(&engine, middle).await, "bm", "{at}");
        }
        leave(engine).await;
    }
}

/// A disk has no pages to merge: only the tree is joined.
#[tokio::test(flavor = "multi_thread")]
async fn snapshots_of_disks_are_pruned_too() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    create(&engine, "a").await;
    let first = take(&engine, "a", None, SnapshotKind::DiskOnly).await.unwrap();
    let second = take(&engine, "a", None, SnapshotKind::DiskOnly).await.unwrap();
    assert_eq!(remove_snapshot(&engine, first.id).await.unwrap_err().code, ErrorCode::InUse);
    prune(&engine, first.id).await.unwrap();
    assert_eq!(parents(&engine).await, [(second.id, None)]);
    run(&engine, Command::Start { vm: named("a") }).await.unwrap();
    wait_for(&engine, "a", &[VmStateName::Running], GRACE).await;
    leave(engine).await;
}
