//! The host's end of the port is lost and opened again: in the middle of a frame, of a transfer, of anything.

use crate::{
    port::Port,
    toy::{Guest, connect, options, start},
};
use offshoot_guest_proto::{
    CloseReason,
    client::{Client, ClientError, ConnectError},
    message::*,
    resync::EpochEnd,
};
use std::time::Duration;
use tokio::time::timeout;

async fn ends(guest: &Guest, count: usize) -> Vec<CloseReason> {
    let mut ends = guest.toy.ends.subscribe();
    let seen = timeout(Duration::from_secs(20), ends.wait_for(|ends| ends.len() >= count)).await;
    seen.expect("the guest's session ends").unwrap().clone()
}

#[tokio::test]
async fn a_new_epoch_in_the_middle_of_3_mb_each_way_begins_clean() {
    let (port, end) = Port::new(40_000);
    let guest = Guest::start(end);
    *guest.toy.file.lock().unwrap() = vec![1; 3_000_000];
    let bytes = vec![2; 3_000_000];
    for round in 0..10_u64 {
        let client = connect(port.open()).await;
        let begun = port.passed_to_host();
        let files = client.files("root");
        let read = async {
            let mut reader = files.read("/f", 0, None).await?;
            while reader.next().await?.is_some() {}
            Ok::<(), ClientError>(())
        };
        let write = async {
            let mut writer = files.write("/g", None, false, false).await?;
            writer.send(&bytes).await?;
            writer.send(&bytes).await
        };
        // Cut at a different place each time, wherever that falls in a chunk.
        let cut = async {
            while port.passed_to_host() - begun < 300_000 + round * 77_777 {
                tokio::task::yield_now().await;
            }
            port.open()
        };
        let (read, write, end) = timeout(Duration::from_secs(20), async { tokio::join!(read, write, cut) })
            .await
            .expect("both transfers end once the port was lost");
        for lost in [read, write] {
            let reason = match lost {
                Err(ClientError::Closed { reason: CloseReason::Epoch(end) }) => end,
                other => panic!("expected a closed session, got {other:?}"),
            };
            assert!(matches!(reason, EpochEnd::Pipe { .. }), "{reason:?}");
        }
        let fresh = connect(end).await;
        let (mut sender, mut events) = fresh.exec(start(1, &["cat"])).await.unwrap().split();
        sender.stdin(b"fresh").await.unwrap();
        let output = ExecEvent::Output { stream: OutputStream::Stdout, offset: 0, data: b"fresh".to_vec() };
        assert_eq!(events.next().await.unwrap(), Some(output));
        // The old transfer was abandoned, not completed by the new session.
        assert_eq!(guest.toy.file.lock().unwrap().len(), 3_000_000);
        assert!(guest.toy.file.lock().unwrap().iter().all(|&byte| byte == 1));
    }
    let ends = ends(&guest, 19).await;
    let fine =
        |end: &CloseReason| matches!(end, CloseReason::Epoch(EpochEnd::NewEpoch | EpochEnd::Gap { .. }));
    assert!(ends.iter().all(fine), "{ends:?}");
}

#[tokio::test]
async fn the_guest_may_come_long_after_the_host() {
    let (port, end) = Port::new(40_000);
    let connecting = Client::connect(port.open(), options());
    let booting = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        Guest::start(end)
    };
    let (connected, _guest) = tokio::join!(connecting, booting);
    connected.unwrap().0.list_execs().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_never_answers_is_named_by_the_deadline() {
    let (port, _end) = Port::new(40_000);
    let error = Client::connect(port.open(), options()).await.unwrap_err();
    assert!(matches!(error, ConnectError::Sync(_)), "{error:?}");
}

#[tokio::test]
async fn closing_tells_the_guest_and_ends_what_is_under_way() {
    let (port, end) = Port::new(40_000);
    let guest = Guest::start(end);
    let client = connect(port.open()).await;
    let (_sender, mut events) = client.exec(start(1, &["cat"])).await.unwrap().split();
    let ((), event) = tokio::join!(client.close(), events.next());
    assert!(matches!(event, Err(ClientError::Closed { reason: CloseReason::Closed })), "{event:?}");
    assert_eq!(ends(&guest, 1).await, [CloseReason::PeerClosed]);
    let after = client.list_execs().await;
    assert!(matches!(after, Err(ClientError::Closed { reason: CloseReason::Closed })), "{after:?}");
}
