//! The history: what was run, what it said, what a killed daemon and a full disk leave of it.

use crate::{fake::*, stage::*};
use offshoot_engine::{
    Engine, ExecEvent, ExecSession, HistoryEntry, HistoryFilter, HistoryOptions, HistoryRecord,
    HistoryStream, Keep, OutputStream,
};
use offshoot_provider::Exit;
use offshoot_types::{
    AgentName, Bytes, Command, ContextName, ErrorCode, ExecStatus, OperationId, OperationKind,
    OperationOutcome, OperationState, RollbackTo, VmRef,
};
use std::{fs, path::PathBuf, time::Duration};

async fn history(engine: &Engine, vm: Option<VmRef>) -> Vec<HistoryRecord> {
    let filter = HistoryFilter { output: true, ..HistoryFilter::default() };
    let page = engine.history(permit(engine, Command::Inspect { vm }), filter, 100).await.unwrap();
    assert_eq!(page.total, page.entries.len() as u64);
    page.entries
}

async fn entry(engine: &Engine, id: OperationId) -> HistoryEntry {
    engine.wait(id, Some(Duration::from_secs(10))).await.unwrap();
    engine.history_entry(permit(engine, Command::InspectOperation { id })).await.unwrap()
}

/// What is kept of stdout, by pieces of this length.
async fn kept(engine: &Engine, id: OperationId, piece: u64) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let permit = permit(engine, Command::InspectOperation { id });
        let some =
            engine.history_stream(permit, OutputStream::Stdout, all.len() as u64, piece).await.unwrap();
        all.extend(&some.bytes);
        if some.bytes.is_empty() {
            assert_eq!(some.kept, all.len() as u64);
            return all;
        }
    }
}

fn stdout(record: &HistoryRecord) -> &HistoryStream {
    &record.output.as_ref().expect("it is known what it said").stdout
}

fn files(stage: &Stage) -> Vec<PathBuf> {
    let found = fs::read_dir(stage.state().join("history")).unwrap();
    found.map(|entry| entry.unwrap().path()).collect()
}

async fn ran(engine: &Engine, words: &[&str]) -> OperationId {
    let session = exec(engine, "a", words).await.unwrap();
    let id = session.operation;
    output(session).await;
    engine.wait(id, Some(Duration::from_secs(10))).await.unwrap();
    id
}

async fn started(session: &mut ExecSession) {
    assert!(matches!(session.next().await, Some(ExecEvent::Started { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_was_run_is_told_with_how_it_ended_and_what_it_said() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    let id = create_running(&engine, "a").await;
    let agent: AgentName = "planner/1".parse().unwrap();
    let mut spec = argv(&["echo", "it's"]);
    spec.env.insert("TOKEN".into(), "hunter2".into());
    let command = Command::Exec { vm: named("a"), spec };
    let session = engine.exec(permit(&engine, command).on_behalf_of(Some(agent.clone()))).await.unwrap();
    output(session).await;
    ran(&engine, &["exit", "7"]).await;
    let missing = ran(&engine, &["nonesuch"]).await;
    engine.wait(missing, Some(Duration::from_secs(10))).await.unwrap();
    let all = history(&engine, None).await;
    let [refused, failed, told] = &all[..] else { panic!("{all:?}") };
    assert_eq!((told.vm, told.vm_name.as_str(), told.agent.as_ref()), (id, "a", Some(&agent)));
    assert_eq!((told.what.as_str(), told.user.as_str()), (r"echo 'it'\''s'", "root"));
    assert_eq!((told.status, told.failed), (Some(ExecStatus::Exited(0)), Some(false)));
    assert_eq!((stdout(told).head.as_slice(), stdout(told).bytes), (&b"it's"[..], 4));
    assert_eq!(stdout(told).hash, Some(*blake3::hash(b"it's").as_bytes()));
    assert!(told.duration().is_some() && !format!("{all:?}").contains("hunter2"));
    assert_eq!((failed.status, failed.failed), (Some(ExecStatus::Exited(7)), Some(true)));
    let OperationState::Ended { outcome: OperationOutcome::Failed { failure } } = &refused.state else {
        panic!("{refused:?}")
    };
    assert_eq!((failure.code, refused.failed, refused.status), (ErrorCode::ExecFailed, Some(true), None));

    run(&engine, Command::Destroy { vm: named("a") }).await.unwrap();
    assert_eq!(history(&engine, Some(VmRef::Id(id))).await.len(), 3, "a VM that is gone is found by its id");
    let filter = HistoryFilter::default();
    let by_name = engine.history(permit(&engine, Command::Inspect { vm: Some(named("a")) }), filter, 9).await;
    assert_eq!(by_name.unwrap_err().code, ErrorCode::NotFound);
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn code_is_told_with_its_context_its_value_and_its_error() {
    let fake = Fake::new();
    let (engine, _) = fake.running().await;
    run_code(&engine, code("main", "x = 41; print('hi'); x + 1")).await.unwrap();
    run_code(&engine, code("main", "fail on purpose")).await.unwrap();
    let mut slow = code("main", "sleep 600");
    slow.timeout = Some(Duration::from_millis(50));
    run_code(&engine, slow).await.unwrap();
    let all = history(&engine, Some(named("a"))).await;
    let [timed_out, failed, worked] = &all[..] else { panic!("{all:?}") };
    assert_eq!((worked.kind, worked.failed), (OperationKind::Context, Some(false)));
    assert_eq!(worked.what, "x = 41; print('hi'); x + 1");
    assert_eq!(worked.language.as_deref(), Some("python"), "as the guest said");
    assert_eq!(worked.context.as_ref().map(ContextName::as_str), Some("main"));
    assert_eq!((worked.result.as_deref(), stdout(worked).head.as_slice()), (Some("42"), &b"hi\n"[..]));
    assert_eq!((failed.failed, failed.error.as_deref()), (Some(true), Some("Failure: on purpose")));
    assert_eq!((timed_out.failed, timed_out.interrupted), (Some(true), true));
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_rollback_took_back_is_marked_and_can_be_run_again_from_before_it() {
    let fake = Fake::new();
    let (engine, _) = fake.running().await;
    let s = snapshot(&engine, "a", Some("before")).await.unwrap();
    sh(&engine, "echo x > /tmp/file").await;
    let done =
        rollback(&engine, "a", RollbackTo::Snapshot(offshoot_types::SnapshotRef::Id(s.id))).await.unwrap();
    let all = history(&engine, Some(named("a"))).await;
    assert_eq!((all[0].undone_by, all[0].before, all[0].exact), (Some(done.operation), Some(s.id), true));
    let id = all[0].operation;
    let (_, rerun) = engine.rerun(permit(&engine, Command::InspectOperation { id })).await.unwrap();
    let offshoot_engine::RerunKind::Exec(spec) = rerun.what else { panic!("{rerun:?}") };
    assert_eq!(spec.argv, offshoot_types::ExecArgv::Shell("echo x > /tmp/file".into()));
    let source = offshoot_types::ForkSource::Snapshot(offshoot_types::SnapshotRef::Id(s.id));
    let command = Command::Fork { source, name: Some("again".parse().unwrap()), count: 1 };
    let fork = engine.fork_for_request(permit(&engine, command)).await.unwrap();
    assert_eq!(
        sh_in(&engine, "again", "cat /tmp/file").await.unwrap().1,
        ExecStatus::Exited(1),
        "not there yet"
    );
    drop(fork);
    let gone = async {
        while engine.vms(permit(&engine, Command::Inspect { vm: None })).unwrap().len() > 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, gone).await.expect("the fork goes with what asked for it");
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_a_row_keeps_is_in_a_file_and_what_is_too_much_is_cut() {
    let mut stage = Stage::new();
    stage.history.per_stream = Bytes(3_000_000);
    let engine = stage.engine().await;
    create_running(&engine, "a").await;
    let short = ran(&engine, &["spam", "16384"]).await;
    let long = ran(&engine, &["spam", "2000000"]).await;
    let cut = ran(&engine, &["spam", "5000000"]).await;
    let one = entry(&engine, short).await;
    assert_eq!((stdout(&one.record).file, one.stdout), (0, 16_384), "both ends are all of it");
    assert_eq!(kept(&engine, short, 10_000).await.len(), 16_384);
    for (id, bytes, kept_bytes) in [(long, 2_000_000, 2_000_000), (cut, 5_000_000, 3_000_000)] {
        let one = entry(&engine, id).await;
        let stream = stdout(&one.record);
        assert_eq!((stream.bytes, stream.file, one.stdout), (bytes, kept_bytes, kept_bytes));
        assert_eq!((stream.head.len(), stream.tail.len(), stream.lost), (8192, 8192, 0));
        let all = kept(&engine, id, 1 << 20).await;
        assert_eq!(all.len() as u64, kept_bytes);
        assert!(all.starts_with(&stream.head));
        assert!(stream.hash.is_some(), "of all of it, kept or not");
    }
    assert_eq!(files(&stage).len(), 2);
    engine.crash().await;
    let stray = stage.state().join("history").join(format!("{}.stdout", OperationId::new().simple()));
    fs::write(&stray, "left by a daemon that was killed").unwrap();
    let engine = stage.engine().await;
    eventually("what belongs to nothing is removed", || !stray.exists()).await;
    assert_eq!(kept(&engine, long, 1 << 20).await.len(), 2_000_000, "it outlives the daemon");
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_take_so_much_in_all_and_the_oldest_go_first() {
    let mut stage = Stage::new();
    stage.history.output = Some(Bytes(500_000));
    let engine = stage.engine().await;
    create_running(&engine, "a").await;
    let mut all = Vec::new();
    for _ in 0..3 {
        all.push(ran(&engine, &["spam", "200000"]).await);
    }
    eventually("the oldest went", || files(&stage).len() == 2).await;
    let oldest = entry(&engine, all[0]).await;
    assert_eq!((stdout(&oldest.record).bytes, oldest.stdout), (200_000, 8192), "its beginning is in the row");
    assert_eq!(kept(&engine, all[2], 1 << 20).await.len(), 200_000);
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_cannot_be_written_costs_the_output_and_not_the_record() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    create_running(&engine, "a").await;
    // As on a full disk: nothing can be made there.
    fs::remove_dir_all(stage.state().join("history")).unwrap();
    let session = exec(&engine, "a", &["spam", "2000000"]).await.unwrap();
    let id = session.operation;
    let (said, end) = output(session).await;
    assert!(said.len() == 2_000_000 && matches!(end, ExecEvent::Ended(end) if end.status.success()));
    let one = entry(&engine, id).await;
    let stream = stdout(&one.record);
    assert_eq!((one.record.failed, stream.bytes, stream.file), (Some(false), 2_000_000, 0));
    assert_eq!((one.stdout, stream.tail.len()), (8192, 8192));
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_output_is_not_kept_nothing_of_it_is() {
    let mut stage = Stage::new();
    stage.history = HistoryOptions { output: None, ..stage.history };
    let engine = stage.engine().await;
    create_running(&engine, "a").await;
    let id = ran(&engine, &["spam", "100000"]).await;
    let one = entry(&engine, id).await;
    let stream = stdout(&one.record);
    assert_eq!((stream.bytes, stream.head.len(), stream.tail.len(), stream.hash), (100_000, 0, 0, None));
    assert!(kept(&engine, id, 10).await.is_empty() && files(&stage).is_empty());
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_reads_is_told_all_the_same() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    let vm = create_running(&engine, "a").await;
    let mut session = exec(&engine, "a", &["spam", "300000"]).await.unwrap();
    let id = session.operation;
    started(&mut session).await;
    session.detach();
    assert_eq!(stdout(&entry(&engine, id).await.record).bytes, 300_000);
    let mut dropped = exec(&engine, "a", &["sleep"]).await.unwrap();
    let id = dropped.operation;
    started(&mut dropped).await;
    drop(dropped);
    let killed = entry(&engine, id).await;
    assert_eq!((killed.record.vm, killed.record.status), (vm, Some(ExecStatus::Signaled(9))));
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_killed_leaves_what_is_known_and_the_next_one_completes_it() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    let id = create_running(&engine, "a").await;
    let mut lives = exec(&engine, "a", &["cat"]).await.unwrap();
    started(&mut lives).await;
    lives.input().stdin("before ".into()).await.unwrap();
    assert!(matches!(lives.next().await, Some(ExecEvent::Output { .. })));
    let (lived, exec_id) = (lives.operation, lives.exec);
    engine.crash().await;

    let engine = stage.engine().await;
    let open = &history(&engine, Some(named("a"))).await[0];
    assert_eq!((open.operation, open.ended, open.failed, open.output.as_ref()), (lived, None, None, None));
    let read = engine.history_stream(
        permit(&engine, Command::InspectOperation { id: lived }),
        OutputStream::Stdout,
        0,
        9,
    );
    assert_eq!(read.await.unwrap_err().code, ErrorCode::WrongState);
    let attach = permit(&engine, Command::Attach { vm: named("a"), exec: exec_id });
    let session = engine.attach(attach, Default::default()).await.unwrap();
    session.input().stdin("after".into()).await.unwrap();
    session.input().end_stdin().await.unwrap();
    output(session).await;
    let done = entry(&engine, lived).await;
    assert_eq!(stdout(&done.record).head, b"before after", "the guest still had the beginning");
    assert_eq!(done.record.failed, Some(false));

    let mut lost = exec(&engine, "a", &["sleep"]).await.unwrap();
    started(&mut lost).await;
    let lost_id = lost.operation;
    engine.crash().await;
    stage.host.process(id).end(Exit::Signal(9));
    let engine = stage.engine().await;
    engine.settled().await;
    let unknown = entry(&engine, lost_id).await.record;
    assert_eq!((unknown.failed, unknown.status, unknown.output), (Some(true), None, None));
    assert!(unknown.ended.is_some());
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_is_not_there_is_said_to_be_missing() {
    let mut stage = Stage::new();
    stage.history.keep = Keep { max_age: None, max_count: Some(0) };
    let engine = stage.engine().await;
    let id = OperationId::new();
    let missing = engine.history_entry(permit(&engine, Command::InspectOperation { id })).await.unwrap_err();
    assert_eq!(missing.code, ErrorCode::NotFound);
    leave(engine).await;
}
