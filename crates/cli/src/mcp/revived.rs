//! Connections of a session that may outlive its daemon.
//!
//! An autostarted daemon ends when nothing was asked of it for long enough, and any is replaced by a newer one. A session
//! of an agent is idle for as long as its model thinks, so each connection looks for the daemon again.

use crate::{context::Context, daemon, failure::Stop};
use futures::{FutureExt, future::BoxFuture};
use offshoot_api::{
    ClientError,
    client::{Dial, Wire, connect},
};
use offshoot_types::{ErrorCode, Failure};
use std::{
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

#[derive(Debug)]
pub struct Revived {
    context: Context,
    /// Where the daemon was when it was looked for last.
    socket: Mutex<PathBuf>,
}

impl Revived {
    /// Finds the daemon, or starts it.
    pub async fn find(context: &Context) -> Result<Self, Stop> {
        let found = daemon::connect(context).await?;
        let socket = found.socket().map(PathBuf::from).unwrap_or_default();
        Ok(Self { context: context.clone(), socket: Mutex::new(socket) })
    }

    async fn again(&self) -> Result<Box<dyn Wire>, ClientError> {
        let progress = self.context.printer.progress("reaching the daemon");
        let found = daemon::find_or_start(&self.context, &progress).await.map_err(|stop| {
            let failure = match stop {
                Stop::Failed(report) | Stop::Program(report, _) => report.failure,
                Stop::Interrupted | Stop::BrokenPipe => Failure::new(ErrorCode::Interrupted, "interrupted"),
            };
            ClientError::Unreachable(Box::new(failure))
        })?;
        let socket = found.socket().map(PathBuf::from).unwrap_or_default();
        *self.socket.lock().unwrap_or_else(PoisonError::into_inner) = socket.clone();
        connect(&socket).await
    }
}

impl Dial for Revived {
    fn dial(&self) -> BoxFuture<'_, Result<Box<dyn Wire>, ClientError>> {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner).clone();
        async move {
            match connect(&socket).await {
                Err(ClientError::NotRunning { .. }) => self.again().await,
                other => other,
            }
        }
        .boxed()
    }
}
