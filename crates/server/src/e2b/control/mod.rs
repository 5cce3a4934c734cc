//! The control plane of E2B's API: making, finding, resting, forking and ending sandboxes. Keys are checked in front of it.
//!
//! ```text
//! wire (wire.rs) --> Command --permit--> engine --> VmView --> wire (view.rs)      a failure --> {code, message} (error.rs)
//! ```
//! What the wire says of a sandbox and a VM has no word for is kept in labels of its own (`labels.rs`). A sandbox is any VM
//! that outlives the request it was made by, however it was made.

mod asked;
mod branches;
mod create;
mod error;
mod labels;
mod life;
mod list;
mod network;
mod observe;
mod templates;
mod view;
mod wire;

pub(super) use labels::{is_made_here, is_open};

use crate::http::App;
use axum::{
    Router,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use error::Refused;
use offshoot_types::{ErrorCode, Failure};

/// Whether a path is of this API, be there such a route or not: what the first of its names is, its version apart.
pub fn is_of_control(path: &str) -> bool {
    let mut names = path.trim_start_matches('/').split('/');
    let first = match names.next() {
        Some("v2" | "v3") => names.next(),
        first => first,
    };
    matches!(first, Some("sandboxes" | "snapshots" | "templates" | "volumes" | "secrets"))
}

/// A failure that was met before a handler was, as this API says it.
pub fn refusal(failure: Failure) -> Response {
    Refused::from(failure).written()
}

/// A path of this API, asked in a way that it is not asked.
pub fn no_such_method() -> Response {
    let failure = Failure::new(ErrorCode::InvalidArgument, "this route has no such method");
    Refused::with(StatusCode::METHOD_NOT_ALLOWED, failure).into_response()
}

/// The routes, each as the SDKs ask for it; the older ones have the same shapes.
pub fn routes() -> Router<App> {
    Router::new()
        .route("/v2/sandboxes", post(create::create).get(list::list))
        .route("/sandboxes", post(create::create_by_older).get(list::list))
        .route("/sandboxes/metrics", get(observe::metrics_of_many))
        .route("/sandboxes/{id}", get(list::show).delete(life::kill))
        .route("/sandboxes/{id}/timeout", post(life::timeout))
        .route("/sandboxes/{id}/refreshes", post(life::refresh))
        .route("/sandboxes/{id}/pause", post(life::pause))
        .route("/sandboxes/{id}/connect", post(life::connect))
        .route("/sandboxes/{id}/resume", post(life::resume))
        .route("/v2/sandboxes/{id}/connect", post(life::connect))
        .route("/sandboxes/{id}/fork", post(branches::fork))
        .route("/sandboxes/{id}/snapshots", post(branches::snapshot))
        .route("/sandboxes/{id}/network", put(network::update))
        .route("/sandboxes/{id}/metrics", get(observe::metrics))
        .route("/sandboxes/{id}/logs", get(observe::logs))
        .route("/v2/sandboxes/{id}/logs", get(observe::logs_v2))
        .route("/snapshots", get(branches::list))
        .route("/templates", get(templates::list).post(templates::unsupported))
        .route("/v2/templates", get(templates::list).post(templates::unsupported))
        .route("/v3/templates", post(templates::unsupported))
        .route("/templates/aliases/{alias}", get(templates::alias))
        .route(
            "/templates/{id}",
            get(templates::show).delete(templates::remove).patch(templates::unsupported),
        )
        .route("/v2/templates/{id}", axum::routing::patch(templates::unsupported))
        .route("/volumes", get(templates::no_volumes).post(templates::no_volumes))
        .route("/secrets", get(templates::no_secrets).post(templates::no_secrets))
}
