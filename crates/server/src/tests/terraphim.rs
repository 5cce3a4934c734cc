//! Terraphim's wire against a daemon whose VMs are in memory. Its interpreters know `x = 1`, `print(x)`, `fail`, `sleep`.

use super::fixture::{Daemon, PATIENCE, Place, call, exchange, shell};
use futures::{SinkExt, StreamExt};
use offshoot_api::v1::{CollectRequest, CreateKey};
use offshoot_types::{SnapshotOrigin, VmRef};
use serde_json::{Value, json};
use std::net::SocketAddr;
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Message, client::IntoClientRequest},
};

/// A daemon on a port, and a key for it.
struct Served {
    daemon: Daemon,
    address: SocketAddr,
    key: String,
}

impl Served {
    async fn new(place: &Place) -> Self {
        let (daemon, address) = Daemon::on_a_port(place).await;
        let key = daemon.client.create_key(&CreateKey::default()).await.unwrap().key;
        Self { daemon, address, key }
    }

    async fn ask(&self, head: &str, body: Value) -> (u16, Value) {
        self.ask_with(head, &[], body).await
    }

    async fn ask_with(&self, head: &str, headers: &[(&str, &str)], body: Value) -> (u16, Value) {
        let bearer = format!("Bearer {}", self.key);
        let mut all = vec![("authorization", bearer.as_str()), ("content-type", "application/json")];
        all.extend_from_slice(headers);
        let (status, _, json) = call(self.address, head, &all, &body).await;
        (status, json)
    }

    async fn ok(&self, head: &str, body: Value) -> Value {
        let (status, json) = self.ask(head, body).await;
        assert!((200..300).contains(&status), "{head}: {status} {json}");
        json
    }

    async fn refused(&self, head: &str, body: Value, expected: u16) -> String {
        let (status, json) = self.ask(head, body).await;
        assert_eq!(status, expected, "{head}: {json}");
        assert_eq!(json["error"], json["message"], "what these clients read is there");
        assert!(json["code"].is_string() && json["request_id"].is_string());
        json["error"].as_str().unwrap().to_owned()
    }

    async fn run(&self, agent: &str, code: &str) -> Value {
        let asked = json!({ "agent_id": agent, "language": "python", "code": code });
        self.ok("POST /api/llm/execute", asked).await
    }

    async fn socket(&self) -> Socket {
        let mut request = format!("ws://{}/ws", self.address).into_client_request().unwrap();
        request.headers_mut().insert("authorization", format!("Bearer {}", self.key).parse().unwrap());
        let stream = TcpStream::connect(self.address).await.unwrap();
        Socket(timeout(PATIENCE, client_async(request, stream)).await.unwrap().unwrap().0)
    }
}

struct Socket(WebSocketStream<TcpStream>);

impl Socket {
    async fn say(&mut self, kind: &str, workflow: &str, data: Value) {
        let order = json!({ "command_type": kind, "session_id": "s", "workflow_id": workflow, "data": data });
        self.0.send(Message::text(order.to_string())).await.unwrap();
    }

    /// What is said up to the first of this kind, which is the last element.
    async fn until(&mut self, kind: &str) -> Vec<Value> {
        let mut said = Vec::new();
        while said.last().is_none_or(|last: &Value| last["response_type"] != kind) {
            let message =
                timeout(PATIENCE, self.0.next()).await.unwrap_or_else(|_| panic!("{kind} after {said:?}"));
            if let Message::Text(text) = message.unwrap().unwrap() {
                said.push(serde_json::from_str(&text).unwrap());
            }
        }
        said
    }
}

fn kinds(said: &[Value]) -> Vec<&str> {
    said.iter().map(|one| one["response_type"].as_str().unwrap()).collect()
}

fn answer(blocks: &[(&str, &str)]) -> String {
    let block =
        |(language, code): &(&str, &str)| format!("Please run this:\n\n```{language}\n{code}\n```\n\n");
    blocks.iter().map(block).collect()
}

fn parse(blocks: &[(&str, &str)], config: Value) -> Value {
    json!({ "agent_id": "a", "llm_response": answer(blocks), "auto_execute": true, "vm_config": config })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agents_code_runs_in_a_vm_of_its_own_whose_variables_survive_its_turns() {
    let place = Place::new();
    let served = Served::new(&place).await;
    let first = served.run("agent one", "x = 41").await;
    assert_eq!((first["exit_code"].as_i64(), first["success"].as_bool()), (Some(0), Some(true)), "{first}");
    assert!(first["snapshot_id"].is_string() && first["rolled_back"] == false);
    let second = served.run("agent one", "print(x + 1)").await;
    assert_eq!((second["stdout"].as_str(), &second["vm_id"]), (Some("42\n"), &first["vm_id"]));
    assert_ne!(second["execution_id"], first["execution_id"]);
    let other = served.run("agent-one", "1").await;
    assert_ne!(other["vm_id"], first["vm_id"], "another agent has another VM");

    let pool = served.ok("GET /api/llm/vm-pool/agent%20one", Value::Null).await;
    assert_eq!(pool["available_vms"].as_array().unwrap().len(), 1);
    assert_eq!(
        (&pool["available_vms"][0]["id"], &pool["available_vms"][0]["ip_address"]),
        (&first["vm_id"], &Value::Null)
    );
    served.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_spellings_are_understood_and_spoken() {
    let place = Place::new();
    let served = Served::new(&place).await;
    let one = served.ok("POST /api/vms", json!({ "vm_type": "focal-optimized", "vm_name": "one" })).await;
    let two = served.ok("POST /api/vms", json!({ "vm_type": "base", "name": "Two of them" })).await;
    assert_eq!((one["name"].as_str(), one["status"].as_str()), (Some("one"), Some("running")));
    assert_eq!(two["name"], "Two of them");
    for (timeout, language) in [("timeout_seconds", "python"), ("timeout_ms", "py")] {
        let mut asked = json!({ "agent_id": "a", "language": language, "code": "7", "vm_id": one["id"], "metadata": { "a": 1 } });
        asked[timeout] = json!(5000);
        let told = served.ok("POST /api/llm/execute", asked).await;
        assert_eq!(
            (&told["vm_id"], &told["result"], &told["metadata"]["a"]),
            (&one["id"], &json!("7"), &json!(1))
        );
    }
    let taken =
        served.ok("POST /api/vms/one/snapshots", json!({ "name": "agent-a-1", "description": "d" })).await;
    let again = served.ok("POST /api/vms/one/snapshots", json!({ "name": "agent-a-1" })).await;
    assert_ne!(taken["snapshot_id"], again["snapshot_id"], "same_second_snapshots_distinct");
    assert_eq!(taken["id"], taken["snapshot_id"]);
    let list = served.ok("GET /api/vms", Value::Null).await;
    assert_eq!((list["total"].as_u64(), list["vms"].as_array().unwrap().len()), (Some(2), 2));
    served.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshot_id_round_trips_through_restore_list_delete() {
    let place = Place::new();
    let served = Served::new(&place).await;
    let vm = served.run("a", "x = 1").await["vm_id"].as_str().unwrap().to_owned();
    let taken = served.ok(&format!("POST /api/vms/{vm}/snapshots"), json!({ "name": "before" })).await;
    let id = taken["snapshot_id"].as_str().unwrap();
    served.run("a", "x = 2").await;
    let head = format!("POST /api/vms/{vm}/rollback/{id}");
    let back = served.ok(&head, json!({ "create_pre_rollback_snapshot": true })).await;
    assert_eq!((&back["restored_snapshot_id"], back["success"].as_bool()), (&taken["id"], Some(true)));
    assert!(back["pre_rollback_snapshot_id"].is_string());
    assert_eq!(served.run("a", "print(x)").await["stdout"], "1\n", "memory is back too");
    let list = served.ok(&format!("GET /api/vms/{vm}/snapshots"), Value::Null).await;
    let listed = list["snapshots"].as_array().unwrap();
    assert!(listed.iter().any(|one| one["id"] == taken["id"] && one["name"] == "before"), "{list}");

    let other = served.run("b", "1").await["vm_id"].as_str().unwrap().to_owned();
    served.refused(&format!("DELETE /api/vms/{other}/snapshots/{id}"), Value::Null, 404).await;
    served.refused(&format!("POST /api/vms/{vm}/rollback/{other}"), json!({}), 404).await;
    served.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn auto_rollback_never_restores_failed_state() {
    let place = Place::new();
    let served = Served::new(&place).await;
    served.run("a", "x = 1").await;
    let blocks = [("python", "x = 2\nfail"), ("python", "print(x)")];
    let config = json!({ "auto_rollback_on_failure": true, "stop_on_failure": false });
    let told = served.ok("POST /api/llm/parse-execute", parse(&blocks, config)).await;
    let results = told["execution_results"].as_array().unwrap();
    assert_eq!(
        (told["rolledBack"].as_bool(), told["success"].as_bool(), results.len()),
        (Some(true), Some(false), 2)
    );
    let failed = &results[0];
    assert_eq!(
        (failed["rolled_back"].as_bool(), failed["exit_code"].as_i64()),
        (Some(true), Some(1)),
        "{failed}"
    );
    assert_eq!(results[1]["stdout"], "1\n", "what the failure did is undone, what was before is there");
    // What failed is kept, under another id than what it went back to.
    let vm: VmRef = failed["vm_id"].as_str().unwrap().parse().unwrap();
    let all = served.daemon.client.snapshots_of(&vm).await.unwrap().snapshots;
    let kept = all.iter().find(|one| json!(one.id) == failed["failure_snapshot_id"]).unwrap();
    assert_eq!(kept.origin, SnapshotOrigin::Undo);
    assert_ne!(failed["failure_snapshot_id"], failed["snapshot_id"]);
    assert!(served.daemon.client.transactions(&vm).await.unwrap().transactions.is_empty());
    served.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_failures_left_is_kept_for_the_last_of_them() {
    let place = Place::new();
    let served = Served::new(&place).await;
    let mut last = Value::Null;
    for _ in 0..10 {
        last = served.run("a", "fail").await;
    }
    let vm: VmRef = last["vm_id"].as_str().unwrap().parse().unwrap();
    let all = served.daemon.client.snapshots_of(&vm).await.unwrap().snapshots;
    let left: Vec<_> = all.iter().filter(|one| one.origin == SnapshotOrigin::Manual).collect();
    assert_eq!(left.len(), 8, "{left:?}");
    assert!(left.iter().any(|one| json!(one.id) == last["failure_snapshot_id"]));
    served.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workflow_goes_in_order_and_stops_where_it_is_told_to() {
    let place = Place::new();
    let served = Served::new(&place).await;
    let blocks = [("python", "x = 5"), ("text", "hello"), ("python", "fail"), ("python", "print(x)")];
    let told = served.ok("POST /api/llm/parse-execute", parse(&blocks, json!(true))).await;
    assert_eq!(told["code_blocks"].as_array().unwrap().len(), 4);
    assert_eq!((told["stopped_at"].as_u64(), told["rolled_back"].as_bool()), (Some(2), Some(false)));
    let ran: Vec<u64> = told["execution_results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["block_index"].as_u64().unwrap())
        .collect();
    assert_eq!(ran, [0, 2]);
    assert!(told["code_blocks"][3]["metadata"]["skipped"].is_string());
    assert!(told["execution_results"][1]["failure_snapshot_id"].is_string(), "what failed is kept");
    let block = &told["code_blocks"][0];
    let text = answer(&blocks);
    let at = |key: &str| block[key].as_u64().unwrap() as usize;
    assert_eq!(&text[at("start_pos")..at("end_pos")], "```python\nx = 5\n```");

    // Without `auto_execute`, or for what is not sure enough, nothing runs and no VM is made.
    let quiet = json!({ "agent_id": "quiet", "llm_response": text, "auto_execute": false });
    let told = served.ok("POST /api/llm/parse-execute", quiet).await;
    assert_eq!((told["execution_results"].as_array().unwrap().len(), &told["vm_id"]), (0, &Value::Null));
    let unsure = json!({ "agent_id": "quiet", "llm_response": text, "auto_execute": true, "auto_execute_threshold": 1.0 });
    assert_eq!(served.ok("POST /api/llm/parse-execute", unsure).await["vm_id"], Value::Null);
    let pool = served.ok("GET /api/llm/vm-pool/quiet", Value::Null).await;
    assert_eq!(pool["available_vms"], json!([]));
    served.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn risky_code_is_kept_before_or_asked_about_or_refused() {
    let place = Place::new();
    let served = Served::new(&place).await;
    let vm = served.run("a", "x = 1").await["vm_id"].clone();
    let risky = "x = 'rm -rf /'";
    let asked = |code: &str, extra: Value| {
        let mut asked = json!({ "agent_id": "a", "language": "python", "code": code, "vm_config": { "snapshot_on_execution": false } });
        for (key, value) in extra.as_object().unwrap() {
            asked[key] = value.clone();
        }
        asked
    };
    let plain = served.ok("POST /api/llm/execute", asked("x = 3", json!({}))).await;
    assert_eq!(plain["snapshot_id"], Value::Null);
    let kept = served.ok("POST /api/llm/execute", asked(risky, json!({}))).await;
    assert!(kept["snapshot_id"].is_string(), "{kept}");
    assert_eq!(kept["risk"]["hazard"], "removes-tree");
    served.run("a", "x = 3").await;

    let deny = json!({ "vm_config": { "on_risk": "deny" } });
    let why = served.refused("POST /api/llm/execute", asked(risky, deny), 403).await;
    assert!(why.contains("removes a tree of files"), "{why}");
    assert_eq!(served.run("a", "print(x)").await["stdout"], "3\n", "nothing ran");

    let ask = |extra: Value| {
        let mut all = json!({ "vm_config": { "on_risk": "ask" } });
        if !extra.is_null() {
            all["approval_id"] = extra;
        }
        all
    };
    let (status, held) = served.ask("POST /api/llm/execute", asked(risky, ask(Value::Null))).await;
    assert_eq!(
        (status, held["status"].as_str(), &held["vm_id"]),
        (202, Some("approval_required"), &vm),
        "{held}"
    );
    assert_eq!(served.run("a", "print(x)").await["stdout"], "3\n", "ask_user_blocks_until_answer");
    // Other code is asked about anew: modify_revalidated.
    let (status, other) = served
        .ask("POST /api/llm/execute", asked("x = 'rm -rf /home'", ask(held["approval_id"].clone())))
        .await;
    assert_eq!(status, 202, "{other}");
    let ran = served.ok("POST /api/llm/execute", asked(risky, ask(held["approval_id"].clone()))).await;
    assert_eq!((ran["exit_code"].as_i64(), ran["snapshot_id"].is_string()), (Some(0), true));
    assert_eq!(served.run("a", "print(x)").await["stdout"], "rm -rf /\n");
    served.refused("POST /api/llm/execute", asked(risky, ask(held["approval_id"].clone())), 404).await;
    served.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_risky_block_of_a_text_is_held_and_what_comes_after_waits_too() {
    let place = Place::new();
    let served = Served::new(&place).await;
    let blocks = [("python", "x = 1"), ("bash", "y = 'rm -rf /'"), ("python", "x = 2")];
    let told = served.ok("POST /api/llm/parse-execute", parse(&blocks, json!({ "on_risk": "ask" }))).await;
    assert_eq!((told["held"].as_array().unwrap().len(), told["success"].as_bool()), (1, Some(false)));
    let held = &told["held"][0];
    assert_eq!((held["block_index"].as_u64(), held["code"].as_str()), (Some(1), Some("y = 'rm -rf /'")));
    assert_eq!(told["execution_results"].as_array().unwrap().len(), 1);
    assert_eq!(served.run("a", "print(x)").await["stdout"], "1\n");
    served.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retry_never_reexecutes_user_code() {
    let place = Place::new();
    let served = Served::new(&place).await;
    served.run("a", "x = 0").await;
    let asked = json!({ "agent_id": "a", "language": "python", "code": "x += 1; print(x)" });
    let mut answers = Vec::new();
    for _ in 0..3 {
        answers.push(
            served.ask_with("POST /api/llm/execute", &[("idempotency-key", "k1")], asked.clone()).await,
        );
    }
    assert!(answers.iter().all(|answer| *answer == answers[0] && answer.0 == 200), "{answers:?}");
    assert_eq!(served.run("a", "print(x)").await["stdout"], "1\n");
    // A failure of the code is no reason to run it again.
    let failing = json!({ "agent_id": "a", "language": "python", "code": "x += 1; fail" });
    assert_eq!(served.ok("POST /api/llm/execute", failing).await["exit_code"], 1);
    assert_eq!(served.run("a", "print(x)").await["stdout"], "2\n");
    served.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_known_is_refused_in_words_that_these_clients_read() {
    let place = Place::new();
    let served = Served::new(&place).await;
    let (status, _, told) = call(served.address, "GET /api/vms", &[], &Value::Null).await;
    assert_eq!((status, told["error"].is_string()), (401, true), "{told}");
    let execute = |language: &str| json!({ "agent_id": "a", "language": language, "code": "1" });
    let why = served.refused("POST /api/llm/execute", execute("cobol"), 501).await;
    assert!(why.starts_with("UnsupportedLanguage") && why.contains("python"), "{why}");
    let mut unknown = execute("python");
    unknown["sandbox"] = json!(1);
    assert!(served.refused("POST /api/llm/execute", unknown, 400).await.contains("sandbox"));
    served.refused("POST /api/vms", json!({ "vm_type": "no-such-type", "name": "x" }), 404).await;
    served.refused("POST /api/vms", json!({ "vm_type": "base" }), 400).await;
    served.refused("GET /api/vms/nobody", Value::Null, 404).await;
    served.refused("GET /api/none", Value::Null, 404).await;
    served.refused("GET /api/vm-pool/stats", Value::Null, 501).await;
    served.refused("POST /api/v2/execute/batch", json!({}), 501).await;
    let mut modules = execute("go");
    modules["requirements"] = json!(["x"]);
    served.refused("POST /api/llm/execute", modules, 501).await;
    let mut long = execute("python");
    long["vm_config"] = json!({ "max_code_length": 2 });
    long["code"] = json!("print(1)");
    served.refused("POST /api/llm/execute", long, 400).await;
    let mut off = execute("python");
    off["vm_config"] = json!({ "auto_provision": false });
    off["agent_id"] = json!("nobody");
    served.refused("POST /api/llm/execute", off, 404).await;
    served.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_without_the_right_to_run_code_runs_none() {
    let place = Place::new();
    let mut served = Served::new(&place).await;
    served.run("a", "x = 1").await;
    let only = CreateKey { scopes: Some(vec!["vms:read".into()]), ..CreateKey::default() };
    served.key = served.daemon.client.create_key(&only).await.unwrap().key;
    let asked = json!({ "agent_id": "a", "language": "python", "code": "1" });
    served.refused("POST /api/llm/execute", asked, 403).await;
    served.ok("GET /api/vms", Value::Null).await;
    served.refused("POST /api/vms", json!({ "name": "x" }), 403).await;
    let prefixed = CreateKey { vm_prefix: Some("ci-".into()), ..CreateKey::default() };
    served.key = served.daemon.client.create_key(&prefixed).await.unwrap().key;
    let told = served.run("a", "1").await;
    assert!(told["vm_name"].as_str().unwrap().starts_with("ci-agent-a-"), "{told}");
    served.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_a_vm_by_a_name_of_any_characters_until_it_is_closed() {
    let place = Place::new();
    let served = Served::new(&place).await;
    let opened = served
        .ok(
            "POST /sessions",
            json!({ "name": "My Session", "vm_type": "base", "memory_mb": 512, "vcpus": 2 }),
        )
        .await;
    assert_eq!((opened["name"].as_str(), opened["vcpus"].as_u64()), (Some("My Session"), Some(2)));
    let path = "/sessions/My%20Session";
    served.refused("POST /sessions", json!({ "name": "My Session" }), 409).await;
    served.ok(&format!("POST {path}/execute"), json!({ "command": "x = 1" })).await;
    let taken = served.ok(&format!("POST {path}/snapshots"), json!({ "name": "n" })).await;
    let told = served.ok(&format!("POST {path}/execute"), json!({ "command": "x = 2; print(x)" })).await;
    assert_eq!((told["output"].as_str(), told["exit_code"].as_i64()), (Some("2\n"), Some(0)));
    served.ok(&format!("POST {path}/rollback"), json!({ "snapshot_id": taken["snapshot_id"] })).await;
    let told = served.ok(&format!("POST {path}/execute"), json!({ "command": "print(x)" })).await;
    assert_eq!(told["output"], "1\n");
    assert_eq!(served.ok(&format!("GET {path}/info"), Value::Null).await["id"], opened["id"]);
    served.ok(&format!("DELETE {path}"), Value::Null).await;
    served.refused(&format!("GET {path}/info"), Value::Null, 404).await;
    served.refused(&format!("DELETE {path}"), Value::Null, 404).await;
    served.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_tells_what_is_done_as_it_is_done() {
    let place = Place::new();
    let served = Served::new(&place).await;
    let mut socket = served.socket().await;
    socket.say("execute_code", "w1", json!({ "language": "python", "code": "x = 1; print(x)" })).await;
    let said = socket.until("execution_complete").await;
    assert_eq!(
        kinds(&said),
        ["snapshot_created", "execution_started", "execution_output", "execution_complete"]
    );
    assert_eq!(
        (&said[2]["data"]["output"], &said[2]["workflow_id"], &said[2]["session_id"]),
        (&json!("1\n"), &json!("w1"), &json!("s"))
    );
    assert_eq!(said[3]["data"]["exit_code"], 0);

    let blocks = [("python", "x = 2; print(x)"), ("python", "fail")];
    socket.say("parse_execute", "w2", parse(&blocks, json!({ "auto_rollback_on_failure": true }))).await;
    let said = socket.until("workflow_complete").await;
    assert_eq!(
        kinds(&said),
        [
            "workflow_started",
            "block_started",
            "snapshot_created",
            "execution_started",
            "execution_output",
            "block_completed",
            "block_started",
            "snapshot_created",
            "execution_started",
            "execution_output",
            "rolled_back",
            "block_completed",
            "workflow_complete",
        ],
        "{said:?}"
    );
    assert_eq!(
        (&said[4]["data"]["block_index"], said[12]["data"]["rolledBack"].as_bool()),
        (&json!(0), Some(true))
    );

    socket.say("dance", "w3", json!({})).await;
    let said = socket.until("error").await;
    assert!(said[0]["data"]["error"].as_str().unwrap().contains("dance"), "{said:?}");
    served.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ask_user_blocks_until_answer() {
    let place = Place::new();
    let served = Served::new(&place).await;
    let mut socket = served.socket().await;
    let risky = [("python", "x = 'rm -rf /'"), ("python", "print(x)")];
    let config = json!({ "on_risk": "ask" });
    socket.say("parse_execute", "w1", parse(&risky, config.clone())).await;
    let said = socket.until("approval_required").await;
    let question = said.last().unwrap()["data"]["approval_id"].clone();
    // It waits, and others are served meanwhile.
    socket
        .say("execute_code", "w2", json!({ "agent_id": "b", "language": "python", "code": "print(1)" }))
        .await;
    let meanwhile = socket.until("execution_complete").await;
    assert!(meanwhile.iter().all(|one| one["workflow_id"] == "w2"), "{meanwhile:?}");
    socket.say("approve", "w1", json!({ "approval_id": question })).await;
    let said = socket.until("workflow_complete").await;
    assert_eq!((said.last().unwrap()["data"]["success"].as_bool(), said.len() > 5), (Some(true), true));

    socket.say("parse_execute", "w3", parse(&risky, config)).await;
    let said = socket.until("approval_required").await;
    socket.say("deny", "w3", json!({ "approval_id": said.last().unwrap()["data"]["approval_id"] })).await;
    let last = socket.until("workflow_complete").await.pop().unwrap();
    assert_eq!(last["data"]["execution_results"], json!([]));
    assert!(last["data"]["errors"][0].as_str().unwrap().contains("not approved"), "{last}");
    served.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_that_closes_cancels_what_runs_and_it_is_undone() {
    let place = Place::new();
    let served = Served::new(&place).await;
    let vm = served.run("a", "x = 1").await["vm_id"].as_str().unwrap().parse::<VmRef>().unwrap();
    let config = json!({ "auto_rollback_on_failure": true });
    let code =
        json!({ "agent_id": "a", "language": "python", "code": "x = 2; sleep 1000", "vm_config": config });
    let mut socket = served.socket().await;
    socket.say("execute_code", "w1", code.clone()).await;
    socket.until("execution_started").await;
    drop(socket);
    // In line behind it, if it is still being undone.
    let undone = async {
        while !served.daemon.client.transactions(&vm).await.unwrap().transactions.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, undone).await.expect("it is undone soon");
    assert_eq!(served.run("a", "print(x)").await["stdout"], "1\n");

    let mut socket = served.socket().await;
    socket.say("execute_code", "w2", code).await;
    socket.until("execution_started").await;
    socket.say("cancel", "w2", json!({})).await;
    let last = socket.until("execution_complete").await.pop().unwrap();
    assert_eq!(
        (last["data"]["exit_code"].as_i64(), last["data"]["rolled_back"].as_bool()),
        (Some(130), Some(true)),
        "{last}"
    );
    served.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn code_that_takes_too_long_is_ended_and_says_so() {
    let place = Place::new();
    let served = Served::new(&place).await;
    let asked =
        json!({ "agent_id": "a", "language": "python", "code": "x = 1; sleep 1000", "timeout_ms": 50 });
    let told = served.ok("POST /api/llm/execute", asked).await;
    assert_eq!(
        (told["exit_code"].as_i64(), told["error"].as_str()),
        (Some(124), Some("timed out after 50 ms")),
        "{told}"
    );
    assert_eq!(served.run("a", "print(x)").await["stdout"], "1\n", "variables survive");
    served.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_taken_and_given_and_figures_are_measured() {
    let place = Place::new();
    let served = Served::new(&place).await;
    let vm = served.run("a", "1").await["vm_id"].as_str().unwrap().to_owned();
    let stored = served.ok(&format!("POST /api/vms/{vm}/upload?path=/tmp/a"), json!({ "k": "é" })).await;
    assert_eq!(stored["size"].as_u64(), Some(json!({ "k": "é" }).to_string().len() as u64));
    let bearer = format!("Bearer {}", served.key);
    let stream = TcpStream::connect(served.address).await.unwrap();
    let head = format!("GET /api/vms/{vm}/download?path=/tmp/a");
    let read = exchange(stream, &head, &[("authorization", &bearer)], "").await;
    assert!(read.contains(&json!({ "k": "é" }).to_string()), "{read}");
    served.refused(&format!("GET /api/vms/{vm}/download?path=/tmp/none"), Value::Null, 404).await;
    assert_eq!(served.ok(&format!("GET /api/vms/{vm}/metrics"), Value::Null).await["vm_id"], vm.as_str());
    assert_eq!(served.ok("GET /api/vms/metrics", Value::Null).await["total"], 1);
    let collect = CollectRequest { exec: shell("true"), input: None };
    served.daemon.client.exec_collect(&vm.parse().unwrap(), &collect).await.unwrap();
    assert_eq!(served.ok(&format!("GET /api/vms/{vm}/tasks"), Value::Null).await["total"], 1);
    served.ok(&format!("DELETE /api/vms/{vm}"), Value::Null).await;
    served.refused(&format!("GET /api/vms/{vm}"), Value::Null, 404).await;
    served.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_marks_undone_entries() {
    let place = Place::new();
    let served = Served::new(&place).await;
    let first = served.run("agent one", "x = 1; print(x)").await;
    let vm = first["vm_id"].as_str().unwrap();
    let failing = json!({ "agent_id": "agent two", "language": "python", "code": "x = 2; fail", "vm_id": vm,
        "vm_config": { "auto_rollback_on_failure": true } });
    let failed = served.ok("POST /api/llm/execute", failing).await;
    let told = served.ok(&format!("GET /api/vms/{vm}/history"), Value::Null).await;
    assert_eq!((told["total"].as_u64(), &told["history"]), (Some(2), &told["entries"]));
    let [newest, oldest] = told["history"].as_array().unwrap().as_slice() else { panic!("{told}") };
    assert_eq!((&newest["id"], newest["undone"].as_bool()), (&failed["execution_id"], Some(true)));
    assert_eq!(
        (newest["success"].as_bool(), newest["exit_code"].as_i64()),
        (Some(false), Some(1)),
        "{newest}"
    );
    assert_eq!((&oldest["id"], oldest["undone"].as_bool()), (&first["execution_id"], Some(false)));
    assert_eq!(
        (&oldest["snapshot_id"], oldest["stdout"].as_str()),
        (&first["snapshot_id"], Some("1\n")),
        "{oldest}"
    );
    for (query, found) in [
        ("failures_only=true", 1),
        ("agent_id=agent%20one", 1),
        ("agent_id=nobody", 0),
        ("end_date=2000-01-01T00:00:00Z", 0),
        ("start_date=2000-01-01T00:00:00Z", 2),
    ] {
        let told = served.ok(&format!("GET /api/vms/{vm}/history?{query}"), Value::Null).await;
        assert_eq!(
            (told["total"].as_u64(), told["entries"].as_array().unwrap().len()),
            (Some(found), found as usize),
            "{query}"
        );
    }
    let page = served.ok(&format!("GET /api/vms/{vm}/history?limit=1"), Value::Null).await;
    assert_eq!(
        (page["total"].as_u64(), page["entries"].as_array().unwrap().len()),
        (Some(2), 1),
        "totals are true"
    );
    served.refused(&format!("GET /api/vms/{vm}/history?since=1"), Value::Null, 400).await;
    served.refused(&format!("GET /api/vms/{vm}/history?start_date=yesterday"), Value::Null, 400).await;
    served.daemon.stop().await;
}
