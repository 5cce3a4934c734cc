//! Sessions of MCP over HTTP: whose they are, and what ends with them.
//!
//! ```text
//! Opening (of a request that names no session) --create_session--> Open --close_session--> its VM is dealt with
//!                                        key ends, silence, DELETE, shutdown --^
//! ```
//! rmcp asks for a session and for its server in the task that answers the request, which is how what is known of the
//! caller gets there.

use crate::{
    activity::Present,
    http::{App, KeyEnds},
    tasks::TaskKind,
};
use futures::Stream;
use offshoot_mcp::Session;
use offshoot_types::{Actor, ErrorCode, Failure};
use rmcp::{
    model::{ClientJsonRpcMessage, ServerJsonRpcMessage},
    transport::streamable_http_server::{
        SessionId, SessionManager,
        session::{
            ServerSseMessage,
            local::{LocalSessionManager, LocalSessionManagerError},
        },
    },
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Sessions at once. Each may have a VM, which counts where VMs are counted.
const MAX_SESSIONS: usize = 256;
/// Of those of one caller: others find room all the same.
const MAX_OF_ONE: usize = 64;

tokio::task_local! {
    static OPENING: Opening;
}

/// What is known of whoever may begin a session.
#[derive(Debug)]
pub struct Opening {
    session: Session,
    actor: Actor,
    ends: Option<KeyEnds>,
    present: Mutex<Option<Present>>,
}

impl Opening {
    pub fn new(session: Session, actor: Actor, ends: Option<KeyEnds>, present: Present) -> Self {
        Self { session, actor, ends, present: Mutex::new(Some(present)) }
    }

    /// Answers a request that may begin the session.
    pub async fn scope<T>(self, answer: impl Future<Output = T>) -> T {
        OPENING.scope(self, answer).await
    }

    /// The session that the request under way may begin.
    pub fn session() -> Option<Session> {
        OPENING.try_with(|opening| opening.session.clone()).ok()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error(transparent)]
    Local(#[from] LocalSessionManagerError),
    #[error("no caller begins a session here")]
    Nobody,
}

#[derive(Debug)]
struct Open {
    actor: Actor,
    session: Session,
    /// Keeps the daemon here.
    present: Option<Present>,
    _over: DropGuard,
}

#[derive(Debug)]
pub struct Sessions {
    local: Arc<LocalSessionManager>,
    open: Mutex<HashMap<SessionId, Open>>,
    app: App,
}

impl Sessions {
    pub fn new(app: App, silence: Duration) -> Self {
        let mut local = LocalSessionManager::default();
        local.session_config.keep_alive = Some(silence);
        Self { local: Arc::new(local), open: Mutex::default(), app }
    }

    /// Whether there is room for one more of this caller.
    pub fn admit(&self, actor: &Actor) -> Result<Present, Failure> {
        let (all, own) = {
            let open = self.open();
            (open.len(), open.values().filter(|one| one.actor == *actor).count())
        };
        if all >= MAX_SESSIONS || own >= MAX_OF_ONE {
            let message = format!("{all} sessions of MCP are open already, {own} of them of this caller");
            return Err(Failure::new(ErrorCode::NoResource, message)
                .hint("end some, or wait until they are silent for an hour"));
        }
        self.app.activity.enter_session()
    }

    pub fn is_of(&self, id: &str, actor: &Actor) -> bool {
        self.open().get(id).is_some_and(|open| open.actor == *actor)
    }

    fn open(&self) -> MutexGuard<'_, HashMap<SessionId, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the session when its key does.
    fn watch(&self, id: SessionId, ends: KeyEnds, over: CancellationToken) {
        let local = self.local.clone();
        self.app.tasks.spawn(TaskKind::KeyWatch, async move {
            tokio::select! {
                () = ends.reached() => {}
                () = over.cancelled() => return,
            }
            // Its server notices, and closes it here too.
            if let Err(error) = local.close_session(&id).await {
                tracing::warn!(%error, "a session whose key has ended could not be closed");
            }
        });
    }
}

/// What is to be done with its VM is done, whoever is gone. A key that has ended can no longer do it: such a VM is left to
/// its own limits.
async fn conclude(session: Session, present: Option<Present>) {
    match session.end(true).await {
        Ok(Some((vm, what))) => tracing::info!(%vm, %what, "a session of MCP is over"),
        Ok(None) => {}
        Err(failure) => {
            tracing::info!(code = %failure.code, message = failure.message, "the VM of a session of MCP is left as it is");
        }
    }
    drop(present);
}

impl SessionManager for Sessions {
    type Error = SessionError;
    type Transport = <LocalSessionManager as SessionManager>::Transport;

    async fn create_session(&self) -> Result<(SessionId, Self::Transport), SessionError> {
        let of = |opening: &Opening| {
            let present = opening.present.lock().unwrap_or_else(PoisonError::into_inner).take();
            (opening.session.clone(), opening.actor.clone(), opening.ends.clone(), present)
        };
        let (session, actor, ends, present) = OPENING.try_with(of).map_err(|_| SessionError::Nobody)?;
        let (id, transport) = self.local.create_session().await?;
        session.begin();
        let over = CancellationToken::new();
        let open = Open { actor, session, present, _over: over.clone().drop_guard() };
        self.open().insert(id.clone(), open);
        if let Some(ends) = ends {
            self.watch(id.clone(), ends, over);
        }
        Ok((id, transport))
    }

    async fn close_session(&self, id: &SessionId) -> Result<(), SessionError> {
        let closed = self.open().remove(id);
        if let Some(Open { session, present, .. }) = closed {
            self.app.tasks.spawn(TaskKind::Request, conclude(session, present));
        }
        Ok(self.local.close_session(id).await?)
    }

    async fn initialize_session(
        &self,
        id: &SessionId,
        message: ClientJsonRpcMessage,
    ) -> Result<ServerJsonRpcMessage, SessionError> {
        Ok(self.local.initialize_session(id, message).await?)
    }

    async fn has_session(&self, id: &SessionId) -> Result<bool, SessionError> {
        Ok(self.local.has_session(id).await?)
    }

    async fn create_stream(
        &self,
        id: &SessionId,
        message: ClientJsonRpcMessage,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, SessionError> {
        Ok(self.local.create_stream(id, message).await?)
    }

    async fn accept_message(
        &self,
        id: &SessionId,
        message: ClientJsonRpcMessage,
    ) -> Result<(), SessionError> {
        Ok(self.local.accept_message(id, message).await?)
    }

    async fn create_standalone_stream(
        &self,
        id: &SessionId,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, SessionError> {
        Ok(self.local.create_standalone_stream(id).await?)
    }

    async fn resume(
        &self,
        id: &SessionId,
        last_event_id: String,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, SessionError> {
        Ok(self.local.resume(id, last_event_id).await?)
    }
}
