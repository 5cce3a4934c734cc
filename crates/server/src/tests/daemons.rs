//! Whose the state directory is, and how it changes hands.

use super::fixture::{Daemon, PATIENCE, Place, refused, vm};
use offshoot_api::{
    ClientError,
    v1::{DaemonMode, StartReport, StopDaemon},
};
use offshoot_types::{ErrorCode, VmStateName};
use std::time::Duration;
use tokio::time::timeout;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_says_who_it_is_and_leaves_nothing_but_its_state() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    let told = daemon.client.daemon().await.unwrap();
    assert_eq!((told.record.pid, told.record.mode), (std::process::id(), DaemonMode::Explicit));
    assert_eq!(told.connections, 1);
    let record = crate::read_daemon_record(&place.state_dir()).unwrap();
    assert_eq!(record, told.record);
    assert_eq!(record.socket, place.socket());
    daemon.stop().await;
    assert!(!place.socket().parent().unwrap().exists(), "neither socket nor directory is left");
    assert!(crate::read_daemon_record(&place.state_dir()).is_none());
    let nobody = place.client().health().await.unwrap_err();
    assert!(matches!(nobody, ClientError::NotRunning { .. }), "{nobody:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_outlives_its_daemon_and_is_adopted_by_the_next() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    let before = daemon.boot("web").await;
    daemon.stop().await;
    let daemon = Daemon::explicit(&place).await;
    let after = daemon.client.vm(&vm("web")).await.unwrap();
    assert_eq!((after.id, after.state), (before.id, VmStateName::Running));
    assert_eq!(after.started_at, before.started_at, "the same process");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stop_with_vms_stops_them_too() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    daemon.boot("web").await;
    daemon.client.stop_daemon(&StopDaemon { vms: true, handover: false }).await.unwrap();
    daemon.end().await;
    let daemon = Daemon::explicit(&place).await;
    assert_eq!(daemon.client.vm(&vm("web")).await.unwrap().state, VmStateName::Stopped);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_explicit_daemon_takes_over_from_an_autostarted_one_with_its_vms() {
    let place = Place::new();
    let autostarted = place.start(place.options(DaemonMode::Autostarted)).await;
    let before = autostarted.boot("web").await;
    let explicit = Daemon::explicit(&place).await;
    autostarted.end().await;
    assert_eq!(explicit.client.daemon().await.unwrap().record.mode, DaemonMode::Explicit);
    let after = explicit.client.vm(&vm("web")).await.unwrap();
    assert_eq!((after.id, after.state), (before.id, VmStateName::Running));
    explicit.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_explicit_daemon_is_refused_and_the_first_serves_on() {
    let place = Place::new();
    let first = Daemon::explicit(&place).await;
    let (report, second) = place.launch(place.options(DaemonMode::Explicit)).await;
    let StartReport::Failed(problem) = report else { panic!("{report:?}") };
    assert_eq!(problem.code, ErrorCode::Busy);
    assert!(problem.message.contains(&std::process::id().to_string()), "{}", problem.message);
    assert_eq!(second.await.unwrap().unwrap_err().0.code, ErrorCode::Busy);
    first.client.health().await.unwrap();
    let handover = StopDaemon { vms: false, handover: true };
    refused(first.client.stop_daemon(&handover).await, ErrorCode::Busy);
    first.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_superfluous_autostarted_daemon_reports_the_one_that_serves() {
    let place = Place::new();
    let first = Daemon::explicit(&place).await;
    let (report, second) = place.launch(place.options(DaemonMode::Autostarted)).await;
    assert_eq!(report, StartReport::Ready { pid: std::process::id(), socket: place.socket() });
    second.await.unwrap().unwrap();
    first.client.health().await.unwrap();
    first.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_autostarted_daemon_leaves_when_idle_but_not_while_a_vm_runs_or_a_caller_is_there() {
    let place = Place::new();
    let mut options = place.options(DaemonMode::Autostarted);
    options.idle_timeout = Duration::from_millis(300);
    let daemon = place.start(options).await;
    daemon.boot("web").await;
    // Reading the VM opens a connection each time; between two there is nothing but the VM to keep it.
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(400)).await;
        let fresh = place.client();
        assert_eq!(fresh.vm(&vm("web")).await.unwrap().state, VmStateName::Running);
    }
    let leaving = place.client();
    leaving.stop(&vm("web"), &Default::default()).await.unwrap();
    drop(leaving);
    timeout(PATIENCE, daemon.end()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_fails_says_why_on_the_pipe() {
    let place = Place::new();
    let mut options = place.options(DaemonMode::Explicit);
    let file = place.state_dir().with_extension("file");
    std::fs::write(&file, "in the way").unwrap();
    options.state_dir = file;
    let (report, task) = place.launch(options).await;
    let StartReport::Failed(problem) = report else { panic!("{report:?}") };
    assert_eq!(problem.code, ErrorCode::Unavailable);
    assert!(problem.hint.is_some_and(|hint| hint.contains("--state-dir")));
    assert!(task.await.unwrap().is_err());
}
