//! One call of a tool: who asks, what it may use, and how it is told to stop.

use crate::{progress::Progress, session::Session};
use offshoot_api::{Client, ClientError};
use offshoot_types::{ErrorCode, Failure, VmRef};
use rmcp::{RoleServer, service::RequestContext};
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::time::Instant;

#[derive(Debug)]
pub struct Call {
    pub session: Session,
    pub progress: Progress,
    context: RequestContext<RoleServer>,
    /// It is about the session's own VM.
    own: AtomicBool,
}

impl Call {
    pub fn new(session: Session, context: RequestContext<RoleServer>) -> Self {
        Self { session, progress: Progress::of(&context), context, own: AtomicBool::new(false) }
    }

    pub fn client(&self) -> &Client {
        self.session.client()
    }

    /// Returns when the client no longer wants the answer.
    pub async fn cancelled(&self) {
        self.context.ct.cancelled().await;
    }

    pub fn is_cancelled(&self) -> bool {
        self.context.ct.is_cancelled()
    }

    /// The VM that a call is about: the one it names, else the session's.
    pub async fn vm(&self, named: Option<&str>) -> Result<VmRef, Failure> {
        if let Some(named) = named {
            return parse("vm", named);
        }
        self.own.store(true, Ordering::Relaxed);
        if self.session.has_to_start() {
            let making = self.progress.during("starting the VM of this session", self.session.vm());
            return tokio::select! {
                biased;
                made = making => made,
                () = self.cancelled() => Err(cancelled("the VM of this session was not waited for; the next call does")),
            };
        }
        self.session.vm().await
    }

    /// Whether it is about the session's own VM.
    pub fn is_of_own(&self) -> bool {
        self.own.load(Ordering::Relaxed)
    }

    /// `work`, unless the client no longer wants it. What the daemon has begun by then it may complete.
    pub async fn unless_cancelled<T>(
        &self,
        what: &str,
        work: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, Failure> {
        tokio::select! {
            biased;
            done = self.progress.during(what, work) => done.map_err(ClientError::into_failure),
            () = self.cancelled() => Err(cancelled(format!("{what}: no longer waited for; if it had begun, it may be completed all the same"))),
        }
    }
}

/// The failure of a call that was cancelled. Its client reads it as a log message: there is no answer to such a call.
pub fn cancelled(what: impl Into<String>) -> Failure {
    Failure::new(ErrorCode::Interrupted, what)
}

/// How long what was told to stop may take to; it was not told yet without a deadline.
pub async fn grace_over(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// An argument in its own type.
pub fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(field: &str, text: &str) -> Result<T, Failure> {
    text.parse().map_err(|error| Failure::new(ErrorCode::InvalidArgument, format!("`{field}`: {error}")))
}
