//! The link against wires written by hand: garbage, halves, repetitions, losses.

use super::{
    EpochEnd, EpochStream, Resync,
    chunk::{self, Epoch, HEADER, MAX_CHUNK, MAX_PAYLOAD},
};
use proptest::prelude::*;
use std::{future::Future, io, time::Duration};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

const EPOCH: Epoch = Epoch([0xF5; 16]);
const OLD: Epoch = Epoch([9; 16]);

fn data(epoch: Epoch, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let mut chunk = vec![0; HEADER];
    chunk.extend_from_slice(payload);
    chunk::seal_data(&mut chunk, epoch, sequence);
    chunk
}

fn end_of(error: &io::Error) -> EpochEnd {
    let source = error.get_ref().expect("an epoch's errors carry their reason");
    source.downcast_ref::<EpochEnd>().expect("the reason is an EpochEnd").clone()
}

/// Lets a guest read `wire` to its end; what it made of the epoch, and how it ended.
async fn guest_reads(wire: &[u8]) -> (Vec<u8>, EpochEnd) {
    let (mut far, near) = duplex(wire.len() + 4096);
    far.write_all(wire).await.unwrap();
    far.shutdown().await.unwrap();
    let guest = Resync::guest(near);
    let mut got = Vec::new();
    match guest.accept().await {
        Err(end) => (got, end),
        Ok(mut stream) => {
            let error = stream.read_to_end(&mut got).await.unwrap_err();
            (got, end_of(&error))
        }
    }
}

/// What may lie between two chunks without harm.
fn noise() -> impl Strategy<Value = Noise> {
    prop_oneof![
        prop::collection::vec(prop_oneof![Just(0xF5), Just(b'O'), any::<u8>()], 0..300)
            .prop_map(Noise::Garbage),
        (0..2000_usize, any::<prop::sample::Index>()).prop_map(|(size, cut)| Noise::Half { size, cut }),
        any::<prop::sample::Index>().prop_map(Noise::Repeat),
        (any::<u32>(), 0..100_usize).prop_map(|(sequence, size)| Noise::OldEpoch { sequence, size }),
        Just(Noise::Sync),
    ]
}

#[derive(Debug, Clone)]
enum Noise {
    Garbage(Vec<u8>),
    Half { size: usize, cut: prop::sample::Index },
    Repeat(prop::sample::Index),
    OldEpoch { sequence: u32, size: usize },
    Sync,
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn noise_between_chunks_changes_nothing(
        payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..500), 1..8),
        noises in prop::collection::vec(noise(), 0..20),
    ) {
        let chunks: Vec<Vec<u8>> =
            (0..).zip(&payloads).map(|(sequence, payload)| data(EPOCH, sequence, payload)).collect();
        let mut wire = chunk::sync(EPOCH).to_vec();
        let mut noises = noises.into_iter();
        for (count, chunk) in chunks.iter().enumerate() {
            for noise in noises.by_ref().take(3) {
                match noise {
                    Noise::Garbage(bytes) => wire.extend(bytes),
                    Noise::Half { size, cut } => {
                        // The next chunk's own sequence number: only its CRC tells it is not it.
                        let half = data(EPOCH, count as u32, &vec![1; size]);
                        wire.extend(&half[..cut.index(half.len())]);
                    }
                    Noise::Repeat(which) if count > 0 => wire.extend(&chunks[which.index(count)]),
                    Noise::Repeat(_) => {}
                    Noise::OldEpoch { sequence, size } => wire.extend(data(OLD, sequence, &vec![2; size])),
                    Noise::Sync => wire.extend(chunk::sync(EPOCH)),
                }
            }
            wire.extend(chunk);
        }
        // Completes a half chunk, as the next sync's padding would.
        wire.extend([0; MAX_CHUNK]);
        let (got, end) = block_on(guest_reads(&wire));
        prop_assert_eq!(end, EpochEnd::PipeClosed);
        prop_assert_eq!(got, payloads.concat());
    }

    #[test]
    fn damage_only_ever_shortens_what_is_read(
        payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 1..8),
        damage in prop::collection::vec((any::<prop::sample::Index>(), 0..600_usize, any::<u8>()), 1..5),
    ) {
        let mut wire: Vec<u8> = (0..)
            .zip(&payloads)
            .flat_map(|(sequence, payload)| data(EPOCH, sequence, payload))
            .collect();
        for (at, length, flip) in damage {
            if wire.is_empty() { break }
            let at = at.index(wire.len());
            if flip == 0 {
                wire.drain(at..(at + length).min(wire.len()));
            } else {
                wire[at] ^= flip;
            }
        }
        let wire = [&chunk::sync(EPOCH)[..], &wire, &[0; MAX_CHUNK]].concat();
        let (got, _) = block_on(guest_reads(&wire));
        prop_assert!(payloads.concat().starts_with(&got));
    }

    #[test]
    fn no_bytes_whatever_upset_either_side(bytes in prop::collection::vec(any::<u8>(), 0..5000)) {
        block_on(crate::fuzz::resync(&bytes));
    }
}

#[tokio::test]
async fn a_missing_chunk_ends_the_epoch_and_the_next_one_begins() {
    let wire = [
        &chunk::sync(OLD)[..],
        &data(OLD, 0, b"one"),
        &data(OLD, 2, b"three"),
        &data(OLD, 3, b"four"),
        &chunk::sync(OLD),
        &chunk::sync(EPOCH),
        &data(EPOCH, 0, b"fresh"),
    ]
    .concat();
    let (mut far, near) = duplex(4096);
    far.write_all(&wire).await.unwrap();
    let guest = Resync::guest(near);
    let mut old = guest.accept().await.unwrap();
    let mut got = Vec::new();
    let error = old.read_to_end(&mut got).await.unwrap_err();
    assert_eq!(end_of(&error), EpochEnd::Gap { expected: 1, got: 2 });
    assert_eq!(got, b"one");

    // The repeated sync of the epoch that ended is not taken for a new one.
    let mut fresh = guest.accept().await.unwrap();
    assert_eq!(fresh.epoch(), EPOCH);
    let mut got = [0; 5];
    fresh.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"fresh");
}

#[tokio::test]
async fn a_new_epoch_ends_the_session_and_none_of_its_bytes_are_lost() {
    let wire = [
        &chunk::sync(OLD)[..],
        &data(OLD, 0, b"old"),
        &chunk::sync(EPOCH),
        &data(OLD, 1, b"late"),
        &data(EPOCH, 0, b"new"),
    ]
    .concat();
    let (mut far, near) = duplex(4096);
    far.write_all(&wire).await.unwrap();
    let guest = Resync::guest(near);
    let mut old = guest.accept().await.unwrap();
    let error = old.read_to_end(&mut Vec::new()).await.unwrap_err();
    assert_eq!(end_of(&error), EpochEnd::NewEpoch);
    let mut new = guest.accept().await.unwrap();
    let mut got = [0; 3];
    new.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"new");
    // The old stream stays ended: it neither reads nor writes into the new epoch.
    assert_eq!(end_of(&old.write_all(b"x").await.unwrap_err()), EpochEnd::NewEpoch);
    assert_eq!(end_of(&old.read_u8().await.unwrap_err()), EpochEnd::NewEpoch);
}

#[tokio::test]
async fn content_that_looks_like_a_sync_does_not_begin_an_epoch() {
    let hostile = [&chunk::sync(OLD)[..], &[0; MAX_CHUNK - 200]].concat();
    let whole = data(EPOCH, 0, &hostile);
    let (mut far, near) = duplex(2 * MAX_CHUNK);
    let guest = Resync::guest(near);
    far.write_all(&chunk::sync(EPOCH)).await.unwrap();
    let mut stream = guest.accept().await.unwrap();
    // The chunk stays incomplete for a while, its content in plain sight.
    let (first, rest) = whole.split_at(HEADER + 100);
    far.write_all(first).await.unwrap();
    let mut got = vec![0; hostile.len()];
    tokio::select! {
        biased;
        read = stream.read_exact(&mut got) => panic!("read from half a chunk: {read:?}"),
        () = tokio::task::yield_now() => {}
    }
    far.write_all(rest).await.unwrap();
    stream.read_exact(&mut got).await.unwrap();
    assert!(got == hostile);
}

#[tokio::test]
async fn a_guest_stuck_inside_a_chunk_follows_once_the_padding_came() {
    for cut in [1, 3, HEADER - 1, HEADER, HEADER + 1, MAX_CHUNK - 1] {
        let (mut far, near) = duplex(4 * MAX_CHUNK);
        let half = data(OLD, 0, &[7; MAX_PAYLOAD]);
        far.write_all(&chunk::sync(OLD)).await.unwrap();
        far.write_all(&half[..cut]).await.unwrap();
        let guest = Resync::guest(near);
        let host = Resync::host(far);
        let talk = async {
            let mut old = guest.accept().await.unwrap();
            let end = end_of(&old.read_u8().await.unwrap_err());
            let mut new = guest.accept().await.unwrap();
            new.write_all(b"here").await.unwrap();
            new.flush().await.unwrap();
            end
        };
        let connect = async {
            let mut stream = host.connect(EPOCH, Duration::from_secs(10)).await.unwrap();
            let mut got = [0; 4];
            stream.read_exact(&mut got).await.unwrap();
            got
        };
        let (end, got) = tokio::join!(talk, connect);
        assert_eq!((end, &got), (EpochEnd::NewEpoch, b"here"), "cut at {cut}");
    }
}

#[tokio::test]
async fn the_host_finds_its_echo_behind_anything_the_old_session_left() {
    let (mut far, near) = duplex(8 * MAX_CHUNK);
    let half = data(OLD, 5, &[7; MAX_PAYLOAD]);
    let left = [&half[..], &chunk::echo(OLD), &half[..30_000], &[0xF5; 50]].concat();
    far.write_all(&left).await.unwrap();
    far.write_all(&chunk::echo(EPOCH)).await.unwrap();
    far.write_all(&[&chunk::echo(EPOCH)[..], &half, &data(EPOCH, 0, b"hello")].concat()).await.unwrap();
    let host = Resync::host(near);
    let mut stream = host.connect(EPOCH, Duration::from_secs(10)).await.unwrap();
    let mut got = [0; 5];
    stream.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"hello");
}

#[tokio::test(start_paused = true)]
async fn a_host_without_an_answer_repeats_with_back_off_and_then_says_so() {
    let (near, mut far) = duplex(1 << 24);
    let host = Resync::host(near);
    let error = host.connect(EPOCH, Duration::from_secs(10)).await.unwrap_err();
    assert_eq!(error.to_string(), "the guest agent did not answer on its channel within 10s");
    drop(host);
    let mut wire = Vec::new();
    far.read_to_end(&mut wire).await.unwrap();
    let syncs = wire.len() / (MAX_CHUNK + chunk::CONTROL_CHUNK) + 1;
    assert!((20..60).contains(&syncs), "{syncs} attempts in 10 s");
}

#[tokio::test(start_paused = true)]
async fn a_pipe_that_takes_nothing_is_not_filled_up_with_syncs() {
    let (near, mut far) = duplex(64);
    let host = Resync::host(near);
    host.connect(EPOCH, Duration::from_secs(60)).await.unwrap_err();
    drop(host);
    let mut wire = Vec::new();
    far.read_to_end(&mut wire).await.unwrap();
    assert_eq!(wire.len(), 64);
}

#[tokio::test]
async fn a_guest_that_answers_garbage_in_a_session_is_cut_off() {
    let (mut far, near) = duplex(1 << 20);
    far.write_all(&chunk::echo(EPOCH)).await.unwrap();
    far.write_all(&vec![0xF5; 1 << 19]).await.unwrap();
    let mut stream = Resync::host(near).connect(EPOCH, Duration::from_secs(10)).await.unwrap();
    let error = stream.read_u8().await.unwrap_err();
    assert!(matches!(end_of(&error), EpochEnd::Garbage { .. }));
}

async fn pair() -> (EpochStream, EpochStream) {
    let (near, far) = duplex(MAX_CHUNK);
    let (host, guest) = (Resync::host(near), Resync::guest(far));
    let (host, guest) = tokio::join!(host.connect(EPOCH, Duration::from_secs(10)), async {
        let mut stream = guest.accept().await.unwrap();
        // Reading pushes the echo out.
        let _nothing_yet = tokio::time::timeout(Duration::from_millis(1), stream.read_u8()).await;
        stream
    });
    (host.unwrap(), guest)
}

#[tokio::test]
async fn small_writes_leave_as_one_chunk() {
    let (mut host, mut guest) = pair().await;
    for word in ["so ", "few ", "writes"] {
        host.write_all(word.as_bytes()).await.unwrap();
    }
    host.flush().await.unwrap();
    // One chunk is handed out by one read.
    let mut got = [0; 100];
    let count = guest.read(&mut got).await.unwrap();
    assert_eq!(&got[..count], b"so few writes");
}

#[tokio::test]
async fn megabytes_pass_both_ways_unchanged() {
    let (host, guest) = pair().await;
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n ^ (n >> 8)) as u8).collect();
    let pump = |stream: EpochStream| {
        let bytes = &bytes;
        async move {
            let (mut read, mut write) = tokio::io::split(stream);
            let mut got = vec![0; bytes.len()];
            let send = async {
                write.write_all(bytes).await.unwrap();
                write.flush().await.unwrap();
            };
            let (_, received) = tokio::join!(send, read.read_exact(&mut got));
            received.unwrap();
            got
        }
    };
    let (at_host, at_guest) = tokio::join!(pump(host), pump(guest));
    assert!(at_host == bytes && at_guest == bytes);
}
