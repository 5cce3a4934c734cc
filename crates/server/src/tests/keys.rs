//! API keys: what they open, and what they do not.

use super::fixture::{Daemon, PATIENCE, Place, call, refused};
use crate::Announce;
use offshoot_api::v1::CreateKey;
use offshoot_types::ErrorCode;
use serde_json::{Value, json};
use std::net::SocketAddr;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

fn key(limits: Value) -> CreateKey {
    serde_json::from_value(limits).unwrap()
}

async fn get(address: SocketAddr, path: &str, secret: &str) -> (u16, String, Value) {
    let bearer = format!("Bearer {secret}");
    call(address, &format!("GET {path}"), &[("Authorization", &bearer)], &Value::Null).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_shown_once_works_over_tcp_and_no_more_once_it_is_removed() {
    let place = Place::new();
    let (daemon, address) = Daemon::on_a_port(&place).await;
    let made = daemon.client.create_key(&key(json!({ "name": "ci" }))).await.unwrap();
    let secret = made.key.clone();
    assert!(secret.starts_with("e2b_") && secret.len() == 44, "{secret}");
    assert!(secret[4..].bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')), "{secret}");
    assert_eq!(get(address, "/v1/vms", &secret).await.0, 200);
    let (status, ..) = call(address, "GET /v1/vms", &[("X-API-Key", &secret)], &Value::Null).await;
    assert_eq!(status, 200);
    assert_eq!(get(address, "/v1/vms", &format!("{secret}0")).await.0, 401);

    let listed = serde_json::to_string(&daemon.client.keys().await.unwrap()).unwrap();
    assert!(listed.contains("\"ci\"") && !listed.contains(&secret), "{listed}");
    let kept = std::fs::read(place.state_dir().join("offshoot.db-wal")).unwrap();
    assert!(!kept.windows(secret.len()).any(|bytes| bytes == secret.as_bytes()), "the secret is on disk");
    refused(daemon.client.create_key(&key(json!({ "name": "ci" }))).await, ErrorCode::AlreadyExists);

    daemon.client.remove_key(made.details.id).await.unwrap();
    assert_eq!(get(address, "/v1/vms", &secret).await.0, 401);
    refused(daemon.client.remove_key(made.details.id).await, ErrorCode::NotFound);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_lives_through_a_restart_with_its_limits() {
    let place = Place::new();
    let (daemon, _) = Daemon::on_a_port(&place).await;
    let made = daemon.client.create_key(&key(json!({ "scopes": ["vms:read"] }))).await.unwrap();
    daemon.stop().await;
    let (daemon, address) = Daemon::on_a_port(&place).await;
    assert_eq!(get(address, "/v1/vms", &made.key).await.0, 200);
    let post = [("X-API-Key", made.key.as_str())];
    let (status, _, body) = call(address, "POST /v1/vms", &post, &json!({ "name": "a" })).await;
    assert_eq!((status, &body["code"]), (403, &json!("denied")));
    assert!(body["message"].as_str().unwrap().contains("vms:write"), "{body}");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_makes_so_many_vms_of_its_names_and_sees_no_others() {
    let place = Place::new();
    let (daemon, address) = Daemon::on_a_port(&place).await;
    daemon.boot("mine").await;
    let limits = json!({ "vm_prefix": "ci-", "max_vms": 1 });
    let secret = daemon.client.create_key(&key(limits)).await.unwrap().key;
    let own = [("X-API-Key", secret.as_str())];
    let make = async |name: &str| call(address, "POST /v1/vms", &own, &json!({ "name": name })).await;
    assert_eq!(make("other").await.0, 403);
    assert_eq!(make("ci-a").await.0, 200);
    let (status, _, body) = make("ci-b").await;
    assert_eq!((status, &body["code"]), (503, &json!("no_resource")), "{body}");
    let (_, _, list) = get(address, "/v1/vms", &secret).await;
    let names: Vec<&str> =
        list["vms"].as_array().unwrap().iter().map(|vm| vm["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["ci-a"]);
    for path in ["/v1/vms/mine", "/v1/events", "/v1/operations", "/v1/keys"] {
        assert_eq!(get(address, path, &secret).await.0, 403, "{path}");
    }
    let (status, ..) = call(address, "DELETE /v1/vms/ci-a", &own, &Value::Null).await;
    assert_eq!(status, 200);
    assert_eq!(make("ci-c").await.0, 200, "there is room again");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_makes_weaker_keys_only_and_they_go_with_it() {
    let place = Place::new();
    let (daemon, address) = Daemon::on_a_port(&place).await;
    let limits = json!({ "scopes": ["keys", "vms:read"], "rate": 1000 });
    let first = daemon.client.create_key(&key(limits)).await.unwrap();
    let own = [("X-API-Key", first.key.as_str())];
    let make = async |limits: Value| call(address, "POST /v1/keys", &own, &limits).await;
    for stronger in [json!({ "scopes": ["*"] }), json!({ "scopes": ["exec"] }), json!({ "rate": 2000 })] {
        let (status, _, body) = make(stronger.clone()).await;
        assert_eq!(status, 403, "{stronger}: {body}");
    }
    let (status, _, second) = make(json!({ "ttl_ms": 3_600_000 })).await;
    assert_eq!((status, &second["scopes"]), (200, &json!(["vms:read", "keys"])), "as its maker: {second}");
    let secret = second["key"].as_str().unwrap();
    assert_eq!(get(address, "/v1/vms", secret).await.0, 200);
    let path = format!("DELETE /v1/keys/{}", first.details.id);
    let (status, ..) = call(address, &path, &[("X-API-Key", secret)], &Value::Null).await;
    assert_eq!(status, 403, "it did not make that one");
    let removed = daemon.client.remove_key(first.details.id).await.unwrap().removed;
    assert_eq!(removed.len(), 2);
    assert_eq!(get(address, "/v1/vms", secret).await.0, 401);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_its_rate_a_key_is_told_when_to_ask_again() {
    let place = Place::new();
    let (daemon, address) = Daemon::on_a_port(&place).await;
    let secret = daemon.client.create_key(&key(json!({ "rate": 2 }))).await.unwrap().key;
    let mut seen = Vec::new();
    // More at once than the rate, however slowly they go.
    let asked = (0..40).map(|_| get(address, "/v1/health", &secret));
    for (status, head, body) in futures::future::join_all(asked).await {
        if status == 429 {
            assert!(head.contains("retry-after: 1"), "{head}");
            assert_eq!((&body["code"], &body["retryable"]), (&json!("rate_limited"), &json!(true)));
        }
        seen.push(status);
    }
    assert!(seen.contains(&200) && seen.contains(&429), "{seen:?}");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sandboxes_of_a_key_have_its_prefix_and_count_for_it() {
    let place = Place::new();
    let (daemon, address) = Daemon::on_a_port(&place).await;
    let limits = json!({ "vm_prefix": "ci-", "max_vms": 1 });
    let secret = daemon.client.create_key(&key(limits)).await.unwrap().key;
    let own = [("X-API-Key", secret.as_str())];
    let make = async || call(address, "POST /v2/sandboxes", &own, &json!({ "templateID": "base" })).await;
    let (status, _, made) = make().await;
    assert_eq!(status, 201, "{made}");
    let id = made["sandboxID"].as_str().unwrap();
    assert!(id.starts_with("ci-i"), "{made}");
    let (status, _, full) = make().await;
    assert!((400..600).contains(&status) && full["message"].as_str().unwrap().contains("1 of 1"), "{full}");
    let (status, ..) = call(address, &format!("DELETE /sandboxes/{id}"), &own, &Value::Null).await;
    assert_eq!(status, 204);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_clients_of_e2b_need_is_told_and_the_key_before_is_gone() {
    use offshoot_api::v1::DaemonMode;
    let place = Place::new();
    let mut before = String::new();
    for _ in 0..2 {
        let mut options = place.options(DaemonMode::Explicit);
        options.listen = vec![crate::Listen::plain("127.0.0.1:0".parse().unwrap(), false).unwrap()];
        let (to, announced) = tokio::sync::oneshot::channel();
        options.announce = Some(Announce { provider: None, to });
        let daemon = place.start(options).await;
        let environment = announced.await.unwrap();
        let names = environment.variables().map(|(name, _)| name);
        assert_eq!(names, ["E2B_API_URL", "E2B_SANDBOX_URL", "E2B_API_KEY"]);
        let port = environment.url.rsplit(':').next().unwrap().parse().unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let own = [("X-API-Key", environment.key.as_str())];
        let (status, _, made) =
            call(address, "POST /v2/sandboxes", &own, &json!({ "templateID": "base" })).await;
        assert_eq!(status, 201, "{made}");
        assert_eq!(get(address, "/v1/keys", &environment.key).await.0, 403, "no more than sandboxes need");
        if !before.is_empty() {
            assert_eq!(get(address, "/v1/vms", &before).await.0, 401);
        }
        before.clone_from(&environment.key);
        daemon.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_goes_on_with_a_key_ends_when_it_is_removed() {
    let place = Place::new();
    let (daemon, address) = Daemon::on_a_port(&place).await;
    daemon.boot("web").await;
    let made = daemon.client.create_key(&key(json!({ "name": "ci" }))).await.unwrap();
    let begin = async |head: &str, more: &str| {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("{head} HTTP/1.1\r\nHost: x\r\nX-API-Key: {}\r\n{more}\r\n", made.key);
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut begun = [0; 12];
        timeout(PATIENCE, stream.read_exact(&mut begun)).await.unwrap().unwrap();
        (stream, String::from_utf8_lossy(&begun).into_owned())
    };
    let (events, status) = begin("GET /v1/events", "Accept: text/event-stream\r\n").await;
    assert_eq!(status, "HTTP/1.1 200");
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let (session, status) = begin("GET /v1/vms/web/exec", upgrade).await;
    assert_eq!(status, "HTTP/1.1 101");
    daemon.client.remove_key(made.details.id).await.unwrap();
    for (what, mut stream) in [("events", events), ("session", session)] {
        let mut rest = Vec::new();
        let ended = timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
        // Cut off, so that a reset is right as well.
        drop(ended.unwrap_or_else(|_| panic!("the {what} go on without a key")));
        assert!(!rest.ends_with(b"0\r\n\r\n"), "the {what} look complete");
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_come_in_pages() {
    let place = Place::new();
    let (daemon, address) = Daemon::on_a_port(&place).await;
    daemon.boot("web").await;
    let mut secret = String::new();
    for name in ["a", "b", "c"] {
        secret = daemon.client.create_key(&key(json!({ "name": name }))).await.unwrap().key;
    }
    let mut seen = Vec::new();
    let mut next = String::new();
    loop {
        let (status, _, page) = get(address, &format!("/v1/keys?limit=2{next}"), &secret).await;
        assert_eq!(status, 200, "{page}");
        seen.extend(page["keys"].as_array().unwrap().iter().map(|key| key["name"].clone()));
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        next = format!("&cursor={cursor}");
    }
    assert_eq!(seen, ["a", "b", "c"]);
    for list in ["keys", "images", "vms", "operations", "snapshots"] {
        assert_eq!(get(address, &format!("/v1/{list}?limit=0"), &secret).await.0, 400, "{list}");
    }
    for list in ["execs", "contexts", "transactions", "snapshots"] {
        assert_eq!(get(address, &format!("/v1/vms/web/{list}?limit=0"), &secret).await.0, 400, "{list}");
        assert_eq!(get(address, &format!("/v1/vms/web/{list}?limit=5"), &secret).await.0, 200, "{list}");
    }
    daemon.stop().await;
}
