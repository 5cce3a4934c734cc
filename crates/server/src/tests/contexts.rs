//! Live contexts over HTTP. The VM in memory interprets a toy language: `x = 1`, `x += 1`, `print(x)`, `fail`, `sleep`.

use super::fixture::{Daemon, PATIENCE, Place, refused, vm};
use offshoot_api::{
    Client, ClientError,
    client::{CodeConnection, CodeEvent},
    v1::CodeRequest,
};
use offshoot_types::{ErrorCode, Language};
use tokio::time::timeout;

fn code(text: &str) -> CodeRequest {
    CodeRequest { context: "main".into(), code: text.into(), ..CodeRequest::default() }
}

/// Every event of a piece of code, to its end.
async fn follow(connection: &mut CodeConnection) -> Result<Vec<CodeEvent>, ClientError> {
    let mut events = Vec::new();
    while let Some(event) = timeout(PATIENCE, connection.events.next()).await.expect("in time")? {
        events.push(event);
    }
    Ok(events)
}

async fn run(client: &Client, request: &CodeRequest) -> Result<Vec<CodeEvent>, ClientError> {
    follow(&mut client.run_code(&vm("web"), request).await?).await
}

fn printed(events: &[CodeEvent]) -> String {
    let bytes = events.iter().filter_map(|event| match event {
        CodeEvent::Output(_, data) => Some(data.to_vec()),
        _ => None,
    });
    String::from_utf8(bytes.flatten().collect()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_context_keeps_its_variables_tells_values_and_errors_and_is_ended() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    let client = &daemon.client;
    daemon.boot("web").await;
    let lent = [("LENT".to_owned(), "a b".to_owned())].into();
    let first = run(client, &code("x = 41")).await.unwrap();
    assert!(
        matches!(first[0], CodeEvent::Started { language: Language::Python, created: true, .. }),
        "{first:?}"
    );
    let second = run(client, &code("x += 1; print(x); x")).await.unwrap();
    assert!(matches!(second[0], CodeEvent::Started { created: false, .. }), "{second:?}");
    assert_eq!(printed(&second), "42\n");
    let value = second.iter().find_map(|event| match event {
        CodeEvent::Value { mime } => mime.get("text/plain"),
        _ => None,
    });
    assert_eq!(value.map(String::as_str), Some("42"));
    let shown = run(client, &CodeRequest { env: lent, ..code("show 'seen' + x; env LENT") }).await.unwrap();
    let texts: Vec<&str> = shown
        .iter()
        .filter_map(|event| match event {
            CodeEvent::Display { mime, id: None, update: false } | CodeEvent::Value { mime } => {
                Some(mime["text/plain"].as_str())
            }
            _ => None,
        })
        .collect();
    assert_eq!(texts, ["seen42", "a b"]);
    assert!(matches!(shown[0], CodeEvent::Started { count: 3, .. }), "{shown:?}");
    let absent = CodeRequest { context: "other".into(), existing: true, ..code("1") };
    refused(run(client, &absent).await, ErrorCode::NotFound);
    let failed = run(client, &code("fail on purpose")).await.unwrap();
    assert!(
        failed
            .iter()
            .any(|event| matches!(event, CodeEvent::Error { message, .. } if message == "on purpose"))
    );
    assert!(matches!(failed.last(), Some(CodeEvent::Ended { interrupted: false, .. })), "{failed:?}");

    let main = "main".parse().unwrap();
    let listed = client.contexts(&vm("web")).await.unwrap().contexts;
    assert_eq!((listed.len(), &listed[0].context, listed[0].busy), (1, &main, false));
    client.restart_context(&vm("web"), &main).await.unwrap();
    let forgotten = run(client, &code("x")).await.unwrap();
    assert!(forgotten.iter().any(|event| matches!(event, CodeEvent::Error { .. })), "{forgotten:?}");
    client.remove_context(&vm("web"), &main).await.unwrap();
    assert!(client.contexts(&vm("web")).await.unwrap().contexts.is_empty());
    refused(client.remove_context(&vm("web"), &main).await, ErrorCode::NotFound);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn code_is_interrupted_by_its_limit_by_request_and_by_leaving() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    let client = &daemon.client;
    daemon.boot("web").await;
    let limited = CodeRequest { timeout_ms: Some(50), ..code("x = 1; sleep 1000") };
    let events = run(client, &limited).await.unwrap();
    assert!(matches!(events.last(), Some(CodeEvent::Ended { interrupted: true, .. })), "{events:?}");

    let mut asked = client.run_code(&vm("web"), &code("sleep 1000")).await.unwrap();
    assert!(matches!(asked.events.next().await.unwrap(), Some(CodeEvent::Started { .. })));
    asked.input.interrupt().await.unwrap();
    let events = follow(&mut asked).await.unwrap();
    assert!(matches!(events.last(), Some(CodeEvent::Ended { interrupted: true, .. })), "{events:?}");

    let mut left = client.run_code(&vm("web"), &code("sleep 1000")).await.unwrap();
    assert!(matches!(left.events.next().await.unwrap(), Some(CodeEvent::Started { .. })));
    drop(left);
    // One piece of code at a time: this one runs because the other was interrupted, and finds the variables.
    let after = run(client, &code("print(x)")).await.unwrap();
    assert_eq!(printed(&after), "1\n");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn code_that_cannot_be_run_is_refused_by_name() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    let client = &daemon.client;
    daemon.boot("web").await;
    let bad = CodeRequest { language: Some("cobol".into()), ..code("x") };
    assert!(refused(run(client, &bad).await, ErrorCode::InvalidArgument).message.contains("`language`"));
    run(client, &code("x = 1")).await.unwrap();
    let other = CodeRequest { language: Some("bash".into()), ..code("x") };
    let refusal = run(client, &other).await;
    assert!(matches!(refusal, Err(ClientError::Api(_))), "a context keeps its language: {refusal:?}");
    refused(client.run_code(&vm("ghost"), &code("x")).await.map(drop), ErrorCode::NotFound);
    daemon.stop().await;
}
