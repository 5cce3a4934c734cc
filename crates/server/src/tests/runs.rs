//! `/v1/run`: a VM that lives no longer than its request.

use super::fixture::{Daemon, PATIENCE, Place, follow, refused, run, shell};
use offshoot_api::{
    client::ExecEvent,
    v1::{ExitStatus, Output, ProgressState, RunFile, RunRequest, StepProgress},
};
use offshoot_types::{ErrorCode, VmStateName};
use std::time::Duration;
use tokio::time::timeout;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_creates_boots_runs_and_leaves_nothing() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    let mut connection = daemon.client.run(&run("echo from a fresh vm")).await.unwrap();
    let followed = follow(&mut connection).await.unwrap();
    assert_eq!(followed.steps, ["create Begun", "create Done", "boot Begun", "boot Done"]);
    assert_eq!(followed.stdout, b"from a fresh vm\n");
    assert_eq!(followed.ended.status, ExitStatus::Exited { code: 0 });
    let durations = followed.ended.durations;
    assert!(durations.create_ms.is_some() && durations.boot_ms.is_some());
    assert!(daemon.client.vms().await.unwrap().vms.is_empty(), "it is gone when the events are over");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kept_run_leaves_its_vm_running_under_its_name() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    let request = RunRequest { keep: true, name: Some("kept".into()), ..run("exit 3") };
    let mut connection = daemon.client.run(&request).await.unwrap();
    let followed = follow(&mut connection).await.unwrap();
    assert_eq!(followed.ended.status, ExitStatus::Exited { code: 3 });
    let vms = daemon.client.vms().await.unwrap().vms;
    assert_eq!((vms.len(), vms[0].name.as_str(), vms[0].state), (1, "kept", VmStateName::Running));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_leaves_a_run_at_any_moment_leaves_nothing_behind() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    // At once; after the first step began; after each further step; while the process runs.
    for events in 0..6 {
        let mut connection = daemon.client.run(&run("sleep 1000")).await.unwrap();
        for _ in 0..events {
            timeout(PATIENCE, connection.events.next()).await.unwrap().unwrap();
        }
        drop(connection);
    }
    daemon.until_vms(<[_]>::is_empty).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_cannot_be_is_told_why_and_leaves_nothing() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    let cases = [
        (RunRequest { image: Some("nosuch".into()), ..run("true") }, ErrorCode::NotFound),
        (RunRequest { memory_mib: Some(1), ..run("true") }, ErrorCode::InvalidArgument),
        (RunRequest::default(), ErrorCode::InvalidArgument),
        (run("frobnicate"), ErrorCode::ExecFailed),
    ];
    for (request, code) in cases {
        let mut connection = daemon.client.run(&request).await.unwrap();
        refused(follow(&mut connection).await.map(|followed| followed.ended), code);
    }
    daemon.until_vms(<[_]>::is_empty).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_a_run_are_there_before_its_process() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    let file = RunFile { path: "/workspace/a/b".into(), mode: None, content: Output::Utf8("x".into()) };
    let request = RunRequest { files: vec![file], keep: true, name: Some("web".into()), ..run("true") };
    let mut connection = daemon.client.run(&request).await.unwrap();
    let followed = follow(&mut connection).await.unwrap();
    assert!(followed.steps.contains(&"files Done".to_owned()), "{:?}", followed.steps);
    let stat = offshoot_api::v1::StatQuery { path: "/workspace/a/b".into(), ..Default::default() };
    assert_eq!(daemon.client.stat_file(&"web".parse().unwrap(), &stat).await.unwrap().size, 1);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_ends_in_the_middle_says_so_and_destroys_the_vm() {
    let place = Place::new();
    let mut options = place.options(offshoot_api::v1::DaemonMode::Explicit);
    options.drain = Duration::from_millis(100);
    let daemon = place.start(options).await;
    let request = RunRequest { exec: shell("sleep 1000"), ..RunRequest::default() };
    let mut connection = daemon.client.run(&request).await.unwrap();
    while !matches!(
        timeout(PATIENCE, connection.events.next()).await.unwrap().unwrap(),
        Some(ExecEvent::Started(_))
    ) {}
    daemon.client.stop_daemon(&Default::default()).await.unwrap();
    refused(follow(&mut connection).await.map(|followed| followed.ended), ErrorCode::Interrupted);
    drop(connection);
    daemon.end().await;
    let daemon = Daemon::explicit(&place).await;
    daemon.until_vms(<[_]>::is_empty).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_step_is_told_with_its_duration() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    let mut connection = daemon.client.run(&run("true")).await.unwrap();
    let mut steps: Vec<StepProgress> = Vec::new();
    while let Some(event) = timeout(PATIENCE, connection.events.next()).await.unwrap().unwrap() {
        if let ExecEvent::Progress(step) = event {
            steps.push(step);
        }
    }
    for pair in steps.chunks(2) {
        let [begun, done] = pair else { panic!("{steps:?}") };
        assert_eq!((begun.state, begun.duration_ms), (ProgressState::Begun, None));
        assert_eq!((done.state, done.duration_ms.is_some()), (ProgressState::Done, true));
    }
    daemon.stop().await;
}
