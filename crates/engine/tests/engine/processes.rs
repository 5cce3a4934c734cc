//! Processes found by pid or tag, followed by several, across suspends, forks, rollbacks and restarts.

use crate::stage::*;
use offshoot_engine::{Engine, ExecEvent, ExecEvents, ExecState, ExecView, ProcessSelector};
use offshoot_types::{
    Command, ErrorCode, ExecId, ExecStatus, Failure, ForkSource, RollbackTo, SnapshotRef, VmId,
};
use std::time::Duration;
use tokio::time::timeout;

/// A `cat` that runs unattended, with a tag.
async fn cat(engine: &Engine, vm: &str) -> (ExecId, u32) {
    let mut spec = argv(&["cat"]);
    (spec.stdin, spec.tag) = (true, Some("the cat".into()));
    let mut session = engine.exec(permit(engine, Command::Exec { vm: named(vm), spec })).await.unwrap();
    let Some(ExecEvent::Started { pid }) = session.next().await else { panic!("it starts") };
    let exec = session.exec;
    session.detach();
    (exec, pid)
}

fn inspect(vm: &str) -> Command {
    Command::Inspect { vm: Some(named(vm)) }
}

async fn find(engine: &Engine, vm: &str, which: ProcessSelector) -> Result<ExecView, Failure> {
    engine.find_process(permit(engine, inspect(vm)), which).await
}

async fn follow(engine: &Engine, vm: &str, exec: ExecId, replay: bool) -> ExecEvents {
    let mut events =
        engine.follow(permit(engine, Command::Attach { vm: named(vm), exec }), replay).await.unwrap();
    assert!(matches!(next(&mut events).await, ExecEvent::Started { .. }));
    events
}

async fn next(events: &mut ExecEvents) -> ExecEvent {
    timeout(Duration::from_secs(30), events.next()).await.expect("an event in time").expect("an event")
}

/// Output until it is as long as `text`.
async fn says(events: &mut ExecEvents, text: &str) {
    let mut seen = Vec::new();
    while seen.len() < text.len() {
        match next(events).await {
            ExecEvent::Output { data, .. } => seen.extend_from_slice(&data),
            other => panic!("{other:?} where {text:?} was due"),
        }
    }
    assert_eq!(String::from_utf8(seen).unwrap(), text);
}

async fn type_in(engine: &Engine, vm: &str, exec: ExecId, text: &str) {
    let input = engine.process_input(permit(engine, Command::Attach { vm: named(vm), exec })).await.unwrap();
    input.stdin(text.to_owned().into()).await.unwrap();
}

async fn end(engine: &Engine, vm: &str, exec: ExecId) {
    let input = engine.process_input(permit(engine, Command::Attach { vm: named(vm), exec })).await.unwrap();
    input.end_stdin().await.unwrap();
}

async fn ended(events: &mut ExecEvents) -> ExecStatus {
    match next(events).await {
        ExecEvent::Ended(end) => end.status,
        other => panic!("{other:?}"),
    }
}

async fn stage() -> (Stage, Engine, VmId) {
    let stage = Stage::new();
    let engine = stage.engine().await;
    let id = create_running(&engine, "a").await;
    (stage, engine, id)
}

#[tokio::test(flavor = "multi_thread")]
async fn several_follow_one_process_and_any_of_them_gives_it_input() {
    let (_stage, engine, _) = stage().await;
    let (exec, pid) = cat(&engine, "a").await;
    let mut first = follow(&engine, "a", exec, false).await;
    type_in(&engine, "a", exec, "one").await;
    says(&mut first, "one").await;
    let mut second = follow(&engine, "a", exec, false).await;
    let mut all = follow(&engine, "a", exec, true).await;
    type_in(&engine, "a", exec, "two").await;
    for events in [&mut first, &mut second] {
        says(events, "two").await;
    }
    says(&mut all, "onetwo").await;
    drop(first);
    let found = find(&engine, "a", ProcessSelector::Pid(pid)).await.unwrap();
    assert_eq!((found.id, &found.state), (exec, &ExecState::Running));
    end(&engine, "a", exec).await;
    assert_eq!(ended(&mut second).await, ExecStatus::Exited(0));
    assert_eq!(ended(&mut all).await, ExecStatus::Exited(0));

    // One that has ended is found, told to be so to whoever follows, and takes nothing.
    // Those who follow may hear of its end before it is noted.
    let noted = async {
        loop {
            let found = find(&engine, "a", ProcessSelector::Tag("the cat".into())).await.unwrap();
            if found.state != ExecState::Running {
                return found.state;
            }
            tokio::task::yield_now().await;
        }
    };
    let noted = timeout(Duration::from_secs(30), noted).await.expect("its end is noted in time");
    assert_eq!(noted, ExecState::Ended(ExecStatus::Exited(0)));
    let mut late = follow(&engine, "a", exec, false).await;
    assert_eq!(ended(&mut late).await, ExecStatus::Exited(0), "nothing of before");
    let refused = engine.process_input(permit(&engine, Command::Attach { vm: named("a"), exec })).await;
    assert_eq!(refused.unwrap_err().code, ErrorCode::NotFound);
    assert_eq!(engine.processes(permit(&engine, inspect("a"))).await.unwrap(), []);
    let unknown = find(&engine, "a", ProcessSelector::Pid(4711)).await.unwrap_err();
    assert_eq!(unknown.code, ErrorCode::NotFound);
    assert!(unknown.message.contains("process 4711"), "{unknown:?}");
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_reads_nothing_costs_the_others_nothing_but_time() {
    let (_stage, engine, _) = stage().await;
    let (exec, _) = cat(&engine, "a").await;
    let idle = follow(&engine, "a", exec, false).await;
    let mut reader = follow(&engine, "a", exec, false).await;
    for _ in 0..64 {
        type_in(&engine, "a", exec, &"x".repeat(32 * 1024)).await;
        says(&mut reader, &"x".repeat(32 * 1024)).await;
    }
    drop(idle);
    end(&engine, "a", exec).await;
    assert_eq!(ended(&mut reader).await, ExecStatus::Exited(0));
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_is_the_same_after_its_vm_was_suspended_and_resumed() {
    let (_stage, engine, _) = stage().await;
    let (exec, pid) = cat(&engine, "a").await;
    let mut before = follow(&engine, "a", exec, false).await;
    type_in(&engine, "a", exec, "one").await;
    says(&mut before, "one").await;
    run(&engine, Command::Suspend { vm: named("a") }).await.unwrap();
    assert!(matches!(next(&mut before).await, ExecEvent::Failed(_)), "who followed it is told");
    run(&engine, Command::Resume { vm: named("a") }).await.unwrap();
    let found = find(&engine, "a", ProcessSelector::Pid(pid)).await.unwrap();
    assert_eq!((found.id, &found.state), (exec, &ExecState::Running));
    assert_eq!(found.spec.tag.as_deref(), Some("the cat"));
    let mut all = follow(&engine, "a", exec, true).await;
    let mut new = follow(&engine, "a", exec, false).await;
    type_in(&engine, "a", exec, "two").await;
    says(&mut all, "onetwo").await;
    says(&mut new, "two").await;
    end(&engine, "a", exec).await;
    assert_eq!(ended(&mut all).await, ExecStatus::Exited(0));
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_has_its_sources_processes_and_they_are_its_own() {
    let (_stage, engine, _) = stage().await;
    let (exec, pid) = cat(&engine, "a").await;
    let mut before = follow(&engine, "a", exec, false).await;
    type_in(&engine, "a", exec, "before").await;
    says(&mut before, "before").await;
    fork(&engine, ForkSource::Vm(named("a")), None, 1).await.unwrap();
    let listed = engine.processes(permit(&engine, inspect("a-1"))).await.unwrap();
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert_eq!((listed[0].pid, listed[0].spec.tag.as_deref()), (Some(pid), Some("the cat")));
    let mut copy = follow(&engine, "a-1", exec, false).await;
    type_in(&engine, "a-1", exec, "copy").await;
    says(&mut copy, "copy").await;
    end(&engine, "a-1", exec).await;
    assert_eq!(ended(&mut copy).await, ExecStatus::Exited(0));
    let original = find(&engine, "a", ProcessSelector::Pid(pid)).await.unwrap();
    assert_eq!(original.state, ExecState::Running);
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_brings_back_a_process_that_had_ended() {
    let (_stage, engine, _) = stage().await;
    let (exec, pid) = cat(&engine, "a").await;
    let kept = snapshot(&engine, "a", Some("before")).await.unwrap();
    let mut events = follow(&engine, "a", exec, false).await;
    end(&engine, "a", exec).await;
    assert_eq!(ended(&mut events).await, ExecStatus::Exited(0));
    rollback(&engine, "a", RollbackTo::Snapshot(SnapshotRef::Id(kept.id))).await.unwrap();
    let found = find(&engine, "a", ProcessSelector::Pid(pid)).await.unwrap();
    assert_eq!((found.id, &found.state), (exec, &ExecState::Running));
    let mut again = follow(&engine, "a", exec, false).await;
    type_in(&engine, "a", exec, "again").await;
    says(&mut again, "again").await;
    leave(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_outlives_the_daemon_with_its_tag() {
    let (stage, engine, _) = stage().await;
    let (exec, _) = cat(&engine, "a").await;
    let mut before = follow(&engine, "a", exec, false).await;
    type_in(&engine, "a", exec, "before").await;
    says(&mut before, "before").await;
    leave(engine).await;
    let engine = stage.engine().await;
    let found = find(&engine, "a", ProcessSelector::Tag("the cat".into())).await.unwrap();
    assert_eq!((found.id, &found.state), (exec, &ExecState::Running));
    let mut events = follow(&engine, "a", exec, false).await;
    type_in(&engine, "a", exec, "still there").await;
    says(&mut events, "still there").await;
    leave(engine).await;
}
