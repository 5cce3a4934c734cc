//! The host's side: one [`Client`] per session with a guest.
//!
//! ```text
//! connect: resync (new epoch) -> session -> control stream: HostHello / Hello -> heartbeats every 3 s
//!
//! health:  Alive --3 heartbeats unanswered--> Silent --answer--> Alive
//!            '------------- session over -------'----------> Closed(reason)    (final)
//! ```
//! Every operation has a stream of its own. Dropping a handle ends the operation's stream: a file transfer is
//! aborted, a process is *not* killed; it runs on and can be attached to. Dropping the last clone of the client
//! ends the session. What the guest sends is checked against what was asked before the caller sees it; a guest
//! that breaks the protocol gets [`ClientError::Protocol`], and never more memory than the windows.

mod call;
mod code;
mod connect;
mod disk;
mod entries;
mod error;
mod exec;
mod files;
mod heartbeat;
mod host_services;
mod state;
mod survey;

pub use code::CodeHandle;
pub use connect::ConnectOptions;
pub use disk::{DiskOffer, DiskReader, DiskWriter};
pub use entries::{Entries, EntryListing, EntryReader, EntryWatch, EntryWriter};
pub use error::{ClientError, ConnectError};
pub use exec::{ExecEvents, ExecHandle, ExecSender};
pub use files::{FileReader, FileWriter, Files, ListEntry, Listing, Watch};
pub use heartbeat::Health;
pub use host_services::{HostService, HostServices};
pub use survey::Pages;

use crate::{
    message::{
        ChangedPath, Contents, ContextInfo, ExecAttach, ExecStart, ExecSummary, Frozen, GuestHello,
        GuestInfo, HostOpen, HostTime, Language, ProcessInfo, RunCode, ShutdownKind, Thaw, Thawed, Usage,
    },
    resync::Pipe,
    session::{CloseReason, Session},
    task::OwnedTask,
    tunnel::Tunnel,
};
use call::{Call, Context};
use std::{sync::Arc, time::Duration};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

/// TCP connections into one guest at once: what else is asked of it finds a stream all the same.
pub const TUNNELS: usize = 204;
/// More processes than a listing can plausibly hold.
const MAX_EXECS: usize = 65_536;

/// A session with the agent of one VM. Clones share it.
#[derive(Debug, Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    session: Session,
    tunnels: Arc<Semaphore>,
    health: watch::Receiver<Health>,
    patience: Duration,
    /// Makes the heartbeats take leave and close the session.
    leave: CancellationToken,
    _heartbeat: OwnedTask,
    _services: OwnedTask,
    _driver: OwnedTask,
}

impl Client {
    /// Begins a new epoch on `pipe` and shakes hands, all within `options.deadline`.
    pub async fn connect(
        pipe: impl Pipe + 'static,
        options: ConnectOptions,
    ) -> Result<(Self, GuestHello), ConnectError> {
        connect::connect(Box::new(pipe), options).await
    }

    /// Starts a process; returns once it runs. Dropping the handle does not end it.
    pub async fn exec(&self, start: ExecStart) -> Result<ExecHandle, ClientError> {
        exec::start(self.context("exec"), start).await
    }

    /// Takes up the streams of a process that runs or has lately ended.
    pub async fn attach(&self, attach: ExecAttach) -> Result<ExecHandle, ClientError> {
        exec::attach(self.context("attach"), attach).await
    }

    pub async fn list_execs(&self) -> Result<Vec<ExecSummary>, ClientError> {
        let execs: Vec<ExecSummary> = self.ask("list-execs", &HostOpen::ListExecs).await?;
        if execs.len() > MAX_EXECS {
            return Err(ClientError::protocol("list-execs", format!("{} processes", execs.len())));
        }
        Ok(execs)
    }

    pub async fn info(&self) -> Result<GuestInfo, ClientError> {
        self.ask("info", &HostOpen::Info).await
    }

    /// Returns once the guest has agreed; it powers off right after.
    pub async fn shutdown(&self, kind: ShutdownKind) -> Result<(), ClientError> {
        self.ask("shutdown", &HostOpen::Shutdown(kind)).await
    }

    /// File operations, done in the guest as `user`.
    pub fn files(&self, user: impl Into<String>) -> Files {
        Files::new(self.context("file"), user.into())
    }

    /// The same for a user at a shell, who names files relative to a home.
    pub fn entries(&self, user: impl Into<String>) -> Entries {
        Entries::new(self.context("entry"), user.into())
    }

    pub async fn usage(&self) -> Result<Usage, ClientError> {
        self.ask("measure", &HostOpen::Usage).await
    }

    /// A TCP connection to a port inside the guest; at most [`TUNNELS`] at once.
    pub async fn connect_tcp(&self, port: u16) -> Result<Tunnel, ClientError> {
        let place = self.inner.tunnels.clone().try_acquire_owned();
        let place = place.map_err(|_full| ClientError::TooManyStreams { limit: TUNNELS })?;
        let mut call = Call::open(self.context("connect"), &HostOpen::Tcp { port }).await?;
        call.reply::<()>().await?;
        Ok(call.into_tunnel().at(place))
    }

    /// Has the guest's disk hold what its programs have written so far. `limit`: as long as that may take.
    pub async fn flush(&self, limit: Duration) -> Result<(), ClientError> {
        state::lasting(self.context("flush"), &HostOpen::Flush, limit).await
    }

    /// Makes all user processes stand still within `deadline`. On a timeout or a lost session they may stand still
    /// all the same, until [`Client::unfreeze`].
    pub async fn freeze(&self, deadline: Duration) -> Result<Frozen, ClientError> {
        state::freeze(self.context("freeze"), deadline).await
    }

    /// Of a guest whose disk is its memory, with its processes standing still: asks for what it has written.
    pub async fn keep_disk(&self) -> Result<DiskOffer, ClientError> {
        disk::keep(self.context("keep-disk")).await
    }

    /// Hands a guest in which nothing has run what an earlier one had written.
    pub async fn put_disk_back(&self) -> Result<DiskWriter, ClientError> {
        disk::put_back(self.context("put-disk-back")).await
    }

    /// Lets user processes run again; also fine where nothing was frozen.
    pub async fn unfreeze(&self) -> Result<(), ClientError> {
        self.ask("unfreeze", &HostOpen::Unfreeze).await
    }

    /// Lets user processes of a restored state run again that goes on nowhere else: with the right time, and nothing
    /// renewed.
    pub async fn go_on(&self) -> Result<(), ClientError> {
        match self.ask("go-on", &HostOpen::GoOn { time: HostTime::now() }).await {
            // The agent of an older image ends the stream at a word it does not know: its clock is set by heartbeats.
            Err(ClientError::Closed { .. } | ClientError::Protocol { .. })
                if self.close_reason().is_none() =>
            {
                self.unfreeze().await
            }
            answered => answered,
        }
    }

    /// Makes a restored state a machine of its own and lets its processes run. After the guest's own error they
    /// stand still; after any other error they may run already: ask again for the same instance.
    pub async fn thaw(&self, thaw: Thaw) -> Result<Thawed, ClientError> {
        state::thaw(self.context("thaw"), thaw).await
    }

    /// Hands code to a live interpreter. The first event says that its turn has come, or why it never will. Dropping
    /// the handle interrupts the code.
    pub async fn run_code(&self, run: RunCode) -> Result<CodeHandle, ClientError> {
        code::run(self.context("run-code"), run).await
    }

    pub async fn contexts(&self) -> Result<Vec<ContextInfo>, ClientError> {
        code::list(self.context("list-contexts")).await
    }

    /// Ends an interpreter and all it has started.
    pub async fn remove_context(&self, context: impl Into<String>) -> Result<(), ClientError> {
        self.ask("remove-context", &HostOpen::RemoveContext { context: context.into() }).await
    }

    /// The same, with a new interpreter in its place.
    pub async fn restart_context(&self, context: impl Into<String>) -> Result<(), ClientError> {
        self.ask("restart-context", &HostOpen::RestartContext { context: context.into() }).await
    }

    /// Has an interpreter ready for the user's first context of that language. `limit`: as long as that may take.
    pub async fn prepare_interpreter(
        &self,
        language: Language,
        user: impl Into<String>,
        limit: Duration,
    ) -> Result<(), ClientError> {
        let open = HostOpen::PrepareInterpreter { language, user: user.into() };
        state::lasting(self.context("prepare-interpreter"), &open, limit).await
    }

    /// Every path of the VM's disk that is not as in its image.
    pub async fn changes(&self) -> Result<Pages<ChangedPath>, ClientError> {
        survey::changes(self.context("list changes")).await
    }

    /// What files hold, one answer for each path. At most [`MAX_PAGE`](crate::message::MAX_PAGE), and together no
    /// longer than a message.
    pub async fn contents(&self, paths: Vec<Vec<u8>>) -> Result<Vec<Contents>, ClientError> {
        survey::contents(self.context("hash files"), paths).await
    }

    /// Processes, without the kernel's own and the agent.
    pub async fn processes(&self) -> Result<Pages<ProcessInfo>, ClientError> {
        survey::processes(self.context("list processes")).await
    }

    pub fn health(&self) -> watch::Receiver<Health> {
        self.inner.health.clone()
    }

    /// Why the session ended, once it has.
    pub async fn closed(&self) -> CloseReason {
        self.inner.session.closed().await
    }

    /// `Some` once the session has ended.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.inner.session.close_reason()
    }

    /// Ends the session: tells the guest if it listens, and returns once this side is closed.
    pub async fn close(&self) {
        self.inner.leave.cancel();
        self.inner.session.closed().await;
    }

    async fn ask<T: serde::de::DeserializeOwned>(
        &self,
        operation: &'static str,
        open: &HostOpen,
    ) -> Result<T, ClientError> {
        Call::open(self.context(operation), open).await?.reply().await
    }

    fn context(&self, operation: &'static str) -> Context {
        Context { session: self.inner.session.clone(), operation, patience: self.inner.patience }
    }
}

/// An error and its causes in one line, for the text of another error.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
