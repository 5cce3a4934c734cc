//! Programs in a VM, reached by ports of this host.

use crate::await_state;
use offshoot_testkit::{Session, TestEnv, wait_for, wait_for_value};
use serde_json::Value;
use std::{
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    process::{ChildStderr, ChildStdout, Stdio},
    time::Duration,
};

/// An emulated CPU begins a Python in a second, and serves 200 in some more.
const PATIENCE: Duration = Duration::from_secs(60);

/// Sends back what it gets, end included.
const ECHO: &str = "
import asyncio
async def serve(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
async def main():
    async with await asyncio.start_server(serve, '127.0.0.1', 7000, backlog=256) as server:
        await server.serve_forever()
asyncio.run(main())
";

/// `offshoot port NAME ... --json`, and where it listens.
struct Forwarding {
    session: Session,
    stdout: BufReader<ChildStdout>,
    stderr: ChildStderr,
    addresses: Vec<SocketAddr>,
}

impl Forwarding {
    #[track_caller]
    fn begin(env: &TestEnv, words: &[&str]) -> Self {
        let mut session = env.spawn(&[&["port", "--json"], words].concat());
        let mut stdout = BufReader::new(session.child.stdout.take().expect("standard output is a pipe"));
        let stderr = session.child.stderr.take().expect("standard error is a pipe");
        let mut line = String::new();
        stdout.read_line(&mut line).expect("it says where it listens");
        let said: Value =
            serde_json::from_str(&line).unwrap_or_else(|e| panic!("not a document ({e}): {line}"));
        let ports = said["ports"].as_array().expect("a list of ports").iter();
        let addresses =
            ports.map(|one| one["address"].as_str().expect("an address").parse().expect("one")).collect();
        Self { session, stdout, stderr, addresses }
    }

    #[track_caller]
    fn connect(&self, nth: usize) -> TcpStream {
        let stream = TcpStream::connect(self.addresses[nth]).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        stream
    }

    /// Status, why (the document, if it ended by itself), and what was said besides.
    fn ended(mut self) -> (Option<i32>, Value, String) {
        let status = self.session.child.wait().expect("it ends").code();
        let (mut out, mut err) = (String::new(), String::new());
        self.stdout.read_to_string(&mut out).expect("the rest of its output");
        self.stderr.read_to_string(&mut err).expect("what it said");
        (status, serde_json::from_str(&out).unwrap_or_default(), err)
    }
}

/// The whole answer to one request, or nothing.
fn get(address: SocketAddr, path: &str) -> String {
    let ask = || {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map(|_| answer)
    };
    ask().unwrap_or_default()
}

#[track_caller]
fn echoes(stream: &mut TcpStream, word: &[u8]) {
    stream.write_all(word).expect("it takes bytes");
    let mut back = vec![0; word.len()];
    stream.read_exact(&mut back).expect("it answers");
    assert_eq!(back, word);
}

#[track_caller]
fn closed(mut stream: TcpStream) {
    let read = stream.read(&mut [0; 1]);
    // Not that nothing came in time.
    let waiting = [ErrorKind::WouldBlock, ErrorKind::TimedOut];
    let is_closed = read.as_ref().map_or_else(|error| !waiting.contains(&error.kind()), |count| *count == 0);
    assert!(is_closed, "it is closed: {read:?}");
}

#[test]
fn programs_in_a_vm_are_reached_by_ports_of_this_host() {
    let env = TestEnv::new();
    env.run(&["create", "a", "--start"]).success();
    let script = "mkdir /srv/site; echo hello from the guest >/srv/site/page; exec python3 -m http.server -d /srv/site 8000";
    env.run(&["exec", "a", "--detach", "--", "sh", "-c", script]).success();
    env.run(&["exec", "a", "--detach", "--", "python3", "-c", ECHO]).success();
    let forwarding = Forwarding::begin(&env, &["a", "8000:0", "7000:0", "9:0"]);
    wait_for("the web server to answer", PATIENCE, || {
        get(forwarding.addresses[0], "/page").contains("200 OK")
    });
    assert!(get(forwarding.addresses[0], "/page").ends_with("\r\n\r\nhello from the guest\n"));
    closed(forwarding.connect(2));
    wait_for("the echo to answer", PATIENCE, || {
        let mut stream = forwarding.connect(1);
        stream.write_all(b"?").and_then(|()| stream.read_exact(&mut [0])).is_ok()
    });

    // Each direction ends by itself, and nothing is lost on the way.
    let sent: Vec<u8> = (0..3_000_000_u32).map(|n| (n / 11) as u8).collect();
    let mut stream = forwarding.connect(1);
    let (mut writing, bytes) = (stream.try_clone().expect("a second handle"), sent.clone());
    let writer = std::thread::spawn(move || {
        writing.write_all(&bytes).expect("it takes bytes");
        writing.shutdown(Shutdown::Write).expect("one direction ends");
    });
    let mut got = Vec::new();
    stream.read_to_end(&mut got).expect("the other direction ends");
    writer.join().expect("the writer does not panic");
    assert!(got == sent, "{} bytes came back of {}", got.len(), sent.len());

    // 200 at once, and the VM is still there for others.
    let mut open: Vec<TcpStream> = (0..200).map(|_| forwarding.connect(1)).collect();
    for (nth, stream) in open.iter_mut().enumerate() {
        echoes(stream, format!("{nth:03}").as_bytes());
    }
    env.run(&["exec", "a", "--", "echo", "too"]).success().prints("too\n");

    // A fork has none of them: its program has seen them end. The source goes on.
    let mut one = open.pop().expect("there are 200");
    drop(open);
    env.run(&["fork", "a", "--name", "b"]).success();
    echoes(&mut one, b"still");
    let count = "grep -c ' 01 ' /proc/net/tcp || true";
    wait_for("the fork's connections to be gone", PATIENCE, || {
        env.run(&["exec", "b", "--", "sh", "-c", count]).success().stdout == "0\n"
    });
    let of_fork = Forwarding::begin(&env, &["b", "7000:0"]);
    echoes(&mut of_fork.connect(0), b"its own");
    env.run(&["destroy", "b", "--yes"]).success();
    let (status, why, _) = of_fork.ended();
    assert_eq!((status, why["code"].as_str()), (Some(3), Some("not_found")), "{why}");

    echoes(&mut one, b"on");
    env.run(&["stop", "a"]).success();
    closed(one);
    let address = forwarding.addresses[0];
    let (status, why, said) = forwarding.ended();
    assert_eq!((status, why["code"].as_str()), (Some(4), Some("wrong_state")), "{why} {said}");
    assert_eq!(said.matches("nothing listens at port 9 in `a`").count(), 1, "it is told once: {said}");
    assert!(TcpStream::connect(address).is_err(), "the port is free again");
    env.finish();
}

/// Speaks WebSocket as far as the handshake, then sends back what comes; on `/page` it is a web page.
const SOCKETS: &str = r"
import asyncio, base64, hashlib
async def serve(reader, writer):
    head = (await reader.readuntil(b'\r\n\r\n')).decode()
    fields = dict(line.lower().split(': ', 1) for line in head.split('\r\n')[1:] if line)
    if fields.get('upgrade') != 'websocket':
        writer.write(f'HTTP/1.1 200 OK\r\nContent-Length: {len(head)}\r\n\r\n{head}'.encode())
        await writer.drain()
        return writer.close()
    key = [line for line in head.split('\r\n') if line.lower().startswith('sec-websocket-key')][0].split(': ')[1]
    digest = hashlib.sha1((key + '258EAFA5-E914-47DA-95CA-C5AB0DC85B11').encode()).digest()
    accept = base64.b64encode(digest).decode()
    writer.write(f'HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n'.encode())
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
async def main():
    async with await asyncio.start_server(serve, '127.0.0.1', 9000) as server:
        await server.serve_forever()
asyncio.run(main())
";

/// One request on a connection of its own, and the head of the answer; what follows it can still be talked to.
#[track_caller]
fn request(address: SocketAddr, head: &str, headers: &[(&str, &str)]) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(address).expect("the daemon listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    write!(stream, "{head} HTTP/1.1\r\n{headers}\r\n").expect("it takes a request");
    let mut answer = Vec::new();
    let mut byte = [0; 1];
    while !answer.ends_with(b"\r\n\r\n") && stream.read(&mut byte).expect("an answer in time") == 1 {
        answer.push(byte[0]);
    }
    (stream, String::from_utf8(answer).expect("a head is text"))
}

/// The whole answer.
#[track_caller]
fn answer(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> String {
    let headers = [headers, &[("connection", "close")]].concat();
    let (mut stream, mut answer) = request(address, &format!("GET {path}"), &headers);
    stream.read_to_string(&mut answer).expect("the rest of the answer");
    answer
}

const HANDSHAKE: [(&str, &str); 4] = [
    ("connection", "Upgrade"),
    ("upgrade", "websocket"),
    ("sec-websocket-version", "13"),
    ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

#[test]
fn a_web_server_in_a_vm_is_seen_by_path_and_by_host() {
    let env = TestEnv::new();
    let log = std::fs::File::create(env.work_dir().join("serve.log")).expect("make the daemon's log");
    let mut serve = env.command(&["serve", "--listen", "127.0.0.1:0"]);
    let mut serving = serve.stdout(Stdio::null()).stderr(log).spawn().expect("start the daemon");
    let address = wait_for_value("the daemon to listen", PATIENCE, || {
        let status = env.run(&["--no-autostart", "daemon", "status", "--json"]);
        let listen = (status.code == Some(0)).then(|| status.json()["listen"][0].clone())?;
        listen.as_str().and_then(|address| address.parse::<SocketAddr>().ok())
    });
    env.run(&["create", "a", "--start"]).success();
    let script = "mkdir /srv/site; echo hello from the guest >/srv/site/page; exec python3 -m http.server -d /srv/site 8000";
    env.run(&["exec", "a", "--detach", "--", "sh", "-c", script]).success();
    env.run(&["exec", "a", "--detach", "--", "python3", "-c", SOCKETS]).success();
    let made = env.run(&["key", "create", "browser", "--scope", "exec", "--json"]).success().json();
    let key = made["key"].as_str().expect("a key").to_owned();
    let with_key = [("host", "x"), ("x-api-key", key.as_str())];

    let page = "/v1/vms/a/ports/8000/page";
    wait_for("the web server to answer", PATIENCE, || answer(address, page, &with_key).contains("200 OK"));
    assert!(answer(address, page, &with_key).ends_with("\r\n\r\nhello from the guest\n"));
    assert!(answer(address, page, &[("host", "x")]).starts_with("HTTP/1.1 401"));
    let host = format!("8000-a.localhost:{}", address.port());
    let by_host = answer(address, "/page", &[("host", &host), ("x-api-key", &key)]);
    assert!(by_host.ends_with("\r\n\r\nhello from the guest\n"), "{by_host}");
    assert!(answer(address, "/page", &[("host", &host)]).starts_with("HTTP/1.1 403"));

    // As a browser comes: a link, a cookie, a page, a WebSocket.
    let link = env.run(&["port", "a", "9000", "--preview", "--path", "/page"]).success().stdout;
    let (host, path) =
        link.trim().strip_prefix("http://").and_then(|url| url.split_once('/')).expect("a link");
    let visited = answer(address, &format!("/{path}"), &[("host", host)]);
    assert!(visited.starts_with("HTTP/1.1 303") && visited.contains("location: /page\r\n"), "{visited}");
    let cookie = visited.lines().find_map(|line| line.strip_prefix("set-cookie: ")).expect("a cookie");
    let cookie = cookie.split(';').next().expect("name and value");
    wait_for("the page", PATIENCE, || {
        answer(address, "/page", &[("host", host), ("cookie", cookie)]).contains("200 OK")
    });
    let seen = answer(address, "/page", &[("host", host), ("cookie", cookie)]);
    assert!(!seen.contains("offshoot-preview") && seen.contains("localhost:9000"), "{seen}");
    let origin = format!("http://{host}");
    let own = [&HANDSHAKE[..], &[("host", host), ("cookie", cookie), ("origin", &origin)]].concat();
    let (mut socket, head) = request(address, "GET /socket", &own);
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    assert!(head.to_lowercase().contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "{head}");
    echoes(&mut socket, b"\x81\x05hello");
    let foreign =
        [&HANDSHAKE[..], &[("host", host), ("cookie", cookie), ("origin", "http://evil.example")]].concat();
    assert!(request(address, "GET /socket", &foreign).1.starts_with("HTTP/1.1 403"));

    env.run(&["fork", "a", "--name", "b"]).success();
    echoes(&mut socket, b"\x81\x05still");
    let of_fork = host.replace("-a.", "-b.");
    assert!(answer(address, "/page", &[("host", &of_fork), ("cookie", cookie)]).starts_with("HTTP/1.1 403"));
    env.run(&["stop", "a"]).success();
    closed(socket);
    assert!(answer(address, "/page", &[("host", host), ("cookie", cookie)]).starts_with("HTTP/1.1 502"));
    env.finish();
    serving.wait().expect("the daemon ends");
}

#[test]
fn a_connection_continues_a_vm_that_rests_and_ends_with_a_rollback() {
    let env = TestEnv::new();
    env.run(&["create", "a", "--start", "--wake", "always"]).success();
    env.run(&["exec", "a", "--detach", "--", "python3", "-c", ECHO]).success();
    let forwarding = Forwarding::begin(&env, &["a", "7000:0"]);
    wait_for("the echo to listen", PATIENCE, || {
        let mut stream = forwarding.connect(0);
        stream.write_all(b"x").is_ok() && matches!(stream.read(&mut [0; 1]), Ok(1))
    });
    env.run(&["snapshot", "a", "before"]).success();
    env.run(&["suspend", "a"]).success();
    let mut stream = forwarding.connect(0);
    echoes(&mut stream, b"awake");
    await_state(&env, "a", "running", PATIENCE);
    env.run(&["rollback", "a", "before"]).success();
    closed(stream);
    let (status, why, _) = forwarding.ended();
    assert_eq!(status, Some(4), "{why}");
    assert!(why["message"].as_str().is_some_and(|text| text.contains("rolled back")), "{why}");
    env.finish();
}
