//! Clients of E2B's API that leave before they are answered, and daemons that do: what was begun is done whole or taken back.

use super::fixture::{Daemon, PATIENCE, Place, exchange};
use offshoot_api::v1::{CreateVm, Vm};
use offshoot_provider::fake::BootFault;
use offshoot_types::VmStateName;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};

const CREATE: &str = "POST /v2/sandboxes";
const KEY: &str = "idempotency-key: one\r\n";

/// Sends a request and waits for nothing. The client stays until the stream is dropped.
async fn begin(place: &Place, head: &str, headers: &str, body: &Value) -> UnixStream {
    let mut stream = UnixStream::connect(place.socket()).await.unwrap();
    let body = body.to_string();
    let length = body.len();
    let request = format!("{head} HTTP/1.1\r\nhost: x\r\n{headers}content-length: {length}\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

async fn ask(place: &Place, head: &str, headers: &[(&str, &str)], body: &Value) -> (u16, Value) {
    let stream = UnixStream::connect(place.socket()).await.unwrap();
    let answer = exchange(stream, head, headers, &body.to_string()).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or(Value::Null))
}

/// A sandbox of the one key there is.
async fn keyed(place: &Place) -> (u16, Value) {
    ask(place, CREATE, &[("idempotency-key", "one")], &json!({"templateID": "base", "timeout": 77})).await
}

fn runs_for(vm: &Vm, seconds: u64) -> bool {
    vm.state == VmStateName::Running && vm.life.timeout_ms == Some(seconds * 1000) && !vm.ephemeral
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_whose_maker_left_runs_under_its_own_time() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    // Each leaves as soon as there is something to leave.
    for number in 1..=6 {
        let asked = json!({"templateID": "base", "timeout": 77});
        let maker = begin(&place, CREATE, "", &asked).await;
        daemon.until_vms(|vms| vms.len() == number).await;
        drop(maker);
    }
    daemon.until_vms(|vms| vms.iter().all(|vm| runs_for(vm, 77))).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_cannot_run_is_not_left_behind_by_a_maker_who_left_or_stayed() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    place.host().inject(BootFault::SilentGuest);
    let maker = begin(&place, CREATE, KEY, &json!({"templateID": "base"})).await;
    daemon.until_vms(|vms| vms.iter().any(|vm| vm.state == VmStateName::Starting)).await;
    drop(maker);
    // The same request again waits for the same start.
    let again = begin(&place, CREATE, KEY, &json!({"templateID": "base"})).await;
    let vm = daemon.client.vms().await.unwrap().vms[0].id;
    while !place.host().kill_vmm(vm) {
        tokio::task::yield_now().await;
    }
    daemon.until_vms(<[Vm]>::is_empty).await;
    drop(again);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_ends_says_of_nothing_that_it_runs_which_does_not() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    place.host().inject(BootFault::SilentGuest);
    let mut maker = begin(&place, CREATE, KEY, &json!({"templateID": "base", "timeout": 77})).await;
    daemon.until_vms(|vms| vms.iter().any(|vm| vm.state == VmStateName::Starting)).await;
    daemon.stop().await;
    let mut answer = String::new();
    timeout(PATIENCE, maker.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(!answer.starts_with("HTTP/1.1 2"), "{answer}");
    // The next one brings it to its end.
    let daemon = Daemon::explicit(&place).await;
    let (status, made) = keyed(&place).await;
    assert_eq!(status, 201, "{made}");
    daemon.until_vms(|vms| vms.len() == 1 && runs_for(&vms[0], 77)).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_have_their_end_from_the_first_moment() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    let asked = json!({"templateID": "base", "timeout": 500, "metadata": {"a": "b"}});
    let (_, made) = ask(&place, CREATE, &[], &asked).await;
    let id = made["sandboxID"].as_str().unwrap();
    let fork = format!("POST /sandboxes/{id}/fork");
    let leaver = begin(&place, &fork, "", &json!({"count": 2, "timeout": 60})).await;
    daemon.until_vms(|vms| vms.len() > 1).await;
    let copies = daemon.client.vms().await.unwrap().vms.into_iter().filter(|vm| vm.name.as_str() != id);
    for copy in copies {
        assert_eq!(copy.life.timeout_ms, Some(60_000), "also before it runs");
        assert_eq!(copy.labels["a"], "b");
    }
    drop(leaver);
    let settled = |vms: &[Vm]| vms.iter().filter(|vm| runs_for(vm, 60)).count() == 2;
    daemon.until_vms(settled).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cold_start_goes_on_when_whoever_asked_for_it_has_left() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    let (_, made) = ask(&place, CREATE, &[], &json!({"templateID": "base"})).await;
    let id = made["sandboxID"].as_str().unwrap();
    let (paused, _) = ask(&place, &format!("POST /sandboxes/{id}/pause"), &[], &json!({})).await;
    assert_eq!(paused, 204);
    let connect = format!("POST /v2/sandboxes/{id}/connect");
    let leaver = begin(&place, &connect, "", &json!({"timeout": 60, "memory": false})).await;
    // Its first step is done, and the others are not; no event tells of it.
    let begun = async { while daemon.client.vms().await.unwrap().vms[0].life.timeout_ms != Some(60_000) {} };
    timeout(PATIENCE, begun).await.unwrap();
    drop(leaver);
    daemon.until_vms(|vms| runs_for(&vms[0], 60)).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_create_that_a_daemon_left_half_done_is_finished_by_the_same_request() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    let (_, made) = keyed(&place).await;
    let id = made["sandboxID"].as_str().unwrap().to_owned();
    assert_eq!(ask(&place, &format!("DELETE /sandboxes/{id}"), &[], &Value::Null).await.0, 204);
    // What there is of it between its creation and its start.
    daemon.client.create(&CreateVm { name: id.clone(), ..CreateVm::default() }).await.unwrap();
    daemon.stop().await;
    let daemon = Daemon::explicit(&place).await;
    let (status, again) = keyed(&place).await;
    assert_eq!((status, again["sandboxID"].as_str()), (201, Some(id.as_str())), "{again}");
    assert_eq!(daemon.client.vms().await.unwrap().vms[0].state, VmStateName::Running);

    // One that ran and was stopped since is as its owner left it.
    let pause = format!("POST /sandboxes/{id}/pause");
    assert_eq!(ask(&place, &pause, &[], &json!({"memory": false})).await.0, 204);
    assert_eq!(keyed(&place).await.0, 201);
    assert_eq!(daemon.client.vms().await.unwrap().vms[0].state, VmStateName::Stopped);
    daemon.stop().await;
}
