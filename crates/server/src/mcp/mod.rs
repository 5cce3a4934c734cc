//! `/mcp`: the tools of `offshoot-mcp` over HTTP, for whoever may use the API.
//!
//! ```text
//! identify --> serve: Origin? whose session? --> rmcp --> offshoot_mcp::Server, one for each session
//!                                                              |  Client, as the caller that began the session
//!              router without this (identify, policy, ...) <---'  ../inside.rs
//! ```
//! A session is of the caller who began it: for everybody else there is none. It ends when its client says so, when
//! nothing was said in it for [`SILENCE`], with its API key, and with the daemon; what becomes of its VM then is the
//! session's to say.

mod sessions;

use crate::{
    activity::Present,
    http::{ApiError, App, Call, KeyEnds, Query},
    inside,
};
use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{Uri, request::Parts},
    response::{IntoResponse, Response},
    routing::any,
};
use offshoot_api::v1::{CreateVm, InvalidField};
use offshoot_mcp::{Options, Server, Session};
use offshoot_types::{ErrorCode, Failure, KeyLimits};
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use serde::Deserialize;
use sessions::{Opening, Sessions};
use std::{io, sync::Arc, time::Duration};

/// After so long without a message a session is over.
const SILENCE: Duration = Duration::from_secs(3600);
/// Web pages that may speak to it are those of this host: others have no business with a daemon, whatever name leads
/// there.
const ORIGINS: [&str; 6] = [
    "http://localhost:*",
    "https://localhost:*",
    "http://127.0.0.1:*",
    "https://127.0.0.1:*",
    "http://[::1]:*",
    "https://[::1]:*",
];
const SESSION_HEADER: &str = "mcp-session-id";

/// `api` is what tools ask.
pub fn routes(app: &App, api: Router) -> Router<App> {
    let door = Arc::new(Door::new(app, api));
    Router::new().route(
        "/mcp",
        any(move |call: Call, request: Request| {
            let door = door.clone();
            async move { door.serve(call, request).await }
        }),
    )
}

struct Door {
    api: Router,
    sessions: Arc<Sessions>,
    service: StreamableHttpService<Server, Sessions>,
}

/// What a session is to be, in the query of the request that begins it.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    vm: Option<String>,
    image: Option<String>,
    at_end: Option<String>,
}

impl Door {
    fn new(app: &App, api: Router) -> Self {
        let sessions = Arc::new(Sessions::new(app.clone(), SILENCE));
        let config = StreamableHttpServerConfig::default()
            // Over TCP nobody is heard without an API key, which no page knows that a name was bent for.
            .disable_allowed_hosts()
            .with_allowed_origins(ORIGINS)
            .with_cancellation_token(app.shutdown.requested_token());
        let service = StreamableHttpService::new(server, sessions.clone(), config);
        Self { api, sessions, service }
    }

    async fn serve(&self, call: Call, request: Request) -> Response {
        match self.answer(call, request).await {
            Ok(response) => response,
            Err(error) => error.into_response(),
        }
    }

    async fn answer(&self, call: Call, request: Request) -> Result<Response, ApiError> {
        if let Some(id) = request.headers().get(SESSION_HEADER).and_then(|id| id.to_str().ok()) {
            if !self.sessions.is_of(id, &call.actor) {
                return Err(Failure::new(ErrorCode::NotFound, "there is no such session of yours")
                    .hint("begin a new one with `initialize`")
                    .into());
            }
            return Ok(self.service.handle(request).await.map(Body::new));
        }
        let (parts, body) = request.into_parts();
        let present = self.sessions.admit(&call.actor)?;
        let opening = self.opening(&call, &parts, present)?;
        let answer = self.service.handle(Request::from_parts(parts, body));
        Ok(opening.scope(answer).await.map(Body::new))
    }

    /// All that a session needs, should the request begin one.
    fn opening(&self, call: &Call, parts: &Parts, present: Present) -> Result<Opening, ApiError> {
        let options = options(&parts.uri, call.engine.key_limits(&call.actor))?;
        let client = inside::client(call, self.api.clone(), parts)?;
        let session = Session::not_begun(client, options)?;
        let ends = parts.extensions.get::<KeyEnds>().cloned();
        Ok(Opening::new(session, call.actor.clone(), ends, present))
    }
}

/// One for each session that begins.
fn server() -> io::Result<Server> {
    Opening::session().map(Server::named).ok_or_else(|| io::Error::other("no session is being begun"))
}

fn options(uri: &Uri, limits: Option<KeyLimits>) -> Result<Options, ApiError> {
    let Query(Wanted { vm, image, at_end }) = Query::of(uri)?;
    let invalid = |field: &'static str| move |problem: String| InvalidField::new(field, problem);
    let vm = vm.map(|vm| vm.parse().map_err(|error| invalid("vm")(format!("{error}")))).transpose()?;
    let at_end = at_end.map(|end| end.parse().map_err(invalid("at_end"))).transpose()?;
    let limits = limits.unwrap_or(KeyLimits::NONE);
    let create = CreateVm {
        // What an API key is good for.
        name: limits.vm_prefix.map(|prefix| prefix.to_string()).unwrap_or_default(),
        provider: limits.provider.map(|provider| provider.to_string()),
        image,
        ..CreateVm::default()
    };
    Ok(Options { vm, create, at_end: at_end.unwrap_or_default() })
}
