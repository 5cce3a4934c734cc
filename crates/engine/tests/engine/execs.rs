//! Processes in guests: streams, loss of the channel, time limits, who gets the output.

use crate::stage::*;
use offshoot_engine::{AttachFrom, Engine, ExecEvent, ExecSession, ExecState, OnShutdown};
use offshoot_store::fault;
use offshoot_types::{
    Command, ErrorCode, ExecSpec, ExecStatus, OperationOutcome, OperationState, VmRef, VmStateName,
};
use std::time::{Duration, Instant};

async fn running() -> (Stage, Engine, offshoot_types::VmId) {
    let stage = Stage::new();
    let engine = stage.engine().await;
    let id = create_running(&engine, "a").await;
    (stage, engine, id)
}

async fn exec_spec(engine: &Engine, spec: Box<ExecSpec>) -> ExecSession {
    engine.exec(permit(engine, Command::Exec { vm: named("a"), spec })).await.unwrap()
}

fn status(end: &ExecEvent) -> ExecStatus {
    match end {
        ExecEvent::Ended(end) => end.status,
        other => panic!("{other:?}"),
    }
}

async fn started(session: &mut ExecSession) {
    assert!(matches!(session.next().await, Some(ExecEvent::Started { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn output_and_status_pass_through_and_the_outcome_is_recorded() {
    let (_stage, engine, _) = running().await;
    let session = exec(&engine, "a", &["echo", "hello"]).await.unwrap();
    let operation = session.operation;
    let (text, end) = output(session).await;
    assert_eq!((text.as_slice(), status(&end)), (&b"hello"[..], ExecStatus::Exited(0)));
    let recorded = engine.wait(operation, Some(Duration::from_secs(5))).await.unwrap();
    assert_eq!(recorded.state, OperationState::Ended { outcome: OperationOutcome::Done });
    assert_eq!(recorded.reason, "run as root: echo hello");

    let (_, end) = output(exec(&engine, "a", &["exit", "7"]).await.unwrap()).await;
    assert_eq!(status(&end), ExecStatus::Exited(7));
    let (_, end) = output(exec(&engine, "a", &["nonesuch"]).await.unwrap()).await;
    let ExecEvent::Failed(failure) = end else { panic!("{end:?}") };
    assert_eq!(failure.code, ErrorCode::ExecFailed);
    assert!(failure.message.contains("exec nonesuch: no such program"), "{failure:?}");
    leave(engine).await;
}

/// The guest begins before the record of that is on disk. Nobody hears of it if it never gets there.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_disk_does_not_keep_is_ended_and_told_to_nobody() {
    let (stage, engine, id) = running().await;
    fault::fail_syncs(engine.store()).await.unwrap();
    let mut session = exec(&engine, "a", &["sleep", "1000"]).await.unwrap();
    let told = session.next().await;
    let Some(ExecEvent::Failed(failure)) = told else { panic!("{told:?}") };
    assert_eq!(failure.code, ErrorCode::Unavailable);
    let guest = stage.host.process(id).guest.clone();
    eventually("the process was killed", || guest.running() == 0).await;
    // From here on nothing is begun at all.
    let refused = exec(&engine, "a", &["echo", "hello"]).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Unavailable);
    engine.shutdown(OnShutdown::LeaveVms).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_channel_is_not_seen_by_the_caller() {
    let (stage, engine, id) = running().await;
    // More than all buffers together hold, so that the loss falls in the middle.
    let mut session = exec(&engine, "a", &["spam", "8000000"]).await.unwrap();
    started(&mut session).await;
    let mut seen = 0;
    let mut cuts = 0;
    loop {
        match session.next().await.unwrap() {
            ExecEvent::Output { offset, data, .. } => {
                assert_eq!(offset, seen, "nothing twice, nothing left out");
                seen += data.len() as u64;
                if cuts < 3 && seen > (cuts + 1) * 2_000_000 {
                    stage.host.process(id).cut_channel();
                    cuts += 1;
                }
            }
            ExecEvent::Ended(end) => {
                assert_eq!(end.status, ExecStatus::Exited(0));
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((seen, cuts), (8_000_000, 3));
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn input_that_may_be_lost_with_the_channel_fails_rather_than_leaves_a_gap() {
    let (stage, engine, id) = running().await;
    let mut spec = argv(&["cat"]);
    spec.stdin = true;
    let mut session = exec_spec(&engine, spec).await;
    started(&mut session).await;
    session.input().stdin("some".into()).await.unwrap();
    session.next().await.unwrap();
    stage.host.process(id).cut_channel();
    let ExecEvent::Failed(failure) = session.next().await.unwrap() else { panic!() };
    assert!(failure.message.contains("while input was being sent"), "{failure:?}");
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_session_kills_its_process_and_a_detached_one_leaves_it() {
    let (stage, engine, id) = running().await;
    let guest = stage.host.process(id).guest.clone();
    let mut dropped = exec(&engine, "a", &["sleep"]).await.unwrap();
    started(&mut dropped).await;
    drop(dropped);
    eventually("the process was killed", || guest.running() == 0).await;

    let mut detached = exec(&engine, "a", &["cat"]).await.unwrap();
    started(&mut detached).await;
    let exec_id = detached.exec;
    detached.detach();
    let attach = || permit(&engine, Command::Attach { vm: named("a"), exec: exec_id });
    let mut first = engine.attach(attach(), AttachFrom::default()).await.unwrap();
    let second = engine.attach(attach(), AttachFrom::default()).await.unwrap();
    assert_eq!(first.next().await, Some(ExecEvent::Detached), "one session at a time has the streams");
    second.input().stdin("x".into()).await.unwrap();
    second.input().end_stdin().await.unwrap();
    let (text, end) = output(second).await;
    assert_eq!((text.as_slice(), status(&end)), (&b"x"[..], ExecStatus::Exited(0)));
    // An ended process can still be read for a while.
    let again = engine.attach(attach(), AttachFrom::default()).await.unwrap();
    assert_eq!(output(again).await.0, b"x");
    let listed = engine.execs(permit(&engine, Command::Inspect { vm: Some(named("a")) })).await.unwrap();
    assert_eq!(listed[0].state, ExecState::Ended(ExecStatus::Exited(0)));
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_reach_a_process_and_overtake_input_it_does_not_read() {
    let (_stage, engine, _) = running().await;
    let session = exec(&engine, "a", &["sleep"]).await.unwrap();
    session.input().signal(15).await.unwrap();
    assert_eq!(status(&output(session).await.1), ExecStatus::Signaled(15));

    let mut spec = argv(&["deaf"]);
    spec.stdin = true;
    let mut session = exec_spec(&engine, spec).await;
    started(&mut session).await;
    let input = session.input().clone();
    let flood = tokio::spawn(async move { while input.stdin(vec![0; 64 * 1024].into()).await.is_ok() {} });
    tokio::time::sleep(Duration::from_millis(100)).await;
    session.input().kill().await.unwrap();
    assert_eq!(status(&output(session).await.1), ExecStatus::Signaled(9));
    tokio::time::timeout(Duration::from_secs(5), flood).await.unwrap().unwrap();
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_limit_is_the_guests_to_enforce_and_the_hosts_if_the_guest_is_silent() {
    let (stage, engine, id) = running().await;
    let limited = |program| {
        let mut spec = argv(&[program]);
        spec.limits.timeout = Some(Duration::from_millis(200));
        spec
    };
    let (_, end) = output(exec_spec(&engine, limited("sleep")).await).await;
    assert_eq!(status(&end), ExecStatus::TimedOut);

    let mut session = exec_spec(&engine, limited("deaf")).await;
    started(&mut session).await;
    stage.host.process(id).guest.set_mute(true);
    let began = Instant::now();
    let ExecEvent::Failed(failure) = session.next().await.unwrap() else { panic!() };
    assert_eq!(failure.code, ErrorCode::Timeout);
    assert!(failure.message.contains("did not end the process when its time was up"), "{failure:?}");
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_reads_nothing_holds_up_nobody_else() {
    let (_stage, engine, _) = running().await;
    let mut idle = exec(&engine, "a", &["spam", "20000000"]).await.unwrap();
    started(&mut idle).await;
    for _ in 0..20 {
        let session = exec(&engine, "a", &["true"]).await.unwrap();
        let done = tokio::time::timeout(Duration::from_secs(5), output(session)).await.unwrap();
        assert_eq!(status(&done.1), ExecStatus::Exited(0));
    }
    drop(idle);
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_is_answered_when_its_vm_stops_or_is_destroyed() {
    let (_stage, engine, id) = running().await;
    for command in [Command::Stop { vm: VmRef::Id(id), grace: GRACE }, Command::Destroy { vm: VmRef::Id(id) }]
    {
        run(&engine, Command::Start { vm: VmRef::Id(id) }).await.unwrap();
        let mut session = exec(&engine, "a", &["cat"]).await.unwrap();
        started(&mut session).await;
        let (ended, done) = tokio::join!(output(session), run(&engine, command));
        done.unwrap();
        let ExecEvent::Failed(failure) = ended.1 else { panic!("{:?}", ended.1) };
        assert!(failure.message.contains("VM `a` ended while this was running"), "{failure:?}");
        assert!(!failure.message.contains("PoweredOff"), "words, not names from the code: {failure:?}");
    }
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_in_a_vm_that_does_not_run_names_the_state_and_the_remedy() {
    let stage = Stage::new();
    let engine = stage.engine().await;
    create(&engine, "a").await;
    let refused = exec(&engine, "a", &["true"]).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::WrongState);
    assert_eq!(refused.message, "VM `a` is stopped; start it with `offshoot start a`");
    assert_eq!(wait_for(&engine, "a", &[VmStateName::Stopped], Duration::ZERO).await.generation.0, 2);
    leave(engine).await;
}
