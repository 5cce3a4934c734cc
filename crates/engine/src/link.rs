//! The connection to one guest, kept for as long as its process lives.
//!
//! ```text
//!            dial + handshake                 3 heartbeats missed
//! Connecting -----------------> Connected{silent: no} <------------> Connected{silent: yes}
//!     ^  |  (failed: again, after a growing pause,       |
//!     |  |   unless the agent is of another version)     |
//!     |  +-- process gone, or closed --> Ended           | session lost
//!     +--------------------------------------------------+
//! ```
//! Whoever talks to the guest takes the client of the moment and, when that fails as closed, waits for the next
//! one. The link itself decides nothing about the VM: its driver reads the states and acts.

use crate::{
    GuestHealth, GuestView,
    core::Core,
    machine::exit_words,
    sync::lock,
    tasks::TaskKind,
    trace::{Scope, TraceEvent},
    work::{Use, Work},
};
use offshoot_guest_proto::{
    client::{Client, ConnectOptions, Health},
    message::GuestHello,
};
use offshoot_provider::{Exit, vm::Dialer};
use offshoot_types::{Generation, VmName};
use std::{
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

/// First pause after a failed attempt; doubled up to the second one. A guest that boots is dialled early, one
/// that is hung is not hammered.
const RETRY_FIRST: Duration = Duration::from_millis(20);
const RETRY_MOST: Duration = Duration::from_secs(2);

#[derive(Debug, Clone)]
pub(crate) enum LinkState {
    Connecting {
        /// Why the last attempt failed or the last session ended.
        reason: Option<String>,
        /// What the guest last said of itself.
        known: Option<GuestHello>,
        /// What to do: no other attempt is made.
        hint: Option<&'static str>,
    },
    Connected {
        client: Client,
        hello: GuestHello,
        silent: bool,
    },
    Ended {
        reason: String,
    },
}

/// Shared by the driver and everyone who talks to the guest.
#[derive(Debug, Clone)]
pub(crate) struct GuestLink {
    state: watch::Receiver<LinkState>,
    whose: Arc<Mutex<Whose>>,
    close: CancellationToken,
    /// Why it was closed; set before `close`.
    why: Arc<OnceLock<String>>,
    /// Of a caller: while it holds the link it works with the VM.
    _use: Option<Use>,
}

/// Whose guest it is: what the guest is told in the next handshake, and the log from now on.
#[derive(Debug, Clone)]
pub(crate) struct Whose {
    pub hostname: VmName,
    pub generation: Generation,
    pub scope: Scope,
}

/// There will be no client any more, or none in time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoClient {
    #[error("the VM's process has ended ({reason})")]
    Ended { reason: String },
    #[error("the guest agent could not be reached in time{}", .reason.as_ref().map(|r| format!(" ({r})")).unwrap_or_default())]
    Late { reason: Option<String> },
    #[error("{reason}; {hint}")]
    Foreign { reason: String, hint: &'static str },
}

/// Why there is no session, and what to do where another attempt is of no use.
struct Unconnected {
    reason: String,
    hint: Option<&'static str>,
}

impl From<String> for Unconnected {
    fn from(reason: String) -> Self {
        Self { reason, hint: None }
    }
}

impl GuestLink {
    /// For a caller, whose use of the VM lasts as long as what this returns.
    pub fn lent(&self, work: &Work) -> Self {
        Self { _use: Some(work.begin()), ..self.clone() }
    }

    /// Starts dialling. The first handshake may take until `deadline`: the guest is booting.
    pub fn spawn(
        core: &Core,
        scope: Scope,
        dialer: Dialer,
        hostname: &VmName,
        generation: Generation,
        deadline: Instant,
    ) -> Self {
        let whose = Whose { hostname: hostname.clone(), generation, scope: scope.clone() };
        let whose = Arc::new(Mutex::new(whose));
        let (publish, state) =
            watch::channel(LinkState::Connecting { reason: None, known: None, hint: None });
        // Closed by its driver, or with the engine: the session ends in order, the VM lives on.
        let close = core.closing.child_token();
        let why = Arc::<OnceLock<String>>::default();
        let dial = Dial {
            exit: dialer.exit(),
            dialer,
            whose: whose.clone(),
            first: deadline,
            reconnect: core.options.deadlines.reconnect,
            publish,
            close: close.clone(),
            why: why.clone(),
        };
        core.tasks.spawn(TaskKind::GuestLink, scope, dial.run());
        Self { state, whose, close, why, _use: None }
    }

    /// The guest was renewed as another VM's. The session there is goes on.
    pub fn belongs_to(&self, whose: Whose) {
        *lock(&self.whose) = whose;
    }

    /// A client that was connected a moment ago, as soon as there is one.
    pub async fn client(&self, until: Instant) -> Result<Client, NoClient> {
        let mut state = self.state.clone();
        loop {
            let reason = match &*state.borrow_and_update() {
                LinkState::Connected { client, .. } if client.close_reason().is_none() => {
                    return Ok(client.clone());
                }
                LinkState::Connected { .. } => None,
                LinkState::Connecting { reason, hint: Some(hint), .. } => {
                    return Err(NoClient::Foreign { reason: reason.clone().unwrap_or_default(), hint });
                }
                LinkState::Connecting { reason, .. } => reason.clone(),
                LinkState::Ended { reason } => return Err(NoClient::Ended { reason: reason.clone() }),
            };
            match tokio::time::timeout_at(until, state.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(NoClient::Ended { reason: dropped().await }),
                Err(_elapsed) => return Err(NoClient::Late { reason }),
            }
        }
    }

    /// Whether it is connected to a guest that does not answer.
    pub fn is_silent(&self) -> bool {
        matches!(&*self.state.borrow(), LinkState::Connected { silent: true, .. })
    }

    /// For a select: changes of the state.
    pub fn changes(&self) -> watch::Receiver<LinkState> {
        self.state.clone()
    }

    /// Resolves once no client will come any more.
    pub async fn ended(&self) -> String {
        let mut state = self.state.clone();
        loop {
            if let LinkState::Ended { reason } = &*state.borrow_and_update() {
                return reason.clone();
            }
            if state.changed().await.is_err() {
                return dropped().await;
            }
        }
    }

    pub fn view(&self) -> Option<GuestView> {
        view_of(&self.state.borrow())
    }

    /// Ends the session and stops dialling. Those who still wait for the guest are told why.
    pub fn close(&self, why: &str) {
        // The first reason is the one that ended it.
        let _ = self.why.set(why.to_owned());
        self.close.cancel();
    }
}

/// Why a link is gone that said nothing. An engine that is being dropped drops its links first and then whoever uses
/// them: those are dropped here, and do not record an end that their VM never had.
async fn dropped() -> String {
    tokio::task::yield_now().await;
    "the link was closed".into()
}

/// What a state of the link shows to callers.
pub(crate) fn view_of(state: &LinkState) -> Option<GuestView> {
    match state {
        LinkState::Connected { hello, silent, .. } => {
            let health = if *silent { GuestHealth::Silent } else { GuestHealth::Responsive };
            Some(view(hello, health))
        }
        LinkState::Connecting { known: Some(hello), .. } => Some(view(hello, GuestHealth::Reconnecting)),
        LinkState::Connecting { known: None, .. } | LinkState::Ended { .. } => None,
    }
}

fn view(hello: &GuestHello, health: GuestHealth) -> GuestView {
    GuestView {
        kernel: hello.kernel_release.clone(),
        agent_version: hello.agent_version.clone(),
        ready_ms: hello.ready_ms,
        health,
    }
}

struct Dial {
    dialer: Dialer,
    exit: watch::Receiver<Option<Exit>>,
    whose: Arc<Mutex<Whose>>,
    first: Instant,
    reconnect: Duration,
    publish: watch::Sender<LinkState>,
    close: CancellationToken,
    why: Arc<OnceLock<String>>,
}

impl Dial {
    fn whose(&self) -> Whose {
        lock(&self.whose).clone()
    }

    async fn run(mut self) {
        let reason = tokio::select! {
            biased;
            () = self.close.clone().cancelled_owned() => {
                self.why.get().cloned().unwrap_or_else(|| "it was stopped".to_owned())
            }
            exit = ended(self.exit.clone()) => exit_words(Some(&exit)),
            never = self.keep() => match never {},
        };
        let last = self.publish.send_replace(LinkState::Ended { reason });
        if let LinkState::Connected { client, .. } = last {
            client.close().await;
        }
    }

    async fn keep(&mut self) -> std::convert::Infallible {
        let mut pause = RETRY_FIRST;
        let mut known = None;
        let mut limit = self.first;
        loop {
            let begun = Instant::now();
            match self.attempt(limit).await {
                Ok((client, hello)) => {
                    let took = begun.elapsed();
                    TraceEvent::GuestConnected { kernel: &hello.kernel_release, took }
                        .emit(&self.whose().scope);
                    known = Some(hello.clone());
                    pause = RETRY_FIRST;
                    let reason = self.watch(client, hello).await;
                    TraceEvent::GuestLost { reason: &reason }.emit(&self.whose().scope);
                    self.connecting(reason.into(), known.clone());
                }
                Err(Unconnected { reason, hint: hint @ Some(_) }) => {
                    self.connecting(Unconnected { reason, hint }, known);
                    // Until it is closed, or the process ends.
                    return std::future::pending().await;
                }
                Err(failed) => {
                    self.connecting(failed, known.clone());
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY_MOST);
                }
            }
            limit = (Instant::now() + self.reconnect).max(self.first);
        }
    }

    async fn attempt(&self, until: Instant) -> Result<(Client, GuestHello), Unconnected> {
        let left = until.saturating_duration_since(Instant::now());
        let pipe = match tokio::time::timeout(left, self.dialer.channel()).await {
            Ok(Ok(pipe)) => pipe,
            Ok(Err(error)) => return Err(chain(&error).into()),
            Err(_elapsed) => return Err(format!("the channel did not open within {left:?}").into()),
        };
        let whose = self.whose();
        let mut options = ConnectOptions::new(whose.hostname.as_str(), whose.generation.0);
        options.deadline = until.saturating_duration_since(Instant::now());
        let connected = Client::connect(pipe, options).await;
        connected.map_err(|error| Unconnected { reason: chain(&error), hint: error.hint() })
    }

    /// Publishes the client and its health until the session ends.
    async fn watch(&self, client: Client, hello: GuestHello) -> String {
        let mut health = client.health();
        loop {
            let silent = match &*health.borrow_and_update() {
                Health::Alive { .. } => false,
                Health::Silent { .. } => true,
                Health::Closed { reason } => return reason.to_string(),
            };
            self.publish.send_if_modified(|state| {
                let same = matches!(state, LinkState::Connected { silent: s, .. } if *s == silent);
                if !same {
                    *state = LinkState::Connected { client: client.clone(), hello: hello.clone(), silent };
                }
                !same
            });
            if health.changed().await.is_err() {
                return client.closed().await.to_string();
            }
        }
    }

    fn connecting(&self, why: Unconnected, known: Option<GuestHello>) {
        let Unconnected { reason, hint } = why;
        self.publish.send_replace(LinkState::Connecting { reason: Some(reason), known, hint });
    }
}

/// Resolves once the VMM has ended.
pub(crate) async fn ended(mut exit: watch::Receiver<Option<Exit>>) -> Exit {
    loop {
        if let Some(exit) = exit.borrow_and_update().clone() {
            return exit;
        }
        if exit.changed().await.is_err() {
            // Whoever watched the process is gone without a word: so is the keeper.
            return Exit::KeeperLost;
        }
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
