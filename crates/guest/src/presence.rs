//! Whether the host still speaks. A session whose host has fallen silent has not ended: only a new host ends it.
//! Meanwhile processes must not wait for a reader that will never read.

use offshoot_guest_proto::message::HEARTBEAT_SECONDS;
use std::{
    sync::Arc,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};
use tokio::{sync::watch, time::MissedTickBehavior};

/// Heartbeats missed before the host counts as silent.
const MISSED: u32 = 4;

#[derive(Debug)]
pub struct HostPresence {
    missed: AtomicU32,
    silent: watch::Sender<bool>,
}

impl HostPresence {
    /// Counts heartbeat periods, not time: after a pause of the whole VM hours may have passed in one of them.
    pub fn start() -> Arc<Self> {
        let presence = Arc::new(Self { missed: AtomicU32::new(0), silent: watch::Sender::new(false) });
        let counting = Arc::clone(&presence);
        crate::task::forever("host presence", async move {
            let mut periods = tokio::time::interval(Duration::from_secs(HEARTBEAT_SECONDS));
            periods.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                periods.tick().await;
                let missed = counting.missed.fetch_add(1, Ordering::Relaxed);
                counting.set_silent(missed >= MISSED);
            }
        });
        presence
    }

    pub fn heard(&self) {
        self.missed.store(0, Ordering::Relaxed);
        self.set_silent(false);
    }

    pub fn is_silent(&self) -> bool {
        *self.silent.borrow()
    }

    /// Changes when the host falls silent or is heard again.
    pub fn changes(&self) -> watch::Receiver<bool> {
        self.silent.subscribe()
    }

    fn set_silent(&self, silent: bool) {
        self.silent.send_if_modified(|was| std::mem::replace(was, silent) != silent);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_host_that_misses_heartbeats_is_silent_until_it_is_heard() {
        let presence = HostPresence::start();
        let mut changes = presence.changes();
        assert!(!presence.is_silent());
        changes.changed().await.unwrap();
        assert!(presence.is_silent());
        presence.heard();
        assert!(!presence.is_silent());
    }
}
