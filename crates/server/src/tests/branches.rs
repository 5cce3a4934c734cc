//! Snapshots, forks, rollbacks and suspension over HTTP.

use super::fixture::{Daemon, Place, patient, refused, shell, vm};
use futures::{TryStreamExt, stream};
use offshoot_api::{
    Client,
    v1::{
        BeginTransaction, CollectRequest, DestroyQuery, DiffKind, DiffRequest, Difference, ExitStatus,
        ForkRequest, ImportQuery, Output, RemoveSnapshotQuery, RollbackRequest, Snapshot, TakeSnapshot,
    },
};
use offshoot_types::{ErrorCode, SnapshotOrigin, SnapshotRef, SnapshotState, VmStateName};

/// What a shell script in a VM prints; it must succeed.
async fn sh(client: &Client, name: &str, script: &str) -> String {
    let request = CollectRequest { exec: shell(script), input: None };
    let done = client.exec_collect(&vm(name), &request).await.unwrap();
    assert_eq!(done.status, ExitStatus::Exited { code: 0 }, "{script}: {done:?}");
    match done.stdout {
        Output::Utf8(text) => text,
        Output::Base64(_) => panic!("{script} printed what is not text"),
    }
}

async fn take(client: &Client, name: &str, snapshot: &str) -> Snapshot {
    let request = TakeSnapshot { name: Some(snapshot.into()), ..TakeSnapshot::default() };
    client.snapshot(&vm(name), &request).await.unwrap()
}

fn fork(source: &str) -> ForkRequest {
    ForkRequest { source: source.into(), ..ForkRequest::default() }
}

fn named(text: &str) -> SnapshotRef {
    text.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_taken_listed_shown_verified_and_removed() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    let client = &daemon.client;
    daemon.boot("web").await;
    let first = take(client, "web", "first").await;
    assert_eq!((first.state, first.origin), (SnapshotState::Durable, SnapshotOrigin::Manual));
    assert!(first.quiesced && first.paused_us.is_some() && first.current, "{first:?}");
    let second = take(client, "web", "second").await;
    assert_eq!(second.parent, Some(first.id));

    let listed = client.snapshots_of(&vm("web")).await.unwrap().snapshots;
    assert_eq!(listed.iter().map(|one| one.id).collect::<Vec<_>>(), [first.id, second.id]);
    assert_eq!(client.snapshots().await.unwrap().snapshots, listed);
    assert_eq!(client.vm(&vm("web")).await.unwrap().snapshots, Some(2));
    assert_eq!(client.show_snapshot(&named("web@second")).await.unwrap().id, second.id);
    assert_eq!(client.show_snapshot(&SnapshotRef::Id(first.id)).await.unwrap().id, first.id);

    let verified = client.verify_snapshot(&named("web@first")).await.unwrap();
    assert!(verified.faults.is_empty() && !verified.parts.is_empty(), "{verified:?}");

    let again = TakeSnapshot { name: Some("first".into()), ..TakeSnapshot::default() };
    refused(client.snapshot(&vm("web"), &again).await, ErrorCode::AlreadyExists);
    let plain = RemoveSnapshotQuery::default();
    let removed = client.remove_snapshot(&named("web@second"), &plain).await.unwrap();
    assert_eq!(removed.removed, [second.id]);
    refused(client.show_snapshot(&named("web@second")).await, ErrorCode::NotFound);
    refused(client.remove_snapshot(&named("web@ghost"), &plain).await, ErrorCode::NotFound);
    let open = client.begin(&vm("web"), &BeginTransaction::default()).await.unwrap();
    let beginning = SnapshotRef::Id(open.snapshot);
    let needed = refused(client.remove_snapshot(&beginning, &plain).await, ErrorCode::InUse);
    assert!(format!("{needed:?}").contains("transaction"), "{needed:?}");
    client.within(open.id).rollback_transaction(&vm("web"), open.id).await.unwrap();
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_goes_through_a_stream_and_comes_back_as_a_vm() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    let client = &daemon.client;
    daemon.boot("web").await;
    sh(client, "web", "echo kept >/workspace/file").await;
    take(client, "web", "first").await;
    let export = client.export_snapshot(&named("web@first")).await.unwrap();
    let pieces: Vec<bytes::Bytes> = export.content.try_collect().await.unwrap();
    let send = |pieces: &[bytes::Bytes]| {
        let pieces = pieces.to_vec();
        stream::iter(pieces.into_iter().map(Ok))
    };
    let options = |expect: &str| ImportQuery {
        name: Some("copy".into()),
        expect: Some(expect.into()),
        disk_only: false,
    };

    refused(client.import_snapshot(&options("zz"), send(&pieces)).await, ErrorCode::InvalidArgument);
    let other = "00".repeat(32);
    refused(client.import_snapshot(&options(&other), send(&pieces)).await, ErrorCode::InvalidArgument);
    let whole = pieces.concat();
    let cut = [bytes::Bytes::copy_from_slice(&whole[..whole.len() - 1])];
    let imported = client.import_snapshot(&options(&export.hash), send(&cut)).await;
    let broken = refused(imported, ErrorCode::InvalidArgument);
    assert!(broken.message.contains("ends in the middle"), "{broken:?}");
    refused(client.export_snapshot(&named("web@ghost")).await, ErrorCode::NotFound);

    let imported = client.import_snapshot(&options(&export.hash), send(&pieces)).await.unwrap();
    assert_eq!((imported.name.as_str(), &imported.hash), ("copy", &export.hash));
    assert_eq!(client.vm(&vm("copy")).await.unwrap().state, VmStateName::Suspended);
    client.fork(&fork("copy@first")).await.unwrap();
    assert_eq!(sh(client, "copy-1", "cat /workspace/file").await, "kept\n");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forks_run_at_once_with_attestations_and_the_source_goes_on() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    let client = &daemon.client;
    daemon.boot("web").await;
    sh(client, "web", "echo kept > /file").await;
    let forked = client.fork(&ForkRequest { count: Some(2), ..fork("web") }).await.unwrap();
    let names: Vec<&str> = forked.forks.iter().map(|fork| fork.name.as_str()).collect();
    assert_eq!(names, ["web-1", "web-2"]);
    for fork in &forked.forks {
        let said = fork.attestations.as_ref().expect("a restored guest attests");
        assert_eq!(said.hostname, fork.name.as_str());
        assert_eq!(sh(client, fork.name.as_str(), "cat /file").await, "kept\n");
    }
    let [one, two] = forked.forks.as_slice() else { panic!("{forked:?}") };
    let machine_id = |fork: &offshoot_api::v1::ForkedVm| fork.attestations.clone().unwrap().machine_id;
    assert_ne!(machine_id(one), machine_id(two));
    sh(client, "web", "true").await;

    take(client, "web", "before").await;
    let late = client.fork(&ForkRequest { name: Some("late".into()), ..fork("web@before") }).await.unwrap();
    assert_eq!(late.forks[0].name.as_str(), "late");
    let by_id = client.fork(&fork(&late.snapshot.to_string())).await.unwrap();
    assert_eq!(by_id.snapshot, late.snapshot, "an id that is no VM's is a snapshot's");
    refused(client.fork(&fork("ghost")).await, ErrorCode::NotFound);
    let taken = ForkRequest { name: Some("late".into()), ..fork("web") };
    refused(client.fork(&taken).await, ErrorCode::AlreadyExists);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollback_goes_back_and_undo_takes_it_back() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    let client = &daemon.client;
    let before = daemon.boot("web").await;
    sh(client, "web", "echo one > /data").await;
    let one = take(client, "web", "one").await;
    sh(client, "web", "echo two > /data").await;
    let to = RollbackRequest { snapshot: Some("web@one".into()), last_good: false };
    let back = client.rollback(&vm("web"), &to).await.unwrap();
    assert_eq!((back.to, back.vm), (one.id, before.id));
    assert!(back.generation > before.generation && back.undo.is_some(), "{back:?}");
    assert_eq!(back.undone.len(), 1, "the write of two is marked as undone");
    let undone = client.operation(back.undone[0], None).await.unwrap();
    assert_eq!(undone.undone_by, Some(back.operation));
    let marked =
        client.operations().await.unwrap().operations.into_iter().filter(|one| one.undone_by.is_some());
    assert_eq!(marked.map(|one| one.id).collect::<Vec<_>>(), back.undone);
    assert_eq!(sh(client, "web", "cat /data").await, "one\n");
    client.undo(&vm("web")).await.unwrap();
    assert_eq!(sh(client, "web", "cat /data").await, "two\n");
    let ghost = RollbackRequest { snapshot: Some("web@ghost".into()), last_good: false };
    refused(client.rollback(&vm("web"), &ghost).await, ErrorCode::NotFound);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspended_vm_continues_and_destroying_a_vm_keeps_what_was_asked_for() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    let client = &daemon.client;
    daemon.boot("web").await;
    sh(client, "web", "echo kept > /file").await;
    let suspended = client.suspend(&vm("web"), &patient()).await.unwrap().vm.unwrap();
    assert_eq!(suspended.state, VmStateName::Suspended);
    assert!(suspended.suspended_to.is_some());
    let resumed = client.resume(&vm("web"), &patient()).await.unwrap().vm.unwrap();
    assert_eq!(resumed.state, VmStateName::Running);
    assert_eq!(sh(client, "web", "cat /file").await, "kept\n");
    let kept = take(client, "web", "kept").await;
    let gone = client.destroy(&vm("web"), &DestroyQuery::default()).await.unwrap();
    // What nobody asked for stays only where something that was asked for needs it.
    let left = client.snapshots().await.unwrap().snapshots;
    let asked_for = left.iter().filter(|one| one.origin == SnapshotOrigin::Manual);
    assert_eq!(asked_for.map(|one| one.id).collect::<Vec<_>>(), [kept.id]);
    let left: Vec<_> = left.iter().map(|one| one.id).collect();
    assert_eq!(gone.snapshots_kept, Some(left), "the answer says what stays");
    let forked =
        client.fork(&ForkRequest { name: Some("heir".into()), ..fork(&kept.id.to_string()) }).await.unwrap();
    assert_eq!(sh(client, "heir", "cat /file").await, "kept\n", "{forked:?}");

    daemon.boot("other").await;
    take(client, "other", "first").await;
    let all = DestroyQuery { snapshots: true, ..DestroyQuery::default() };
    let gone = client.destroy(&vm("other"), &all).await.unwrap();
    assert_eq!(gone.snapshots_kept, Some(Vec::new()));
    let gone = gone.operation.vm.unwrap();
    assert!(client.snapshots().await.unwrap().snapshots.iter().all(|one| one.vm != gone));
    daemon.stop().await;
}

fn diff(from: Option<&str>, to: &str) -> DiffRequest {
    DiffRequest { from: from.map(str::to_owned), to: to.into(), ..DiffRequest::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_states_are_compared_and_one_with_what_it_came_of() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    let client = &daemon.client;
    daemon.boot("web").await;
    refused(client.diff(&diff(None, "web")).await, ErrorCode::NotFound);
    sh(client, "web", "echo one >/workspace/file").await;
    let first = take(client, "web", "first").await;
    sh(client, "web", "echo other >/workspace/file").await;
    let since = client.diff(&diff(None, "web")).await.unwrap();
    assert_eq!(since, client.diff(&diff(Some("web@first"), "web")).await.unwrap());
    assert_eq!(since, client.diff(&diff(Some(&first.id.to_string()), "web")).await.unwrap());
    assert_eq!(since.from.snapshot, Some(first.id));
    let files = since.files.unwrap();
    assert_eq!((files.counts.modified, files.counts.added, files.counts.more), (1, 0, 0));
    assert_eq!(files.changes[0].path, "/workspace/file");
    assert_eq!(files.changes[0].difference, Difference::Modified);
    assert_eq!(files.changes[0].to.as_ref().unwrap().size, 6);
    assert!(since.packages.unwrap().counts.unknown.is_some(), "this guest has none");

    client.fork(&fork("web")).await.unwrap();
    let passing = client.diff(&diff(None, "web")).await.unwrap();
    assert_eq!(passing.from.snapshot, Some(first.id), "what a fork continues from is passed over");

    take(client, "web", "second").await;
    let parent = DiffRequest { kinds: vec![DiffKind::Files], ..diff(None, "web@second") };
    let parent = client.diff(&parent).await.unwrap();
    assert!(parent.differs && parent.processes.is_none(), "{parent:?}");
    assert_eq!(parent.from.snapshot, Some(first.id));
    refused(client.diff(&diff(None, "web@first")).await, ErrorCode::NotFound);
    refused(client.diff(&diff(Some("web"), "web@")).await, ErrorCode::InvalidArgument);
    let none = DiffRequest { limit: Some(0), ..diff(None, "web") };
    refused(client.diff(&none).await, ErrorCode::InvalidArgument);
    assert_eq!(client.vms().await.unwrap().vms.len(), 2, "no copy is left");
    daemon.stop().await;
}
