//! Heartbeats by the clock of the test.

use crate::{
    port::Port,
    toy::{Guest, connect},
};
use offshoot_guest_proto::{CloseReason, client::Health};
use std::{sync::atomic::Ordering, time::Duration};
use tokio::time::{Instant, advance, timeout};

async fn wait_for(health: &mut tokio::sync::watch::Receiver<Health>, wanted: fn(&Health) -> bool) -> Health {
    timeout(Duration::from_secs(60), health.wait_for(wanted)).await.expect("in time").unwrap().clone()
}

fn alive(health: &Health) -> bool {
    matches!(health, Health::Alive { .. })
}
fn silent(health: &Health) -> bool {
    matches!(health, Health::Silent { .. })
}
fn closed(health: &Health) -> bool {
    matches!(health, Health::Closed { .. })
}

#[tokio::test(start_paused = true)]
async fn one_heartbeat_every_three_seconds_keeps_the_guest_alive() {
    let (port, end) = Port::new(40_000);
    let guest = Guest::start(end);
    let client = connect(port.open()).await;
    let begun = Instant::now();
    let health = client.health();
    tokio::time::sleep(Duration::from_secs(31)).await;
    assert_eq!(guest.toy.clock.load(Ordering::Relaxed), 10);
    let last = match &*health.borrow() {
        Health::Alive { last } => *last,
        other => panic!("{other:?}"),
    };
    assert_eq!(last.duration_since(begun).as_secs(), 30);
}

#[tokio::test(start_paused = true)]
async fn three_missed_heartbeats_are_silence_and_an_answer_ends_it() {
    let (port, end) = Port::new(40_000);
    let _guest = Guest::start(end);
    let client = connect(port.open()).await;
    let begun = Instant::now();
    let mut health = client.health();
    port.pause(true);
    let silence = wait_for(&mut health, silent).await;
    // Sent at 3 s, missed at 6, 9 and 12 s.
    assert_eq!(begun.elapsed().as_secs(), 12);
    assert!(matches!(silence, Health::Silent { since } if since == begun));
    // However long it lasts, one heartbeat waits for the guest, not a queue of them.
    advance(Duration::from_secs(3600)).await;
    let waiting = port.waiting_for_guest();
    assert!(waiting < 200, "{waiting} bytes");
    port.pause(false);
    wait_for(&mut health, alive).await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_port_closes_for_good() {
    let (port, end) = Port::new(40_000);
    let _guest = Guest::start(end);
    let client = connect(port.open()).await;
    let mut health = client.health();
    let _other = port.open();
    let end = wait_for(&mut health, closed).await;
    assert!(matches!(end, Health::Closed { reason: CloseReason::Epoch(_) }), "{end:?}");
    assert!(client.close_reason().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_closed_client_is_closed_in_its_health() {
    let (port, end) = Port::new(40_000);
    let _guest = Guest::start(end);
    let client = connect(port.open()).await;
    let mut health = client.health();
    client.close().await;
    assert_eq!(wait_for(&mut health, closed).await, Health::Closed { reason: CloseReason::Closed });
}
