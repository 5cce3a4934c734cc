//! What every verb gets: where things are, how to print, whether to hurry.

use crate::{
    daemon::{self, Autostart},
    failure::{Result, Stop},
    interrupt::Interrupt,
    paths::Paths,
    printer::Printer,
    trace::TraceEvent,
};
use offshoot_api::Client;
use offshoot_types::{ErrorCode, Failure, TransactionId};
use std::{future::Future, time::Duration};

#[derive(Debug, Clone)]
pub struct Context {
    pub printer: Printer,
    pub paths: Paths,
    /// `--timeout`, for the verb as a whole. `run` and `exec` give it to the guest instead.
    pub deadline: Option<Duration>,
    /// `--transaction`: what is asked of the daemon is asked from within it.
    pub transaction: Option<TransactionId>,
    /// `--no-wake`: what is asked of the daemon wakes no suspended VM.
    pub no_wake: bool,
    pub autostart: Autostart,
    pub interrupt: Interrupt,
    pub verbose: u8,
}

impl Context {
    /// The daemon of the state directory, started if need be.
    pub async fn client(&self) -> Result<Client> {
        Ok(self.speaking_for_us(daemon::connect(self).await?))
    }

    /// With what the options say of every request.
    pub fn speaking_for_us(&self, client: Client) -> Client {
        let client = if self.no_wake { client.without_waking() } else { client };
        match self.transaction {
            Some(transaction) => client.within(transaction),
            None => client,
        }
    }

    /// The daemon of the state directory if one runs.
    pub async fn running_client(&self) -> Result<Option<Client>> {
        daemon::find(&self.paths).await
    }

    /// For work that leaves nothing behind when it is dropped: ends at the deadline or at a signal.
    pub async fn abandonable<T>(&self, what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
        match self.interrupt.race(self.bounded(what, Box::pin(work))).await {
            Ok(done) => done,
            Err(_) => Err(Stop::Interrupted),
        }
    }

    /// `work` within the deadline.
    pub async fn bounded<T>(&self, what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
        let Some(limit) = self.deadline else { return work.await };
        tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
            Err(Failure::new(ErrorCode::Timeout, format!("{what} did not end within {limit:?}")).into())
        })
    }

    /// With `-v`, the daemon's own words about a VM, as they come.
    pub fn tell(&self, event: &TraceEvent<'_>) {
        event.emit();
    }
}
