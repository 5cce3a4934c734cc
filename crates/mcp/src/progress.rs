//! What is told while a call is under way, to clients that asked for it.

use rmcp::{
    RoleServer,
    model::{ProgressNotificationParam, ProgressToken},
    service::{Peer, RequestContext},
};
use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::time::{MissedTickBehavior, interval};

/// How often output is told at most.
const OUTPUT_EVERY: Duration = Duration::from_millis(250);
/// How often long work says that it goes on.
const TICK: Duration = Duration::from_secs(2);
/// Longest line of output that is told.
const LINE: usize = 200;

#[derive(Debug)]
pub struct Progress {
    peer: Peer<RoleServer>,
    token: Option<ProgressToken>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Grows with every message, as the protocol wants it.
    told: f64,
    output_told: Option<Instant>,
}

impl Progress {
    pub fn of(context: &RequestContext<RoleServer>) -> Self {
        Self { peer: context.peer.clone(), token: context.meta.get_progress_token(), state: Mutex::default() }
    }

    pub async fn say(&self, message: impl Into<String> + Send) {
        let Some(token) = self.token.clone() else { return };
        let told = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.told += 1.0;
            state.told
        };
        let progress = ProgressNotificationParam::new(token, told).with_message(message);
        // A client that has gone misses nothing it would read.
        let _gone = self.peer.notify_progress(progress).await;
    }

    /// Tells the last line of what a program printed, from time to time.
    pub async fn output(&self, data: &[u8]) {
        if self.token.is_none() || !self.output_is_due() {
            return;
        }
        let text = String::from_utf8_lossy(data);
        if let Some(line) = text.lines().rev().find(|line| !line.trim().is_empty()) {
            self.say(line.chars().take(LINE).collect::<String>()).await;
        }
    }

    fn output_is_due(&self) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let due = state.output_told.is_none_or(|told| told.elapsed() >= OUTPUT_EVERY);
        if due {
            state.output_told = Some(Instant::now());
        }
        due
    }

    /// `work`, told of when it begins and while it takes long.
    pub async fn during<T>(&self, what: &str, work: impl Future<Output = T>) -> T {
        if self.token.is_none() {
            return work.await;
        }
        self.say(what).await;
        let begun = Instant::now();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.reset();
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = work.as_mut() => return done,
                _ = ticks.tick() => self.say(format!("{what}: {} s", begun.elapsed().as_secs())).await,
            }
        }
    }
}
