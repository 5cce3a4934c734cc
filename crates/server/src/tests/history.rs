//! The history over HTTP: what it lists, to whom, and what a replay answers.

use super::fixture::{Daemon, Place, call, follow, refused, shell, vm};
use futures::TryStreamExt;
use offshoot_api::{
    Client,
    v1::{
        CodeRequest, DestroyQuery, ExecRequest, ExitStatus, HistoryEntry, HistoryList, HistoryQuery,
        HistoryStateName, Output, ReplayRequest, Stream, StreamQuery, TakeSnapshot,
    },
};
use offshoot_types::{ErrorCode, OperationId, VmRef};
use serde_json::{Value, json};

async fn run(client: &Client, name: &str, request: ExecRequest) -> i32 {
    let mut connection = client.exec(&vm(name), &request).await.unwrap();
    match follow(&mut connection).await.unwrap().ended.status {
        ExitStatus::Exited { code } => code,
        other => panic!("{other:?}"),
    }
}

/// Once all of them have ended in the record too.
async fn settled(client: &Client, query: &HistoryQuery) -> HistoryList {
    loop {
        let list = client.history(query).await.unwrap();
        match list.entries.iter().find(|entry| entry.ended.is_none()) {
            None => return list,
            Some(entry) => drop(client.settle(entry.id, None).await),
        }
    }
}

fn ids(list: &HistoryList) -> Vec<OperationId> {
    list.entries.iter().map(|entry| entry.id).collect()
}

fn text(entry: &HistoryEntry) -> &Option<Output> {
    &entry.stdout.as_ref().unwrap().head
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_are_listed_by_agent_and_failure_in_pages_with_a_total_that_is_true() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    daemon.boot("web").await;
    let planner = daemon.client.on_behalf_of("planner".parse().unwrap());
    assert_eq!(run(&planner, "web", shell("echo hello")).await, 0);
    assert_eq!(run(&planner, "web", shell("exit 3")).await, 3);
    assert_eq!(run(&daemon.client, "web", shell("exit 4")).await, 4);
    let all = settled(&daemon.client, &HistoryQuery { output: true, ..Default::default() }).await;
    assert_eq!(all.total, 3);
    let [last, failed, first] = &all.entries[..] else { panic!("{all:?}") };
    assert_eq!(
        (first.what.as_str(), first.succeeded, first.state),
        ("echo hello", Some(true), HistoryStateName::Ended)
    );
    assert_eq!(text(first), &Some(Output::Utf8("hello\n".into())));
    assert_eq!(first.agent.as_ref().map(|agent| agent.as_str()), Some("planner"));
    assert!(first.actor.starts_with("uid:") && last.agent.is_none());
    let asked = async |query| daemon.client.history_of(&vm("web"), &query).await.unwrap();
    let of_planner =
        HistoryQuery { agent: Some("planner".parse().unwrap()), failures: true, ..Default::default() };
    assert_eq!(ids(&asked(of_planner).await), [failed.id]);
    let page = asked(HistoryQuery { limit: Some(2), ..Default::default() }).await;
    assert_eq!((ids(&page), page.total), (vec![last.id, failed.id], 3));
    assert!(
        text(first).is_some() && page.entries[0].stdout.as_ref().unwrap().head.is_none(),
        "only if asked for"
    );
    let next = asked(HistoryQuery { cursor: page.next_cursor, ..Default::default() }).await;
    assert_eq!((ids(&next), next.total, next.next_cursor), (vec![first.id], 3, None));
    let since = HistoryQuery { since: Some(last.started), ..Default::default() };
    assert_eq!(ids(&asked(since).await), [last.id]);

    let shown = daemon.client.history_entry(first.id).await.unwrap();
    assert_eq!(shown.stdout.as_ref().unwrap().kept_bytes, Some(6));
    let stream =
        daemon.client.history_stream(first.id, Stream::Stdout, StreamQuery { offset: 1, length: Some(3) });
    let bytes: Vec<bytes::Bytes> = stream.await.unwrap().try_collect().await.unwrap();
    assert_eq!(bytes.concat(), b"ell");
    let nobody = OperationId::new();
    refused(daemon.client.history_entry(nobody).await, ErrorCode::NotFound);
    for wrong in [
        HistoryQuery { limit: Some(0), ..Default::default() },
        HistoryQuery { cursor: Some("x".into()), ..Default::default() },
    ] {
        refused(daemon.client.history(&wrong).await, ErrorCode::InvalidArgument);
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_sees_the_history_of_its_vms_and_no_other() {
    let place = Place::new();
    let (daemon, address) = Daemon::on_a_port(&place).await;
    daemon.boot("mine").await;
    daemon.boot("ci-a").await;
    run(&daemon.client, "mine", shell("echo secret")).await;
    run(&daemon.client, "ci-a", shell("echo told")).await;
    let all = settled(&daemon.client, &HistoryQuery::default()).await;
    let (told, secret) = (&all.entries[0], &all.entries[1]);
    let limits = serde_json::from_value(json!({ "vm_prefix": "ci-" })).unwrap();
    let key = daemon.client.create_key(&limits).await.unwrap().key;
    let own = [("X-API-Key", key.as_str()), ("Offshoot-Agent", "no spaces")];
    let get = async |path: &str| call(address, &format!("GET {path}"), &own[..1], &Value::Null).await;
    let (status, _, list) = get("/v1/history").await;
    assert_eq!((status, &list["total"], &list["entries"][0]["vm_name"]), (200, &json!(1), &json!("ci-a")));
    assert_eq!(get(&format!("/v1/history/{}", told.id)).await.0, 200);
    for path in ["", "/stdout"] {
        assert_eq!(get(&format!("/v1/history/{}{path}", secret.id)).await.0, 403, "{path}");
    }
    assert_eq!(get("/v1/vms/mine/history").await.0, 403);
    for name in ["mine", "ci-a"] {
        daemon.client.destroy(&vm(name), &DestroyQuery::default()).await.unwrap();
    }
    assert_eq!(get(&format!("/v1/vms/{}/history", told.vm)).await.0, 200, "gone, and told of all the same");
    assert_eq!(get(&format!("/v1/vms/{}/history", secret.vm)).await.0, 404);
    assert_eq!(
        daemon.client.history_of(&VmRef::Id(secret.vm), &HistoryQuery::default()).await.unwrap().total,
        1
    );
    let (status, _, body) = call(address, "GET /v1/history", &own, &Value::Null).await;
    assert_eq!(status, 400, "{body}");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_runs_in_a_fork_of_the_state_before_and_says_what_differs() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    daemon.boot("web").await;
    run(&daemon.client, "web", shell("echo one > /tmp/file")).await;
    let first = settled(&daemon.client, &HistoryQuery::default()).await.entries[0].id;
    let none = refused(daemon.client.replay(first, &ReplayRequest::default()).await, ErrorCode::WrongState);
    assert!(none.hint.is_some_and(|hint| hint.contains("snapshot")));

    let kept = daemon.client.snapshot(&vm("web"), &TakeSnapshot::default()).await.unwrap();
    let mut with_env = shell("cat /tmp/file");
    with_env.env.insert("TOKEN".into(), "hunter2".into());
    run(&daemon.client, "web", with_env).await;
    run(&daemon.client, "web", shell("echo two > /tmp/file")).await;
    run(&daemon.client, "web", shell("cat /tmp/file")).await;
    let all = settled(&daemon.client, &HistoryQuery::default()).await;
    let (differs, same) = (all.entries[0].id, all.entries[2].id);
    let replay = daemon.client.replay(same, &ReplayRequest::default()).await.unwrap();
    assert_eq!((replay.from.snapshot, replay.from.exact, replay.kept), (kept.id, true, false));
    assert_eq!(
        (replay.same.exit, replay.same.stdout, replay.same.stderr),
        (Some(true), Some(true), Some(true))
    );
    assert_eq!(replay.missing_env, ["TOKEN"]);
    assert_eq!(text(&replay.entry), &Some(Output::Utf8("one\n".into())));
    assert_eq!(daemon.client.vms().await.unwrap().vms.len(), 1, "the fork is gone");

    let env = [("TOKEN".to_owned(), "x".to_owned())].into();
    let request = ReplayRequest { keep: Some("again".into()), env };
    let replay = daemon.client.replay(differs, &request).await.unwrap();
    assert_eq!((replay.from.exact, replay.same.stdout), (false, Some(false)), "it had been changed since");
    assert!(replay.kept && replay.missing_env.is_empty());
    assert_eq!(replay.entry.vm_name.as_str(), "again");
    assert_eq!(run(&daemon.client, "again", shell("cat /tmp/file")).await, 0);
    refused(daemon.client.replay(differs, &request).await, ErrorCode::AlreadyExists);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn code_is_replayed_with_the_variables_it_had() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    daemon.boot("web").await;
    let code = async |text: &str| {
        let request = CodeRequest { context: "main".into(), code: text.into(), ..CodeRequest::default() };
        let mut connection = daemon.client.run_code(&vm("web"), &request).await.unwrap();
        while connection.events.next().await.unwrap().is_some() {}
    };
    code("x = 41").await;
    daemon.client.snapshot(&vm("web"), &TakeSnapshot::default()).await.unwrap();
    code("x += 1; x").await;
    code("x = 0").await;
    let all = settled(&daemon.client, &HistoryQuery::default()).await;
    let replay = daemon.client.replay(all.entries[1].id, &ReplayRequest::default()).await.unwrap();
    assert_eq!((replay.entry.result.as_deref(), replay.same.exit), (Some("42"), Some(true)));
    daemon.stop().await;
}
