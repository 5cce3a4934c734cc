//! Live contexts: variables that stay, interruption, what a lost guest means, what is listed and recorded.

use crate::{fake::*, stage::*};
use offshoot_engine::{CodeEvent, CodeSession, Engine, OnShutdown, OperationPage};
use offshoot_store::fault;
use offshoot_types::{
    Command, ContextCode, ErrorCode, Language, OperationKind, OperationOutcome, OperationState, RollbackTo,
    SnapshotKind, VmRef,
};
use std::time::{Duration, Instant};

async fn begin(engine: &Engine, code: Box<ContextCode>) -> CodeSession {
    let mut session =
        engine.run_code(permit(engine, Command::RunCode { vm: named("a"), code })).await.unwrap();
    let started = tokio::time::timeout(SOON, session.next()).await.unwrap();
    assert!(matches!(started, Some(CodeEvent::Started { .. })), "{started:?}");
    session
}

async fn rest(mut session: CodeSession) -> Vec<CodeEvent> {
    let mut events = Vec::new();
    while let Some(event) = tokio::time::timeout(SOON, session.next()).await.expect("an event in time") {
        events.push(event);
    }
    events
}

async fn contexts(engine: &Engine) -> Vec<(String, Language, Option<u32>, bool)> {
    let listed = engine.contexts(permit(engine, Command::Inspect { vm: Some(named("a")) })).await.unwrap();
    listed.into_iter().map(|c| (c.context.to_string(), c.language, c.pid, c.busy)).collect()
}

async fn idle(engine: &Engine, context: &str) {
    let free =
        async { while contexts(engine).await.iter().any(|(name, _, _, busy)| name == context && *busy) {} };
    tokio::time::timeout(SOON, free).await.expect("the code was interrupted");
}

#[tokio::test(flavor = "multi_thread")]
async fn variables_stay_from_one_piece_of_code_to_the_next() {
    let fake = Fake::new();
    let (engine, _) = fake.running().await;
    let first = run_code(&engine, code("main", "x = 41; print('hi')")).await.unwrap();
    let [
        CodeEvent::Started { language, created: true, .. },
        CodeEvent::Output { data, .. },
        CodeEvent::Ended { interrupted: false, .. },
    ] = &first[..]
    else {
        panic!("{first:?}")
    };
    assert_eq!((*language, &data[..]), (Language::Python, &b"hi\n"[..]));
    let second = run_code(&engine, code("main", "x += 1; x")).await.unwrap();
    assert!(matches!(second[0], CodeEvent::Started { created: false, .. }), "{second:?}");
    assert_eq!(value(&engine, "main", "x").await, "42");
    assert_eq!(value(&engine, "other", "x = 1; x").await, "1", "contexts do not share variables");
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn code_is_an_operation_with_its_text_and_how_it_ended() {
    let fake = Fake::new();
    let (engine, _) = fake.running().await;
    let session = begin(&engine, code("main", "x = 1")).await;
    let id = session.operation;
    rest(session).await;
    let operation = engine.wait(id, Some(SOON)).await.unwrap();
    assert_eq!(
        (operation.kind, operation.reason.as_str()),
        (OperationKind::Context, "in context `main`: x = 1")
    );
    assert_eq!(operation.state, OperationState::Ended { outcome: OperationOutcome::Done });
    engine.shutdown(OnShutdown::LeaveVms).await;
    let store = fake.stage.record().await;
    let steps = store.steps(id).await.unwrap();
    assert_eq!(steps[0].detail["code"], "x = 1");
    assert_eq!(steps[0].detail["end"]["interrupted"], false);
    let contexts = store.contexts(operation.vm.unwrap()).await.unwrap();
    assert_eq!(contexts.len(), 1, "noted with the outcome: {contexts:?}");
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn code_whose_begin_the_disk_does_not_keep_is_interrupted_and_told_to_nobody() {
    let fake = Fake::new();
    let (engine, _) = fake.running().await;
    assert_eq!(value(&engine, "main", "x = 41; x").await, "41");
    fault::fail_syncs(engine.store()).await.unwrap();
    let told = run_code(&engine, code("main", "x = 42; x")).await.unwrap();
    let [CodeEvent::Failed(failure)] = &told[..] else { panic!("{told:?}") };
    assert_eq!(failure.code, ErrorCode::Unavailable);
    engine.shutdown(OnShutdown::LeaveVms).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_is_told_and_the_interpreter_lives_on() {
    let fake = Fake::new();
    let (engine, _) = fake.running().await;
    let events = run_code(&engine, code("main", "x = 5; fail on purpose; x = 6")).await.unwrap();
    let Some(CodeEvent::Error { name, message, .. }) = events.get(1) else { panic!("{events:?}") };
    assert_eq!((name.as_str(), message.as_str()), ("Failure", "on purpose"));
    assert!(matches!(events.last(), Some(CodeEvent::Ended { interrupted: false, .. })));
    assert_eq!(value(&engine, "main", "x").await, "5");
    let mut other = code("main", "1");
    other.language = Some(Language::Bash);
    let refused = run_code(&engine, other).await.unwrap();
    let [CodeEvent::Failed(failure)] = &refused[..] else { panic!("{refused:?}") };
    assert_eq!(failure.code, ErrorCode::InvalidArgument);
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_limit_an_interrupt_and_a_dropped_session_end_the_code_and_keep_its_variables() {
    let fake = Fake::new();
    let (engine, _) = fake.running().await;
    let mut limited = code("main", "x = 7; sleep 600; x = 8");
    limited.timeout = Some(Duration::from_millis(50));
    let events = run_code(&engine, limited).await.unwrap();
    assert!(matches!(events.last(), Some(CodeEvent::Ended { interrupted: true, .. })), "{events:?}");

    let session = begin(&engine, code("main", "sleep 600; x = 8")).await;
    session.interrupt().await.unwrap();
    let events = rest(session).await;
    assert!(matches!(events.last(), Some(CodeEvent::Ended { interrupted: true, .. })), "{events:?}");

    let session = begin(&engine, code("main", "sleep 600; x = 8")).await;
    let operation = session.operation;
    drop(session);
    idle(&engine, "main").await;
    let ended = engine.wait(operation, Some(SOON)).await.unwrap();
    assert_eq!(ended.state, OperationState::Ended { outcome: OperationOutcome::Done });
    assert_eq!(value(&engine, "main", "x").await, "7");
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn code_whose_vm_ends_is_told_so_and_is_not_run_again() {
    let fake = Fake::new();
    let (engine, id) = fake.running().await;
    let session = begin(&engine, code("main", "sleep 600")).await;
    assert!(fake.host.kill_vmm(id));
    let events = rest(session).await;
    let [CodeEvent::Failed(failure)] = &events[..] else { panic!("{events:?}") };
    assert!(matches!(failure.code, ErrorCode::Interrupted | ErrorCode::Guest), "{failure:?}");
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_never_interrupts_is_given_up_by_the_host() {
    let fake = Fake::with(|stage| stage.deadlines.exec_backstop = Duration::from_millis(50));
    let (engine, id) = fake.running().await;
    let mut limited = code("main", "sleep 600");
    limited.timeout = Some(Duration::from_millis(100));
    let session = begin(&engine, limited).await;
    // It stands still with its CPUs: nothing it is told to do is done.
    run(&engine, Command::Pause { vm: VmRef::Id(id) }).await.unwrap();
    let began = Instant::now();
    let events = rest(session).await;
    let [CodeEvent::Failed(failure)] = &events[..] else { panic!("{events:?}") };
    assert_eq!(failure.code, ErrorCode::Timeout, "{failure:?}");
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_record_follows_what_the_guest_lists() {
    let fake = Fake::new();
    let (engine, id) = fake.running().await;
    let remove = |name: &str| Command::RemoveContext { vm: named("a"), context: name.parse().unwrap() };
    let restart = |name: &str| Command::RestartContext { vm: named("a"), context: name.parse().unwrap() };
    value(&engine, "py", "x = 1; x").await;
    let mut bash = code("sh", "1");
    bash.language = Some(Language::Bash);
    run_code(&engine, bash).await.unwrap();
    let listed = contexts(&engine).await;
    assert_eq!(
        listed.iter().map(|(name, language, ..)| (name.as_str(), *language)).collect::<Vec<_>>(),
        [("py", Language::Python), ("sh", Language::Bash)]
    );
    assert!(listed.iter().all(|(_, _, pid, busy)| pid.is_some() && !busy), "{listed:?}");

    engine.restart_context(permit(&engine, restart("py"))).await.unwrap();
    let events = run_code(&engine, code("py", "x")).await.unwrap();
    assert!(matches!(events[1], CodeEvent::Error { .. }), "its variables are gone: {events:?}");
    engine.remove_context(permit(&engine, remove("sh"))).await.unwrap();
    let missing = engine.remove_context(permit(&engine, remove("sh"))).await.unwrap_err();
    assert_eq!(missing.code, ErrorCode::NotFound);
    assert_eq!(contexts(&engine).await.len(), 1);

    // Paused, the guest cannot be asked: the record tells.
    run(&engine, Command::Pause { vm: VmRef::Id(id) }).await.unwrap();
    assert_eq!(contexts(&engine).await, [("py".to_owned(), Language::Python, None, false)]);
    run(&engine, Command::Resume { vm: VmRef::Id(id) }).await.unwrap();
    // A VM that boots has none, whatever was noted.
    run(&engine, Command::Restart { vm: VmRef::Id(id), grace: GRACE }).await.unwrap();
    assert_eq!(contexts(&engine).await, []);
    let operations = engine
        .operations(permit(&engine, Command::Inspect { vm: Some(named("a")) }), OperationPage::default())
        .await
        .unwrap();
    let failed = operations
        .iter()
        .filter(|o| o.kind == OperationKind::Context)
        .filter(|o| matches!(&o.state, OperationState::Ended { outcome: OperationOutcome::Failed { .. } }));
    assert_eq!(failed.count(), 1, "only the removal of what was not there");
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn code_of_a_daemon_that_died_is_recorded_as_interrupted_and_its_context_lives() {
    let fake = Fake::new();
    let (engine, _) = fake.running().await;
    value(&engine, "main", "x = 3; x").await;
    let session = begin(&engine, code("main", "sleep 600")).await;
    let operation = session.operation;
    engine.crash().await;
    drop(session);
    let engine = fake.stage.engine().await;
    let ended = engine.wait(operation, Some(SOON)).await.unwrap();
    // Recorded by whoever saw it first: the dying daemon's pump, or the next daemon.
    let OperationState::Ended { outcome } = &ended.state else { panic!("{ended:?}") };
    assert_ne!(*outcome, OperationOutcome::Done);
    assert_eq!(value(&engine, "main", "x").await, "3");
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn code_that_raised_an_error_is_a_failure_to_go_back_before() {
    let fake = Fake::new();
    let (engine, _) = fake.running().await;
    value(&engine, "main", "x = 1; x").await;
    let keep = || Command::Snapshot { vm: named("a"), name: None, kind: SnapshotKind::Full, note: None };
    let good = engine.snapshot(permit(&engine, keep())).await.unwrap();
    let session = begin(&engine, code("main", "x = 2; fail")).await;
    let operation = session.operation;
    rest(session).await;
    engine.wait(operation, Some(SOON)).await.unwrap();
    engine.snapshot(permit(&engine, keep())).await.unwrap();
    let command = Command::Rollback { vm: named("a"), to: RollbackTo::LastGood };
    let report = engine.rollback(permit(&engine, command)).await.unwrap();
    assert_eq!(report.to, good.id, "not the newer one, which holds what failed");
    assert_eq!(value(&engine, "main", "x").await, "1");
    leave(engine).await;
}
