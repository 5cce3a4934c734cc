//! Every operation of the client against the toy guest.

use crate::{
    port::Port,
    toy::{self, Guest, PID, connect, options, start},
};
use async_trait::async_trait;
use offshoot_guest_proto::{
    Tunnel,
    client::{Client, ClientError, ConnectError, HostService, HostServices, TUNNELS},
    message::*,
    server::OpenServiceError,
};
use std::{sync::Arc, time::Duration};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

async fn pair() -> (Guest, Client) {
    let (port, end) = Port::new(64 * 1024);
    let guest = Guest::start(end);
    let client = connect(port.open()).await;
    (guest, client)
}

fn guest_error<T: std::fmt::Debug>(result: Result<T, ClientError>) -> GuestErrorKind {
    match result {
        Err(ClientError::Guest(error)) => error.kind,
        other => panic!("expected the guest's own error, got {other:?}"),
    }
}

#[tokio::test]
async fn the_handshake_carries_both_identities() {
    let (port, end) = Port::new(4096);
    let guest = Guest::start(end);
    let (_client, hello) = Client::connect(port.open(), options()).await.unwrap();
    assert_eq!((hello.agent_version.as_str(), hello.kernel_release.as_str()), ("toy", "6.1-toy"));
    let hosts = guest.toy.hellos.lock().unwrap();
    assert_eq!((hosts[0].hostname.as_str(), hosts[0].generation), ("toy", 1));
    assert_eq!(hosts[0].epoch, hello.epoch);
    assert!(hosts[0].time.0 > 1_700_000_000_000_000_000);
}

#[tokio::test]
async fn a_guest_may_refuse_the_handshake_and_says_why() {
    let (port, end) = Port::new(4096);
    let _guest = Guest::start(end);
    let mut unwelcome = options();
    unwelcome.hostname = "unwelcome".into();
    let refused = Client::connect(port.open(), unwelcome).await.unwrap_err();
    assert!(matches!(&refused, ConnectError::Refused(error) if error.message == "not you"), "{refused:?}");
    // It serves the next host all the same.
    connect(port.open()).await;
}

#[tokio::test]
async fn a_process_reads_and_writes_and_ends() {
    let (_guest, client) = pair().await;
    let cat = client.exec(start(1, &["cat"])).await.unwrap();
    assert_eq!(cat.pid(), PID);
    let (mut sender, mut events) = cat.split();
    let sent: Vec<u8> = (0..1_000_000_u32).map(|n| n as u8).collect();
    let talk = async {
        sender.stdin(&sent).await.unwrap();
        sender.resize(PtySize { rows: 1, cols: 1 }).await.unwrap();
        sender.signal(1).await.unwrap();
        sender.stdin_end().await.unwrap();
    };
    let listen = async {
        let mut got = Vec::new();
        loop {
            match events.next().await.unwrap() {
                Some(ExecEvent::Output { data, .. }) => got.extend(data),
                Some(ExecEvent::Ended(end)) => break (got, end),
                other => panic!("{other:?}"),
            }
        }
    };
    let ((), (got, end)) = tokio::join!(talk, listen);
    assert!(got == sent);
    assert_eq!(end, toy::ended());
    assert_eq!(events.offsets(), (1_000_000, 0));
    assert_eq!(events.next().await.unwrap(), None);
}

#[tokio::test]
async fn a_program_that_cannot_run_is_the_guests_error() {
    let (_guest, client) = pair().await;
    assert_eq!(guest_error(client.exec(start(1, &["nonsense"])).await), GuestErrorKind::ExecFailed);
}

#[tokio::test]
async fn a_process_outlives_its_handle_and_is_attached_to_from_an_offset() {
    let (_guest, client) = pair().await;
    drop(client.exec(start(5, &["survivor"])).await.unwrap());
    let execs = client.list_execs().await.unwrap();
    assert_eq!(execs, [ExecSummary { exec: [5; 16], pid: PID, ended: None, stdout: 3, stderr: 4 }]);
    let attach = ExecAttach { exec: [5; 16], stdout_offset: 5, stderr_offset: 0 };
    let (_sender, mut events) = client.attach(attach).await.unwrap().split();
    let data = b"before".to_vec();
    let output = ExecEvent::Output { stream: OutputStream::Stdout, offset: 5, data };
    assert_eq!(events.next().await.unwrap(), Some(output));
    assert_eq!(events.next().await.unwrap(), Some(ExecEvent::Ended(toy::ended())));
    let unknown = ExecAttach { exec: [6; 16], stdout_offset: 0, stderr_offset: 0 };
    assert_eq!(guest_error(client.attach(unknown).await), GuestErrorKind::NotFound);
}

#[tokio::test]
async fn a_file_of_several_windows_goes_in_and_comes_out_again() {
    let (guest, client) = pair().await;
    let files = client.files("root");
    let bytes: Vec<u8> = (0..2_000_000_u32).map(|n| (n >> 3) as u8).collect();
    let mut writer = files.write("/f", None, false, false).await.unwrap();
    writer.send(&bytes).await.unwrap();
    assert_eq!(writer.finish().await.unwrap().size, bytes.len() as u64);
    assert!(*guest.toy.file.lock().unwrap() == bytes);

    let mut reader = files.read("/f", 0, None).await.unwrap();
    assert_eq!(reader.stat().size, bytes.len() as u64);
    let mut got = Vec::new();
    while let Some(chunk) = reader.next().await.unwrap() {
        got.extend(chunk);
    }
    assert!(got == bytes);
    assert_eq!(files.stat("/f", true).await.unwrap().size, bytes.len() as u64);
}

#[tokio::test]
async fn a_write_that_is_dropped_changes_nothing_and_a_full_disk_is_the_guests_error() {
    let (guest, client) = pair().await;
    *guest.toy.file.lock().unwrap() = b"old".to_vec();
    let files = client.files("root");
    let mut writer = files.write("/f", None, false, false).await.unwrap();
    writer.send(b"half").await.unwrap();
    drop(writer);
    let mut full = files.write("/full", None, false, false).await.unwrap();
    let failed = match full.send(&vec![0; 4_000_000]).await {
        Ok(()) => full.finish().await.map(drop),
        Err(error) => Err(error),
    };
    assert_eq!(guest_error(failed), GuestErrorKind::NoSpace);
    assert_eq!(*guest.toy.file.lock().unwrap(), b"old");
}

#[tokio::test]
async fn listing_watching_and_plain_refusals() {
    let (_guest, client) = pair().await;
    let files = client.files("root");
    let mut listing = files.list("/").await.unwrap();
    assert_eq!(listing.next().await.unwrap().unwrap().name, "a");
    assert_eq!(listing.next().await.unwrap(), None);
    assert_eq!(listing.next().await.unwrap(), None);
    let mut watch = files.watch("/w", true).await.unwrap();
    assert_eq!(watch.next().await.unwrap().path, "/w");
    assert_eq!(guest_error(files.remove("/x", false).await), GuestErrorKind::NotFound);
    assert_eq!(guest_error(client.info().await), GuestErrorKind::Unsupported);
}

#[tokio::test]
async fn tcp_carries_bytes_both_ways_with_an_end_for_each() {
    let (_guest, client) = pair().await;
    assert_eq!(guest_error(client.connect_tcp(8).await), GuestErrorKind::ConnectionRefused);
    let (mut read, mut write) = tokio::io::split(client.connect_tcp(7).await.unwrap());
    let sent = vec![9; 1_000_000];
    let talk = async {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let mut got = Vec::new();
    let (_, received) = tokio::join!(talk, read.read_to_end(&mut got));
    received.unwrap();
    assert!(got == sent);
}

#[tokio::test]
async fn connections_leave_room_for_everything_else() {
    let (_guest, client) = pair().await;
    let mut open = Vec::new();
    for nth in 0..TUNNELS {
        open.push(client.connect_tcp(7).await.unwrap_or_else(|error| panic!("connection {nth}: {error}")));
    }
    let one_more = client.connect_tcp(7).await.unwrap_err();
    assert!(matches!(one_more, ClientError::TooManyStreams { limit: TUNNELS }), "{one_more:?}");
    client.exec(start(1, &["cat"])).await.unwrap();
    for tunnel in &mut open {
        tunnel.write_all(b"x").await.unwrap();
        tunnel.flush().await.unwrap();
    }
    for tunnel in &mut open {
        assert_eq!(tunnel.read_u8().await.unwrap(), b'x');
    }
    open.pop();
    client.connect_tcp(7).await.unwrap();
}

#[tokio::test]
async fn shutdown_is_answered_before_it_happens() {
    let (guest, client) = pair().await;
    assert_eq!(guest_error(client.shutdown(ShutdownKind::Reboot).await), GuestErrorKind::Unsupported);
    client.shutdown(ShutdownKind::PowerOff).await.unwrap();
    let mut shutdown = guest.toy.shutdown.subscribe();
    assert_eq!(*shutdown.wait_for(Option::is_some).await.unwrap(), Some(ShutdownKind::PowerOff));
}

struct Echo;

#[async_trait]
impl HostService for Echo {
    async fn serve(&self, mut tunnel: Tunnel) {
        let mut word = [0; 4];
        tunnel.read_exact(&mut word).await.unwrap();
        tunnel.write_all(&word).await.unwrap();
        tunnel.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn a_guest_reaches_registered_services_and_no_others() {
    let (port, end) = Port::new(4096);
    let guest = Guest::start(end);
    assert!(matches!(guest.host.open("echo").await, Err(OpenServiceError::NoHost)));
    let mut with_echo = options();
    with_echo.services = HostServices::default().with("echo", Arc::new(Echo));
    let (_client, _) = Client::connect(port.open(), with_echo).await.unwrap();

    let mut tunnel = guest.host.open("echo").await.unwrap();
    tunnel.write_all(b"ping").await.unwrap();
    let mut got = Vec::new();
    tunnel.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"ping");

    match guest.host.open("secrets").await {
        Err(OpenServiceError::Refused { source, .. }) => {
            assert_eq!(source.kind, GuestErrorKind::Unsupported);
            assert_eq!(source.message, "open service \"secrets\": no such service on this host");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_process_that_floods_its_window_starves_no_other() {
    let (_guest, client) = pair().await;
    // One flood is read as fast as it comes, one not at all.
    let (_sender, mut flood) = client.exec(start(1, &["yes"])).await.unwrap().split();
    let (_unread_sender, _unread) = client.exec(start(2, &["yes"])).await.unwrap().split();
    let quiet = async {
        let (mut sender, mut events) = client.exec(start(3, &["cat"])).await.unwrap().split();
        for round in 0..50_u64 {
            sender.stdin(b"x").await.unwrap();
            let event = events.next().await.unwrap().unwrap();
            assert!(matches!(event, ExecEvent::Output { offset, .. } if offset == round), "{event:?}");
        }
    };
    let mut flooded = 0;
    let drain = async {
        loop {
            if let Some(ExecEvent::Output { data, .. }) = flood.next().await.unwrap() {
                flooded += data.len();
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), async {
        tokio::select! { () = quiet => {}, () = drain => {} }
    })
    .await
    .expect("fifty round trips beside a flood");
    assert!(flooded > 100_000, "the flood went on beside it: {flooded} bytes");
}

#[tokio::test]
async fn a_short_process_costs_the_guest_few_writes() {
    let (port, end) = Port::new(1 << 20);
    let _guest = Guest::start(end);
    let client = connect(port.open()).await;
    client.list_execs().await.unwrap();
    let before = port.writes_of_guest();
    let (_sender, mut events) = client.exec(start(1, &["true"])).await.unwrap().split();
    while events.next().await.unwrap().is_some() {}
    let writes = port.writes_of_guest() - before;
    assert!(writes <= 2, "{writes} writes to the port for one exec");
}
