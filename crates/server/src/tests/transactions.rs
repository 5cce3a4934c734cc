//! Transactions, `try` and `race` over HTTP.

use super::fixture::{Daemon, PATIENCE, Place, refused, shell, vm};
use bytes::Bytes;
use offshoot_api::{
    Client,
    client::{RaceEvent, TryConnection, TryEvent},
    v1::{
        BeginTransaction, CollectRequest, CommandLine, ExitStatus, Output, RaceOutcome, RaceRequest,
        RollbackCauseName, Stream, TryOutcome, TryPart, TryRequest,
    },
};
use offshoot_types::ErrorCode;
use tokio::time::timeout;

async fn sh(client: &Client, script: &str) -> (ExitStatus, String) {
    let request = CollectRequest { exec: shell(script), input: None };
    let done = client.exec_collect(&vm("web"), &request).await.unwrap();
    let Output::Utf8(text) = done.stdout else { panic!("{script} printed what is not text") };
    (done.status, text)
}

/// What a file in `web` holds, or nothing.
async fn file(client: &Client, path: &str) -> String {
    sh(client, &format!("cat {path}")).await.1
}

fn script(text: &str) -> Option<CommandLine> {
    Some(CommandLine { argv: None, shell: Some(text.into()) })
}

fn attempt(text: &str) -> TryRequest {
    TryRequest { exec: shell(text), ..TryRequest::default() }
}

/// Everything a `try` tells, to its end.
async fn follow(connection: &mut TryConnection) -> (Vec<TryEvent>, TryOutcome) {
    let mut events = Vec::new();
    loop {
        match timeout(PATIENCE, connection.events.next()).await.expect("in time").expect("no failure") {
            Some(TryEvent::Ended(outcome)) => return (events, outcome),
            Some(event) => events.push(event),
            None => panic!("no end after {events:?}"),
        }
    }
}

async fn until_begun(connection: &mut TryConnection) {
    match timeout(PATIENCE, connection.events.next()).await.unwrap().unwrap() {
        Some(TryEvent::Begun { .. }) => {}
        other => panic!("expected `begun`, got {other:?}"),
    }
}

/// Waits for a file of `web` to read so, which it does once a rollback that nobody waits for is done.
async fn until_no_transaction(client: &Client) {
    let over = async {
        while !client.transactions(&vm("web")).await.unwrap().transactions.is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, over).await.expect("every transaction ends");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_transaction_owns_its_vm_and_is_named_to_whoever_is_refused() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    let client = &daemon.client;
    daemon.boot("web").await;
    let begun = client.begin(&vm("web"), &BeginTransaction::default()).await.unwrap();
    let exec = CollectRequest { exec: shell("echo in > /file"), input: None };
    let refusal = refused(client.exec_collect(&vm("web"), &exec).await, ErrorCode::InTransaction);
    assert!(format!("{refusal:?}").contains(&begun.id.to_string()), "{refusal:?}");
    assert_eq!(client.vm(&vm("web")).await.unwrap().transaction.map(|open| open.id), Some(begun.id));

    let within = client.within(begun.id);
    assert_eq!(sh(&within, "echo in > /file").await.0, ExitStatus::Exited { code: 0 });
    // A savepoint: its parent is that of the header.
    let inner = within.begin(&vm("web"), &BeginTransaction::default()).await.unwrap();
    assert_eq!(inner.parent, Some(begun.id));
    let deeper = client.within(inner.id);
    sh(&deeper, "echo deeper > /file").await;
    let open = client.transactions(&vm("web")).await.unwrap().transactions;
    assert_eq!(open.iter().map(|one| one.id).collect::<Vec<_>>(), [begun.id, inner.id]);
    let rolled_back = deeper.rollback_transaction(&vm("web"), inner.id).await.unwrap();
    assert_eq!(rolled_back.end.unwrap().cause, Some(RollbackCauseName::Asked));
    assert_eq!(file(&within, "/file").await, "in\n");
    let committed = within.commit(&vm("web"), begun.id).await.unwrap();
    assert!(committed.end.unwrap().committed);
    assert_eq!(file(client, "/file").await, "in\n");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_tried_is_kept_if_it_and_its_check_succeed_and_undone_otherwise() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    let client = &daemon.client;
    daemon.boot("web").await;
    sh(client, "echo before > /file").await;

    let request = TryRequest { check: script("cat /file"), ..attempt("echo after > /file; echo done") };
    let mut good = client.try_exec(&vm("web"), &request).await.unwrap();
    let (events, outcome) = follow(&mut good).await;
    assert!(outcome.end.committed, "{outcome:?}");
    let printed = |wanted: TryPart| {
        let text = events.iter().filter_map(|event| match event {
            TryEvent::Output { part, stream: Stream::Stdout, data } if *part == wanted => Some(&data[..]),
            _ => None,
        });
        text.flatten().copied().collect::<Vec<u8>>()
    };
    assert_eq!(printed(TryPart::Command), b"done\n");
    assert_eq!(printed(TryPart::Check), b"after\n");
    assert_eq!(file(client, "/file").await, "after\n");

    let mut bad = client.try_exec(&vm("web"), &attempt("rm -rf /file; exit 7")).await.unwrap();
    let (_, outcome) = follow(&mut bad).await;
    assert_eq!(outcome.end.cause, Some(RollbackCauseName::Failed));
    assert_eq!(outcome.status, Some(ExitStatus::Exited { code: 7 }));
    assert_eq!(file(client, "/file").await, "after\n");

    let request = TryRequest { check: script("exit 3"), ..attempt("rm -rf /file") };
    let mut unchecked = client.try_exec(&vm("web"), &request).await.unwrap();
    let (_, outcome) = follow(&mut unchecked).await;
    assert_eq!((outcome.end.cause, outcome.end.status), (Some(RollbackCauseName::CheckFailed), Some(3)));
    assert_eq!(file(client, "/file").await, "after\n");

    let request = TryRequest { timeout_ms: Some(100), ..attempt("rm -rf /file; sleep 1000") };
    let mut late = client.try_exec(&vm("web"), &request).await.unwrap();
    let (_, outcome) = follow(&mut late).await;
    assert_eq!(outcome.end.cause, Some(RollbackCauseName::Deadline));
    assert_eq!(file(client, "/file").await, "after\n");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_gives_up_is_told_of_the_rollback_and_one_that_leaves_causes_it() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    let client = &daemon.client;
    daemon.boot("web").await;
    sh(client, "echo before > /file").await;

    let request = attempt("rm -rf /file; echo harm; sleep 1000");
    let mut given_up = client.try_exec(&vm("web"), &request).await.unwrap();
    loop {
        let event = timeout(PATIENCE, given_up.events.next()).await.unwrap().unwrap();
        if let Some(TryEvent::Output { data, .. }) = event {
            assert_eq!(data, Bytes::from_static(b"harm\n"));
            break;
        }
    }
    given_up.input.roll_back().await.unwrap();
    let (_, outcome) = follow(&mut given_up).await;
    assert_eq!(outcome.end.cause, Some(RollbackCauseName::CallerLeft), "{outcome:?}");
    assert_eq!(file(client, "/file").await, "before\n", "it was told once it was done");

    let mut left = client.try_exec(&vm("web"), &request).await.unwrap();
    until_begun(&mut left).await;
    drop(left);
    until_no_transaction(client).await;
    assert_eq!(file(client, "/file").await, "before\n");

    // Given up before anything has begun, it still ends in order.
    let mut early = client.try_exec(&vm("web"), &request).await.unwrap();
    early.input.roll_back().await.unwrap();
    let (_, outcome) = follow(&mut early).await;
    assert!(!outcome.end.committed);
    assert_eq!(file(client, "/file").await, "before\n");
    daemon.stop().await;
}

/// Everything printed in a race by racer, and its end.
async fn race(client: &Client, request: &RaceRequest) -> (Vec<(u32, Bytes)>, RaceOutcome) {
    let mut events = client.race(&vm("web"), request).await.unwrap();
    let mut printed = Vec::new();
    loop {
        match timeout(PATIENCE, events.next()).await.expect("in time").expect("no failure") {
            Some(RaceEvent::Ended(outcome)) => return (printed, outcome),
            Some(RaceEvent::Output { racer, data, .. }) => printed.push((racer, data)),
            Some(_) => {}
            None => panic!("no end"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_race_is_won_by_the_best_score_and_leaves_only_the_vm() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    let client = &daemon.client;
    let before = daemon.boot("web").await;
    let request = RaceRequest {
        count: 3,
        exec: shell("shuf -i 1-99 -n 1 > /score; cat /score"),
        score: script("cat /score"),
    };
    let (printed, outcome) = race(client, &request).await;
    assert_eq!(printed.len(), 3, "{printed:?}");
    let winner = outcome.winner.expect("one of them wins");
    let best = outcome.scores.iter().map(|scored| scored.score).fold(f64::MIN, f64::max);
    let won = outcome.scores.iter().find(|scored| scored.racer == winner).unwrap();
    assert_eq!((won.score, outcome.scores.len()), (best, 3));
    assert_eq!(file(client, "/score").await.trim().parse::<f64>().unwrap(), best);
    let vms = client.vms().await.unwrap().vms;
    assert_eq!((vms.len(), vms[0].id), (1, before.id));

    let nobody = RaceRequest { exec: shell("exit 1"), score: None, ..request };
    let (_, outcome) = race(client, &nobody).await;
    assert_eq!(outcome.winner, None);
    client.undo(&vm("web")).await.unwrap();
    assert_eq!(file(client, "/score").await, "", "the race is taken back");
    daemon.stop().await;
}
