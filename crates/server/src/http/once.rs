//! A request that carries an `Idempotency-Key` is carried out once, however often it is sent.
//!
//! ```text
//! identify -> once: key? --none--> handler
//!                    | claim, on disk before anything is done
//!                    |-- new ------> handler, detached from the caller --> outcome on disk --> answer
//!                    |-- ended ----> the same answer, `Idempotency-Replayed: true`
//!                    |-- under way > busy, `Retry-After`
//!                    \-- lost -----> what it had begun; never a second time
//! ```
//! It is a layer over the routes, so that no handler has to know of it. What handlers do in the request's name says so
//! in the record ([`Call::permit`](super::Call::permit)), and that is how a lost one is explained.

use super::{App, create, error::ApiError, extract::read_body, request};
use crate::terraphim;
use axum::{
    body::{Body, Bytes},
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures::StreamExt;
use offshoot_api::v1::{
    AGENT_HEADER, IDEMPOTENCY_KEY_HEADER, InvalidField, MAX_IDEMPOTENCY_KEY, MAX_JSON, NO_WAKE_HEADER,
    REPLAYED_HEADER, TRANSACTION_HEADER,
};
use offshoot_engine::{Claim, Earlier, Ending, NewRequest, RequestClaim, RequestOutcome, Standing};
use offshoot_types::{Actor, ErrorCode, Failure, Operation, OperationKind, RequestId};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::timeout;

/// Sockets by which something is begun. What they say is not kept; what they began is found by its operation.
const SOCKETS: [&str; 5] =
    ["/v1/run", "/v1/vms/{vm}/exec", "/v1/vms/{vm}/try", "/v1/vms/{vm}/race", "/v1/vms/{vm}/code"];

/// How long an upload that is only compared may stand still.
const STALLED: Duration = Duration::from_secs(60);

/// The request in whose name a handler acts: the first of those that carried the same key.
#[derive(Debug, Clone, Copy)]
pub struct Named(pub RequestId);

/// Marks an answer that holds a secret: it is given once.
#[derive(Debug, Clone, Copy)]
pub struct Secret;

/// Whether a key says anything about requests of this method to this route.
pub fn heeds(method: &Method, route: &str) -> bool {
    match *method {
        Method::POST | Method::PUT | Method::PATCH | Method::DELETE => true,
        Method::GET => SOCKETS.contains(&route),
        _ => false,
    }
}

/// The layer.
pub async fn once(State(app): State<App>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let heeded = route.is_some_and(|route| heeds(request.method(), &route));
    match key(request.headers()) {
        Ok(Some(key)) if heeded => match answer(app, key, request, next).await {
            Ok(response) => response,
            Err(failure) => ApiError::from(failure).into_response(),
        },
        Ok(_) => next.run(request).await,
        Err(invalid) => ApiError::from(invalid).into_response(),
    }
}

/// The largest body that is read before anything is begun.
fn largest(path: &str) -> usize {
    if terraphim::is_of_wire(path) { terraphim::MAX_BODY } else { MAX_JSON }
}

fn key(headers: &HeaderMap) -> Result<Option<String>, InvalidField> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY_HEADER) else { return Ok(None) };
    let printable = |key: &&str| !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic());
    match value.to_str().ok().filter(printable) {
        Some(key) if key.len() <= MAX_IDEMPOTENCY_KEY => Ok(Some(key.into())),
        _ => {
            let problem = format!("it has 1 to {MAX_IDEMPOTENCY_KEY} visible ASCII characters");
            Err(InvalidField::new(IDEMPOTENCY_KEY_HEADER, problem))
        }
    }
}

async fn answer(app: App, key: String, request: Request, next: Next) -> Result<Response, Failure> {
    let (parts, body) = request.into_parts();
    let known = parts.extensions.get::<Actor>().cloned().zip(parts.extensions.get::<RequestId>().copied());
    let (caller, id) = known.ok_or_else(request::nobody)?;
    // Bodies of any size come by PUT, and are hashed on their way. All others are small, and here in full before
    // anything is begun: a caller that leaves while it is still sending has asked for nothing.
    let (bytes, body, content) = if parts.method == Method::PUT {
        let (body, content) = hashed(body);
        (Bytes::new(), body, Some(content))
    } else {
        let bytes = Bytes::from(read_body(body, largest(parts.uri.path())).await?);
        (bytes.clone(), Body::from(bytes), None)
    };
    let new = NewRequest { id, caller, key, fingerprint: fingerprint(&parts, &bytes) };
    // A caller that leaves finds the answer when it asks again.
    let detached = app.clone();
    let request = Request::from_parts(parts, body);
    detached.detached(async move { claimed(&app, new, request, next, content).await }).await
}

/// Carries a new request out, and answers one that came before.
async fn claimed(
    app: &App,
    new: NewRequest,
    request: Request,
    next: Next,
    content: Option<Content>,
) -> Result<Response, Failure> {
    let sent = new.fingerprint;
    let claim = match app.engine.claim_request(new).await? {
        RequestClaim::New(claim) => claim,
        RequestClaim::Earlier(earlier) if earlier.fingerprint != sent => return Err(reused(earlier.id)),
        RequestClaim::Earlier(earlier) => match taken_up(app, &request, earlier) {
            RequestClaim::New(claim) => claim,
            RequestClaim::Earlier(earlier) => return repeated(earlier, request.into_body(), content).await,
        },
    };
    Ok(carry_out(claim, request, next, content).await)
}

/// The making of a VM is found again by the request's name, so that it is completed rather than explained.
fn taken_up(app: &App, request: &Request, earlier: Earlier) -> RequestClaim {
    let making = *request.method() == Method::POST && request.uri().path() == create::PATH;
    let made = |begun: &[Operation]| begun.iter().any(|operation| operation.kind == OperationKind::Create);
    match &earlier.standing {
        Standing::Unknown(begun) if making && made(begun) => match app.engine.resume_request(earlier.id) {
            Some(claim) => RequestClaim::New(claim),
            // Another repeat was faster.
            None => RequestClaim::Earlier(Earlier { standing: Standing::UnderWay, ..earlier }),
        },
        _ => RequestClaim::Earlier(earlier),
    }
}

/// Runs the handler, and records how it ended before anybody is told.
async fn carry_out(claim: Claim, mut request: Request, next: Next, content: Option<Content>) -> Response {
    request.extensions_mut().insert(Named(claim.id()));
    let response = next.run(request).await;
    let (response, ending) = ended(response, content.as_ref()).await;
    claim.settle(content.and_then(|content| content.hash()), ending).await;
    response
}

/// The response, and what of it is to be kept.
async fn ended(response: Response, content: Option<&Content>) -> (Response, Ending) {
    if let Some(failure) = ApiError::failure_of(&response) {
        let broken = content.is_some_and(|content| content.hash().is_none());
        let ending = if broken { Ending::Incomplete } else { Ending::Failed(failure.clone()) };
        return (response, ending);
    }
    if response.status() == StatusCode::SWITCHING_PROTOCOLS || response.extensions().get::<Secret>().is_some()
    {
        return (response, Ending::NotKept);
    }
    let (parts, body) = response.into_parts();
    // Handlers of changes answer with what they have in memory already.
    let body = match axum::body::to_bytes(body, usize::MAX).await {
        Ok(body) => body,
        Err(error) => {
            let failure = Failure::new(ErrorCode::Internal, "the answer cannot be read").caused_by(&error);
            return (ApiError::from(failure.clone()).into_response(), Ending::Failed(failure));
        }
    };
    let media_type = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let ending = Ending::Answered {
        status: parts.status.as_u16(),
        media_type: media_type.map(Into::into),
        body: body.to_vec(),
    };
    (Response::from_parts(parts, Body::from(body)), ending)
}

/// What a repeat is told.
async fn repeated(earlier: Earlier, body: Body, content: Option<Content>) -> Result<Response, Failure> {
    let first = earlier.id;
    match earlier.standing {
        Standing::UnderWay => {
            let busy = Failure::new(ErrorCode::Busy, format!("request {first} with this key is under way"))
                .hint("repeat it with the same key when it has ended");
            let mut response = ApiError::from(busy).into_response();
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            Ok(response)
        }
        Standing::Unknown(operations) => {
            let message = format!("nobody saw request {first} with this key end; {}", begun(&operations));
            Err(Failure::new(ErrorCode::OutcomeUnknown, message)
                .hint("see what came of them, then send what is still wanted with a new key"))
        }
        Standing::NotKept(operations) => {
            let message = format!(
                "request {first} with this key was carried out, and its answer is not kept; {}",
                begun(&operations)
            );
            Err(Failure::new(ErrorCode::AlreadyDone, message).hint(
                "`GET /v1/operations/{id}` shows what came of it; a process has the id of its operation",
            ))
        }
        Standing::Ended(outcome) => {
            if let Some(content) = content {
                // What is compared is what came then and what comes now; nothing of it is written.
                let mut body = body.into_data_stream();
                while let Ok(Some(Ok(_))) = timeout(STALLED, body.next()).await {}
                match content.hash() {
                    None => return Err(Failure::new(ErrorCode::Interrupted, "the upload broke off")),
                    now if now != earlier.content => return Err(reused(first)),
                    _ => {}
                }
            }
            replayed(first, outcome)
        }
    }
}

fn replayed(first: RequestId, outcome: RequestOutcome) -> Result<Response, Failure> {
    let mut response = match outcome {
        RequestOutcome::Answered { status, media_type, body } => {
            let mut response = Body::from(body).into_response();
            *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
            if let Some(value) = media_type.and_then(|text| HeaderValue::from_str(&text).ok()) {
                response.headers_mut().insert(header::CONTENT_TYPE, value);
            }
            response
        }
        RequestOutcome::Failed(failure) => ApiError::from(failure).into_response(),
        RequestOutcome::NotKept => {
            return Err(Failure::new(ErrorCode::AlreadyDone, format!("request {first} was carried out")));
        }
    };
    response.headers_mut().insert(REPLAYED_HEADER, HeaderValue::from_static("true"));
    Ok(response)
}

fn begun(operations: &[Operation]) -> String {
    if operations.is_empty() {
        return "no operation was begun in its name".into();
    }
    let named: Vec<String> =
        operations.iter().map(|operation| format!("{} {}", operation.kind, operation.id)).collect();
    format!("it began {}", named.join(", "))
}

fn reused(first: RequestId) -> Failure {
    let message = format!("this idempotency key came with another request before ({first})");
    Failure::new(ErrorCode::KeyReused, message).hint("use a new key for a new request")
}

/// Of all that makes two requests the same. Each part is preceded by its length.
fn fingerprint(parts: &Parts, body: &[u8]) -> [u8; 32] {
    let Parts { method, uri, headers, .. } = parts;
    let mut hasher = blake3::Hasher::new_derive_key("offshoot request by idempotency key 2026");
    let mut add = |part: &[u8]| {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
    };
    add(method.as_str().as_bytes());
    add(uri.path().as_bytes());
    add(uri.query().unwrap_or_default().as_bytes());
    for name in [header::CONTENT_TYPE.as_str(), TRANSACTION_HEADER, AGENT_HEADER, NO_WAKE_HEADER] {
        add(headers.get(name).map(HeaderValue::as_bytes).unwrap_or_default());
    }
    add(body);
    *hasher.finalize().as_bytes()
}

/// The hash of a body that is being read by somebody else.
#[derive(Debug, Clone)]
struct Content(Arc<Mutex<Hashed>>);

#[derive(Debug)]
struct Hashed {
    hasher: blake3::Hasher,
    /// The body came to its end, and did not break before.
    whole: bool,
    broken: bool,
}

impl Content {
    /// `None` unless all of the body came.
    fn hash(&self) -> Option<[u8; 32]> {
        let hashed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        hashed.whole.then(|| *hashed.hasher.finalize().as_bytes())
    }
}

fn hashed(body: Body) -> (Body, Content) {
    let content =
        Content(Arc::new(Mutex::new(Hashed { hasher: blake3::Hasher::new(), whole: false, broken: false })));
    let chunks = body.into_data_stream().map(Some).chain(futures::stream::iter([None]));
    let hashing = content.clone();
    let body = chunks.filter_map(move |chunk| {
        let mut hashed = hashing.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &chunk {
            Some(Ok(bytes)) => drop(hashed.hasher.update(bytes)),
            Some(Err(_)) => hashed.broken = true,
            None => hashed.whole = !hashed.broken,
        }
        std::future::ready(chunk)
    });
    (Body::from_stream(body), content)
}
