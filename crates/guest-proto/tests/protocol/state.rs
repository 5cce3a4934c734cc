//! Freezing, thawing and live contexts: what the toy guest does, and what a lying one is told.

use crate::{
    hostile,
    port::Port,
    toy::{self, Guest, PID, connect, options},
};
use offshoot_guest_proto::{
    client::{Client, ClientError},
    message::*,
};
use std::{collections::BTreeMap, sync::atomic::Ordering, time::Duration};

async fn pair() -> (Guest, Client) {
    let (port, end) = Port::new(64 * 1024);
    let guest = Guest::start(end);
    let client = connect(port.open()).await;
    (guest, client)
}

fn kind<T: std::fmt::Debug>(result: Result<T, ClientError>) -> GuestErrorKind {
    match result {
        Err(ClientError::Guest(error)) => error.kind,
        other => panic!("expected the guest's own error, got {other:?}"),
    }
}

#[tokio::test]
async fn frozen_outlives_the_session_and_the_next_hello_says_so() {
    let (port, end) = Port::new(4096);
    let guest = Guest::start(end);
    let (client, hello) = Client::connect(port.open(), options()).await.unwrap();
    assert!(!hello.frozen);
    assert_eq!(client.freeze(Duration::from_millis(20)).await.unwrap(), Frozen { processes: 3, took_us: 9 });
    drop(client);
    let (client, hello) = Client::connect(port.open(), options()).await.unwrap();
    assert!(hello.frozen);
    client.unfreeze().await.unwrap();
    assert!(!guest.toy.frozen.load(Ordering::Relaxed));
    assert_eq!(kind(client.freeze(Duration::ZERO).await), GuestErrorKind::Other);
    client.freeze(Duration::from_millis(20)).await.unwrap();
    client.go_on().await.unwrap();
    assert!(!guest.toy.frozen.load(Ordering::Relaxed));
    assert!(guest.toy.thawed.lock().unwrap().is_empty(), "nothing was renewed");
}

#[tokio::test]
async fn a_thaw_carries_identity_and_entropy_and_answers_attestations() {
    let (guest, client) = pair().await;
    let thaw = toy::thaw();
    let thawed = client.thaw(thaw.clone()).await.unwrap();
    assert_eq!((thawed.hostname.as_str(), thawed.machine_id.as_str()), ("fork", "ab".repeat(16).as_str()));
    assert_eq!(guest.toy.thawed.lock().unwrap().first(), Some(&thaw));
    assert!(format!("{thaw:?}").contains("Entropy(..)"), "it is not shown");
    let kept = Thaw { identity: None, ..thaw };
    assert_eq!(client.thaw(kept).await.unwrap().hostname, "toy");
}

#[tokio::test]
async fn code_runs_and_its_events_come_in_order() {
    let (_guest, client) = pair().await;
    let mut code = client.run_code(toy::run("print(42)")).await.unwrap();
    let mut events = Vec::new();
    while let Some(event) = code.next().await.unwrap() {
        events.push(event);
    }
    let mime: BTreeMap<_, _> = [(TEXT_PLAIN.to_owned(), "42".to_owned())].into();
    // Larger than a message, and whole again.
    let CodeEvent::Display { mime: picture, id: None, update: false } = events.remove(2) else {
        panic!("a display comes between output and value")
    };
    assert_eq!((picture.len(), &picture[TEXT_PLAIN]), (2, &mime[TEXT_PLAIN]));
    assert!(picture["image/png"] == toy::PICTURE.repeat(MAX_VALUE / toy::PICTURE.len() - 1));
    assert_eq!(
        events,
        [
            CodeEvent::Started { language: Language::Python, pid: PID, created: true, count: 1 },
            CodeEvent::Output { stream: OutputStream::Stdout, data: b"print(42)".to_vec() },
            CodeEvent::Value { mime },
            CodeEvent::Ended { interrupted: false, wall_us: 1 },
        ]
    );
    assert_eq!(code.next().await.unwrap(), None);
    let nameless = RunCode { context: "../x".into(), ..toy::run("1") };
    let mut refused = client.run_code(nameless).await.unwrap();
    assert!(matches!(refused.next().await.unwrap(), Some(CodeEvent::Failed(_))));
    assert_eq!(refused.next().await.unwrap(), None);
}

#[tokio::test]
async fn code_is_interrupted_by_word_and_by_leaving() {
    let (guest, client) = pair().await;
    let mut interrupts = guest.toy.interrupts.subscribe();
    let mut code = client.run_code(toy::run("forever")).await.unwrap();
    assert!(matches!(code.next().await.unwrap(), Some(CodeEvent::Started { .. })));
    code.interrupt().await.unwrap();
    let ended = CodeEvent::Ended { interrupted: true, wall_us: 1 };
    assert_eq!(code.next().await.unwrap(), Some(ended));
    let mut left = client.run_code(toy::run("forever")).await.unwrap();
    assert!(matches!(left.next().await.unwrap(), Some(CodeEvent::Started { .. })));
    drop(left);
    tokio::time::timeout(Duration::from_secs(20), interrupts.wait_for(|count| *count == 2))
        .await
        .expect("the second interrupt")
        .unwrap();
}

#[tokio::test]
async fn contexts_are_listed_removed_and_what_a_guest_cannot_do_it_says() {
    let (_guest, client) = pair().await;
    assert_eq!(client.contexts().await.unwrap()[0].context, "default");
    client.remove_context("default").await.unwrap();
    assert_eq!(kind(client.remove_context("other").await), GuestErrorKind::NotFound);
    assert_eq!(kind(client.restart_context("default").await), GuestErrorKind::Unsupported);
}

#[tokio::test]
async fn attestations_that_contradict_the_request_are_refused() {
    let (client, mut liar) = hostile::pair().await;
    let lie = async {
        let (open, reader, mut writer) = liar.stream().await;
        let HostOpen::Thaw(thaw) = open else { panic!("{open:?}") };
        let lie = Thawed { hostname: "source".into(), ..toy::thawed(&thaw) };
        writer.send(&Reply::Ok(lie)).await.unwrap();
        (reader, writer)
    };
    let (_streams, answer) = tokio::join!(lie, client.thaw(toy::thaw()));
    assert!(hostile::problem(answer).contains("another hostname"));
}

#[tokio::test]
async fn a_list_of_contexts_has_a_bound_and_proper_names() {
    let (client, mut liar) = hostile::pair().await;
    let context = ContextInfo {
        user: "u".into(),
        cwd: "/".into(),
        created_ms: 0,
        context: "c".into(),
        language: Language::Bash,
        pid: None,
        busy: false,
    };
    let named = ContextInfo { context: "a\nb".into(), ..context.clone() };
    for (list, complaint) in [(vec![context; MAX_CONTEXTS + 1], "65 contexts"), (vec![named], "name")] {
        let lie = async {
            let (_, reader, mut writer) = liar.stream().await;
            writer.send(&Reply::Ok(list)).await.unwrap();
            (reader, writer)
        };
        let (_streams, answer) = tokio::join!(lie, client.contexts());
        assert!(hostile::problem(answer).contains(complaint), "{complaint}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_does_not_freeze_is_given_up_a_second_after_its_deadline() {
    let (client, mut liar) = hostile::pair().await;
    let begun = tokio::time::Instant::now();
    let (streams, answer) = tokio::join!(liar.stream(), client.freeze(Duration::from_millis(20)));
    assert!(matches!(answer, Err(ClientError::Timeout { operation: "freeze", .. })), "{answer:?}");
    assert!(begun.elapsed() < Duration::from_millis(1100), "{:?}", begun.elapsed());
    drop(streams);
}
