//! What surrounds every request: an id, an actor, a span, and the body of its failure if it fails.

use super::{
    App,
    error::{ApiError, Shape, write_body},
    key_ends::KeyEnds,
    once::Named,
    vms::stopping,
};
use crate::{preview, tasks::TaskKind};
use axum::{
    body::HttpBody,
    extract::{FromRequestParts, Request, State},
    http::{HeaderMap, HeaderValue, header, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use offshoot_api::v1::{AGENT_HEADER, InvalidField, NO_WAKE_HEADER, REQUEST_ID_HEADER, TRANSACTION_HEADER};
use offshoot_engine::{Engine, Idempotency};
use offshoot_policy::{Authorized, Decision, VmFacts};
use offshoot_types::{
    Actor, AgentName, Command, ErrorCode, Failure, Operation, Owner, RequestId, Target, TransactionId,
    VmName, VmRef, VmStateName,
};
use std::time::Instant;
use tokio::sync::oneshot;
use tracing::Instrument;

/// Who is at the other end of a connection, before any of what it sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// A process of this user, by the kernel's word.
    User { uid: u32 },
    /// Somebody. `local` if the connection cannot have left this host, `tls` if it is encrypted.
    Network { local: bool, tls: bool },
}

/// One request: who asks, and by which name it is found in the log.
#[derive(Debug, Clone)]
pub struct Call {
    pub app: App,
    /// Speaks from within the transaction that the request's header names, if it does.
    pub engine: Engine,
    pub within: Option<TransactionId>,
    /// It is not to wake a suspended VM.
    pub no_wake: bool,
    /// On whose behalf the actor says it asks.
    pub agent: Option<AgentName>,
    pub actor: Actor,
    pub id: RequestId,
    /// The request with the same idempotency key in whose name it acts: itself, or the one it goes on with.
    named: Option<RequestId>,
}

impl Call {
    /// Of somebody who is known already, and says nothing of transactions.
    pub fn new(app: &App, actor: Actor, id: RequestId) -> Self {
        let engine = app.engine.clone();
        Self { app: app.clone(), engine, within: None, no_wake: false, agent: None, actor, id, named: None }
    }

    /// The name, for messages, of the VM a command is about.
    pub fn named(&self, command: &Command) -> VmName {
        let target = command.target();
        match &target {
            Target::Vm(VmRef::Name(name)) | Target::NewVm(name) => name.clone(),
            _ => match self.engine.facts(&self.actor, &target).vm {
                Some(vm) => vm.name,
                // Gone in the meantime, or never there; the engine says so.
                None => "unknown".parse().expect("letters are a valid name"),
            },
        }
    }

    /// Asks policy. The only way from here to the engine. A denial is in the audit before it is answered.
    pub async fn permit(&self, command: Command) -> Result<Authorized<Command>, Failure> {
        let facts = self.engine.facts_about(&self.actor, &command).await?;
        let asleep = facts.vm.clone().filter(|vm| {
            let suspended = matches!(vm.state, VmStateName::Suspended | VmStateName::Suspending);
            self.no_wake && suspended && command.needs_guest()
        });
        match self.app.policy.decide(&self.actor, command, &facts) {
            Decision::Permit(permit) => match asleep {
                None => Ok(permit.in_name_of(self.named).on_behalf_of(self.agent.clone())),
                Some(VmFacts { name, .. }) => {
                    let message = format!("VM `{name}` is suspended, and this is not to wake it");
                    Err(Failure::new(ErrorCode::WrongState, message)
                        .hint(format!("`offshoot resume {name}` continues it")))
                }
            },
            Decision::Deny(denial) => {
                tracing::info!(actor = %self.actor, action = %denial.action, code = denial.kind.code(), "denied");
                self.engine.record_denial(&denial).await;
                Err(denial.into())
            }
            Decision::Require(required) => {
                let wanted: Vec<String> = required.obligations.iter().map(ToString::to_string).collect();
                Err(Failure::new(ErrorCode::Unsupported, "this needs something that cannot be given yet")
                    .hint(wanted.join("; ")))
            }
        }
    }
}

impl Call {
    /// Submits a change of a VM's life. In the name of a request with an idempotency key it is the same operation
    /// however often it is submitted, also to the next daemon.
    pub async fn submit_once(&self, command: Command) -> Result<Operation, Failure> {
        let verb = command.action();
        let permit = self.permit(command).await?;
        match self.named {
            Some(request) => {
                let key = Idempotency::new(format!("{request}/{verb}"), &())?;
                self.engine.submit_once(permit, key).await
            }
            None => self.engine.submit(permit).await,
        }
    }

    /// `work`, unless the daemon's time is up first. What the engine has accepted goes on without us.
    pub async fn until_cut<T>(&self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        tokio::select! {
            biased;
            done = work => done,
            () = self.app.shutdown.expired() => Err(stopping()),
        }
    }

    /// As [`App::detached`].
    pub fn detached<T, E, W>(&self, work: W) -> impl Future<Output = Result<T, E>> + Send + use<T, E, W>
    where
        T: Send + 'static,
        E: From<Failure> + Send + 'static,
        W: Future<Output = Result<T, E>> + Send + 'static,
    {
        self.app.detached(work)
    }
}

impl App {
    /// Runs `work`, all its steps, also if the caller goes away in the middle. A daemon that is to end waits for it as for
    /// a caller.
    pub fn detached<T, E, W>(&self, work: W) -> impl Future<Output = Result<T, E>> + Send + use<T, E, W>
    where
        T: Send + 'static,
        E: From<Failure> + Send + 'static,
        W: Future<Output = Result<T, E>> + Send + 'static,
    {
        let present = self.activity.enter();
        let (answer, answered) = oneshot::channel();
        let work = async move {
            // The caller may be gone; the work is done all the same.
            let _ = answer.send(work.await);
            drop(present);
        };
        self.tasks.spawn(TaskKind::Request, work.in_current_span());
        async move { answered.await.unwrap_or_else(|_| Err(stopping().into())) }
    }
}

impl FromRequestParts<App> for Call {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let known = parts.extensions.get::<Actor>().cloned().zip(parts.extensions.get().copied());
        // `surround` and `identify` run before every handler; without them nobody is known to ask.
        let (actor, id) = known.ok_or_else(nobody)?;
        let within = transaction(&parts.headers)?;
        let engine = match within {
            Some(transaction) => app.engine.within(transaction),
            None => app.engine.clone(),
        };
        let no_wake = no_wake(&parts.headers)?;
        let agent = agent(&parts.headers)?;
        let named = parts.extensions.get().map(|Named(request)| *request);
        Ok(Self { app: app.clone(), engine, within, no_wake, agent, actor, id, named })
    }
}

pub fn nobody() -> Failure {
    Failure::new(ErrorCode::Denied, "the caller is not known")
}

/// The open transaction a request belongs to.
fn transaction(headers: &HeaderMap) -> Result<Option<TransactionId>, InvalidField> {
    let Some(value) = headers.get(TRANSACTION_HEADER) else { return Ok(None) };
    let text = String::from_utf8_lossy(value.as_bytes());
    text.parse().map(Some).map_err(|error| InvalidField::new(TRANSACTION_HEADER, error))
}

fn agent(headers: &HeaderMap) -> Result<Option<AgentName>, InvalidField> {
    let Some(value) = headers.get(AGENT_HEADER) else { return Ok(None) };
    let text = String::from_utf8_lossy(value.as_bytes());
    text.parse().map(Some).map_err(|error| InvalidField::new(AGENT_HEADER, error))
}

fn no_wake(headers: &HeaderMap) -> Result<bool, InvalidField> {
    match headers.get(NO_WAKE_HEADER).map(HeaderValue::as_bytes) {
        None | Some(b"0") => Ok(false),
        Some(b"1") => Ok(true),
        Some(_) => Err(InvalidField::new(NO_WAKE_HEADER, "it is neither 0 nor 1")),
    }
}

/// Finds out who asks; somebody without a key is nobody.
pub async fn identify(State(app): State<App>, mut request: Request, next: Next) -> Response {
    match who(&app, request.extensions().get(), request.headers()) {
        Ok(actor) => {
            tracing::Span::current().record("actor", tracing::field::display(&actor));
            let ends = app.engine.key_ends(&actor).map(KeyEnds::new);
            if let Some(ends) = &ends {
                request.extensions_mut().insert(ends.clone());
            }
            request.extensions_mut().insert(actor);
            let response = next.run(request).await;
            match ends {
                // An answer that is there is given.
                Some(ends) if response.body().size_hint().exact().is_none() => {
                    response.map(|body| ends.bound(body))
                }
                _ => response,
            }
        }
        Err(failure) => ApiError::from(failure).into_response(),
    }
}

/// Who a request is from: the user that the kernel names, or whose key it carries.
fn who(app: &App, caller: Option<&Caller>, headers: &HeaderMap) -> Result<Actor, Failure> {
    if let Some(Caller::User { uid }) = caller {
        return Ok(Actor::LocalUser { uid: *uid, owner: Owner::default() });
    }
    app.engine.authenticate(key_of(headers).ok_or_else(no_key)?)
}

/// The API key that a request carries: what looks like one of ours, wherever it is sent, for the other place may hold what
/// is meant for a program; else whatever is there, to be refused.
pub fn key_of(headers: &HeaderMap) -> Option<&str> {
    preview::key(headers).or_else(|| any_key(headers))
}

fn any_key(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.to_str().ok()?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(key)
    });
    let key = headers.get("x-api-key").and_then(|value| value.to_str().ok()).or(bearer);
    key.map(str::trim).filter(|key| !key.is_empty())
}

fn no_key() -> Failure {
    Failure::new(ErrorCode::Unauthenticated, "this needs an API key")
        .hint("send it as `Authorization: Bearer KEY` or `X-API-Key: KEY`; `offshoot key create` makes one")
}

/// The outermost layer.
pub async fn surround(mut request: Request, next: Next) -> Response {
    let id = RequestId::new();
    let span = tracing::info_span!(
        "request",
        request = %id,
        actor = tracing::field::Empty,
        method = %request.method(),
        path = request.uri().path(),
    );
    request.extensions_mut().insert(id);
    let shape = Shape::of(request.uri().path());
    async move {
        let begun = Instant::now();
        let mut response = next.run(request).await;
        let failure = write_body(&mut response, id, shape);
        let header = HeaderValue::from_str(&id.to_string()).expect("a UUID is ASCII");
        response.headers_mut().insert(REQUEST_ID_HEADER, header);
        report(&response, failure, begun);
        response
    }
    .instrument(span)
    .await
}

/// Refuses what goes beyond the requests that may be under way, but for whoever asks whether the daemon lives.
pub async fn bound(State(app): State<App>, request: Request, next: Next) -> Response {
    let alive = matches!(request.uri().path(), "/health" | "/healthz");
    match app.under_way.begin() {
        Err(failure) if !alive => ApiError::from(failure).into_response(),
        _under_way => next.run(request).await,
    }
}

fn report(response: &Response, failure: Option<Failure>, begun: Instant) {
    let (status, elapsed_us) = (response.status().as_u16(), begun.elapsed().as_micros() as u64);
    match failure {
        Some(failure) if failure.code == ErrorCode::Internal => {
            tracing::error!(status, elapsed_us, code = %failure.code, message = failure.message, cause = failure.cause, "request failed");
        }
        Some(failure) => {
            tracing::info!(status, elapsed_us, code = %failure.code, message = failure.message, "request refused");
        }
        None => tracing::debug!(status, elapsed_us, "request answered"),
    }
}
