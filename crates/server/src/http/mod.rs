//! The HTTP API, one file per resource.
//!
//! ```text
//! connection (Caller) -> request::surround -> identify -> once -> extractors -> handler
//! handler: wire -> Command --permit--> engine -> wire
//! ```
//! The OpenAPI document is made from the same list of routes that the router is made from, so no route can be
//! missing from it.

mod changes;
pub(crate) mod channel;
mod code_session;
mod console;
mod contexts;
mod create;
mod daemon;
mod diff;
mod error;
mod events;
mod exec;
mod exec_session;
mod extract;
mod files;
mod files_stream;
mod forks;
mod history;
mod history_view;
mod images;
mod key_ends;
mod keys;
pub(crate) mod once;
mod openapi;
mod operations;
mod portable;
mod ports;
mod previews;
mod race_session;
mod replay;
mod request;
mod rollbacks;
mod run;
mod settings;
mod snapshots;
mod tcp;
mod transactions;
mod try_session;
mod view;
mod vms;

pub use changes::finished;
pub use create::specify;
pub use error::ApiError;
pub use extract::{BODY_DEADLINE, Json, Query, Unread, Upgrade, parse_json, read_body};
pub(crate) use files_stream::drain;
pub(crate) use key_ends::KeyEnds;
pub use openapi::openapi_json;
pub use request::{Call, Caller, key_of, nobody};
pub(crate) use vms::glance;

use crate::{
    activity::{Activity, UnderWay},
    e2b,
    images::HostImages,
    mcp,
    preview::Origin,
    shutdown::Shutdown,
    tasks::Tasks,
    terraphim,
};
use axum::{
    Router,
    http::Uri,
    middleware,
    response::{IntoResponse, Response},
};
use offshoot_api::v1::{DaemonRecord, MAX_WAIT_MS};
use offshoot_engine::Engine;
use offshoot_policy::Policy;
use offshoot_types::{ErrorCode, Failure};
use std::{ops::Deref, sync::Arc, time::Duration};
use utoipa_axum::{router::OpenApiRouter, routes};

/// What handlers share.
#[derive(Debug, Clone)]
pub struct App(Arc<Shared>);

#[derive(Debug)]
pub struct Shared {
    pub engine: Engine,
    pub policy: Policy,
    pub images: HostImages,
    pub record: DaemonRecord,
    pub activity: Activity,
    pub under_way: UnderWay,
    pub shutdown: Shutdown,
    pub tasks: Tasks,
    /// What opens single VMs.
    pub tokens: e2b::Tokens,
    /// Where browsers of this host find the daemon, if it listens for them.
    pub front: Option<Origin>,
}

impl App {
    pub fn new(shared: Shared) -> Self {
        Self(Arc::new(shared))
    }
}
impl Deref for App {
    type Target = Shared;
    fn deref(&self) -> &Shared {
        &self.0
    }
}

/// The routes for whom nobody has to be known.
fn open_routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(daemon::alive)).routes(routes!(daemon::alive_too))
}

/// Every other route there is.
fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(openapi::frame())
        .routes(routes!(daemon::health))
        .routes(routes!(daemon::openapi))
        .routes(routes!(daemon::status))
        .routes(routes!(daemon::stop))
        .routes(routes!(vms::list, create::create))
        .routes(routes!(vms::show, changes::destroy, settings::describe))
        .routes(routes!(vms::wait))
        .routes(routes!(changes::start))
        .routes(routes!(changes::stop))
        .routes(routes!(changes::restart))
        .routes(routes!(changes::pause))
        .routes(routes!(changes::resume))
        .routes(routes!(changes::suspend))
        .routes(routes!(settings::snapshot_policy))
        .routes(routes!(settings::life))
        .routes(routes!(snapshots::take, snapshots::list_of))
        .routes(routes!(snapshots::list))
        .routes(routes!(snapshots::show, snapshots::remove))
        .routes(routes!(snapshots::verify))
        .routes(routes!(portable::export))
        .routes(routes!(portable::import))
        .routes(routes!(forks::fork))
        .routes(routes!(diff::diff))
        .routes(routes!(rollbacks::rollback))
        .routes(routes!(rollbacks::undo))
        .routes(routes!(transactions::begin, transactions::list))
        .routes(routes!(transactions::commit))
        .routes(routes!(transactions::rollback))
        .routes(routes!(try_session::attempt))
        .routes(routes!(race_session::race))
        .routes(routes!(code_session::run))
        .routes(routes!(contexts::list))
        .routes(routes!(contexts::remove))
        .routes(routes!(contexts::restart))
        .routes(routes!(exec::collect, exec::stream))
        .routes(routes!(exec::list))
        .routes(routes!(exec::attach))
        .routes(routes!(run::run))
        .routes(routes!(files_stream::read, files_stream::write))
        .routes(routes!(files::stat))
        .routes(routes!(files::list))
        .routes(routes!(files::mkdir))
        .routes(routes!(files::rename))
        .routes(routes!(files::remove))
        .routes(routes!(files::symlink))
        .routes(routes!(files::chmod))
        .routes(routes!(console::console))
        .routes(routes!(tcp::tcp))
        .routes(routes!(previews::create))
        .routes(routes!(operations::list))
        .routes(routes!(operations::show))
        .routes(routes!(history::list))
        .routes(routes!(history::list_of))
        .routes(routes!(history::show))
        .routes(routes!(history::stdout))
        .routes(routes!(history::stderr))
        .routes(routes!(replay::replay))
        .routes(routes!(events::events))
        .routes(routes!(images::list))
        .routes(routes!(images::remove))
        .routes(routes!(images::verify))
        .routes(routes!(keys::create, keys::list))
        .routes(routes!(keys::remove))
}

/// The service behind every connection.
pub fn router(app: App) -> Router {
    let api = with(&app, Router::new());
    // Both are callers of the API like any other.
    with(&app, mcp::routes(&app, api.clone()).merge(terraphim::routes(&app, api)))
}

/// The API, and `more` for whoever is known.
fn with(app: &App, more: Router<App>) -> Router {
    let app = app.clone();
    let ((keyed, _), (open, _)) = (routes().split_for_parts(), open_routes().split_for_parts());
    let native = keyed
        .route_layer(middleware::from_fn_with_state(app.clone(), once::once))
        .merge(e2b::control_routes())
        .merge(ports::routes())
        .merge(more)
        .fallback(no_such_route)
        .method_not_allowed_fallback(no_such_method)
        .layer(middleware::from_fn_with_state(app.clone(), request::identify))
        .merge(open);
    // Whatever names a sandbox goes to the sandbox, before anything else is looked at.
    let router = native.layer(middleware::from_fn_with_state(e2b::Doors::new(app.clone()), e2b::route));
    let bounded = router.layer(middleware::from_fn_with_state(app.clone(), request::bound));
    bounded.layer(middleware::from_fn(request::surround)).with_state(app)
}

async fn no_such_route() -> ApiError {
    Failure::new(ErrorCode::NotFound, "there is no such route").hint("GET /v1/openapi.json lists them").into()
}

async fn no_such_method(uri: Uri) -> Response {
    if e2b::is_of_control(uri.path()) {
        return e2b::no_such_method();
    }
    let failure = Failure::new(ErrorCode::MethodNotAllowed, "this route has no such method");
    ApiError::from(failure.hint("GET /v1/openapi.json lists them")).into_response()
}

/// How long a long poll may take.
fn bounded_wait(milliseconds: Option<u64>) -> Duration {
    Duration::from_millis(milliseconds.unwrap_or(0).min(MAX_WAIT_MS))
}
