//! The guest's side: serves [`Services`] over one pipe, epoch after epoch.
//!
//! ```text
//! serve: accept epoch --> session --> control stream first: HostHello judged --> streams served, one task each
//!            ^                                                                       |
//!            '------- new epoch, gap, control stream ended: all its streams end -----'
//! ```
//! A session's handlers are dropped with it. What must outlive it (a process, the ring of its output) belongs to
//! the implementation of [`Services`]; the next session finds it by its id. The host is trusted: it may do
//! anything inside the guest anyway.

mod host;
mod peer;
mod serve;

pub use host::{HostHandle, OpenServiceError};
pub use peer::{
    CodeInputs, CodeOutputs, CodePeer, Detached, ExecInputs, ExecOutputs, ExecPeer, FilePeer, SurveyPeer,
    TcpPeer,
};
pub use serve::Server;

use crate::{
    message::{
        ContextInfo, DiskRequest, EntryRequest, ExecAttach, ExecStart, ExecSummary, FileRequest, Frozen,
        GuestError, GuestErrorKind, GuestHello, GuestInfo, HostHello, HostTime, Language, RunCode,
        ShutdownKind, SurveyRequest, Thaw, Thawed, Usage,
    },
    resync::{EpochEnd, Pipe},
    session::CloseReason,
};
use std::{future::Future, sync::Arc, time::Duration};

/// What a guest does. Implemented by the agent, and by an in-memory fake.
///
/// Each stream's method runs in a task of its own and is dropped when the session ends: state that must not be
/// left half-changed is kept by guards. An implementation may write these as `async fn`.
pub trait Services: Send + Sync + 'static {
    /// The host's hello, after version and epoch were found to match; `version` and `epoch` of the answer are
    /// filled in by the caller. Called once per session: the first time in a boot it names the machine.
    fn hello(&self, hello: &HostHello) -> impl Future<Output = Result<GuestHello, GuestError>> + Send;

    /// Follows the host's clock; returns guest clock minus host clock in nanoseconds, as it was on arrival.
    fn heartbeat(&self, time: HostTime) -> i64;

    /// Runs a process. First event: `Started` or `Failed`. When the host leaves, the process runs on.
    fn exec(&self, start: ExecStart, peer: ExecPeer) -> impl Future<Output = ()> + Send;

    /// First event: `Started` with the pid, or `Failed` if there is no such process.
    fn attach(&self, attach: ExecAttach, peer: ExecPeer) -> impl Future<Output = ()> + Send;

    fn list_execs(&self) -> impl Future<Output = Vec<ExecSummary>> + Send;

    /// See [`crate::message::FileOperation`] for what is to be sent and received.
    fn file(&self, request: FileRequest, peer: FilePeer) -> impl Future<Output = ()> + Send;

    /// Connects to a port of the guest and copies, see [`TcpPeer`].
    fn tcp(&self, port: u16, peer: TcpPeer) -> impl Future<Output = ()> + Send;

    fn info(&self) -> impl Future<Output = Result<GuestInfo, GuestError>> + Send;

    /// Whether this guest can do that. Asked first, answered to the host, then done by [`Services::shutdown`].
    fn may_shutdown(&self, kind: ShutdownKind) -> Result<(), GuestError>;

    /// Syncs and powers off or restarts. The host's answer has left for the pipe.
    fn shutdown(&self, kind: ShutdownKind) -> impl Future<Output = ()> + Send;

    /// Returns once the disk holds what programs had written when it was called.
    fn flush(&self) -> impl Future<Output = Result<(), GuestError>> + Send {
        async { Err(unsupported("flushing the disk")) }
    }

    /// Makes all user processes stand still; on an error they run. Only [`Services::unfreeze`] and
    /// [`Services::thaw`] let them run again, not the end of the session.
    fn freeze(&self, deadline: Duration) -> impl Future<Output = Result<Frozen, GuestError>> + Send {
        let _unused = deadline;
        async { Err(unsupported("freezing processes")) }
    }

    fn unfreeze(&self) -> impl Future<Output = Result<(), GuestError>> + Send {
        async { Err(unsupported("freezing processes")) }
    }

    /// As [`Services::unfreeze`], after setting the clock: this state was restored, and goes on here only.
    fn go_on(&self, time: HostTime) -> impl Future<Output = Result<(), GuestError>> + Send {
        let _unused = time;
        self.unfreeze()
    }

    /// Fails closed: on an error user processes stand still. Asked again for the same instance it answers the same.
    fn thaw(&self, thaw: Thaw) -> impl Future<Output = Result<Thawed, GuestError>> + Send {
        let _unused = thaw;
        async { Err(unsupported("thawing")) }
    }

    /// First event: `Started` or `Failed`. When the host leaves, the code is interrupted.
    fn run_code(&self, run: RunCode, peer: CodePeer) -> impl Future<Output = ()> + Send {
        let _unused = run;
        peer.fail(unsupported("live contexts"))
    }

    fn contexts(&self) -> impl Future<Output = Result<Vec<ContextInfo>, GuestError>> + Send {
        async { Err(unsupported("live contexts")) }
    }

    fn remove_context(&self, context: String) -> impl Future<Output = Result<(), GuestError>> + Send {
        let _unused = context;
        async { Err(unsupported("live contexts")) }
    }

    fn restart_context(&self, context: String) -> impl Future<Output = Result<(), GuestError>> + Send {
        let _unused = context;
        async { Err(unsupported("live contexts")) }
    }

    /// Returns once it is ready, or cannot be.
    fn prepare_interpreter(
        &self,
        language: Language,
        user: String,
    ) -> impl Future<Output = Result<(), GuestError>> + Send {
        let _unused = (language, user);
        async { Err(unsupported("live contexts")) }
    }

    /// See [`SurveyRequest`] for what is to be sent.
    fn survey(&self, request: SurveyRequest, peer: SurveyPeer) -> impl Future<Output = ()> + Send {
        let _unused = request;
        peer.refuse(unsupported("telling what it is made of"))
    }

    /// See [`crate::message::EntryOperation`] for what is to be sent and received.
    fn entry(&self, request: EntryRequest, peer: FilePeer) -> impl Future<Output = ()> + Send {
        let _unused = request;
        peer.refuse(unsupported("files by a user's name for them"))
    }

    /// See [`DiskRequest`] for what is to be sent and received.
    fn disk(&self, request: DiskRequest, peer: FilePeer) -> impl Future<Output = ()> + Send {
        let _unused = request;
        peer.refuse(unsupported("carrying its disk"))
    }

    fn usage(&self) -> impl Future<Output = Result<Usage, GuestError>> + Send {
        async { Err(unsupported("measuring what it uses")) }
    }

    /// For the agent's log.
    fn session_ended(&self, reason: &CloseReason) {
        let _unused = reason;
    }
}

fn unsupported(what: &str) -> GuestError {
    GuestError { kind: GuestErrorKind::Unsupported, message: format!("{what}: this guest cannot do that") }
}

/// Serves until the pipe itself ends. For streams to the host make a [`Server`] and ask it for its
/// [`HostHandle`].
pub async fn serve<S: Services>(pipe: impl Pipe + 'static, services: Arc<S>) -> EpochEnd {
    Server::new(pipe).serve(services).await
}
