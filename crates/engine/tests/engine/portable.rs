//! Snapshots that are taken to another state directory, on another host.

use crate::stage::*;
use offshoot_engine::{Engine, ImportOptions, ImportReport, OnShutdown};
use offshoot_types::{
    Command, ErrorCode, Failure, ForkSource, RollbackTo, SnapshotId, SnapshotKind, SnapshotOrigin,
    SnapshotRef, SnapshotState, VmStateName,
};
use std::{
    fs,
    io::{Cursor, Read},
};

/// The bytes and the hash that was announced.
async fn export(engine: &Engine, id: SnapshotId) -> Result<(Vec<u8>, String), Failure> {
    let command = Command::ExportSnapshot { snapshot: SnapshotRef::Id(id) };
    let export = engine.export_snapshot(permit(engine, command)).await?;
    let hash = export.hash().to_string();
    let mut bytes = Vec::new();
    tokio::task::block_in_place(|| export.write(&mut bytes))?;
    Ok((bytes, hash))
}

async fn import(
    engine: &Engine,
    name: Option<&str>,
    options: ImportOptions,
    bytes: &[u8],
) -> Result<ImportReport, Failure> {
    let command = Command::ImportSnapshot { name: name.map(|name| name.parse().unwrap()) };
    let from = Cursor::new(bytes.to_vec());
    engine.import_snapshot(permit(engine, command), options, from).await
}

async fn mark(engine: &Engine, word: &str) {
    program(engine, "a", &["note", word]).await;
    program(engine, "a", &["save", word]).await;
}

/// A snapshot over a snapshot's complete memory and several layers, and nothing else of its state directory.
async fn exported() -> (Vec<u8>, String) {
    let stage = Stage::new();
    let engine = stage.engine().await;
    create_running(&engine, "a").await;
    mark(&engine, "one").await;
    let first = snapshot(&engine, "a", Some("first")).await.unwrap();
    fork(&engine, ForkSource::Snapshot(SnapshotRef::Id(first.id)), Some("x"), 2).await.unwrap();
    rollback(&engine, "a", RollbackTo::Snapshot(SnapshotRef::Id(first.id))).await.unwrap();
    mark(&engine, "two").await;
    let second = snapshot(&engine, "a", Some("second")).await.unwrap();
    let exported = export(&engine, second.id).await.unwrap();
    for name in ["x-1", "x-2", "a"] {
        run(&engine, Command::Destroy { vm: named(name) }).await.unwrap();
    }
    leave(engine).await;
    exported
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_exported_goes_on_elsewhere_memory_and_disk() {
    let (bytes, hash) = exported().await;
    let stage = Stage::new();
    let mut engine = stage.engine().await;
    let options = ImportOptions { expect: Some(hash.parse().unwrap()), disk_only: false };
    let imported = import(&engine, Some("b"), options, &bytes).await.unwrap();
    assert_eq!((imported.name.as_str(), imported.hash.to_string()), ("b", hash));
    let kept = &imported.snapshot;
    assert_eq!(
        (kept.name.as_ref().map(|name| name.as_str()), kept.kind, kept.state, kept.origin, kept.parent),
        (Some("second"), SnapshotKind::Full, SnapshotState::Durable, SnapshotOrigin::Manual, None)
    );
    assert!(kept.current && kept.quiesced && kept.size.0 > 0);
    assert_eq!(view(&engine, "b").await.state.name(), VmStateName::Suspended);
    let source = ForkSource::Snapshot("b@second".parse().unwrap());
    for round in 0..2 {
        fork(&engine, source.clone(), Some("c"), 1).await.unwrap();
        assert_eq!(program(&engine, "c", &["notes"]).await, "onetwo", "{round}");
        assert_eq!(program(&engine, "c", &["saved"]).await, "onetwo", "{round}");
        run(&engine, Command::Destroy { vm: named("c") }).await.unwrap();
        // Sealed with this host's key: the next daemon believes it too.
        engine.shutdown(OnShutdown::LeaveVms).await;
        drop(engine);
        engine = stage.engine().await;
    }
    // The VM it came as goes on like any suspended one, and can be exported in turn.
    run(&engine, Command::Start { vm: named("b") }).await.unwrap();
    assert_eq!(program(&engine, "b", &["notes"]).await, "onetwo");
    let (again, _) = export(&engine, imported.snapshot.id).await.unwrap();
    let twice = import(&engine, None, ImportOptions::default(), &again).await.unwrap();
    assert_eq!(twice.name.as_str(), "b-1", "the name it had is taken");
    for name in ["b", "b-1"] {
        run(&engine, Command::Destroy { vm: named(name) }).await.unwrap();
    }
    for kept in snapshots(&engine).await.into_iter().rev() {
        remove_snapshot(&engine, kept.id).await.unwrap();
    }
    leave(engine).await;
    stage.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_disk_alone_is_imported_as_a_stopped_vm() {
    let (bytes, _) = exported().await;
    let stage = Stage::new();
    let engine = stage.engine().await;
    let options = ImportOptions { expect: None, disk_only: true };
    let imported = import(&engine, None, options, &bytes).await.unwrap();
    assert_eq!((imported.name.as_str(), imported.snapshot.kind), ("a", SnapshotKind::DiskOnly));
    assert_eq!(view(&engine, "a").await.state.name(), VmStateName::Stopped);
    run(&engine, Command::Start { vm: named("a") }).await.unwrap();
    assert_eq!(program(&engine, "a", &["saved"]).await, "onetwo");
    assert_eq!(program(&engine, "a", &["notes"]).await, "", "its memory was left out");
    leave(engine).await;
}

/// Whatever is wrong with it, and wherever that shows: refused by name, and nothing of it is left.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_what_was_exported_leaves_nothing() {
    let (bytes, hash) = exported().await;
    let stage = Stage::new();
    let engine = stage.engine().await;
    let flipped = |at: usize| {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1;
        bytes
    };
    let cut = bytes[..bytes.len() - 1].to_vec();
    let longer = [&bytes[..], b"x"].concat();
    for (wrong, said) in [
        (flipped(100), "header is damaged"),
        (flipped(bytes.len() - 3), "is damaged"),
        (cut, "ends in the middle of disk layer"),
        (longer, "something follows"),
        (b"PK\x03\x04".repeat(100), "no exported snapshot"),
    ] {
        let refused = import(&engine, Some("b"), ImportOptions::default(), &wrong).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::InvalidArgument, "{refused:?}");
        assert!(refused.message.contains(said), "{said}: {refused:?}");
    }
    let other = ImportOptions { expect: Some("00".repeat(32).parse().unwrap()), disk_only: false };
    let refused = import(&engine, Some("b"), other, &bytes).await.unwrap_err();
    assert!(refused.message.contains(&hash), "{refused:?}");
    assert_eq!(snapshots(&engine).await, []);
    leave(engine).await;
    stage.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_taken_is_refused_and_what_was_read_removed() {
    let (bytes, _) = exported().await;
    let stage = Stage::new();
    let engine = stage.engine().await;
    create(&engine, "a").await;
    let refused = import(&engine, Some("a"), ImportOptions::default(), &bytes).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::AlreadyExists, "{refused:?}");
    let imported = import(&engine, None, ImportOptions::default(), &bytes).await.unwrap();
    assert_eq!(imported.name.as_str(), "a-1");
    for name in ["a", "a-1"] {
        run(&engine, Command::Destroy { vm: named(name) }).await.unwrap();
    }
    remove_snapshot(&engine, imported.snapshot.id).await.unwrap();
    leave(engine).await;
    stage.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_whole_is_exported() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    create_running(&engine, "a").await;
    let kept = snapshot(&engine, "a", Some("first")).await.unwrap();
    let path = stage.state().join("snapshots").join(kept.id.simple()).join("ram.delta");
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&path, bytes).unwrap();
    let broken = export(&engine, kept.id).await.unwrap_err();
    assert_eq!(broken.code, ErrorCode::Snapshot, "{broken:?}");
    let verify = Command::VerifySnapshot { snapshot: SnapshotRef::Id(kept.id) };
    engine.verify_snapshot(permit(&engine, verify)).await.unwrap();
    let refused = export(&engine, kept.id).await.unwrap_err();
    assert!(refused.message.contains("only a durable one"), "{refused:?}");
    leave(engine).await;
}

/// Its record is there and its files are not yet in their place: the next daemon puts them there. Before the record
/// nothing is there at all.
#[tokio::test(flavor = "multi_thread")]
async fn an_import_cut_off_is_there_or_leaves_nothing() {
    let (bytes, _) = exported().await;
    let stage = Stage::new();
    let engine = stage.engine().await;
    let imported = import(&engine, Some("b"), ImportOptions::default(), &bytes).await.unwrap();
    engine.shutdown(OnShutdown::LeaveVms).await;
    drop(engine);
    let dir = stage.state().join("snapshots");
    let id = imported.snapshot.id.simple().to_string();
    fs::rename(dir.join(&id), dir.join(format!(".merged-{id}"))).unwrap();
    fs::create_dir(dir.join(format!(".merged-{}", SnapshotId::new().simple()))).unwrap();
    let engine = stage.engine().await;
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
    run(&engine, Command::Start { vm: named("b") }).await.unwrap();
    assert_eq!(program(&engine, "b", &["notes"]).await, "onetwo");
    leave(engine).await;

    // The one who hands it over goes away in the middle.
    struct Gone(Cursor<Vec<u8>>);
    impl Read for Gone {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            match self.0.read(buffer)? {
                0 => Err(std::io::ErrorKind::ConnectionReset.into()),
                read => Ok(read),
            }
        }
    }
    let stage = Stage::new();
    let engine = stage.engine().await;
    let half = Gone(Cursor::new(bytes[..bytes.len() / 2].to_vec()));
    let command = Command::ImportSnapshot { name: None };
    let refused = engine.import_snapshot(permit(&engine, command), ImportOptions::default(), half).await;
    assert_eq!(refused.unwrap_err().code, ErrorCode::Interrupted);
    leave(engine).await;
    stage.assert_nothing_left().await;
}
