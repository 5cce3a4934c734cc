//! The code interpreter of a sandbox, byte by byte as E2B's SDKs read it. The VM in memory interprets a toy language.

use super::fixture::{Daemon, PATIENCE, Place, exchange, vm};
use offshoot_api::v1::{CreateVm, DestroyQuery};
use serde_json::{Value, json};
use std::net::SocketAddr;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

const HEADERS: [(&str, &str); 2] = [("E2b-Sandbox-Id", "web"), ("E2b-Sandbox-Port", "49999")];

async fn ask(address: SocketAddr, head: &str, body: &Value) -> (u16, String) {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let answer = exchange(TcpStream::connect(address).await.unwrap(), head, &HEADERS, &body).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let body = match head.contains("transfer-encoding: chunked") {
        true => whole(body),
        false => body.to_owned(),
    };
    (head[9..12].parse().unwrap(), body)
}

/// `web`, as if it had been made over the wire: what needs no token is open there.
async fn boot(daemon: &Daemon) {
    let labels = [("e2b/template".to_owned(), "base".to_owned())].into();
    let asked = CreateVm { name: "web".into(), start: true, labels, ..CreateVm::default() };
    daemon.client.create(&asked).await.unwrap();
}

/// The chunks of a body, put together.
fn whole(mut rest: &str) -> String {
    let mut body = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let (chunk, next) = after.split_at(usize::from_str_radix(size, 16).unwrap());
        body.push_str(chunk);
        rest = next.strip_prefix("\r\n").unwrap();
    }
    body
}

async fn execute(address: SocketAddr, request: Value) -> Vec<Value> {
    let (status, body) = ask(address, "POST /execute", &request).await;
    assert_eq!(status, 200, "{body}");
    body.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Without what differs from run to run.
fn timeless(mut lines: Vec<Value>) -> Vec<Value> {
    for line in &mut lines {
        if let Some(line) = line.as_object_mut()
            && let Some(timestamp) = line.remove("timestamp")
        {
            assert!(timestamp.as_i64().unwrap() > 1_700_000_000_000_000_000);
        }
    }
    lines
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn code_runs_in_default_contexts_and_its_events_are_lines() {
    let place = Place::new();
    let (daemon, address) = Daemon::on_a_port(&place).await;
    boot(&daemon).await;
    let nulls = json!({ "code": "x = 41; print(x); show x; 'a' + x", "context_id": null, "language": null,
        "env_vars": null, "unknown": 1 });
    let result = |text: &str, main: bool| json!({ "type": "result", "text": text, "is_main_result": main });
    let end = json!({ "type": "end_of_execution" });
    assert_eq!(
        timeless(execute(address, nulls).await),
        [
            json!({ "type": "number_of_executions", "execution_count": 1 }),
            json!({ "type": "stdout", "text": "41\n" }),
            result("41", false),
            result("a41", true),
            end.clone(),
        ]
    );
    let request = json!({ "code": "x += 1; env K", "env_vars": { "K": "v" } });
    let second = execute(address, request).await;
    assert_eq!(second[0]["execution_count"], 2);
    assert_eq!(second[1..], [result("v", true), end.clone()]);
    let other = execute(address, json!({ "code": "x", "language": "JavaScript" })).await;
    assert_eq!((&other[1]["type"], &other[1]["name"]), (&json!("error"), &json!("NameError")));
    assert_eq!(other[1]["traceback"], "");
    let died = execute(address, json!({ "code": "crash" })).await;
    assert_eq!(died[1]["name"], "UnexpectedEndOfExecution");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contexts_are_made_listed_begun_anew_and_ended() {
    let place = Place::new();
    let (daemon, address) = Daemon::on_a_port(&place).await;
    boot(&daemon).await;
    let listed = async || -> Vec<Value> {
        let (status, body) = ask(address, "GET /contexts", &Value::Null).await;
        assert_eq!(status, 200);
        serde_json::from_str(&body).unwrap()
    };
    let default = |language: &str| json!({ "id": format!("default-{language}"), "language": language, "cwd": "/home/user" });
    assert_eq!(listed().await, [default("python"), default("javascript")]);
    let (status, body) = ask(address, "POST /contexts", &json!({ "language": "bash", "cwd": "/tmp" })).await;
    let made: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &made["language"], &made["cwd"]), (200, &json!("bash"), &json!("/tmp")));
    let id = made["id"].as_str().unwrap();
    assert_eq!(listed().await.last(), Some(&made));
    execute(address, json!({ "code": "x = 7", "context_id": id })).await;
    let seen = execute(address, json!({ "code": "x", "context_id": id })).await;
    assert_eq!(seen[1]["text"], "7");
    assert_eq!(ask(address, &format!("POST /contexts/{id}/restart"), &Value::Null).await.0, 204);
    let seen = execute(address, json!({ "code": "x", "context_id": id })).await;
    assert_eq!(seen[1]["name"], "NameError");
    assert_eq!(ask(address, &format!("DELETE /contexts/{id}"), &Value::Null).await.0, 204);
    for (head, body) in [
        (format!("DELETE /contexts/{id}"), Value::Null),
        (format!("POST /contexts/{id}/restart"), Value::Null),
        ("POST /execute".to_owned(), json!({ "code": "1", "context_id": id })),
        ("POST /execute".to_owned(), json!({ "code": "1", "context_id": "No Name" })),
    ] {
        let (status, text) = ask(address, &head, &body).await;
        assert!(status == 404 && text.ends_with(" not found"), "{head}: {status} {text}");
    }
    // Listed, so it can be used; nobody has, so there is nothing to end.
    assert_eq!(ask(address, "POST /contexts/default-python/restart", &Value::Null).await.0, 204);
    let seen = execute(address, json!({ "code": "8", "context_id": "default-python" })).await;
    assert_eq!(seen[1]["text"], "8");
    assert_eq!(ask(address, "GET /health", &Value::Null).await.0, 200);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_is_refused_with_a_sentence() {
    let place = Place::new();
    let (daemon, address) = Daemon::on_a_port(&place).await;
    boot(&daemon).await;
    for (head, body, said) in [
        ("POST /execute", json!({ "code": "1", "context_id": "a", "language": "python" }), "Only one of"),
        ("POST /execute", json!({ "code": "1", "language": "r" }), "`r` is not supported; python, "),
        ("POST /execute", json!({ "context_id": "a" }), "code"),
        ("POST /execute", json!({ "code": "1", "env_vars": { "A=B": "" } }), "environment"),
        ("POST /contexts", json!({ "language": "cobol" }), "cobol"),
        ("POST /contexts", json!({ "cwd": "here" }), "absolute"),
    ] {
        let (status, text) = ask(address, head, &body).await;
        assert!(status == 400 && text.contains(said), "{head} {body}: {status} {text}");
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_interrupts_its_code_and_head_and_first_line_come_together() {
    let place = Place::new();
    let (daemon, address) = Daemon::on_a_port(&place).await;
    boot(&daemon).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let body = json!({ "code": "x = 1; sleep 1000" }).to_string();
    let request = format!(
        "POST /execute HTTP/1.1\r\nhost: x\r\ne2b-sandbox-id: web\r\ne2b-sandbox-port: 49999\r\n\
        content-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut buffer = [0; 4096];
    let count = timeout(PATIENCE, stream.read(&mut buffer)).await.unwrap().unwrap();
    let begin = String::from_utf8_lossy(&buffer[..count]);
    assert!(begin.starts_with("HTTP/1.1 200") && begin.contains("number_of_executions"), "{begin}");
    // Code in the same context waits its turn: there is one once the other was interrupted.
    let waiting = execute(address, json!({ "code": "x" }));
    let (lines, ()) = tokio::join!(waiting, async { drop(stream) });
    assert_eq!(lines.iter().find(|line| line["type"] == "result").unwrap()["text"], "1");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_is_broken_and_code_that_waits_its_turn_has_its_answer_begun() {
    let place = Place::new();
    let (daemon, address) = Daemon::on_a_port(&place).await;
    boot(&daemon).await;
    let first = execute(address, json!({ "code": "sleep 6; 1" }));
    let second = execute(address, json!({ "code": "2" }));
    let (first, second) = tokio::join!(first, second);
    let kinds = |lines: &[Value]| lines.iter().filter(|line| line["type"] == "keepalive").count();
    assert!(kinds(&first) + kinds(&second) >= 1, "{first:?} {second:?}");
    let texts = |lines: &[Value]| lines.iter().filter(|line| line["type"] == "result").count();
    assert_eq!((texts(&first), texts(&second)), (1, 1));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_answer_of_a_sandbox_that_is_killed_breaks_off() {
    let place = Place::new();
    let (daemon, address) = Daemon::on_a_port(&place).await;
    boot(&daemon).await;
    let body = json!({ "code": "sleep 1000" }).to_string();
    let request = format!(
        "POST /execute HTTP/1.1\r\nhost: x\r\ne2b-sandbox-id: web\r\ne2b-sandbox-port: 49999\r\n\
        content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut buffer = [0; 4096];
    let count = timeout(PATIENCE, stream.read(&mut buffer)).await.unwrap().unwrap();
    assert!(buffer[..count].starts_with(b"HTTP/1.1 200"));
    daemon.client.destroy(&vm("web"), &DestroyQuery::default()).await.unwrap();
    let mut rest = Vec::new();
    // Closed or reset: there is neither an end of the execution nor of the answer.
    let _broken = timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("it ends");
    let rest = String::from_utf8_lossy(&rest);
    assert!(!rest.contains("end_of_execution") && !rest.ends_with("0\r\n\r\n"), "{rest}");
    daemon.stop().await;
}
