//! The bodies of the fuzz targets in `/fuzz`, which the tests here run on bounded random input as well.
//!
//! Each takes whatever bytes a hostile peer could send and checks what must hold for all of them.

use crate::{
    codec::{self, CodecError},
    message::{
        ChangedPath, CodeFrame, CodeInput, Contents, ContextInfo, DiskUse, Entry, EntryEvent, EntryItem,
        ExecEvent, ExecInput, ExecSummary, FileChunk, FileStat, FromGuest, Frozen, GuestInfo, GuestOpen,
        HostOpen, ListItem, Paged, ProcessInfo, Reply, Thawed, ToGuest, Usage, WatchEvent,
    },
    resync::{Decoded, Epoch, MAX_CHUNK, Resync, decode},
};
use serde::{Serialize, de::DeserializeOwned};
use std::{fmt::Debug, time::Duration};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

/// The chunk decoder: always makes progress, never looks past what it was given.
pub fn chunks(bytes: &[u8]) {
    let mut at = 0;
    loop {
        match decode(&bytes[at..]) {
            Decoded::Skip(count) => {
                assert!(
                    count > 0 && at + count <= bytes.len(),
                    "skips at least one byte, and only bytes given"
                );
                at += count;
            }
            Decoded::Chunk(chunk) => {
                assert!(chunk.size() <= MAX_CHUNK && at + chunk.size() <= bytes.len());
                at += chunk.size();
            }
            Decoded::Incomplete => {
                assert!(bytes.len() - at < MAX_CHUNK, "an incomplete chunk fits the input buffer");
                return;
            }
        }
    }
}

/// Both roles of the link, from the first byte on and in the middle of an epoch.
pub async fn resync(bytes: &[u8]) {
    chunks(bytes);
    let epoch = Epoch([3; 16]);
    for prefix in [&[][..], &crate::resync::sync_chunk(epoch)] {
        let (mut far, near) = duplex(bytes.len() + MAX_CHUNK);
        far.write_all(&[prefix, bytes].concat()).await.expect("the duplex has room");
        far.shutdown().await.expect("a duplex shuts down");
        let guest = Resync::guest(near);
        // Each epoch there is costs at least one control chunk: this ends.
        while let Ok(mut stream) = guest.accept().await {
            let mut sink = Vec::new();
            stream.read_to_end(&mut sink).await.expect_err("an epoch ends by an error");
            assert!(sink.len() <= bytes.len());
        }
    }
    for prefix in [&[][..], &crate::resync::echo_chunk(epoch)] {
        let (mut far, near) = duplex(bytes.len() + MAX_CHUNK);
        far.write_all(&[prefix, bytes].concat()).await.expect("the duplex has room");
        far.shutdown().await.expect("a duplex shuts down");
        if let Ok(mut stream) = Resync::host(near).connect(epoch, Duration::from_secs(1)).await {
            let mut sink = Vec::new();
            stream.read_to_end(&mut sink).await.expect_err("an epoch ends by an error");
            assert!(sink.len() <= bytes.len());
        }
    }
}

/// What a guest may say to the host.
pub fn from_guest(body: &[u8]) {
    message::<FromGuest>(body);
    message::<GuestOpen>(body);
    message::<ExecEvent>(body);
    message::<FileChunk>(body);
    message::<ListItem>(body);
    message::<WatchEvent>(body);
    message::<Reply<Entry>>(body);
    message::<EntryItem>(body);
    message::<EntryEvent>(body);
    message::<Reply<Usage>>(body);
    message::<Reply<DiskUse>>(body);
    message::<Reply<()>>(body);
    message::<Reply<FileStat>>(body);
    message::<Reply<GuestInfo>>(body);
    message::<Reply<Vec<ExecSummary>>>(body);
    message::<CodeFrame>(body);
    message::<Reply<Frozen>>(body);
    message::<Reply<Thawed>>(body);
    message::<Reply<Vec<ContextInfo>>>(body);
    message::<Paged<ChangedPath>>(body);
    message::<Paged<Contents>>(body);
    message::<Paged<ProcessInfo>>(body);
}

/// What the host may say to a guest.
pub fn from_host(body: &[u8]) {
    message::<HostOpen>(body);
    message::<ToGuest>(body);
    message::<ExecInput>(body);
    message::<CodeInput>(body);
    message::<FileChunk>(body);
    message::<Reply<()>>(body);
}

/// What decodes, encodes again to something that decodes to the same.
fn message<T: DeserializeOwned + Serialize + Debug>(body: &[u8]) {
    let Ok(value) = codec::decode::<T>(body) else { return };
    let mut wire = Vec::new();
    match codec::encode(&value, &mut wire) {
        Ok(()) => {}
        // Lists of short words grow: a name takes more room than a position.
        Err(CodecError::TooLarge { .. }) => return,
        Err(error) => panic!("{value:?} was decoded but cannot be encoded: {error}"),
    }
    let again = codec::decode::<T>(&wire[4..]).expect("what was encoded is decoded");
    assert_eq!(format!("{value:?}"), format!("{again:?}"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::*;
    use proptest::prelude::*;

    /// One message of each kind, to be damaged: random bytes alone hardly ever get past the first field.
    fn seeds() -> Vec<Vec<u8>> {
        fn body<T: Serialize>(message: T) -> Vec<u8> {
            let mut wire = Vec::new();
            codec::encode(&message, &mut wire).unwrap();
            wire.split_off(4)
        }
        let stat = FileStat {
            kind: FileKind::Symlink,
            size: 1,
            mode: 0o777,
            uid: 0,
            gid: 0,
            modified_ns: -1,
            symlink_target: Some("t".into()),
        };
        let start = ExecStart {
            exec: [1; 16],
            command: ExecCommand::Argv(vec!["a".into()]),
            env: [("K".to_owned(), "V".to_owned())].into(),
            cwd: Some("/".into()),
            user: "user".into(),
            pty: Some(PtySize { rows: 1, cols: 2 }),
            stdin: true,
            timeout_ms: Some(1),
            max_output: None,
            limits: ResourceLimits::default(),
        };
        let operation =
            FileOperation::Write { path: "/p".into(), mode: Some(1), make_parents: true, exclusive: false };
        let end =
            ExecEnd { status: ExitKind::Signal(9), truncated: true, wall_us: 1, user_us: 2, system_us: 3 };
        let output = ExecEvent::Output { stream: OutputStream::Stderr, offset: 1, data: vec![1, 2] };
        let thaw = Thaw {
            instance: [1; 16],
            time: HostTime(3),
            entropy: Entropy([7; 64]),
            identity: Some(NewIdentity { hostname: "h".into(), machine_id: [2; 16] }),
        };
        let thawed = Thawed {
            kernel_random: Reseeded::HostProvided,
            clock_offset_ns: -1,
            hostname: "h".into(),
            machine_id: "02".repeat(16),
            ssh_host_keys: vec!["SHA256:x".into()],
            connections_dropped: 1,
            interpreters: vec![InterpreterThawed {
                context: "c".into(),
                language: Language::Bash,
                random: Reseeded::No { reason: "r".into() },
            }],
            processes_not_reseeded: 2,
            hooks: vec![HookRun { name: "n".into(), status: -1 }],
        };
        let run = RunCode {
            context: "c".into(),
            language: Some(Language::Javascript),
            code: "1".into(),
            timeout_ms: Some(1),
            user: "user".into(),
            cwd: None,
            context_env: [("K".to_owned(), "v".to_owned())].into(),
            env: [("L".to_owned(), "w".to_owned())].into(),
            existing: true,
        };
        let event = |event: CodeEvent| body(CodeFrame::Event(event));
        let context = ContextInfo {
            context: "c".into(),
            language: Language::Python,
            pid: Some(1),
            busy: true,
            user: "user".into(),
            cwd: "/".into(),
            created_ms: 1,
        };
        let entry = DiskEntry {
            kind: DiskKind::Symlink,
            mode: 0o777,
            uid: 1,
            gid: 2,
            size: 0,
            stamp: Stamp { inode: 3, modified_ns: -1, changed_ns: 4 },
            target: Some(serde_bytes::ByteBuf::from(*b"t")),
            device: Some(5),
        };
        let changed = ChangedPath { path: b"/\xff".to_vec(), now: Some(entry), image: None };
        let process = ProcessInfo { pid: 7, parent: 1, user: "user".into(), command: b"sleep 1".to_vec() };
        let paths = vec![serde_bytes::ByteBuf::from(*b"/a")];
        let listing = EntryOperation::List { path: "~".into(), depth: 1 };
        let entry = Entry {
            path: "/n".into(),
            stat: stat.clone(),
            target: Some(FileKind::File),
            owner: "user".into(),
            group: "7".into(),
            attributes: [("k".into(), "v".into())].into(),
        };
        vec![
            body(HostOpen::Survey(SurveyRequest::Changes)),
            body(HostOpen::Survey(SurveyRequest::Contents { paths })),
            body(Paged::Page(vec![changed])),
            body(Paged::Page(vec![Contents::Hash([9; 32]), Contents::Gone])),
            body(Paged::Page(vec![process])),
            body(Paged::<Contents>::End { left_out: 1 }),
            body(HostOpen::Flush),
            body(HostOpen::Freeze { deadline_ms: 20 }),
            body(HostOpen::Thaw(thaw)),
            body(Reply::Ok(Frozen { processes: 1, took_us: 2 })),
            body(Reply::Ok(thawed)),
            body(HostOpen::RunCode(run)),
            body(HostOpen::RestartContext { context: "c".into() }),
            body(CodeInput::Interrupt),
            event(CodeEvent::Started { language: Language::Python, pid: 1, created: true, count: 1 }),
            event(CodeEvent::Output { stream: OutputStream::Stdout, data: vec![1] }),
            body(CodeFrame::Part { mime: "image/png".into(), text: "A".into() }),
            event(CodeEvent::Display {
                mime: [(TEXT_PLAIN.to_owned(), "1".to_owned())].into(),
                id: Some("i".into()),
                update: true,
            }),
            event(CodeEvent::Value { mime: [(TEXT_PLAIN.to_owned(), "1".to_owned())].into() }),
            event(CodeEvent::Error { name: "N".into(), message: "m".into(), traceback: "t".into() }),
            event(CodeEvent::Ended { interrupted: true, wall_us: 1 }),
            body(Reply::Ok(vec![context])),
            body(HostOpen::Exec(start)),
            body(HostOpen::File(FileRequest { user: "root".into(), operation })),
            body(HostOpen::Tcp { port: 80 }),
            body(HostOpen::ListExecs),
            body(ExecInput::Stdin(vec![0; 9])),
            body(ToGuest::Heartbeat { sequence: 1, time: HostTime(2) }),
            body(FromGuest::Heartbeat { sequence: 1, clock_offset_ns: -5 }),
            body(output),
            body(ExecEvent::Ended(end)),
            body(ListItem::Entry { name: "n".into(), lossy: true, stat: stat.clone() }),
            body(HostOpen::Entry(EntryRequest { user: "user".into(), operation: listing })),
            body(EntryItem::Entry(Box::new(entry.clone()))),
            body(EntryEvent {
                change: EntryChange::Renamed,
                path: "/n".into(),
                entry: Some(Box::new(entry.clone())),
            }),
            body(Reply::Ok(entry)),
            body(HostOpen::Usage),
            body(HostOpen::Disk(DiskRequest::Keep)),
            body(HostOpen::Disk(DiskRequest::PutBack)),
            body(Reply::Ok(DiskUse { bytes: 7 })),
            body(Reply::Ok(stat)),
            body(Reply::<()>::Err(GuestError { kind: GuestErrorKind::NoSpace, message: "m".into() })),
            body(WatchEvent { change: WatchChange::Overflow, path: "/".into() }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn no_bytes_upset_the_decoders(body in prop::collection::vec(any::<u8>(), 0..300)) {
            from_guest(&body);
            from_host(&body);
            chunks(&body);
        }

        #[test]
        fn no_damaged_message_upsets_the_decoders(
            seed: prop::sample::Index, damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        ) {
            let seeds = seeds();
            let mut body = seeds[seed.index(seeds.len())].clone();
            for (at, byte) in damage {
                let at = at.index(body.len());
                body[at] = byte;
            }
            from_guest(&body);
            from_host(&body);
        }
    }

    #[test]
    fn deep_nesting_does_not_exhaust_the_stack() {
        for opener in [0x91_u8, 0x81] {
            from_guest(&vec![opener; MAX_MESSAGE]);
            from_host(&vec![opener; MAX_MESSAGE]);
        }
    }

    #[test]
    fn a_declared_length_is_not_believed() {
        // An array of 2^32-1 elements, a string of 2^32-1 bytes, bytes of 2^32-1.
        for marker in [0xDD_u8, 0xDB, 0xC6, 0xDF] {
            from_guest(&[&[0x81, 0xA2, b'O', b'k', marker][..], &[0xFF; 4]].concat());
            from_host(&[&[0x81, 0xA5, b'S', b't', b'd', b'i', b'n', marker][..], &[0xFF; 4]].concat());
        }
    }
}
