//! Programs in a VM over HTTP: by path, by host, with a key, with a browser's cookie, and without either. The VM in memory has
//! a web server at port 8000.

use super::fixture::{Daemon, PATIENCE, Place, call, exchange, refused, vm};
use offshoot_api::v1::{
    Change, CreateKey, CreatePreview, ForkRequest, Preview, RollbackRequest, SetLife, Vm,
};
use offshoot_types::{ErrorCode, VmStateName};
use serde_json::json;
use std::net::SocketAddr;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// A daemon on a port, with a VM `web` that runs, and a key with this scope alone.
async fn world(place: &Place, scope: &str) -> (Daemon, SocketAddr, String) {
    let (daemon, address) = Daemon::on_a_port(place).await;
    daemon.boot("web").await;
    let key = key_of(&daemon, scope).await;
    (daemon, address, key)
}

async fn key_of(daemon: &Daemon, scope: &str) -> String {
    let request = CreateKey {
        name: Some(format!("for-{scope}")),
        scopes: Some(vec![scope.into()]),
        ..CreateKey::default()
    };
    daemon.client.create_key(&request).await.unwrap().key
}

async fn ask(address: SocketAddr, head: &str, headers: &[(&str, &str)]) -> String {
    exchange(TcpStream::connect(address).await.unwrap(), head, headers, "").await.to_lowercase()
}

async fn link(daemon: &Daemon, path: &str) -> Preview {
    let request = CreatePreview { port: 8000, path: Some(path.into()), origin: None };
    daemon.client.preview(&vm("web"), &request).await.unwrap()
}

/// What a browser does with a link: its host, the rest of it, and the cookie it gets.
async fn visit(address: SocketAddr, url: &str) -> (String, String) {
    let (host, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let answer =
        exchange(TcpStream::connect(address).await.unwrap(), &format!("GET /{path}"), &[("host", host)], "")
            .await;
    assert!(answer.starts_with("HTTP/1.1 303"), "{answer}");
    let cookie = answer.lines().find_map(|line| line.strip_prefix("set-cookie: ")).expect("a cookie");
    assert!(cookie.contains("HttpOnly; SameSite=Lax") && !cookie.contains("Domain"), "{cookie}");
    (host.into(), cookie.split(';').next().unwrap().into())
}

fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{answer}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_may_connect_reaches_a_program_by_path_and_by_host_and_the_program_never_sees_it() {
    let place = Place::new();
    let (daemon, address, key) = world(&place, "exec").await;
    let bearer = format!("Bearer {key}");
    let host = format!("8000-web.localhost:{}", address.port());
    for (by, path, prefix) in [
        ("x", "/v1/vms/web/ports/8000/a/b?c=%20", Some("/v1/vms/web/ports/8000")),
        ("[::1]:3000", "/v1/vms/web/ports/8000/a/b?c=%20", Some("/v1/vms/web/ports/8000")),
        (&host, "/a/b?c=%20", None),
    ] {
        let headers = [
            ("host", by),
            ("authorization", bearer.as_str()),
            ("x-forwarded-for", "6.6.6.6"),
            ("cookie", "own=1; offshoot-preview=x"),
            ("idempotency-key", "the-programs"),
        ];
        let answer = ask(address, &format!("POST {path}"), &headers).await;
        assert_eq!(status(&answer), 200, "{answer}");
        let (head, seen) = answer.split_once("\r\n\r\n").unwrap();
        assert!(seen.starts_with("post /a/b?c=%20 http/1.1\r\n"), "{seen}");
        for line in [
            "host: localhost:8000",
            "cookie: own=1",
            "x-forwarded-proto: http",
            "idempotency-key: the-programs",
        ] {
            assert!(seen.contains(&format!("\r\n{line}\r\n")), "{line}: {seen}");
        }
        assert!(seen.contains(&format!("\r\nx-forwarded-host: {by}\r\n")), "{seen}");
        assert!(
            !seen.contains("e2b_") && !seen.contains("6.6.6.6") && !seen.contains("authorization"),
            "{seen}"
        );
        assert_eq!(seen.contains("x-forwarded-prefix"), prefix.is_some());
        assert_eq!(head.contains("content-security-policy: sandbox"), prefix.is_some(), "{head}");
        let named = [("host", by), ("x-api-key", key.as_str()), ("authorization", "Basic theirs")];
        let answer = ask(address, &format!("GET {path}"), &named).await;
        assert!(answer.contains("authorization: basic theirs") && !answer.contains("e2b_"), "{answer}");
        let theirs = [("host", by), ("x-api-key", "theirs"), ("authorization", bearer.as_str())];
        let answer = ask(address, &format!("GET {path}"), &theirs).await;
        assert!(answer.contains("x-api-key: theirs") && !answer.contains("e2b_"), "{answer}");
    }
    let web = daemon.client.vm(&vm("web")).await.unwrap();
    let by_id = ask(address, &format!("GET /v1/vms/{}/ports/8000/", web.id), &[("x-api-key", &key)]).await;
    assert_eq!(status(&by_id), 200, "{by_id}");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_connect_reaches_nothing() {
    let place = Place::new();
    let (daemon, address, key) = world(&place, "files").await;
    let host = format!("8000-web.localhost:{}", address.port());
    let bearer = format!("Bearer {key}");
    for (path, host) in [("/v1/vms/web/ports/8000/", "x"), ("/", host.as_str())] {
        let of_another_scope =
            ask(address, &format!("GET {path}"), &[("host", host), ("authorization", &bearer)]).await;
        assert_eq!(status(&of_another_scope), 403, "{of_another_scope}");
        let unknown = ask(address, &format!("GET {path}"), &[("host", host), ("x-api-key", "e2b_no")]).await;
        assert_eq!(status(&unknown), 401, "{unknown}");
        let none =
            ask(address, &format!("GET {path}"), &[("host", host), ("cookie", "offshoot-preview=AAAA")])
                .await;
        assert!(matches!(status(&none), 401 | 403), "{none}");
        assert!(!none.contains("localhost:8000"), "{none}");
    }
    // With a key that may, what is not there is said as such.
    let key = key_of(&daemon, "exec").await;
    for (path, expected) in [
        ("/v1/vms/web/ports/81/", 503),
        ("/v1/vms/ghost/ports/8000/", 404),
        ("/v1/vms/web/ports/0/", 400),
        ("/v1/vms/web/ports/x/", 400),
        ("/v1/vms/web/ports/8000", 308),
    ] {
        let answer = ask(address, &format!("GET {path}"), &[("x-api-key", &key)]).await;
        assert_eq!(status(&answer), expected, "{path}: {answer}");
    }
    // It is no proxy to elsewhere, and 49983 is never a program.
    let answer =
        ask(address, "GET /files?path=/etc/passwd", &[("host", "49983-web.localhost"), ("x-api-key", &key)])
            .await;
    assert_eq!(status(&answer), 401, "{answer}");
    let of_files = CreatePreview { port: 8000, ..CreatePreview::default() };
    let (minted, _, body) = call(
        address,
        "POST /v1/vms/web/previews",
        &[("authorization", bearer.as_str()), ("content-type", "application/json")],
        &json!({ "port": 8000 }),
    )
    .await;
    assert_eq!(minted, 403, "{body}");
    refused(daemon.client.preview(&vm("ghost"), &of_files).await, ErrorCode::NotFound);
    let bad = CreatePreview { path: Some("//evil.example".into()), ..of_files };
    refused(daemon.client.preview(&vm("web"), &bad).await, ErrorCode::InvalidArgument);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_becomes_a_cookie_of_that_host_alone() {
    let place = Place::new();
    let (daemon, address, _) = world(&place, "exec").await;
    let made = link(&daemon, "/page?a=1").await;
    assert_eq!(made.origin, format!("http://8000-web.localhost:{}", address.port()));
    let (host, cookie) = visit(address, &made.url).await;
    let answer = ask(address, "GET /page", &[("host", &host), ("cookie", &cookie)]).await;
    assert_eq!(status(&answer), 200, "{answer}");
    assert!(answer.contains("get /page") && !answer.contains("offshoot-preview"), "{answer}");
    // Not for another port, VM, name of this host, the API, or for what another page makes a browser ask.
    daemon.boot("other").await;
    let port = address.port();
    for elsewhere in [
        format!("8001-web.localhost:{port}"),
        format!("8000-other.localhost:{port}"),
        format!("8000-web.evil.example:{port}"),
        format!("8000-web.localhost:{}", port ^ 1),
    ] {
        let answer = ask(address, "GET /", &[("host", &elsewhere), ("cookie", &cookie)]).await;
        assert_eq!(status(&answer), 403, "{elsewhere}: {answer}");
    }
    assert_eq!(status(&ask(address, "GET /v1/vms", &[("cookie", &cookie)]).await), 401);
    assert_eq!(status(&ask(address, "GET /v1/vms/web/ports/8000/", &[("cookie", &cookie)]).await), 401);
    let foreign = [("host", host.as_str()), ("cookie", &cookie), ("origin", "http://8000-other.localhost")];
    let answer = ask(address, "POST /", &foreign).await;
    assert!(status(&answer) == 403 && answer.contains("another origin"), "{answer}");
    let own = [("host", host.as_str()), ("cookie", &cookie), ("origin", &made.origin)];
    let answer = ask(address, "POST /", &own).await;
    assert!(answer.contains("origin: http://localhost:8000"), "{answer}");
    // What it answers stays with it.
    let answer = ask(address, "GET /cookies", &[("host", &host), ("cookie", &cookie)]).await;
    assert!(answer.contains("set-cookie: own=1; path=/\r\n"), "{answer}");
    for absent in ["domain=", "stolen", "clear-site-data", "x-hop"] {
        assert!(!answer.contains(absent), "{absent}: {answer}");
    }
    let answer = ask(address, "GET /away", &[("host", &host), ("cookie", &cookie)]).await;
    assert!(answer.contains("\r\nlocation: /there\r\n"), "{answer}");
    // Changed, it is none.
    let (path, ticket) = made.url.rsplit_once('=').unwrap();
    let path = format!("/{}", path.strip_prefix("http://").unwrap().split_once('/').unwrap().1);
    let forged = format!("GET {path}={}", ticket.chars().rev().collect::<String>());
    let answer = ask(address, &forged, &[("host", &host)]).await;
    assert!(status(&answer) == 403 && answer.contains("offshoot port web 8000 --preview"), "{answer}");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cookie_ends_with_the_key_that_made_its_link() {
    let place = Place::new();
    let (daemon, address, key) = world(&place, "exec").await;
    let stream = TcpStream::connect(address).await.unwrap();
    let made =
        exchange(stream, "POST /v1/vms/web/previews", &[("x-api-key", &key)], r#"{"port":8000}"#).await;
    let made: Preview = serde_json::from_str(made.split_once("\r\n\r\n").unwrap().1).unwrap();
    let (host, cookie) = visit(address, &made.url).await;
    let (mut socket, answer) =
        upgraded(address, &host, &[("cookie", &cookie), ("origin", &made.origin)]).await;
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    echoes(&mut socket, b"ping").await;
    let keys = daemon.client.keys().await.unwrap().keys;
    daemon.client.remove_key(keys[0].id).await.unwrap();
    ends(socket).await;
    let answer = ask(address, "GET /", &[("host", &host), ("cookie", &cookie)]).await;
    assert!(matches!(status(&answer), 401 | 403), "{answer}");
    daemon.stop().await;
}

/// Asks for an upgrade; what is upgraded, and the head of the answer.
async fn upgraded(address: SocketAddr, host: &str, headers: &[(&str, &str)]) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let head = format!(
        "GET /socket HTTP/1.1\r\nhost: {host}\r\n{headers}connection: Upgrade\r\nupgrade: websocket\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let read = async {
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(stream.read_u8().await.unwrap());
        }
    };
    timeout(PATIENCE, read).await.expect("an answer in time");
    (stream, String::from_utf8(answer).unwrap())
}

async fn echoes(stream: &mut TcpStream, word: &[u8]) {
    let exchange = async {
        stream.write_all(word).await.unwrap();
        let mut back = vec![0; word.len()];
        stream.read_exact(&mut back).await.unwrap();
        assert_eq!(back, word);
    };
    timeout(PATIENCE, exchange).await.expect("an echo in time");
}

/// Waits until the other end is gone.
async fn ends(mut stream: TcpStream) {
    let read = timeout(PATIENCE, stream.read(&mut [0; 1])).await.expect("it is closed in time");
    assert!(!matches!(read, Ok(1..)), "{read:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upgrades_pass_and_are_closed_with_the_state_of_the_vm() {
    let place = Place::new();
    let (daemon, address, key) = world(&place, "exec").await;
    let made = link(&daemon, "/").await;
    let (host, cookie) = visit(address, &made.url).await;
    // Another page's WebSocket brings the cookie as well.
    for headers in
        [&[("cookie", cookie.as_str())][..], &[("cookie", &cookie), ("origin", "http://evil.example")]]
    {
        let (_, answer) = upgraded(address, &host, headers).await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    }
    let with_cookie = [("cookie", cookie.as_str()), ("origin", &made.origin)];
    let with_key = [("x-api-key", key.as_str())];
    for (end, headers) in [("rollback", &with_cookie[..]), ("stop", &with_key[..])] {
        let (mut socket, answer) = upgraded(address, &host, headers).await;
        assert!(answer.starts_with("HTTP/1.1 101") && answer.contains("upgrade: websocket"), "{answer}");
        echoes(&mut socket, b"hello").await;
        if end == "rollback" {
            let taken = daemon.client.snapshot(&vm("web"), &Default::default()).await.unwrap();
            echoes(&mut socket, b"still there").await;
            let fork = ForkRequest { source: "web".into(), name: Some("copy".into()), count: None };
            daemon.client.fork(&fork).await.unwrap();
            echoes(&mut socket, b"and there").await;
            // The copy has neither the connection nor a way in by the cookie.
            let of_copy = host.replace("web", "copy");
            let answer = ask(address, "GET /", &[("host", &of_copy), ("cookie", &cookie)]).await;
            assert_eq!(status(&answer), 403, "{answer}");
            let to = RollbackRequest { snapshot: Some(taken.id.to_string()), ..RollbackRequest::default() };
            daemon.client.rollback(&vm("web"), &to).await.unwrap();
        } else {
            daemon.client.stop(&vm("web"), &Change::default()).await.unwrap();
        }
        ends(socket).await;
    }
    let answer = ask(address, "GET /", &[("host", &host), ("cookie", &cookie)]).await;
    assert_eq!(status(&answer), 502, "it does not run: {answer}");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_does_not_rest_while_a_websocket_leads_into_it() {
    let place = Place::new();
    let (daemon, address, key) = world(&place, "exec").await;
    let host = format!("8000-web.localhost:{}", address.port());
    let (mut socket, answer) = upgraded(address, &host, &[("x-api-key", key.as_str())]).await;
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    let life = SetLife { idle_suspend_ms: Some(1000), ..SetLife::default() };
    daemon.client.set_life(&vm("web"), &life).await.unwrap();
    // Twice as long as it may be idle.
    for _ in 0..10 {
        tokio::time::sleep(std::time::Duration::from_millis(250)).await;
        echoes(&mut socket, b"at work").await;
    }
    let suspended = |vms: &[Vm]| vms.iter().all(|vm| vm.state == VmStateName::Suspended);
    assert!(!suspended(&daemon.client.vms().await.unwrap().vms), "it was suspended under its user");
    drop(socket);
    daemon.until_vms(suspended).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_are_carried_as_they_come() {
    let place = Place::new();
    let (daemon, address, key) = world(&place, "exec").await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST /v1/vms/web/ports/8000/echo HTTP/1.1\r\nhost: x\r\nx-api-key: {key}\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    let talk = async {
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut heard = Vec::new();
        for part in ["one", "two", "three"] {
            stream.write_all(format!("{:x}\r\n{part}\r\n", part.len()).as_bytes()).await.unwrap();
            // The answer to each part comes before the next one is sent.
            while !heard.windows(part.len()).any(|window| window == part.as_bytes()) {
                assert_ne!(stream.read_buf(&mut heard).await.unwrap(), 0);
            }
        }
        stream.write_all(b"0\r\n\r\n").await.unwrap();
        while !heard.ends_with(b"0\r\n\r\n") {
            assert_ne!(stream.read_buf(&mut heard).await.unwrap(), 0);
        }
        String::from_utf8(heard).unwrap()
    };
    let heard = timeout(PATIENCE, talk).await.expect("in time");
    assert!(heard.starts_with("HTTP/1.1 200"), "{heard}");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_port_there_is_no_link_unless_another_name_leads_there() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    daemon.boot("web").await;
    let plain = CreatePreview { port: 8000, ..CreatePreview::default() };
    let refusal = refused(daemon.client.preview(&vm("web"), &plain).await, ErrorCode::Unavailable);
    assert!(refusal.hint.is_some_and(|hint| hint.contains("--listen")));
    let named = CreatePreview { origin: Some("https://preview.example.com".into()), ..plain.clone() };
    let made = daemon.client.preview(&vm("web"), &named).await.unwrap();
    assert!(made.url.starts_with("https://8000-web.preview.example.com/?offshoot-preview="), "{made:?}");
    for origin in ["https://127.0.0.1", "ftp://a", "https://a/b"] {
        let bad = CreatePreview { origin: Some(origin.into()), ..plain.clone() };
        assert!(
            refused(daemon.client.preview(&vm("web"), &bad).await, ErrorCode::InvalidArgument)
                .message
                .contains("origin")
        );
    }
    daemon.stop().await;
}
