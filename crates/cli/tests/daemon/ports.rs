//! `port`: what listens on this host, what comes through, and how it ends. The VM in memory has an echo at port 7.

use crate::fixture::{Ended, World, interrupt};
use serde_json::Value;
use std::{
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    process::Child,
    time::Duration,
};

/// Nothing here takes long; whatever takes this long hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running `port --json`, and where it listens.
struct Forwarding {
    child: Child,
    addresses: Vec<SocketAddr>,
}

impl Forwarding {
    #[track_caller]
    fn begin(world: &World, words: &[&str]) -> Self {
        let mut child = world.spawn(&[&["port", "--json"], words].concat());
        let mut line = String::new();
        // Unbuffered: what follows is left in the pipe.
        let mut stdout = child.stdout.take().expect("a pipe");
        BufReader::with_capacity(1, &mut stdout).read_line(&mut line).expect("it says where it listens");
        child.stdout = Some(stdout);
        let said: Value =
            serde_json::from_str(&line).unwrap_or_else(|e| panic!("not a document ({e}): {line}"));
        let ports = said["ports"].as_array().expect("a list").iter();
        let addresses =
            ports.map(|one| one["address"].as_str().expect("an address").parse().expect("one")).collect();
        Self { child, addresses }
    }

    #[track_caller]
    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.addresses[0]).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        stream
    }

    fn ended(self) -> Ended {
        Ended::new(&["port"], self.child.wait_with_output().expect("it ends"))
    }
}

#[track_caller]
fn echoes(stream: &mut TcpStream, word: &[u8]) {
    stream.write_all(word).expect("it takes bytes");
    let mut back = vec![0; word.len()];
    stream.read_exact(&mut back).expect("it answers");
    assert_eq!(back, word);
}

#[test]
fn each_direction_ends_by_itself_and_nothing_is_lost() {
    let world = World::new();
    world.run(&["create", "web", "--start"]).exits(0);
    let forwarding = Forwarding::begin(&world, &["web", "7:0"]);
    let mut stream = forwarding.connect();
    let sent: Vec<u8> = (0..4_000_000_u32).map(|n| (n / 7) as u8).collect();
    let mut writing = stream.try_clone().expect("a second handle");
    let written = sent.clone();
    let writer = std::thread::spawn(move || {
        writing.write_all(&written).expect("it takes bytes");
        writing.shutdown(Shutdown::Write).expect("one direction ends");
    });
    let mut got = Vec::new();
    stream.read_to_end(&mut got).expect("the other direction ends too");
    writer.join().expect("the writer does not panic");
    assert!(got == sent, "{} bytes came back of {}", got.len(), sent.len());
    interrupt(&forwarding.child);
    let ended = forwarding.ended().exits(130);
    assert_eq!(ended.stderr, "", "with --json nothing is said besides");
}

#[test]
fn two_hundred_connections_are_open_at_once_and_further_ones_wait() {
    let world = World::new();
    world.run(&["create", "web", "--start"]).exits(0);
    // A port that nobody connects to takes no place.
    let forwarding = Forwarding::begin(&world, &["web", "7:0", "8:0", "9:0"]);
    let mut open: Vec<TcpStream> = (0..200).map(|_| forwarding.connect()).collect();
    for (nth, stream) in open.iter_mut().enumerate() {
        echoes(stream, format!("{nth:03}").as_bytes());
    }
    // The next one is in the backlog, and is served when another leaves.
    let mut waiting = forwarding.connect();
    waiting.write_all(b"next").expect("the backlog takes a few bytes");
    waiting.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout can be set");
    let silence = waiting.read(&mut [0; 4]).expect_err("nobody answers yet").kind();
    assert!(matches!(silence, ErrorKind::WouldBlock | ErrorKind::TimedOut), "{silence:?}");
    // What else is asked of the VM finds its way.
    world.run(&["exec", "web", "--", "echo", "too"]).exits(0).prints("too\n");
    open.pop();
    waiting.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
    let mut back = [0; 4];
    waiting.read_exact(&mut back).expect("it is served now");
    assert_eq!(&back, b"next");
    interrupt(&forwarding.child);
    forwarding.ended().exits(130);
}

#[test]
fn a_port_nobody_listens_at_closes_that_connection_and_is_told_once() {
    let world = World::new();
    world.run(&["create", "web", "--start"]).exits(0);
    let forwarding = Forwarding::begin(&world, &["web", "81:0", "7:0"]);
    for _ in 0..3 {
        let refused = forwarding.connect().read(&mut [0; 1]).expect_err("it is closed").kind();
        assert_eq!(refused, ErrorKind::ConnectionReset);
    }
    let mut stream = TcpStream::connect(forwarding.addresses[1]).expect("the other one listens");
    echoes(&mut stream, b"ping");
    interrupt(&forwarding.child);
    let ended = forwarding.ended().exits(130);
    assert_eq!(ended.stderr, "warning: nothing listens at port 81 in `web`: the connection was closed\n");
}

#[test]
fn it_ends_with_the_state_it_leads_to() {
    let world = World::new();
    for (verb, status, says) in [
        (&["stop", "web"][..], 4, "was stopped"),
        (&["restart", "web"], 4, "was stopped"),
        (&["rollback", "web", "before"], 4, "was rolled back"),
        (&["destroy", "web", "--yes"], 3, "was destroyed"),
    ] {
        world.run(&["create", "web", "--start"]);
        world.run(&["start", "web"]).exits(0);
        world.run(&["snapshot", "web", "before"]);
        let forwarding = Forwarding::begin(&world, &["web", "7:0"]);
        let mut stream = forwarding.connect();
        echoes(&mut stream, b"ping");
        world.run(verb).exits(0);
        let read = stream.read(&mut [0; 1]).map_err(|error| error.kind());
        assert_eq!(read, Err(ErrorKind::ConnectionReset), "{verb:?} breaks off what is open");
        let address = forwarding.addresses[0];
        let ended = forwarding.ended().exits(status);
        let message = ended.json()["message"].as_str().expect("a message").to_owned();
        assert!(message.contains(says), "{verb:?}: {message}");
        assert!(TcpStream::connect(address).is_err(), "{verb:?}: the port is free again");
    }
}

#[test]
fn a_vm_that_rests_goes_on_with_the_first_connection() {
    let world = World::new();
    world.run(&["create", "web", "--start", "--wake", "always"]).exits(0);
    let forwarding = Forwarding::begin(&world, &["web", "7:0"]);
    world.run(&["suspend", "web"]).exits(0);
    echoes(&mut forwarding.connect(), b"ping");
    assert_eq!(world.run(&["status", "web", "--json"]).json()["state"], "running");
    interrupt(&forwarding.child);
    forwarding.ended().exits(130);
}

#[test]
fn a_fork_has_no_forwarding_and_the_source_keeps_its_own() {
    let world = World::new();
    world.run(&["create", "web", "--start"]).exits(0);
    let forwarding = Forwarding::begin(&world, &["web", "7:0"]);
    let mut stream = forwarding.connect();
    echoes(&mut stream, b"ping");
    world.run(&["fork", "web", "--name", "copy"]).exits(0);
    echoes(&mut stream, b"pong");
    world.run(&["destroy", "copy", "--yes"]).exits(0);
    echoes(&mut forwarding.connect(), b"ping");
    interrupt(&forwarding.child);
    forwarding.ended().exits(130);
}

#[test]
fn what_cannot_be_forwarded_is_explained_before_anything_listens() {
    let world = World::new();
    world.run(&["port", "nobody", "7"]).exits(3);
    world.run(&["create", "web"]).exits(0);
    let stopped = world.run(&["port", "web", "7:0"]).exits(4);
    assert!(stopped.stderr.contains("offshoot start web"), "{stopped:#?}");
    world.run(&["start", "web"]).exits(0);
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("an address").port();
    let refused = world.run(&["port", "web", &format!("7:{port}")]).exits(4);
    assert!(refused.stderr.contains(&format!("127.0.0.1:{port}: another program")), "{refused:#?}");
    assert!(refused.stderr.contains("offshoot port web 7:0"), "{refused:#?}");
    let exposed = world.run(&["port", "web", "7:0.0.0.0:0"]).exits(2);
    assert!(exposed.stderr.contains("--allow-remote"), "{exposed:#?}");
    for mapping in ["0", "web", "7:x", "70000"] {
        world.run(&["port", "web", mapping]).exits(2);
    }
}

#[test]
fn a_preview_is_a_link_if_browsers_reach_the_daemon() {
    let world = World::new();
    world.run(&["create", "web", "--start"]).exits(0);
    // The daemon of these tests listens at no port.
    let refused = world.run(&["port", "web", "8000", "--preview"]).exits(8);
    assert!(refused.stderr.contains("offshoot serve --listen"), "{refused:#?}");
    let words = ["port", "web", "8000", "8001", "--preview", "--origin", "https://x.example", "--path", "/a"];
    let links = world.run(&words).exits(0).stdout;
    let links: Vec<&str> = links.lines().collect();
    assert_eq!(links.len(), 2);
    assert!(links[1].starts_with("https://8001-web.x.example/a?offshoot-preview="), "{links:?}");
    let document = world.run(&[&["--json"], &words[..]].concat()).exits(0).json();
    assert_eq!(document["previews"][0]["origin"], "https://8000-web.x.example");
    world.run(&["port", "web", "8000:9000", "--preview"]).exits(2);
    world.run(&["port", "web", "8000", "--path", "/"]).exits(2);
}
