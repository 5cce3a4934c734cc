//! Processes by the wire's service.

use super::wire::{b64, boxed};
use crate::tests::fixture::{Daemon, Place, patient, vm};
use offshoot_api::v1::DaemonMode;
use serde_json::{Value, json};

const START: &str = "process.Process/Start";
const CONNECT: &str = "process.Process/Connect";
const LIST: &str = "process.Process/List";
const SEND: &str = "process.Process/SendInput";
const CLOSE: &str = "process.Process/CloseStdin";
const SIGNAL: &str = "process.Process/SendSignal";
const UPDATE: &str = "process.Process/Update";

fn process(pid: u32) -> Value {
    json!({ "pid": pid })
}

fn stdin(pid: u32, text: &str) -> Value {
    json!({ "process": process(pid), "input": { "stdin": b64(text) } })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_runs_and_its_end_is_told() {
    let place = Place::new();
    let (daemon, envd) = boxed(&place).await;
    let (_, mut events) = envd.bash("echo hello world", false).await;
    events.says("stdout", "hello world\n").await;
    assert_eq!(events.ended().await, json!({ "exitCode": 0, "exited": true, "status": "exit status 0" }));
    let (_, mut events) = envd.bash("exit 7", false).await;
    let end = events.ended().await;
    assert_eq!((&end["exitCode"], &end["error"]), (&json!(7), &json!("exit status 7")));
    let (_, mut events) = envd.bash("cat /nothing", false).await;
    events.says("stderr", "/nothing: no such file or directory\n").await;
    assert_eq!(events.ended().await["exitCode"], 1);

    // What cannot be started fails the stream, and with it the call.
    let missing = json!({ "process": { "cmd": "frobnicate" } });
    assert!(envd.stream(START, missing).await.failed("invalid_argument").await.contains("frobnicate"));
    envd.stream(START, json!({})).await.failed("invalid_argument").await;
    let pty = json!({ "process": { "cmd": "cat" }, "pty": { "size": { "cols": 0, "rows": 9 } } });
    envd.stream(START, pty).await.failed("invalid_argument").await;
    let health = envd.send("GET", "/health", &[], "").await;
    assert_eq!(health.status(), 204);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_read_along_and_any_gives_input() {
    let place = Place::new();
    let (daemon, envd) = boxed(&place).await;
    let (pid, mut started) = envd.bash("cat", true).await;
    envd.done(SEND, stdin(pid, "one")).await;
    started.says("stdout", "one").await;
    let mut second = envd.stream(CONNECT, json!({ "process": process(pid) })).await;
    assert_eq!(second.started().await, pid);
    let mut all = envd.stream(CONNECT, json!({ "process": process(pid), "replay": true })).await;
    assert_eq!(all.started().await, pid);
    envd.done(SEND, stdin(pid, "two")).await;
    started.says("stdout", "two").await;
    second.says("stdout", "two").await;
    all.says("stdout", "onetwo").await;

    // Whoever leaves takes nothing with them.
    drop(started);
    envd.done(SEND, stdin(pid, "three")).await;
    second.says("stdout", "three").await;
    let listed = envd.done(LIST, json!({})).await;
    let expected = json!([{ "config": { "cmd": "/bin/bash", "args": ["-l", "-c", "cat"] }, "pid": pid }]);
    assert_eq!(listed["processes"], expected);
    envd.done(CLOSE, json!({ "process": process(pid) })).await;
    assert_eq!(second.ended().await["exitCode"], 0);

    // Late comers learn how it ended, and nothing of what it said.
    let mut late = envd.stream(CONNECT, json!({ "process": process(pid) })).await;
    assert_eq!(late.started().await, pid);
    assert_eq!(late.ended().await["status"], "exit status 0");
    let mut replayed = envd.stream(CONNECT, json!({ "process": process(pid), "replay": true })).await;
    replayed.started().await;
    replayed.says("stdout", "onetwothree").await;
    assert_eq!(envd.done(LIST, json!({})).await["processes"], json!([]));
    envd.refused(SEND, stdin(pid, "four"), "not_found").await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_is_killed_signalled_and_out_of_time() {
    let place = Place::new();
    let (daemon, envd) = boxed(&place).await;
    for (signal, words) in [("SIGNAL_SIGKILL", "killed"), ("SIGNAL_SIGTERM", "terminated")] {
        let (pid, mut events) = envd.bash("sleep 1000", false).await;
        envd.done(SIGNAL, json!({ "process": process(pid), "signal": signal })).await;
        if words == "killed" {
            assert_eq!(envd.done(LIST, json!({})).await["processes"], json!([]), "gone with the answer");
        }
        let end = events.ended().await;
        let status = format!("signal: {words}");
        assert_eq!((&end["exitCode"], &end["exited"]), (&json!(-1), &json!(false)));
        assert_eq!((&end["status"], &end["error"]), (&json!(status), &json!(status)));
        envd.refused(SIGNAL, json!({ "process": process(pid), "signal": signal }), "not_found").await;
    }
    let (pid, _events) = envd.bash("sleep 1000", false).await;
    envd.refused(SIGNAL, json!({ "process": process(pid), "signal": 1 }), "unimplemented").await;

    let sleep = json!({ "process": { "cmd": "sleep", "args": ["1000"] }, "tag": "sleeper" });
    let mut limited = envd.stream_of(START, &[sleep], &[("connect-timeout-ms", "200")]).await;
    limited.started().await;
    let mut other = envd.stream(CONNECT, json!({ "process": { "tag": "sleeper" } })).await;
    other.started().await;
    limited.failed("deadline_exceeded").await;
    assert_eq!(other.ended().await["status"], "signal: killed", "an end like any to who set no time");

    // A deadline of one who reads along is that of the reading.
    let message = [json!({ "process": process(pid) })];
    let mut reader = envd.stream_of(CONNECT, &message, &[("connect-timeout-ms", "50")]).await;
    reader.started().await;
    reader.failed("deadline_exceeded").await;
    assert_eq!(envd.done(LIST, json!({})).await["processes"][0]["pid"], pid);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_is_typed_into_and_resized() {
    let place = Place::new();
    let (daemon, envd) = boxed(&place).await;
    let bash = json!({
        "process": { "cmd": "/bin/bash", "args": ["-i", "-l"], "envs": { "TERM": "xterm-256color" } },
        "pty": { "size": { "cols": 80, "rows": 24 } },
    });
    let mut events = envd.stream(START, bash).await;
    let pid = events.started().await;
    envd.done(SEND, json!({ "process": process(pid), "input": { "pty": b64("ls\n") } })).await;
    events.says("pty", "ls\n").await;
    envd.done(UPDATE, json!({ "process": process(pid), "pty": { "size": { "cols": 100, "rows": 30 } } }))
        .await;
    envd.refused(SEND, stdin(pid, "x"), "failed_precondition").await;
    envd.refused(CLOSE, json!({ "process": process(pid) }), "failed_precondition").await;
    envd.done(SIGNAL, json!({ "process": process(pid), "signal": "SIGNAL_SIGKILL" })).await;
    assert_eq!(events.ended().await["exitCode"], -1);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn input_for_a_process_that_takes_none_is_refused() {
    let place = Place::new();
    let (daemon, envd) = boxed(&place).await;
    let (pid, _events) = envd.bash("sleep 1000", false).await;
    envd.refused(SEND, stdin(pid, "x"), "failed_precondition").await;
    envd.refused(CLOSE, json!({ "process": process(pid) }), "failed_precondition").await;
    let typed = json!({ "process": process(pid), "input": { "pty": b64("x") } });
    envd.refused(SEND, typed, "failed_precondition").await;
    envd.refused(UPDATE, json!({ "process": process(pid), "pty": {} }), "failed_precondition").await;
    envd.refused(SEND, json!({ "process": process(pid) }), "invalid_argument").await;
    envd.refused(SEND, json!({ "input": { "stdin": "" } }), "invalid_argument").await;
    envd.refused(SEND, stdin(4711, "x"), "not_found").await;
    envd.stream(CONNECT, json!({ "process": process(4711) })).await.failed("not_found").await;
    let wrong = json!({ "process": { "pid": "many" } });
    assert!(envd.refused(SEND, wrong, "invalid_argument").await.contains("process.pid"));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn input_comes_as_a_stream_too() {
    let place = Place::new();
    let (daemon, envd) = boxed(&place).await;
    let (pid, mut events) = envd.bash("cat", true).await;
    let piece = |text: &str| json!({ "data": { "input": { "stdin": b64(text) } } });
    let messages = [
        json!({ "start": { "process": process(pid) } }),
        piece("one "),
        json!({ "keepalive": {} }),
        piece("two"),
    ];
    let mut answer = envd.stream_of("process.Process/StreamInput", &messages, &[]).await;
    assert_eq!(answer.next().await, Ok(json!({})));
    assert_eq!(answer.next().await, Err(json!({})));
    events.says("stdout", "one two").await;
    for (messages, code) in [
        (vec![piece("whose?")], "failed_precondition"),
        (vec![json!({})], "invalid_argument"),
        (vec![json!({ "start": { "process": process(4711) } }), piece("x")], "not_found"),
    ] {
        envd.stream_of("process.Process/StreamInput", &messages, &[]).await.failed(code).await;
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_stream_says_that_it_is_there() {
    let place = Place::new();
    let (daemon, envd) = boxed(&place).await;
    let sleep = [json!({ "process": { "cmd": "sleep", "args": ["1000"] } })];
    let mut events = envd.stream_of(START, &sleep, &[("keepalive-ping-interval", "1")]).await;
    events.started().await;
    assert_eq!(events.next().await, Ok(json!({ "event": { "keepalive": {} } })));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_json_codec_is_understood() {
    let place = Place::new();
    let (daemon, envd) = boxed(&place).await;
    for (path, content, status) in [
        (LIST, "application/proto", 501),
        (LIST, "application/connect+json", 501),
        (START, "application/connect+proto", 200),
    ] {
        let response = envd.send("POST", &format!("/{path}"), &[("content-type", content)], "{}").await;
        assert_eq!(response.status(), status, "{path} {content}");
        let body = super::wire::whole(response).await;
        assert!(String::from_utf8_lossy(&body).contains(r#""code":"unimplemented""#));
    }
    assert_eq!(envd.send("POST", "/process.Process/Nothing", &[], "").await.status(), 404);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_goes_with_its_vm_and_outlives_the_daemon() {
    let place = Place::new();
    let (daemon, envd) = boxed(&place).await;
    let cat = json!({ "process": { "cmd": "cat" }, "tag": "cat", "stdin": true });
    let mut events = envd.stream(START, cat).await;
    let pid = events.started().await;
    daemon.client.suspend(&vm("box"), &patient()).await.unwrap();
    events.failed("unavailable").await;
    daemon.client.resume(&vm("box"), &patient()).await.unwrap();
    let mut events = envd.stream(CONNECT, json!({ "process": { "tag": "cat" } })).await;
    assert_eq!(events.started().await, pid);
    envd.done(SEND, stdin(pid, "resumed")).await;
    events.says("stdout", "resumed").await;

    daemon.stop().await;
    events.failed("unavailable").await;
    let mut options = place.options(DaemonMode::Explicit);
    options.listen = Daemon::any_port();
    let daemon = place.start(options).await;
    let address = daemon.client.daemon().await.unwrap().record.listen[0];
    let envd = envd.at(address);
    assert_eq!(envd.done(LIST, json!({})).await["processes"][0]["tag"], "cat");
    let mut events = envd.stream(CONNECT, json!({ "process": process(pid) })).await;
    assert_eq!(events.started().await, pid);
    envd.done(CLOSE, json!({ "process": { "tag": "cat" } })).await;
    while let Ok(message) = events.next().await {
        assert!(
            message["event"]["data"].is_object() || message["event"]["end"]["exitCode"] == 0,
            "{message}"
        );
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_stand_still_cost_bounded_memory() {
    let place = Place::new();
    let (daemon, envd) = boxed(&place).await;
    let (pid, _idle) = envd.bash("cat", true).await;
    let _idle_too = envd.stream(CONNECT, json!({ "process": process(pid) })).await;
    let before = resident();
    let piece = "x".repeat(512 * 1024);
    for _ in 0..96 {
        envd.done(SEND, stdin(pid, &piece)).await;
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < 32 * 1024 * 1024, "{grown} bytes are held for readers that do not read");
    daemon.stop().await;
}

/// Bytes of this process in memory.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * rustix::param::page_size() as u64
}
