//! The control plane of E2B's API, as its SDKs speak it.

use super::fixture::{Daemon, Place, exchange};
use offshoot_api::v1::{CreateKey, MAX_JSON};
use offshoot_types::VmStateName;
use serde_json::{Value, json};
use tokio::net::{TcpStream, UnixStream};

/// Status, head and document of an answer.
struct Answer {
    status: u16,
    head: String,
    body: Value,
}

async fn ask(place: &Place, head: &str, headers: &[(&str, &str)], body: Value) -> Answer {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let stream = UnixStream::connect(place.socket()).await.unwrap();
    let text = exchange(stream, head, headers, &body).await;
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let body = serde_json::from_str(body).unwrap_or(Value::Null);
    Answer { status, head: head.to_ascii_lowercase(), body }
}

async fn plain(place: &Place, head: &str, body: Value) -> Answer {
    ask(place, head, &[], body).await
}

async fn create(place: &Place, mut more: Value) -> String {
    more["templateID"] = "base".into();
    let made = plain(place, "POST /v2/sandboxes", more).await;
    assert_eq!(made.status, 201, "{}", made.body);
    made.body["sandboxID"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_is_a_vm_with_what_clients_ask_of_it() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    let asked = json!({"templateID": "base", "timeout": 120, "metadata": {"a": "b"}, "envVars": {"X": "secret"}, "new": 1});
    let made = ask(&place, "POST /v2/sandboxes", &[("Host", "127.0.0.1:3000")], asked).await;
    assert_eq!(made.status, 201, "{}", made.body);
    let id = made.body["sandboxID"].as_str().unwrap();
    assert!(id.starts_with('i') && id.len() == 20, "{id}");
    assert_eq!((&made.body["domain"], &made.body["templateID"]), (&json!("localhost:3000"), &json!("base")));
    assert_eq!(made.body["envdAccessToken"].as_str().unwrap().len(), 64);

    let vm = daemon.client.vm(&id.parse().unwrap()).await.unwrap();
    assert_eq!(vm.state, VmStateName::Running);
    let shown = plain(&place, &format!("GET /sandboxes/{id}"), Value::Null).await;
    assert_eq!((shown.status, &shown.body["state"]), (200, &json!("running")));
    assert_eq!(shown.body["metadata"], json!({"a": "b"}), "what is ours is not the caller's");
    assert_eq!(shown.body["lifecycle"], json!({"autoResume": false, "onTimeout": "pause"}));
    assert_eq!(shown.body["envdAccessToken"], made.body["envdAccessToken"]);
    assert!(!shown.body.to_string().contains("secret"));

    for (route, body) in [("timeout", json!({"timeout": 500})), ("refreshes", json!({"duration": 900}))] {
        let set = plain(&place, &format!("POST /sandboxes/{id}/{route}"), body).await;
        assert_eq!(set.status, 204, "{}", set.body);
    }
    let life = daemon.client.vm(&id.parse().unwrap()).await.unwrap().life;
    assert_eq!(life.timeout_ms, Some(900_000));

    assert_eq!(plain(&place, &format!("DELETE /sandboxes/{id}"), Value::Null).await.status, 204);
    let gone = plain(&place, &format!("DELETE /sandboxes/{id}"), Value::Null).await;
    assert_eq!((gone.status, &gone.body["code"]), (404, &json!(404)));
    assert_eq!(plain(&place, &format!("GET /sandboxes/{id}"), Value::Null).await.status, 404);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_key_makes_the_same_sandbox_once() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    let keyed = async |key: &'static str| {
        let asked = json!({"templateID": "base"});
        let made = ask(&place, "POST /v2/sandboxes", &[("Idempotency-Key", key)], asked).await;
        assert_eq!(made.status, 201, "{}", made.body);
        made.body["sandboxID"].as_str().unwrap().to_owned()
    };
    let first = keyed("one").await;
    assert_eq!(keyed("one").await, first);
    assert_ne!(keyed("two").await, first);
    assert_eq!(daemon.client.vms().await.unwrap().vms.len(), 2);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_are_filtered_ordered_and_in_pages() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    let mut made = Vec::new();
    for of in ["mine", "mine", "theirs"] {
        made.push(create(&place, json!({"metadata": {"of": of, "n": "a b&c"}})).await);
    }
    assert_eq!(plain(&place, &format!("POST /sandboxes/{}/pause", made[1]), json!({})).await.status, 204);
    let list = async |query: &str| {
        let page = plain(&place, &format!("GET /v2/sandboxes?{query}"), Value::Null).await;
        assert_eq!(page.status, 200, "{}", page.body);
        let ids: Vec<String> = page
            .body
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["sandboxID"].as_str().unwrap().into())
            .collect();
        let next = page.head.lines().find_map(|line| line.strip_prefix("x-next-token: ").map(str::to_owned));
        (ids, next)
    };
    let newest_first: Vec<String> = made.iter().rev().cloned().collect();
    assert_eq!(list("").await, (newest_first, None));
    assert_eq!(list("order=asc").await.0, made);
    // Keys and values are encoded twice.
    assert_eq!(list("metadata=of%3Dmine%26n%3Da%2Bb%2526c").await.0.len(), 2);
    assert_eq!(list("state=paused").await.0, [made[1].clone()]);
    assert_eq!(list("state=paused,running&template=base").await.0.len(), 3);
    assert_eq!(list("template=other").await.0.len(), 0);
    let (first, next) = list("limit=2&order=asc").await;
    assert_eq!(first, made[..2]);
    let (second, last) = list(&format!("limit=2&order=asc&nextToken={}", next.unwrap())).await;
    assert_eq!((second, last), (vec![made[2].clone()], None));
    assert_eq!(plain(&place, "GET /v2/sandboxes?state=odd", Value::Null).await.status, 400);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_rests_is_resumed_by_connecting_and_says_what_it_kept() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    let id = create(&place, json!({})).await;
    let to = |verb: &str| format!("POST /v2/sandboxes/{id}/{verb}");
    let pause = format!("POST /sandboxes/{id}/pause");
    assert_eq!(plain(&place, &to("connect"), json!({"timeout": 10})).await.status, 200);
    assert_eq!(plain(&place, &pause, json!({"memory": true})).await.status, 204);
    assert_eq!(plain(&place, &pause, json!({})).await.status, 409);
    let shown = plain(&place, &format!("GET /sandboxes/{id}"), Value::Null).await.body;
    assert_eq!((&shown["state"], &shown["pauseMode"]), (&json!("paused"), &json!("full")));
    let resumed = plain(&place, &to("connect"), json!({"timeout": 60})).await;
    assert_eq!((resumed.status, &resumed.body["sandboxID"]), (201, &json!(id)));
    assert_eq!(plain(&place, &pause, json!({"memory": false})).await.status, 204);
    let shown = plain(&place, &format!("GET /sandboxes/{id}"), Value::Null).await.body;
    assert_eq!(shown["pauseMode"], "filesystem");
    assert_eq!(plain(&place, &format!("POST /sandboxes/{id}/resume"), json!({})).await.status, 201);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forks_and_snapshots_become_sandboxes_of_their_own() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    let id = create(&place, json!({"metadata": {"a": "b"}})).await;
    let forked =
        plain(&place, &format!("POST /sandboxes/{id}/fork"), json!({"count": 2, "timeout": 60})).await;
    assert_eq!(forked.status, 201, "{}", forked.body);
    let forks: Vec<&Value> = forked.body.as_array().unwrap().iter().map(|one| &one["sandbox"]).collect();
    assert_eq!(forks.len(), 2);
    assert_ne!(forks[0]["envdAccessToken"], forks[1]["envdAccessToken"]);
    let name = forks[0]["sandboxID"].as_str().unwrap();
    let life = daemon.client.vm(&name.parse().unwrap()).await.unwrap().life;
    assert_eq!(life.timeout_ms, Some(60_000));

    let kept = plain(&place, &format!("POST /sandboxes/{id}/snapshots"), json!({"name": "good"})).await;
    assert_eq!(kept.status, 201, "{}", kept.body);
    let snapshot = kept.body["snapshotID"].as_str().unwrap().to_owned();
    assert_eq!(kept.body["names"], json!([format!("{id}@good")]));
    let listed = plain(&place, &format!("GET /snapshots?sandboxID={id}"), Value::Null).await;
    assert_eq!(listed.body, json!([kept.body]));
    let asked = json!({"templateID": snapshot, "metadata": {"c": "d"}, "timeout": 30});
    let child = plain(&place, "POST /v2/sandboxes", asked).await;
    assert_eq!(child.status, 201, "{}", child.body);
    let child = child.body["sandboxID"].as_str().unwrap();
    let shown = plain(&place, &format!("GET /sandboxes/{child}"), Value::Null).await.body;
    assert_eq!((&shown["metadata"], &shown["templateID"]), (&json!({"c": "d"}), &json!(snapshot)));
    let alias = plain(&place, "GET /templates/aliases/good", Value::Null).await;
    assert_eq!((alias.status, &alias.body["templateID"]), (200, &json!(snapshot)));
    let remove = format!("DELETE /templates/{snapshot}");
    let needed = plain(&place, &remove, Value::Null).await;
    assert_eq!(needed.status, 409, "a running sandbox has its memory from it: {}", needed.body);
    assert_eq!(plain(&place, &format!("DELETE /sandboxes/{child}"), Value::Null).await.status, 204);
    let removed = plain(&place, &remove, Value::Null).await;
    assert_eq!(removed.status, 204, "{}", removed.body);
    assert_eq!(plain(&place, &remove, Value::Null).await.status, 404);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_is_refused_in_the_wires_own_shape_and_nothing_is_left() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    for (status, asked) in [
        (404, json!({"templateID": "nowhere"})),
        (400, json!({"templateID": "base", "network": {"denyOut": ["0.0.0.0/0"]}})),
        (400, json!({"templateID": "base", "volumeMounts": [{"name": "a", "path": "/a"}]})),
        (400, json!({"timeout": 1})),
    ] {
        let refused = plain(&place, "POST /v2/sandboxes", asked).await;
        assert_eq!((refused.status, &refused.body["code"]), (status, &json!(status)), "{}", refused.body);
        assert!(refused.body["message"].is_string());
    }
    assert!(daemon.client.vms().await.unwrap().vms.is_empty());
    let build = plain(&place, "POST /v3/templates", json!({"name": "x"})).await;
    assert_eq!(build.status, 501);
    assert!(build.head.contains("should-retry: false"), "{}", build.head);
    let templates = plain(&place, "GET /templates", Value::Null).await;
    assert_eq!(templates.body[0]["templateID"], "base");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_no_has_the_wires_own_shape() {
    let place = Place::new();
    let (daemon, address) = Daemon::on_a_port(&place).await;
    let secret = daemon.client.create_key(&CreateKey::default()).await.unwrap().key;
    let id = create(&place, json!({})).await;
    let ids: Vec<String> = (0..101).map(|number| format!("i{number}")).collect();
    let many = format!("GET /sandboxes/metrics?sandbox_ids={}", ids.join(","));
    let cases = [
        (404, "GET /sandboxes/Not%20A%20Name", ""),
        (404, "DELETE /sandboxes/%00", ""),
        (400, "GET /sandboxes/%ff", ""),
        (404, "GET /sandboxes/ighost/nothing", ""),
        (404, "POST /v2/sandboxes/ighost/connect", "{}"),
        (404, "GET /v3/sandboxes", ""),
        (404, "GET /templates/nowhere", ""),
        (404, "DELETE /templates/nowhere", ""),
        (405, "PATCH /sandboxes", ""),
        (405, "GET /sandboxes/ighost/timeout", ""),
        (400, "POST /v2/sandboxes", "no json"),
        (400, "POST /v2/sandboxes", "{}"),
        (400, "POST /v2/sandboxes", r#"{"templateID":7}"#),
        (400, "POST /v2/sandboxes", r#"{"templateID":"Foo Bar"}"#),
        (400, "POST /v2/sandboxes", r#"{"templateID":"base","timeout":-1}"#),
        (400, "POST /v2/sandboxes", r#"{"templateID":"base","timeout":99999999999999999999}"#),
        (400, "POST /v2/sandboxes", r#"{"templateID":"base","envVars":{"A=B":"c"}}"#),
        (400, "GET /v2/sandboxes?limit=0", ""),
        (400, "GET /v2/sandboxes?limit=-1", ""),
        (400, "GET /v2/sandboxes?nextToken=x", ""),
        (400, "GET /v2/sandboxes?startedAfter=never", ""),
        (501, "POST /volumes", "{}"),
        (400, many.as_str(), ""),
    ];
    let key = [("X-API-Key", secret.as_str())];
    let shaped = |asked: &str, answer: &str, status: u64| {
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert_eq!(head.split(' ').nth(1), Some(status.to_string().as_str()), "{asked}: {answer}");
        let body: Value = serde_json::from_str(body).unwrap_or_else(|_| panic!("{asked}: {answer}"));
        let names: Vec<&String> = body.as_object().unwrap().keys().collect();
        assert_eq!(names, ["code", "message"], "{asked}: {answer}");
        assert!(body["code"] == status && body["message"] != "", "{asked}: {answer}");
    };
    for (status, head, body) in cases {
        for headers in [&key[..], &[("X-API-Key", secret.as_str()), ("content-type", "text/plain")]] {
            let stream = TcpStream::connect(address).await.unwrap();
            shaped(head, &exchange(stream, head, headers, body).await, status);
        }
        let stream = TcpStream::connect(address).await.unwrap();
        shaped(head, &exchange(stream, head, &[], body).await, 401);
    }
    let large = format!(r#"{{"timeout":1,"x":"{}"}}"#, "x".repeat(MAX_JSON));
    let asked = format!("POST /sandboxes/{id}/timeout");
    let stream = TcpStream::connect(address).await.unwrap();
    shaped(&asked, &exchange(stream, &asked, &key, &large).await, 400);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_sandbox_uses_and_what_happened_to_it_is_told() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    let id = create(&place, json!({})).await;
    let metrics = plain(&place, &format!("GET /sandboxes/{id}/metrics"), Value::Null).await;
    assert_eq!(metrics.status, 200, "{}", metrics.body);
    assert!(metrics.body[0]["memTotal"].as_u64().unwrap() > 0);
    let many = plain(&place, &format!("GET /sandboxes/metrics?sandbox_ids={id},ghost"), Value::Null).await;
    assert!(many.body["sandboxes"][&id]["cpuCount"].as_u64().is_some(), "{}", many.body);
    let logs =
        plain(&place, &format!("GET /v2/sandboxes/{id}/logs?direction=backward&limit=3"), Value::Null).await;
    assert_eq!(logs.body["logs"].as_array().unwrap().len(), 3);
    let older = plain(&place, &format!("GET /sandboxes/{id}/logs"), Value::Null).await;
    assert!(older.body["logs"][0]["line"].is_string());
    daemon.stop().await;
}
