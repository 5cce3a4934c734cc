//! Ctrl-C, SIGTERM and SIGHUP.
//!
//! ```text
//! first signal  -> the verb is told, takes back what it began, and ends with status 130
//! second signal -> the program ends at once; the daemon still removes what lived with the connection
//! ```
//! A signal that was ignored when the program started (`nohup`, a shell's background job) stays ignored.

use crate::{exit_code::ExitCode, terminal};
use std::{fs, future::Future, io};
use tokio::{
    signal::unix::{Signal as Stream, SignalKind, signal},
    sync::watch,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    Hangup,
    Interrupt,
    Terminate,
}

impl Signal {
    const ALL: [Self; 3] = [Self::Hangup, Self::Interrupt, Self::Terminate];

    pub const fn number(self) -> i32 {
        match self {
            Self::Hangup => 1,
            Self::Interrupt => 2,
            Self::Terminate => 15,
        }
    }
}

/// Knows whether somebody wants the program to end.
#[derive(Debug, Clone)]
pub struct Interrupt(watch::Sender<Option<Signal>>);

impl Interrupt {
    /// Takes over the signals of this process; once per process, inside its runtime.
    pub fn install() -> io::Result<Self> {
        let ignored = ignored_signals();
        let mut streams = Vec::new();
        for one in Signal::ALL.into_iter().filter(|one| ignored & (1 << (one.number() - 1)) == 0) {
            streams.push((one, signal(SignalKind::from_raw(one.number()))?));
        }
        let arrived = watch::Sender::new(None);
        watch_signals(streams, arrived.clone());
        Ok(Self(arrived))
    }

    /// One that nobody can set off, for tests.
    #[cfg(test)]
    pub fn never() -> Self {
        Self(watch::Sender::new(None))
    }

    /// The signal that arrived was not meant for the program but for what it does, and that has been told: the next one
    /// is the first again.
    pub fn answered(&self) {
        self.0.send_replace(None);
    }

    /// Returns at the first signal.
    pub async fn arrived(&self) -> Signal {
        let mut receiver = self.0.subscribe();
        match receiver.wait_for(Option::is_some).await {
            Ok(signal) => signal.expect("waited until it is some"),
            // The sender is ours.
            Err(_) => std::future::pending().await,
        }
    }

    /// `work`, unless a signal comes first; `work` is then dropped.
    pub async fn race<T>(&self, work: impl Future<Output = T>) -> Result<T, Signal> {
        tokio::select! {
            biased;
            signal = self.arrived() => Err(signal),
            done = work => Ok(done),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "listens as long as the process lives, and holds nothing else")]
fn watch_signals(streams: Vec<(Signal, Stream)>, sender: watch::Sender<Option<Signal>>) {
    tokio::spawn(async move {
        let mut arrivals = futures::stream::SelectAll::new();
        for (signal, stream) in streams {
            let each = futures::stream::unfold(stream, |mut stream| async {
                stream.recv().await.map(|()| ((), stream))
            });
            arrivals.push(Box::pin(futures::StreamExt::map(each, move |()| signal)));
        }
        while let Some(signal) = futures::StreamExt::next(&mut arrivals).await {
            if sender.borrow().is_some() {
                end_at_once();
            }
            sender.send_replace(Some(signal));
        }
    });
}

#[expect(
    clippy::disallowed_methods,
    reason = "asked twice to end: cleaning up is exactly what is not wanted"
)]
fn end_at_once() -> ! {
    terminal::restore();
    std::process::exit(ExitCode::Interrupted as i32)
}

/// Bit N-1 is set if signal N was ignored when this process was started.
fn ignored_signals() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    parse_ignored(&status).unwrap_or(0)
}

fn parse_ignored(status: &str) -> Option<u64> {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_of_ignored_signals_is_read_from_the_kernel() {
        assert_eq!(parse_ignored("Name:\tx\nSigIgn:\t0000000000001003\nSigCgt:\t1\n"), Some(0x1003));
        assert_eq!(parse_ignored("Name:\tx\n"), None);
        let own = fs::read_to_string("/proc/self/status").unwrap();
        assert!(parse_ignored(&own).is_some(), "this kernel's format is understood");
    }

    #[tokio::test]
    async fn work_wins_over_a_signal_that_never_comes() {
        assert_eq!(Interrupt::never().race(async { 5 }).await, Ok(5));
    }

    #[tokio::test]
    async fn a_signal_wins_over_work_that_never_ends() {
        let interrupt = Interrupt::never();
        interrupt.0.send_replace(Some(Signal::Terminate));
        let raced = interrupt.race(std::future::pending::<()>()).await;
        assert_eq!(raced, Err(Signal::Terminate));
        interrupt.answered();
        assert_eq!(interrupt.race(async { 5 }).await, Ok(5));
    }
}
