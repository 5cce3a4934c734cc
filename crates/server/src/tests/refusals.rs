//! Every no has a code, a message that names what is wrong, and the id of its request.

use super::fixture::{Daemon, PATIENCE, Place, exchange, patient, refused, shell, vm};
use offshoot_api::{
    ClientError,
    v1::{CollectRequest, CreateVm, REQUEST_ID_HEADER, RunRequest, StatQuery, WaitQuery},
};
use offshoot_types::{ErrorCode, VmStateName};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};

/// One request as raw HTTP, and the whole answer.
async fn raw(place: &Place, head: &str, body: &str) -> String {
    exchange(UnixStream::connect(place.socket()).await.unwrap(), head, &[], body).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_field_is_refused_by_its_name_and_changes_nothing() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    let client = &daemon.client;
    let named = |name: &str| CreateVm { name: name.into(), ..CreateVm::default() };
    let body = refused(client.create(&named("Not A Name")).await, ErrorCode::InvalidArgument);
    assert!(body.message.contains("`name`"), "{}", body.message);
    let tiny = CreateVm { memory_mib: Some(1), ..named("web") };
    assert!(refused(client.create(&tiny).await, ErrorCode::InvalidArgument).message.contains("`memory_mib`"));
    let answer = raw(&place, "POST /v1/vms", r#"{"name":"web","memory":"256M"}"#).await;
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("memory"), "{answer}");
    let answer = raw(&place, "POST /v1/vms", "not json").await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    let wait = WaitQuery { state: Some("flying".into()), ..WaitQuery::default() };
    let body = refused(client.wait_once(&vm("web"), &wait).await, ErrorCode::InvalidArgument);
    assert!(body.message.contains("`state`") && body.message.contains("running"), "{}", body.message);
    assert!(client.vms().await.unwrap().vms.is_empty());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_there_is_404_and_what_the_state_forbids_is_409() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    let client = &daemon.client;
    refused(client.vm(&vm("ghost")).await, ErrorCode::NotFound);
    refused(client.start(&vm("ghost"), &patient()).await, ErrorCode::NotFound);
    let image = CreateVm { name: "web".into(), image: Some("nosuch".into()), ..CreateVm::default() };
    let body = refused(client.create(&image).await, ErrorCode::NotFound);
    assert!(body.hint.is_some_and(|hint| hint.contains("image build")));
    refused(client.exec(&vm("ghost"), &shell("true")).await, ErrorCode::NotFound);

    let web = CreateVm { name: "web".into(), ..CreateVm::default() };
    client.create(&web).await.unwrap();
    let body = refused(client.create(&web).await, ErrorCode::AlreadyExists);
    assert!(!body.retryable);
    let body = refused(client.pause(&vm("web"), &patient()).await, ErrorCode::WrongState);
    assert!(body.message.contains("stopped"), "{}", body.message);
    let collect = CollectRequest { exec: shell("true"), input: None };
    refused(client.exec_collect(&vm("web"), &collect).await, ErrorCode::WrongState);
    let stat = StatQuery { path: "/etc".into(), ..StatQuery::default() };
    refused(client.stat_file(&vm("web"), &stat).await, ErrorCode::WrongState);
    let unknown = CreateVm { provider: Some("firecracker".into()), name: "fc".into(), ..CreateVm::default() };
    assert!(client.create(&unknown).await.is_err(), "a provider that is not here cannot be named");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_route_or_method_is_answered_in_the_one_error_shape_with_the_requests_id() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    for (head, status) in [("GET /v2/vms", 404), ("PATCH /v1/vms", 405), ("GET /v1/run", 400)] {
        let answer = raw(&place, head, "").await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{head}: {answer}");
        let id =
            answer.lines().find_map(|line| line.strip_prefix(&format!("{REQUEST_ID_HEADER}: "))).unwrap();
        assert!(answer.contains(&format!("\"request_id\":\"{id}\"")), "{answer}");
    }
    let answer = raw(&place, "GET /v1/health", "").await;
    assert!(answer.contains(REQUEST_ID_HEADER), "successes have one too: {answer}");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_above_the_limit_is_refused() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    let labels = [("key".to_owned(), "x".repeat(2 * 1024 * 1024))].into();
    let request = CreateVm { name: "web".into(), labels, ..CreateVm::default() };
    refused(daemon.client.create(&request).await, ErrorCode::TooLarge);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_says_it_is_no_json_is_refused_and_one_that_says_nothing_is_read() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    let ask = async |headers: &[(&str, &str)]| {
        let stream = UnixStream::connect(place.socket()).await.unwrap();
        exchange(stream, "POST /v1/vms", headers, r#"{"name":"web"}"#).await
    };
    let answer = ask(&[("content-type", "application/x-www-form-urlencoded")]).await;
    assert!(answer.starts_with("HTTP/1.1 415") && answer.contains("unsupported_media_type"), "{answer}");
    assert!(ask(&[]).await.starts_with("HTTP/1.1 200"));
    let again = ask(&[("content-type", "application/json; charset=utf-8")]).await;
    assert!(again.starts_with("HTTP/1.1 409"), "{again}");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_user_is_denied_on_every_route() {
    let place = Place::new();
    // Who is let in is decided by policy, for every route alike: walk them all.
    let stranger = rustix::process::geteuid().as_raw() + 1;
    let daemon = Daemon::for_stranger(&place, stranger).await;
    let document: serde_json::Value = serde_json::from_str(&crate::openapi_json()).unwrap();
    let mut walked = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        // They say nothing but that somebody answers.
        if path == "/health" || path == "/healthz" {
            continue;
        }
        for method in item.as_object().unwrap().keys() {
            let answer = ask_as_stranger(&place, method, path).await;
            assert!(answer.starts_with("HTTP/1.1 403"), "{method} {path}: {answer}");
            assert!(answer.contains("\"code\":\"denied\""), "{answer}");
            walked += 1;
        }
    }
    assert!(walked >= 54, "{walked} routes");
    // What programs in VMs answer is in no document.
    let answer = ask_as_stranger(&place, "get", "/v1/vms/{vm}/ports/80/").await;
    assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("\"code\":\"denied\""), "{answer}");
    let body = refused(daemon.client.run(&RunRequest::default()).await.map(drop), ErrorCode::Denied);
    assert!(body.message.contains(&stranger.to_string()), "{}", body.message);
    daemon.vanish().await;
}

/// A request that is well formed for the route, so that only policy can refuse it.
async fn ask_as_stranger(place: &Place, method: &str, path: &str) -> String {
    let id = offshoot_types::OperationId::new().to_string();
    let query = match path {
        "/v1/vms/{vm}/tcp" => "?port=80",
        path if path.contains("/files") => "?path=/etc/hostname",
        _ => "",
    };
    let words = [("{vm}", "web"), ("{image}", "base"), ("{context}", "main"), ("{snapshot}", "web@first")];
    let ids = ["{exec}", "{id}", "{transaction}", "{key}"].map(|word| (word, id.as_str()));
    let filled =
        words.into_iter().chain(ids).fold(path.to_owned(), |path, (word, with)| path.replace(word, with));
    let body = match path.rsplit('/').next().unwrap() {
        "vms" => r#"{"name":"web"}"#,
        "exec" => r#"{"exec":{"argv":["true"]}}"#,
        "previews" => r#"{"port":80}"#,
        "forks" => r#"{"source":"web"}"#,
        "diff" => r#"{"to":"web"}"#,
        "rename" => r#"{"from":"/a","to":"/b"}"#,
        "symlink" => r#"{"target":"/a","path":"/b"}"#,
        "chmod" => r#"{"path":"/a","mode":420}"#,
        "mkdir" | "remove" => r#"{"path":"/a"}"#,
        _ => "",
    };
    let sockets = ["/v1/run", "/exec", "/attach", "/tcp", "/try", "/race", "/code"];
    let websocket = sockets.iter().any(|end| path.ends_with(end));
    let upgrade = match (method, websocket) {
        ("get", true) => {
            "upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nconnection: upgrade\r\n"
        }
        _ => "connection: close\r\n",
    };
    let method = method.to_uppercase();
    let length = if method == "GET" { 0 } else { body.len() };
    let sent = &body[..length];
    let request = format!(
        "{method} {filled}{query} HTTP/1.1\r\nhost: x\r\n{upgrade}content-length: {length}\r\n\r\n{sent}"
    );
    let mut stream = UnixStream::connect(place.socket()).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = vec![0; 4096];
    let mut count = 0;
    let read = async {
        while !answer[..count].windows(9).any(|part| part == b"retryable") {
            match stream.read(&mut answer[count..]).await.unwrap() {
                0 => break,
                more => count += more,
            }
        }
    };
    timeout(PATIENCE, read).await.expect("an answer in time");
    String::from_utf8_lossy(&answer[..count]).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_for_a_vm_that_is_not_there_ends_at_once() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    let waited = daemon.client.wait(&vm("ghost"), VmStateName::Running, None).await;
    assert!(matches!(waited, Err(ClientError::Api(body)) if body.code == ErrorCode::NotFound));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_than_a_vm_can_queue_is_refused_for_now_and_all_are_answered() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    daemon.boot("web").await;
    let restarts = (0..300).map(|_| raw(&place, "POST /v1/vms/web/restart", "{}"));
    let answers = timeout(PATIENCE, futures::future::join_all(restarts)).await.expect("no request stalls");
    let (done, refused): (Vec<_>, Vec<_>) =
        answers.iter().partition(|answer| answer.starts_with("HTTP/1.1 200"));
    assert!(done.len() >= 64, "what has room is done: {}", done.len());
    assert!(!refused.is_empty(), "nothing was refused");
    for answer in refused {
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(answer.contains("retry-after: 1") && answer.contains("\"no_resource\""), "{answer}");
    }
    let after = raw(&place, "GET /v1/vms/web", "").await;
    assert!(after.starts_with("HTTP/1.1 200") && after.contains("\"running\""), "{after}");
    daemon.stop().await;
}
