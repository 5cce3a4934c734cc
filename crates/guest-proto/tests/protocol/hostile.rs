//! A guest that lies, stalls or floods, speaking to the real client through the lower layers.

use crate::{
    port::{GuestEnd, Port},
    toy::{ended, hello, options, start},
};
use offshoot_guest_proto::{
    CloseReason,
    client::{Client, ClientError, ConnectError, ConnectOptions},
    codec::{self, MessageReader, MessageWriter},
    message::*,
    resync::{EpochEnd, Resync},
    session::{GUEST_STREAMS, Incoming, MuxStream, Session, Side},
};
use std::{future::Future, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf},
    task::JoinHandle,
    time::timeout,
};

pub type Reader = MessageReader<ReadHalf<MuxStream>>;
pub type Writer = MessageWriter<WriteHalf<MuxStream>>;

/// A guest that has shaken hands, and does the rest by hand.
pub struct Liar {
    session: Session,
    incoming: Incoming,
    control: (Reader, Writer),
}

impl Liar {
    async fn accept(end: GuestEnd) -> Self {
        let mut liar = Self::unshaken(end).await;
        let epoch = match liar.control.0.recv::<HostOpen>().await.unwrap() {
            Some(HostOpen::Control(hello)) => hello.epoch,
            other => panic!("{other:?}"),
        };
        liar.control.1.send(&FromGuest::Hello(GuestHello { epoch, ..hello() })).await.unwrap();
        liar
    }

    async fn unshaken(end: GuestEnd) -> Self {
        let stream = Resync::guest(end).accept().await.unwrap();
        let (session, mut incoming, driver) = Session::new(stream, Side::Guest);
        spawn(async move {
            driver.await;
        });
        let control = codec::messages(incoming.next().await.unwrap());
        Self { session, incoming, control }
    }

    /// The next stream of the host, after its first frame.
    pub async fn stream(&mut self) -> (HostOpen, Reader, Writer) {
        let (mut reader, writer) = codec::messages(self.incoming.next().await.unwrap());
        let open = reader.recv().await.unwrap().unwrap();
        (open, reader, writer)
    }
}

#[expect(clippy::disallowed_methods, reason = "ends with the runtime of the test")]
fn spawn<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    tokio::spawn(future)
}

fn short() -> ConnectOptions {
    let mut options = options();
    options.patience = Duration::from_secs(5);
    options
}

pub async fn pair() -> (Client, Liar) {
    let (port, end) = Port::new(64 * 1024);
    let liar = spawn(Liar::accept(end));
    let (client, _) = Client::connect(port.open(), short()).await.unwrap();
    (client, liar.await.unwrap())
}

pub fn problem<T: std::fmt::Debug>(result: Result<T, ClientError>) -> String {
    match result {
        Err(ClientError::Protocol { problem, .. }) => problem,
        other => panic!("expected a protocol error, got {other:?}"),
    }
}

#[tokio::test]
async fn a_hello_for_another_epoch_or_version_is_refused() {
    let (port, end) = Port::new(64 * 1024);
    let lie = spawn(async move {
        let mut liar = Liar::unshaken(end).await;
        liar.control.1.send(&FromGuest::Hello(hello())).await.unwrap();
        liar
    });
    let error = Client::connect(port.open(), short()).await.unwrap_err();
    assert!(matches!(error, ConnectError::Epoch), "{error:?}");
    drop(lie);

    let (port, end) = Port::new(64 * 1024);
    let lie = spawn(async move {
        let mut liar = Liar::unshaken(end).await;
        liar.control.1.send(&FromGuest::Hello(GuestHello { version: 9, ..hello() })).await.unwrap();
        liar
    });
    let error = Client::connect(port.open(), short()).await.unwrap_err();
    assert!(matches!(error, ConnectError::Version { guest: 9 }), "{error:?}");
    assert!(error.hint().unwrap().contains("offshoot image build"));
    drop(lie);

    // As one of another version refuses us.
    let (port, end) = Port::new(64 * 1024);
    let lie = spawn(async move {
        let mut liar = Liar::unshaken(end).await;
        let message =
            other_version(PROTOCOL_VERSION).replace(&format!("speaks {PROTOCOL_VERSION}"), "speaks 2");
        let refusal = GuestError { kind: GuestErrorKind::InvalidArgument, message };
        liar.control.1.send(&FromGuest::Refused(refusal)).await.unwrap();
        liar
    });
    let error = Client::connect(port.open(), short()).await.unwrap_err();
    assert!(matches!(error, ConnectError::Version { guest: 2 }), "{error:?}");
    drop(lie);
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_echoes_and_then_says_nothing_meets_the_deadline() {
    let (port, end) = Port::new(64 * 1024);
    let silent = spawn(Liar::unshaken(end));
    let error = Client::connect(port.open(), short()).await.unwrap_err();
    assert!(matches!(error, ConnectError::Deadline { .. }), "{error:?}");
    drop(silent);
}

#[tokio::test]
async fn output_with_a_gap_is_a_lie() {
    let (client, mut liar) = pair().await;
    let lie = async {
        let (_, _reader, mut writer) = liar.stream().await;
        writer.send(&ExecEvent::Started { pid: 1 }).await.unwrap();
        let data = b"x".to_vec();
        writer.send(&ExecEvent::Output { stream: OutputStream::Stdout, offset: 3, data }).await.unwrap();
        (_reader, writer)
    };
    let ask = async {
        let (_sender, mut events) = client.exec(start(1, &["x"])).await.unwrap().split();
        problem(events.next().await)
    };
    let (_streams, problem) = tokio::join!(lie, ask);
    assert_eq!(problem, "Stdout at offset 3 where 0 was due");
}

#[tokio::test]
async fn an_event_before_the_start_or_after_the_end_is_a_lie() {
    let (client, mut liar) = pair().await;
    let lie = async {
        let (_, _first_reader, mut first) = liar.stream().await;
        first.send(&ExecEvent::Ended(ended())).await.unwrap();
        let (_, _second_reader, mut second) = liar.stream().await;
        for event in [ExecEvent::Started { pid: 1 }, ExecEvent::Ended(ended()), ExecEvent::Ended(ended())] {
            second.send(&event).await.unwrap();
        }
        liar.session.flush().await.unwrap();
        (_second_reader, second)
    };
    let ask = async {
        let early = problem(client.exec(start(1, &["x"])).await);
        let (_sender, mut events) = client.exec(start(2, &["x"])).await.unwrap().split();
        assert!(matches!(events.next().await, Ok(Some(ExecEvent::Ended(_)))));
        // The second end follows in the same chunk or a moment later.
        loop {
            match events.next().await {
                Ok(None) => tokio::task::yield_now().await,
                other => break (early, problem(other)),
            }
        }
    };
    let (_streams, (early, late)) =
        timeout(Duration::from_secs(20), async { tokio::join!(lie, ask) }).await.unwrap();
    assert_eq!(
        (early.as_str(), late.as_str()),
        ("an event before the process was started", "an event after the last one")
    );
}

#[tokio::test]
async fn names_that_would_leave_a_directory_and_files_that_do_not_end_are_lies() {
    let (client, mut liar) = pair().await;
    let stat = FileStat {
        kind: FileKind::File,
        size: 1,
        mode: 0o644,
        uid: 0,
        gid: 0,
        modified_ns: 0,
        symlink_target: None,
    };
    let lie = async {
        let mut kept = Vec::new();
        for name in ["../../etc/passwd", "..", "", "a\0b"] {
            let (_, reader, mut writer) = liar.stream().await;
            writer.send(&Reply::Ok(())).await.unwrap();
            let entry = ListItem::Entry { name: name.into(), lossy: false, stat: stat.clone() };
            writer.send(&entry).await.unwrap();
            kept.push((reader, writer));
        }
        let (_, reader, mut writer) = liar.stream().await;
        writer.send(&Reply::Ok(stat.clone())).await.unwrap();
        writer.send(&FileChunk::Data(vec![0; 11])).await.unwrap();
        kept.push((reader, writer));
        kept
    };
    let ask = async {
        let files = client.files("root");
        for _ in 0..4 {
            let problem = problem(files.list("/").await.unwrap().next().await);
            assert!(problem.ends_with("as a file name"), "{problem}");
        }
        let mut reader = files.read("/f", 0, Some(10)).await.unwrap();
        assert_eq!(problem(reader.next().await), "more bytes than were asked for");
    };
    tokio::join!(lie, ask);
}

#[tokio::test]
async fn what_is_no_message_and_what_ends_early_are_protocol_errors() {
    let (client, mut liar) = pair().await;
    let lie = async {
        let stream = liar.incoming.next().await.unwrap();
        let (_read, mut write) = tokio::io::split(stream);
        write.write_all(&[0, 0, 0, 2, 0xC1, 0xC1]).await.unwrap();
        write.flush().await.unwrap();
        let large = liar.incoming.next().await.unwrap();
        let (_read2, mut write2) = tokio::io::split(large);
        write2.write_all(&u32::MAX.to_be_bytes()).await.unwrap();
        write2.flush().await.unwrap();
        drop(liar.incoming.next().await.unwrap());
        (_read, write, _read2, write2)
    };
    let ask = async {
        assert!(problem(client.info().await).contains("cannot be decoded"));
        assert_eq!(problem(client.info().await), "a message of 4294967295 bytes");
        assert_eq!(problem(client.info().await), "it dropped the stream before the answer was complete");
    };
    tokio::join!(lie, ask);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_never_comes_is_a_timeout() {
    let (client, mut liar) = pair().await;
    let (streams, answer) = tokio::join!(liar.stream(), client.info());
    assert!(matches!(answer, Err(ClientError::Timeout { operation: "info", .. })), "{answer:?}");
    drop(streams);
}

#[tokio::test]
async fn a_heartbeat_nobody_asked_for_ends_the_session() {
    let (client, mut liar) = pair().await;
    liar.control.1.send(&FromGuest::Heartbeat { sequence: 77, clock_offset_ns: 0 }).await.unwrap();
    let reason = timeout(Duration::from_secs(20), client.closed()).await.unwrap();
    assert!(matches!(reason, CloseReason::Protocol { .. }), "{reason:?}");
}

#[tokio::test]
async fn a_guest_that_opens_streams_without_end_occupies_only_its_share() {
    let (client, mut liar) = pair().await;
    // The session refuses to open more than the cap; the guest's own cap is lifted by opening and keeping none.
    let mut kept = Vec::new();
    for _ in 0..GUEST_STREAMS {
        let mut stream = liar.session.open().await.unwrap();
        stream.write_all(b"\0").await.unwrap();
        kept.push(stream);
    }
    assert!(liar.session.open().await.is_err(), "an honest guest stops here");
    // Host operations go on beside it.
    let answer = async {
        let (_, reader, mut writer) = liar.stream().await;
        let none: Vec<ExecSummary> = Vec::new();
        writer.send(&Reply::Ok(none)).await.unwrap();
        (reader, writer)
    };
    let (_streams, execs) = tokio::join!(answer, client.list_execs());
    assert_eq!(execs.unwrap(), []);
}

/// Frames of the multiplexer written by hand: version, type, flags, stream, length.
fn mux_frame(kind: u8, flags: u16, stream: u32, length: u32, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![0, kind];
    frame.extend(flags.to_be_bytes());
    frame.extend(stream.to_be_bytes());
    frame.extend(length.to_be_bytes());
    frame.extend(body);
    frame
}

/// A guest below the multiplexer: it echoes, then writes what it likes, for as long as it is read.
async fn raw_guest(end: GuestEnd, frames: fn(u32) -> Vec<u8>) {
    let (mut read, mut write) = tokio::io::split(Resync::guest(end).accept().await.unwrap());
    let drain = async {
        let mut sink = vec![0; 64 * 1024];
        while read.read(&mut sink).await.is_ok() {}
    };
    let flood = async {
        for count in 0.. {
            if write.write_all(&frames(count)).await.is_err() || write.flush().await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::join!(drain, flood);
}

async fn connect_to(frames: fn(u32) -> Vec<u8>) -> ConnectError {
    let (port, end) = Port::new(64 * 1024);
    let _guest = spawn(async move { raw_guest(end, frames).await });
    timeout(Duration::from_secs(20), Client::connect(port.open(), short()))
        .await
        .expect("cut off")
        .unwrap_err()
}

fn reason(error: ConnectError) -> CloseReason {
    match error {
        ConnectError::Handshake(ClientError::Closed { reason }) => reason,
        other => panic!("expected a closed session, got {other:?}"),
    }
}

#[tokio::test]
async fn a_flood_of_new_streams_is_cut_off() {
    let error = connect_to(|count| mux_frame(0, 1, 2 + 2 * count, 1, b"x")).await;
    assert!(matches!(reason(error), CloseReason::Protocol { .. }));
}

#[tokio::test]
async fn a_stream_that_overruns_its_window_is_cut_off() {
    let open = |count| match count {
        0 => mux_frame(0, 1, 2, 1, b"x"),
        _ => mux_frame(0, 0, 2, 16_384, &[0; 16_384]),
    };
    assert!(matches!(reason(connect_to(open).await), CloseReason::Mux { .. }));
}

#[tokio::test]
async fn a_flood_of_tiny_frames_is_cut_off_at_the_window() {
    let open = |count| match count {
        0 => mux_frame(0, 1, 2, 1, b"x"),
        _ => mux_frame(0, 0, 2, 1, b"x").repeat(2000),
    };
    assert!(matches!(reason(connect_to(open).await), CloseReason::Mux { .. }));
}

#[tokio::test]
async fn frames_of_no_known_kind_and_frames_too_large_are_cut_off() {
    let unknown = connect_to(|_| mux_frame(9, 0, 2, 0, b"")).await;
    assert!(matches!(reason(unknown), CloseReason::Mux { .. }));
    let large = connect_to(|_| mux_frame(0, 1, 2, u32::MAX, b"")).await;
    assert!(matches!(reason(large), CloseReason::Mux { .. }));
}

#[tokio::test]
async fn bytes_that_form_no_chunk_are_cut_off() {
    let (port, mut end) = Port::new(64 * 1024);
    let _guest = spawn(async move {
        let mut sync = [0; 40];
        end.read_exact(&mut sync).await.unwrap();
        // The echo differs from the sync in its kind and CRC: let the real link write it.
        let (far, near) = tokio::io::duplex(4096);
        let (mut far_read, mut far_write) = tokio::io::split(far);
        far_write.write_all(&sync).await.unwrap();
        let mut stream = Resync::guest(near).accept().await.unwrap();
        let mut echo = [0; 40];
        tokio::select! {
            read = far_read.read_exact(&mut echo) => { read.unwrap(); }
            read = stream.read_u8() => panic!("{read:?}"),
        }
        end.write_all(&echo).await.unwrap();
        while end.write_all(&[0xF5; 8192]).await.is_ok() {}
    });
    let error =
        timeout(Duration::from_secs(20), Client::connect(port.open(), short())).await.unwrap().unwrap_err();
    assert!(matches!(reason(error), CloseReason::Epoch(EpochEnd::Garbage { .. })));
}

#[tokio::test]
async fn a_survey_that_lies_is_cut_off() {
    let entry = || {
        let stamp = Stamp { inode: 1, modified_ns: 2, changed_ns: 3 };
        let kind = DiskKind::File;
        Some(DiskEntry { kind, mode: 0o644, uid: 0, gid: 0, size: 1, stamp, target: None, device: None })
    };
    let at = |path: &str| ChangedPath { path: path.into(), now: entry(), image: None };
    let lies = [
        (vec![vec![at("/b"), at("/a")]], "not in order"),
        (vec![vec![at("/a")], vec![at("/a")]], "not in order"),
        (vec![vec![at("/a"), at("/../b")]], "that is none"),
        (vec![vec![]], "0 items"),
        (vec![(0..=MAX_PAGE).map(|number| at(&format!("/{number:05}"))).collect()], "513 items"),
        (vec![vec![ChangedPath { now: None, ..at("/a") }]], "neither is nor was"),
    ];
    for (pages, expected) in lies {
        let (client, mut liar) = pair().await;
        let lie = spawn(async move {
            let (_, reader, mut writer) = liar.stream().await;
            writer.send(&Reply::Ok(())).await.unwrap();
            for page in pages {
                writer.send(&Paged::<ChangedPath>::Working).await.unwrap();
                writer.send(&Paged::Page(page)).await.unwrap();
            }
            (liar, reader, writer)
        });
        let mut pages = client.changes().await.unwrap();
        let error = loop {
            match pages.next().await {
                Ok(Some(_)) => {}
                other => break problem(other),
            }
        };
        assert!(error.contains(expected), "{error}");
        drop(lie);
    }
    // One answer too few, and one too many.
    for count in [1, 3] {
        let (client, mut liar) = pair().await;
        let lie = spawn(async move {
            let (open, reader, mut writer) = liar.stream().await;
            assert!(matches!(open, HostOpen::Survey(SurveyRequest::Contents { paths }) if paths.len() == 2));
            writer.send(&Reply::Ok(())).await.unwrap();
            writer.send(&Paged::Page(vec![Contents::Gone; count])).await.unwrap();
            writer.send(&Paged::<Contents>::End { left_out: 0 }).await.unwrap();
            (liar, reader, writer)
        });
        let error = problem(client.contents(vec![b"/a".to_vec(), b"/b".to_vec()]).await);
        assert!(error.contains(&format!("{count} answers for 2 files")), "{error}");
        drop(lie);
    }
}

#[tokio::test(start_paused = true)]
async fn a_survey_may_take_long_and_not_be_silent_for_long() {
    let (client, mut liar) = pair().await;
    let slow = spawn(async move {
        let (_, reader, mut writer) = liar.stream().await;
        writer.send(&Reply::Ok(())).await.unwrap();
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_secs(3)).await;
            writer.send(&Paged::<ProcessInfo>::Working).await.unwrap();
        }
        writer.send(&Paged::<ProcessInfo>::End { left_out: 7 }).await.unwrap();
        let (_, silent, mut said) = liar.stream().await;
        said.send(&Reply::Ok(())).await.unwrap();
        (liar, reader, writer, silent, said)
    });
    let mut pages = client.processes().await.unwrap();
    assert_eq!((pages.next().await.unwrap(), pages.left_out()), (None, 7));
    let mut pages = client.processes().await.unwrap();
    let silence = pages.next().await;
    assert!(matches!(silence, Err(ClientError::Timeout { .. })), "{silence:?}");
    drop(slow);
}
