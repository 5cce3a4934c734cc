//! Processes through the WebSocket, and collected.

use super::fixture::{Daemon, PATIENCE, Place, follow, patient, refused, shell, vm};
use bytes::Bytes;
use offshoot_api::{
    client::{ExecConnection, ExecEvent},
    v1::{
        AttachQuery, CollectRequest, ExecLimits, ExecRequest, ExecStateName, ExitStatus, Output, Started,
        Stream,
    },
};
use offshoot_types::ErrorCode;
use tokio::time::timeout;

async fn started(connection: &mut ExecConnection) -> Started {
    match timeout(PATIENCE, connection.events.next()).await.unwrap().unwrap() {
        Some(ExecEvent::Started(started)) => started,
        other => panic!("expected `started`, got {other:?}"),
    }
}

fn reading(script: &str) -> ExecRequest {
    ExecRequest { stdin: true, ..shell(script) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_and_exit_status_come_through() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    daemon.boot("web").await;
    let mut connection = daemon.client.exec(&vm("web"), &shell("echo hello world")).await.unwrap();
    let told = started(&mut connection).await;
    assert_eq!(told.vm_name.as_str(), "web");
    assert!(told.guest_kernel.is_some());
    let followed = follow(&mut connection).await.unwrap();
    assert_eq!(followed.stdout, b"hello world\n");
    assert_eq!(followed.ended.status, ExitStatus::Exited { code: 0 });
    let mut failing = daemon.client.exec(&vm("web"), &shell("exit 7")).await.unwrap();
    assert_eq!(follow(&mut failing).await.unwrap().ended.status, ExitStatus::Exited { code: 7 });
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_is_not_there_is_a_failure_and_not_an_exit_status() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    daemon.boot("web").await;
    let mut connection = daemon.client.exec(&vm("web"), &shell("frobnicate")).await.unwrap();
    let followed = follow(&mut connection).await.map(|followed| followed.ended);
    assert!(refused(followed, ErrorCode::ExecFailed).message.contains("frobnicate"));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stdin_reaches_the_process_and_megabytes_come_back_unchanged() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    daemon.boot("web").await;
    let mut connection = daemon.client.exec(&vm("web"), &reading("cat")).await.unwrap();
    started(&mut connection).await;
    // The fake keeps one mebibyte for slow readers, so each piece is awaited before the next.
    for piece in 0..64_u8 {
        let data: Vec<u8> = (0..128 * 1024).map(|index| (index as u8).wrapping_mul(31) ^ piece).collect();
        connection.input.stdin(Bytes::from(data.clone())).await.unwrap();
        let mut back = Vec::new();
        while back.len() < data.len() {
            match timeout(PATIENCE, connection.events.next()).await.unwrap().unwrap() {
                Some(ExecEvent::Output(Stream::Stdout, bytes)) => back.extend_from_slice(&bytes),
                other => panic!("{other:?}"),
            }
        }
        assert!(back == data, "piece {piece} differs");
    }
    connection.input.stdin_end().await.unwrap();
    assert_eq!(follow(&mut connection).await.unwrap().ended.status, ExitStatus::Exited { code: 0 });
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_is_signalled_killed_and_timed_out() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    daemon.boot("web").await;
    let mut signalled = daemon.client.exec(&vm("web"), &shell("sleep 1000")).await.unwrap();
    started(&mut signalled).await;
    signalled.input.signal(15).await.unwrap();
    assert_eq!(follow(&mut signalled).await.unwrap().ended.status, ExitStatus::Signaled { signal: 15 });
    let mut killed = daemon.client.exec(&vm("web"), &shell("sleep 1000")).await.unwrap();
    started(&mut killed).await;
    killed.input.kill().await.unwrap();
    assert_eq!(follow(&mut killed).await.unwrap().ended.status, ExitStatus::Signaled { signal: 9 });
    let limits = ExecLimits { timeout_ms: Some(50), ..ExecLimits::default() };
    let slow = ExecRequest { limits, ..shell("sleep 1000") };
    let mut late = daemon.client.exec(&vm("web"), &slow).await.unwrap();
    assert_eq!(follow(&mut late).await.unwrap().ended.status, ExitStatus::TimedOut);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_makes_no_sense_ends_the_session_with_the_fields_name() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    daemon.boot("web").await;
    let mut connection = daemon.client.exec(&vm("web"), &shell("sleep 1000")).await.unwrap();
    started(&mut connection).await;
    connection.input.signal(99).await.unwrap();
    let followed = follow(&mut connection).await.map(|followed| followed.ended);
    assert!(refused(followed, ErrorCode::InvalidArgument).message.contains("`signal`"));
    let empty = ExecRequest::default();
    let mut nothing = daemon.client.exec(&vm("web"), &empty).await.unwrap();
    let followed = follow(&mut nothing).await.map(|followed| followed.ended);
    assert!(refused(followed, ErrorCode::InvalidArgument).message.contains("`argv`"));
    daemon.stop().await;
}

async fn until_no_exec_runs(daemon: &Daemon) {
    let all_over = async {
        loop {
            let execs = daemon.client.execs(&vm("web")).await.unwrap().execs;
            if execs.iter().all(|exec| exec.state != ExecStateName::Running) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, all_over).await.expect("every process has ended");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_leaves_takes_its_process_with_it() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    daemon.boot("web").await;
    let mut connection = daemon.client.exec(&vm("web"), &shell("sleep 1000")).await.unwrap();
    started(&mut connection).await;
    drop(connection);
    until_no_exec_runs(&daemon).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_leaves_while_its_process_reads_nothing_is_noticed_too() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    daemon.boot("web").await;
    let mut connection = daemon.client.exec(&vm("web"), &reading("sleep 1000")).await.unwrap();
    started(&mut connection).await;
    let piece = Bytes::from(vec![0; 128 * 1024]);
    // Fills every buffer on the way: from here on nobody reads this socket.
    let fill = async {
        loop {
            connection.input.stdin(piece.clone()).await.unwrap();
        }
    };
    let filled = timeout(std::time::Duration::from_millis(500), fill).await;
    assert!(filled.is_err());
    drop(connection);
    until_no_exec_runs(&daemon).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_detached_process_runs_on_and_is_taken_up_again() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    daemon.boot("web").await;
    let mut connection = daemon.client.exec(&vm("web"), &reading("cat")).await.unwrap();
    let exec = started(&mut connection).await.exec;
    connection.input.stdin(Bytes::from_static(b"before ")).await.unwrap();
    assert!(matches!(connection.events.next().await.unwrap(), Some(ExecEvent::Output(..))));
    connection.input.detach().await.unwrap();
    assert_eq!(connection.events.next().await.unwrap(), Some(ExecEvent::Detached));
    assert_eq!(connection.events.next().await.unwrap(), None);

    let mut again = daemon.client.attach(&vm("web"), exec, &AttachQuery::default()).await.unwrap();
    assert_eq!(started(&mut again).await.exec, exec);
    again.input.stdin(Bytes::from_static(b"after")).await.unwrap();
    again.input.stdin_end().await.unwrap();
    let followed = follow(&mut again).await.unwrap();
    assert_eq!(followed.stdout, b"before after", "the ring replays what came before");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn collected_output_is_bounded_text_or_base64() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    daemon.boot("web").await;
    let cat = |input: &str| CollectRequest { exec: shell("cat"), input: Some(input.into()) };
    let collected = daemon.client.exec_collect(&vm("web"), &cat("some text")).await.unwrap();
    assert_eq!(collected.stdout, Output::Utf8("some text".into()));
    assert_eq!(collected.status, ExitStatus::Exited { code: 0 });
    let limits = ExecLimits { max_output_bytes: Some(4), ..ExecLimits::default() };
    let bounded = CollectRequest { exec: ExecRequest { limits, ..shell("echo abcdefgh") }, input: None };
    let collected = daemon.client.exec_collect(&vm("web"), &bounded).await.unwrap();
    assert_eq!((collected.stdout, collected.truncated), (Output::Utf8("abcd".into()), true));
    let streaming = CollectRequest { exec: reading("cat"), input: None };
    let refusal = daemon.client.exec_collect(&vm("web"), &streaming).await;
    assert!(refused(refusal, ErrorCode::InvalidArgument).message.contains("exec.stdin"));
    daemon.client.stop(&vm("web"), &patient()).await.unwrap();
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_stands_still_is_waited_for_within_bounds() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    daemon.boot("web").await;
    let mut connection = daemon.client.exec(&vm("web"), &reading("cat")).await.unwrap();
    started(&mut connection).await;
    let (mut input, mut events) = connection.split();
    let before = resident();
    // The guest prints 64 MiB while nobody reads: the fake drops what exceeds its ring, and nothing between it
    // and here may hold more than a few chunks.
    for _ in 0..512 {
        input.stdin(Bytes::from(vec![7; 128 * 1024])).await.unwrap();
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < 32 * 1024 * 1024, "{grown} bytes are held for a reader that does not read");
    input.stdin_end().await.unwrap();
    let (mut seen, mut lost) = (0, 0);
    let read = async {
        while let Some(event) = events.next().await.unwrap() {
            match event {
                ExecEvent::Output(_, data) => seen += data.len() as u64,
                ExecEvent::Lost(gap) => lost += gap.bytes,
                _ => {}
            }
        }
    };
    timeout(PATIENCE, read).await.unwrap();
    assert_eq!(seen + lost, 64 * 1024 * 1024, "every byte is delivered or counted as lost");
    daemon.stop().await;
}

/// Bytes of this process in memory.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * rustix::param::page_size() as u64
}
