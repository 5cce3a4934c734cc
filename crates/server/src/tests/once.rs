//! Requests with an idempotency key: carried out once, and answered as often as they are sent.

use super::fixture::{Daemon, PATIENCE, Place, call, vm};
use offshoot_api::v1::{CreateKey, CreateVm, DaemonMode};
use offshoot_types::{ErrorCode, VmStateName};
use serde_json::{Value, json};
use std::net::SocketAddr;
use tokio::{io::AsyncWriteExt, net::TcpStream, time::timeout};

type Answer = (u16, String, Value);

/// Somebody on the network who sends keys.
struct Caller {
    address: SocketAddr,
    secret: String,
}

impl Caller {
    async fn of(daemon: &Daemon, address: SocketAddr) -> Self {
        let made = daemon.client.create_key(&CreateKey::default()).await.unwrap();
        Self { address, secret: made.key }
    }

    async fn ask(&self, key: &str, head: &str, body: &Value) -> Answer {
        let headers = [("X-API-Key", self.secret.as_str()), ("Idempotency-Key", key)];
        call(self.address, head, &headers, body).await
    }

    /// Sends a request. Dropping what is returned is to leave.
    async fn send(&self, key: &str, head: &str, body: &Value) -> TcpStream {
        let (body, secret) = (body.to_string(), &self.secret);
        let request = format!(
            "{head} HTTP/1.1\r\nhost: x\r\nx-api-key: {secret}\r\nidempotency-key: {key}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    /// Repeats a request until it is no longer under way.
    async fn until_ended(&self, key: &str, head: &str, body: &Value) -> Answer {
        let ask = async {
            loop {
                let answer = self.ask(key, head, body).await;
                if answer.2["code"] != "busy" {
                    return answer;
                }
                assert!(answer.1.contains("retry-after: 1"), "{}", answer.1);
            }
        };
        timeout(PATIENCE, ask).await.expect("it ends in time")
    }
}

fn replayed(answer: &Answer) -> bool {
    answer.1.contains("idempotency-replayed: true")
}

async fn operations(daemon: &Daemon, kind: &str) -> usize {
    let all = daemon.client.operations().await.unwrap().operations;
    all.iter().filter(|operation| operation.kind.to_string() == kind).count()
}

fn exec(script: &str) -> Value {
    json!({ "exec": { "shell": script } })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeat_is_answered_as_the_first_was_and_does_nothing() {
    let place = Place::new();
    let (daemon, address) = Daemon::on_a_port(&place).await;
    let caller = Caller::of(&daemon, address).await;
    let body = json!({ "name": "web", "start": true });
    let first = caller.ask("k", "POST /v1/vms", &body).await;
    assert_eq!((first.0, replayed(&first)), (200, false), "{first:?}");
    let again = caller.ask("k", "POST /v1/vms", &body).await;
    assert_eq!((again.0, replayed(&again), &again.2), (200, true, &first.2));
    assert_eq!(operations(&daemon, "create").await, 1);

    for (head, body) in [
        ("POST /v1/vms", json!({ "name": "other" })),
        ("POST /v1/vms?x=1", body.clone()),
        ("POST /v1/vms/web/stop", Value::Null),
    ] {
        let (status, _, reused) = caller.ask("k", head, &body).await;
        assert_eq!((status, &reused["code"]), (422, &json!("key_reused")), "{head}: {reused}");
    }
    // A key is the caller's own.
    let stranger = Caller::of(&daemon, address).await;
    let (status, _, taken) = stranger.ask("k", "POST /v1/vms", &body).await;
    assert_eq!((status, &taken["code"]), (409, &json!("already_exists")));

    // The next daemon knows it too.
    daemon.stop().await;
    let mut options = place.options(DaemonMode::Explicit);
    options.listen = Daemon::any_port();
    let daemon = place.start(options).await;
    let address = daemon.client.daemon().await.unwrap().record.listen[0];
    let caller = Caller { address, ..caller };
    let later = caller.ask("k", "POST /v1/vms", &body).await;
    assert_eq!((later.0, replayed(&later), &later.2), (200, true, &first.2));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_did_nothing_can_be_repeated_with_its_key() {
    let place = Place::new();
    let (daemon, address) = Daemon::on_a_port(&place).await;
    let caller = Caller::of(&daemon, address).await;
    let (status, ..) = caller.ask("k", "POST /v1/vms/web/start", &Value::Null).await;
    assert_eq!(status, 404);
    let web = CreateVm { name: "web".into(), ..CreateVm::default() };
    daemon.client.create(&web).await.unwrap();
    let (status, _, refused) = caller.ask("e", "POST /v1/vms/web/exec", &exec("echo hello")).await;
    assert_eq!((status, &refused["code"]), (409, &json!("wrong_state")), "{refused}");
    let started = caller.ask("k", "POST /v1/vms/web/start", &Value::Null).await;
    assert_eq!((started.0, replayed(&started)), (200, false), "{started:?}");
    let ran = caller.ask("e", "POST /v1/vms/web/exec", &exec("echo hello")).await;
    assert_eq!((ran.0, replayed(&ran)), (200, false), "{ran:?}");
    let again = caller.ask("e", "POST /v1/vms/web/exec", &exec("echo hello")).await;
    assert_eq!((again.0, replayed(&again), &again.2), (200, true, &ran.2));

    for key in ["", "a b", "ä", &"k".repeat(256)] {
        let (status, _, refused) = caller.ask(key, "POST /v1/vms/web/stop", &Value::Null).await;
        assert_eq!(status, 400, "{key:?}");
        assert!(refused["message"].as_str().unwrap().contains("idempotency-key"), "{refused}");
    }
    assert_eq!(daemon.client.vm(&vm("web")).await.unwrap().state, VmStateName::Running);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_at_once_with_one_key_one_is_carried_out() {
    let place = Place::new();
    let (daemon, address) = Daemon::on_a_port(&place).await;
    let caller = Caller::of(&daemon, address).await;
    daemon.boot("web").await;
    let (head, body) = ("POST /v1/vms/web/exec", exec("echo x >> /count; cat /count"));
    let asked = (0..8).map(|_| caller.until_ended("k", head, &body));
    let answers = futures::future::join_all(asked).await;
    assert_eq!(answers.iter().filter(|answer| !replayed(answer)).count(), 1, "{answers:?}");
    for answer in &answers {
        assert_eq!((answer.0, &answer.2), (200, &answers[0].2));
    }
    assert_eq!(operations(&daemon, "exec").await, 1);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_leaves_finds_the_answer_later() {
    let place = Place::new();
    let (daemon, address) = Daemon::on_a_port(&place).await;
    let caller = Caller::of(&daemon, address).await;
    let body = json!({ "name": "web", "start": true });
    let sent = caller.send("k", "POST /v1/vms", &body).await;
    daemon.until_vms(|vms| !vms.is_empty()).await;
    drop(sent);
    let found = caller.until_ended("k", "POST /v1/vms", &body).await;
    assert_eq!((found.0, replayed(&found)), (200, true), "{found:?}");
    assert_eq!(found.2["vm"]["state"], "running");
    assert_eq!((operations(&daemon, "create").await, operations(&daemon, "start").await), (1, 1));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_is_given_once_and_never_kept() {
    let place = Place::new();
    let (daemon, address) = Daemon::on_a_port(&place).await;
    let caller = Caller::of(&daemon, address).await;
    let (status, _, made) = caller.ask("k", "POST /v1/keys", &json!({ "name": "ci" })).await;
    assert_eq!(status, 200, "{made}");
    let (status, _, again) = caller.ask("k", "POST /v1/keys", &json!({ "name": "ci" })).await;
    assert_eq!((status, &again["code"]), (409, &json!("already_done")), "{again}");
    daemon.stop().await;
    let secret = made["key"].as_str().unwrap().as_bytes().to_vec();
    for file in ["offshoot.db", "offshoot.db-wal"] {
        let bytes = std::fs::read(place.state_dir().join(file)).unwrap_or_default();
        assert!(!bytes.windows(secret.len()).any(|part| part == secret), "{file}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_is_known_by_its_bytes_and_written_once() {
    let place = Place::new();
    let (daemon, address) = Daemon::on_a_port(&place).await;
    let caller = Caller::of(&daemon, address).await;
    daemon.boot("web").await;
    let head = "PUT /v1/vms/web/files?path=/data&exclusive=true";
    let first = caller.ask("k", head, &json!("one")).await;
    assert_eq!((first.0, replayed(&first)), (200, false), "{first:?}");
    let again = caller.ask("k", head, &json!("one")).await;
    assert_eq!((again.0, replayed(&again), &again.2), (200, true, &first.2));
    let (status, _, other) = caller.ask("k", head, &json!("two")).await;
    assert_eq!((status, &other["code"]), (422, &json!("key_reused")), "{other}");
    assert_eq!(operations(&daemon, "write-files").await, 1);

    // One that broke off has written nothing, so its key is as good as new.
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "PUT /v1/vms/web/files?path=/more HTTP/1.1\r\nhost: x\r\nx-api-key: {}\r\nidempotency-key: b\r\ncontent-length: 100\r\n\r\nhalf",
        caller.secret
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    drop(stream);
    let whole = caller.until_ended("b", "PUT /v1/vms/web/files?path=/more", &json!("whole")).await;
    assert_eq!(whole.0, 200, "{whole:?}");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_daemon_left_in_its_middle_is_explained_and_not_repeated() {
    let place = Place::new();
    let (daemon, address) = Daemon::on_a_port(&place).await;
    let caller = Caller::of(&daemon, address).await;
    daemon.boot("web").await;
    let (head, body) = ("POST /v1/vms/web/exec", exec("sleep 1000"));
    let sent = caller.send("k", head, &body).await;
    let begun = async {
        while operations(&daemon, "exec").await == 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, begun).await.expect("it begins in time");
    drop(sent);
    daemon.vanish().await;

    let (daemon, address) = Daemon::on_a_port(&place).await;
    let caller = Caller { address, ..caller };
    for _ in 0..2 {
        let (status, _, lost) = caller.ask("k", head, &body).await;
        assert_eq!((status, &lost["code"]), (409, &json!("outcome_unknown")), "{lost}");
        let message = lost["message"].as_str().unwrap();
        let all = daemon.client.operations().await.unwrap().operations;
        let begun = all.iter().find(|operation| operation.kind.to_string() == "exec").unwrap();
        assert!(message.contains(&begun.id.to_string()), "{message}");
    }
    assert_eq!(operations(&daemon, "exec").await, 1);
    daemon.vanish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_making_of_a_vm_that_a_daemon_left_in_its_middle_is_completed() {
    let body = json!({ "name": "web", "start": true });
    // Each ends as soon as there is something of it, wherever that is.
    for _ in 0..8 {
        let place = Place::new();
        let (daemon, address) = Daemon::on_a_port(&place).await;
        let caller = Caller::of(&daemon, address).await;
        let sent = caller.send("k", "POST /v1/vms", &body).await;
        daemon.until_vms(|vms| !vms.is_empty()).await;
        drop(sent);
        daemon.vanish().await;

        let (daemon, address) = Daemon::on_a_port(&place).await;
        let caller = Caller { address, ..caller };
        let made = caller.until_ended("k", "POST /v1/vms", &body).await;
        assert_eq!((made.0, &made.2["vm"]["state"]), (200, &json!("running")), "{made:?}");
        let again = caller.ask("k", "POST /v1/vms", &body).await;
        assert_eq!((again.0, replayed(&again), &again.2), (200, true, &made.2));
        daemon.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_is_begun_once_and_found_by_its_operation() {
    let place = Place::new();
    let (daemon, address) = Daemon::on_a_port(&place).await;
    let caller = Caller::of(&daemon, address).await;
    daemon.boot("web").await;
    let upgrade = [
        ("x-api-key", caller.secret.as_str()),
        ("idempotency-key", "k"),
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    let ask = async || {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let headers: String = upgrade.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let request = format!("GET /v1/vms/web/exec HTTP/1.1\r\nhost: x\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    };
    let mut head = [0; 12];
    let mut first = ask().await;
    tokio::io::AsyncReadExt::read_exact(&mut first, &mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 101");
    let mut second = ask().await;
    tokio::io::AsyncReadExt::read_exact(&mut second, &mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 409", "{}", ErrorCode::AlreadyDone);
    drop((first, second));
    daemon.vanish().await;
}
