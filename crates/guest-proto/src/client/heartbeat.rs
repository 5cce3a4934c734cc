//! Heartbeats on the control stream: the guest's clock follows the host's, and its silence is noticed.
//!
//! At most one heartbeat is on its way. A paused VM would otherwise find a queue of them when it resumes, and set
//! its clock by the oldest; a late answer is followed by a fresh heartbeat at once.

use super::call::{Call, Context, Reader, Writer, next, send};
use crate::{
    message::{FromGuest, HEARTBEAT_SECONDS, HostTime, ToGuest},
    session::{CloseReason, Session},
};
use std::time::Duration;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval_at},
};
use tokio_util::sync::CancellationToken;

const INTERVAL: Duration = Duration::from_secs(HEARTBEAT_SECONDS);
/// Heartbeats due and unanswered before the guest counts as silent.
const MISSED: u32 = 3;

const FAREWELL: Duration = Duration::from_millis(250);

/// How the guest is doing, by its heartbeats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    Alive {
        last: Instant,
    },
    /// Paused, overloaded or hung: the session stands, answers may still come.
    Silent {
        /// When it was last heard.
        since: Instant,
    },
    /// Final.
    Closed {
        reason: CloseReason,
    },
}

#[derive(Debug)]
pub(super) struct Heartbeat {
    context: Context,
    reader: Reader,
    writer: Writer,
    session: Session,
    health: watch::Sender<Health>,
    leave: CancellationToken,
    heard: Instant,
    sequence: u64,
    /// The sequence number the guest has yet to answer, and the intervals it has taken so far.
    waiting: Option<(u64, u32)>,
}

impl Heartbeat {
    pub(super) fn new(
        control: Call,
        session: Session,
        health: watch::Sender<Health>,
        leave: CancellationToken,
    ) -> Self {
        let Call { mut context, reader, writer } = control;
        context.operation = "heartbeat";
        // The stream has credit for thousands of heartbeats; only a driver that is gone could block one.
        context.patience = INTERVAL;
        let heard = Instant::now();
        Self { context, reader, writer, session, health, leave, heard, sequence: 0, waiting: None }
    }

    pub(super) async fn run(mut self) {
        let reason = self.beat().await;
        let Self { reader, writer, session, health, .. } = self;
        if reason == CloseReason::Closed {
            // The guest closes its side when the control stream ends; one that takes no bytes is not waited for.
            drop((reader, writer));
            let _told = tokio::time::timeout(FAREWELL, session.flush()).await;
        }
        session.close(reason);
        let reason = session.closed().await;
        health.send_replace(Health::Closed { reason });
    }

    async fn beat(&mut self) -> CloseReason {
        let mut ticks = interval_at(Instant::now() + INTERVAL, INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                reason = self.session.closed() => return reason,
                () = self.leave.cancelled() => return CloseReason::Closed,
                // Answers before ticks: an answer that came in time is not counted as missed.
                answer = next::<FromGuest>(&self.context, &mut self.reader) => {
                    let judged = match answer {
                        Ok(answer) => self.on_answer(answer).await,
                        Err(error) => Err(lost(error)),
                    };
                    if let Err(reason) = judged { return reason }
                }
                _ = ticks.tick() => if let Err(reason) = self.on_tick().await { return reason },
            }
        }
    }

    async fn on_tick(&mut self) -> Result<(), CloseReason> {
        match &mut self.waiting {
            None => self.send().await,
            Some((_, intervals)) => {
                *intervals += 1;
                if *intervals == MISSED {
                    self.health.send_replace(Health::Silent { since: self.heard });
                }
                Ok(())
            }
        }
    }

    async fn send(&mut self) -> Result<(), CloseReason> {
        self.sequence += 1;
        self.waiting = Some((self.sequence, 0));
        let beat = ToGuest::Heartbeat { sequence: self.sequence, time: HostTime::now() };
        send(&self.context, &mut self.writer, &beat).await.map_err(lost)
    }

    async fn on_answer(&mut self, answer: FromGuest) -> Result<(), CloseReason> {
        match (answer, self.waiting.take()) {
            (FromGuest::Heartbeat { sequence, .. }, Some((due, intervals))) if sequence == due => {
                self.heard = Instant::now();
                self.health.send_replace(Health::Alive { last: self.heard });
                if intervals > 0 { self.send().await } else { Ok(()) }
            }
            (answer, due) => {
                let due = due.map(|(sequence, _)| sequence);
                let problem = format!("{answer:?} on the control stream where heartbeat {due:?} was due");
                Err(CloseReason::Protocol { problem: problem.chars().take(256).collect() })
            }
        }
    }
}

fn lost(error: super::ClientError) -> CloseReason {
    match error {
        super::ClientError::Closed { reason } => reason,
        super::ClientError::Protocol { problem, .. } => CloseReason::Protocol { problem },
        error => CloseReason::Protocol { problem: super::chain(&error) },
    }
}
