//! MCP over both transports, against a daemon whose VMs are in memory. Its interpreters know `x = 1`, `print(x)`, `sleep`.

#![expect(deprecated, reason = "a cancelled call is told of by the protocol's logging")]

use super::fixture::{Daemon, PATIENCE, Place, call, exchange};
use offshoot_api::v1::CreateKey;
use offshoot_mcp::{AtEnd, Options, Server, Session};
use offshoot_types::VmStateName;
use rmcp::{
    ClientHandler, RoleClient, ServiceExt,
    model::{
        CallToolRequestParams, CallToolResult, CancelledNotificationParam, ClientRequest, JsonObject,
        LoggingMessageNotificationParam, Request,
    },
    service::{NotificationContext, PeerRequestOptions, RunningService},
    transport::StreamableHttpClientTransport,
};
use serde_json::{Value, json};
use std::{net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    net::TcpStream,
    sync::mpsc,
    time::{sleep, timeout},
};

/// Hears what is logged.
#[derive(Debug, Clone)]
struct Agent(mpsc::UnboundedSender<Value>);

impl ClientHandler for Agent {
    async fn on_logging_message(
        &self,
        message: LoggingMessageNotificationParam,
        _context: NotificationContext<RoleClient>,
    ) {
        // A test that has ended hears nothing.
        let _ended = self.0.send(message.data);
    }
}

type Speaking = RunningService<RoleClient, Agent>;

/// A client over HTTP on the daemon's socket.
async fn over_http(place: &Place, query: &str) -> (Speaking, mpsc::UnboundedReceiver<Value>) {
    let socket = place.socket();
    let transport = StreamableHttpClientTransport::from_unix_socket(
        socket.to_str().unwrap(),
        format!("http://offshoot/mcp{query}"),
    );
    let (heard, hears) = mpsc::unbounded_channel();
    (timeout(PATIENCE, Agent(heard).serve(transport)).await.unwrap().unwrap(), hears)
}

/// A client over a pipe, as on standard input and output, and its session.
#[expect(clippy::disallowed_methods, reason = "the server ends with the test's end of the pipe")]
async fn over_pipe(daemon: &Daemon) -> (Speaking, mpsc::UnboundedReceiver<Value>, Session) {
    let session = Session::new(daemon.client.clone(), Options::default()).unwrap();
    let (ours, theirs) = duplex(64 * 1024);
    let server = Server::new(session.clone());
    tokio::spawn(async move { server.serve(theirs).await.unwrap().waiting().await });
    let (heard, hears) = mpsc::unbounded_channel();
    (timeout(PATIENCE, Agent(heard).serve(ours)).await.unwrap().unwrap(), hears, session)
}

fn arguments(value: Value) -> JsonObject {
    value.as_object().unwrap().clone()
}

async fn tool(agent: &Speaking, name: &'static str, with: Value) -> CallToolResult {
    let request = CallToolRequestParams::new(name).with_arguments(arguments(with));
    timeout(PATIENCE, agent.peer().call_tool(request)).await.expect("in time").unwrap()
}

fn text(result: &CallToolResult) -> String {
    serde_json::to_value(&result.content).unwrap()[0]["text"].as_str().unwrap().to_owned()
}

async fn worked(agent: &Speaking, name: &'static str, with: Value) -> (String, Value) {
    let result = tool(agent, name, with).await;
    assert_eq!(result.is_error, Some(false), "{}", text(&result));
    (text(&result), result.structured_content.unwrap())
}

/// What an agent does, whatever carries it; returns the name of the session's VM.
async fn converse(agent: &Speaking) -> String {
    let tools: Vec<_> = agent.list_all_tools().await.unwrap().into_iter().map(|tool| tool.name).collect();
    assert_eq!(tools, offshoot_mcp::names().collect::<Vec<_>>());
    let (text, _) = worked(agent, "list_vms", json!({})).await;
    assert!(text.contains("no VM yet"), "{text}");
    let (_, done) = worked(agent, "run_code", json!({ "code": "x = 41" })).await;
    let vm = done["vm"].as_str().unwrap().to_owned();
    assert!(vm.starts_with("mcp-"), "{vm}");
    let (_, kept) = worked(agent, "snapshot", json!({ "name": "before" })).await;
    assert_eq!(kept["snapshot"], format!("{vm}@before"));
    let (text, done) = worked(agent, "run_code", json!({ "code": "x += 1; print(x); x" })).await;
    assert_eq!((done["value"].as_str(), done["vm"].as_str()), (Some("42"), Some(&*vm)));
    assert!(text.contains("--- stdout\n42"), "{text}");
    worked(agent, "write_file", json!({ "path": "/home/user/a", "content": "hello" })).await;
    let (_, read) =
        worked(agent, "read_file", json!({ "path": "/home/user/a", "offset": 1, "length": 3 })).await;
    assert_eq!((read["content"].as_str(), read["next_offset"].as_u64()), (Some("ell"), Some(4)));
    worked(agent, "rollback", json!({ "snapshot": "before" })).await;
    let refused = tool(agent, "exec", json!({ "command": "true", "vm": "nobody" })).await;
    assert_eq!(refused.is_error, Some(true));
    assert_eq!(refused.structured_content.unwrap()["code"], "not_found");
    let resources = agent.list_all_resources().await.unwrap();
    assert!(resources.iter().any(|resource| resource.uri == format!("offshoot://vm/{vm}/snapshots")));
    vm
}

async fn until(daemon: &Daemon, vm: &str, state: VmStateName) {
    daemon.until_vms(|vms| vms.iter().any(|one| one.name.as_str() == vm && one.state == state)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_over_a_pipe_has_a_vm_of_its_own_which_rests_at_its_end() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    let (agent, _, session) = over_pipe(&daemon).await;
    let vm = converse(&agent).await;
    agent.cancel().await.unwrap();
    let (ended, what) = session.end(true).await.unwrap().expect("it had a VM");
    assert_eq!((ended.as_str(), what), (&*vm, AtEnd::Suspend));
    until(&daemon, &vm, VmStateName::Suspended).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_over_http_does_the_same_and_ends_as_its_query_says() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    let (agent, _) = over_http(&place, "?at_end=stop").await;
    let vm = converse(&agent).await;
    let (other, _) = over_http(&place, &format!("?vm={vm}")).await;
    let (_, done) = worked(&other, "run_code", json!({ "code": "x" })).await;
    assert_eq!(done["vm"], vm, "a session may be told whose VM to use");
    other.cancel().await.unwrap();
    agent.cancel().await.unwrap();
    until(&daemon, &vm, VmStateName::Stopped).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_end_with_the_daemon_and_so_do_their_vms() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    let (agent, _) = over_http(&place, "").await;
    let (_, done) = worked(&agent, "run_code", json!({ "code": "x = 1" })).await;
    daemon.stop().await;
    let daemon = Daemon::explicit(&place).await;
    until(&daemon, done["vm"].as_str().unwrap(), VmStateName::Suspended).await;
    drop(agent);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_call_interrupts_what_runs_and_says_so() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    let (piped, piped_hears, _session) = over_pipe(&daemon).await;
    let (served, served_hears) = over_http(&place, "").await;
    for (agent, mut hears) in [(piped, piped_hears), (served, served_hears)] {
        worked(&agent, "run_code", json!({ "code": "x = 3" })).await;
        let call =
            CallToolRequestParams::new("run_code").with_arguments(arguments(json!({ "code": "sleep 60" })));
        let call = ClientRequest::CallToolRequest(Request::new(call));
        let options = PeerRequestOptions::no_options();
        let running = agent.peer().send_request_with_option(call, options).await.unwrap();
        let vm = agent.peer();
        // It is cancelled while it runs.
        let busy = async {
            while !context_is_busy(&daemon).await {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, busy).await.expect("the code runs");
        let id = running.id.clone();
        let cancelled = CancelledNotificationParam::new(Some(id), Some("enough".into()));
        vm.notify_cancelled(cancelled).await.unwrap();
        let told = timeout(PATIENCE, hears.recv()).await.expect("it is told").unwrap();
        assert!(told["message"].as_str().unwrap().contains("was interrupted"), "{told}");
        let (_, done) = worked(&agent, "run_code", json!({ "code": "x" })).await;
        assert_eq!(done["value"], "3");
        worked(&agent, "stop_vm", json!({ "how": "destroy" })).await;
        agent.cancel().await.unwrap();
    }
    daemon.stop().await;
}

async fn context_is_busy(daemon: &Daemon) -> bool {
    for vm in daemon.client.vms().await.unwrap().vms {
        let contexts = daemon.client.contexts(&vm.name.as_str().parse().unwrap()).await;
        if contexts.is_ok_and(|list| list.contexts.iter().any(|context| context.busy)) {
            return true;
        }
    }
    false
}

fn headers<'a>(key: &'a str, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let accept = ("accept", "application/json, text/event-stream");
    [&[("x-api-key", key), accept, ("content-type", "application/json")], more].concat()
}

fn initialize() -> Value {
    let params = json!({
        "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": { "name": "test", "version": "1" }
    });
    json!({ "jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params })
}

/// Begins a session with a key, and returns its id.
async fn begin(address: SocketAddr, key: &str) -> String {
    let (status, head, _) = call(address, "POST /mcp", &headers(key, &[]), &initialize()).await;
    assert_eq!(status, 200, "{head}");
    let id = head.lines().find_map(|line| line.strip_prefix("mcp-session-id: ")).expect("a session");
    let said = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
    let (status, ..) = call(address, "POST /mcp", &headers(key, &[("mcp-session-id", id)]), &said).await;
    assert_eq!(status, 202);
    id.to_owned()
}

fn listing() -> Value {
    let params = json!({ "name": "list_vms", "arguments": {} });
    json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_of_its_caller_may_no_more_than_that_and_ends_with_its_key() {
    let place = Place::new();
    let (daemon, address) = Daemon::on_a_port(&place).await;
    let made = async |limits: Value| {
        let request: CreateKey = serde_json::from_value(limits).unwrap();
        daemon.client.create_key(&request).await.unwrap()
    };
    let (one, other) =
        (made(json!({ "vm_prefix": "ci-" })).await, made(json!({ "scopes": ["vms:read"] })).await);
    let nobody = call(address, "POST /mcp", &headers("e2b_0", &[]), &initialize()).await;
    assert_eq!((nobody.0, nobody.2["code"].as_str()), (401, Some("unauthenticated")));

    let id = begin(address, &one.key).await;
    let theirs = [("mcp-session-id", id.as_str())];
    let (status, _, body) = call(address, "POST /mcp", &headers(&other.key, &theirs), &listing()).await;
    assert_eq!((status, body["code"].as_str()), (404, Some("not_found")));
    let page = [theirs[0], ("origin", "http://evil.example")];
    assert_eq!(call(address, "POST /mcp", &headers(&one.key, &page), &listing()).await.0, 403);
    let page = [theirs[0], ("origin", "http://localhost:6274")];
    assert_eq!(call(address, "POST /mcp", &headers(&one.key, &page), &listing()).await.0, 200);

    // The VM of a session has a name of the key's, and a key that may not make one makes none.
    let run = json!({ "name": "run_code", "arguments": { "code": "x = 1" } });
    let run = json!({ "jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": run });
    assert_eq!(call(address, "POST /mcp", &headers(&one.key, &theirs), &run).await.0, 200);
    let vms = daemon.client.vms().await.unwrap().vms;
    assert!(matches!(&vms[..], [vm] if vm.name.as_str().starts_with("ci-mcp-")), "{vms:?}");
    let reader = begin(address, &other.key).await;
    let reads = [("mcp-session-id", reader.as_str())];
    assert_eq!(call(address, "POST /mcp", &headers(&other.key, &reads), &run).await.0, 200);
    assert_eq!(daemon.client.vms().await.unwrap().vms.len(), 1, "it may not");

    // Whoever listens hears the end; the VM is left to its own limits.
    let mut stream = TcpStream::connect(address).await.unwrap();
    let asked = format!(
        "GET /mcp HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-api-key: {}\r\naccept: text/event-stream\r\nmcp-session-id: {id}\r\n\r\n",
        one.key
    );
    stream.write_all(asked.as_bytes()).await.unwrap();
    let mut first = [0; 12];
    timeout(PATIENCE, stream.read_exact(&mut first)).await.unwrap().unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    let open = async || daemon.client.daemon().await.unwrap().connections;
    let before = open().await;
    daemon.client.remove_key(one.details.id).await.unwrap();
    let mut rest = Vec::new();
    let _ended_or_broken_off = timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("it ends");
    assert_eq!(call(address, "POST /mcp", &headers(&one.key, &theirs), &listing()).await.0, 401);
    assert_eq!(daemon.client.vms().await.unwrap().vms[0].state, VmStateName::Running);
    // Not the stream alone: the session too is gone.
    let gone = async {
        while open().await + 2 > before {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, gone).await.expect("the session ends with its key");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_of_no_session_has_no_vm_and_makes_none() {
    let place = Place::new();
    let (daemon, address) = Daemon::on_a_port(&place).await;
    let key = daemon.client.create_key(&CreateKey::default()).await.unwrap().key;
    let meta = json!({
        "io.modelcontextprotocol/protocolVersion": "2025-11-25",
        "io.modelcontextprotocol/clientInfo": { "name": "t", "version": "0" },
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    let run = json!({ "name": "run_code", "arguments": { "code": "x = 1" }, "_meta": meta });
    let run = json!({ "jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": run });
    let stream = TcpStream::connect(address).await.unwrap();
    let headers = headers(&key, &[("mcp-protocol-version", "2025-11-25")]);
    let answer = exchange(stream, "POST /mcp", &headers, &run.to_string()).await;
    assert!(answer.contains("begun no session"), "{answer}");
    assert!(daemon.client.vms().await.unwrap().vms.is_empty(), "{answer:?}");
    daemon.stop().await;
}
