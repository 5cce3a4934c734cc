//! Code from models: the wire of Terraphim's clients, over the API.
//!
//! ```text
//! identify --> handler --asked.rs--> workflow.rs: blocks of the text (offshoot-code), one after the other
//!                 |                     '-> step.rs: approval? --> transaction --> run/ --> kept | rolled back
//!                 '--> vms.rs, agents.rs, sessions.rs: Client, as the caller (../inside.rs) --> router without this
//! ```
//! Nothing here has a right of its own. Code runs by `Command::RunCode` or by an exec, as from anybody; all else is asked of
//! the API by the caller's own key. What the wire says of a thing is said here and nowhere else. A failure is the one of the
//! API with `error` besides, which is what these clients read.

mod agents;
mod approvals;
mod asked;
mod code;
mod config;
mod files;
mod history;
mod run;
mod sessions;
mod settings;
mod socket;
mod step;
mod told;
mod vms;
mod workflow;

use crate::{
    http::{ApiError, App, Call, once},
    inside,
};
use approvals::Approvals;
use axum::{
    Router,
    extract::{Extension, FromRequestParts},
    http::request::Parts,
    middleware,
    routing::{any, delete, get, post},
};
use offshoot_api::Client;
use offshoot_types::{ErrorCode, Failure, TransactionId};
pub use settings::MAX_BODY;
use std::{fmt, sync::Arc};

/// Whether a path is of this API, be there such a route or not.
pub fn is_of_wire(path: &str) -> bool {
    let first = path.trim_start_matches('/').split('/').next();
    matches!(first, Some("api" | "sessions" | "ws"))
}

/// `api` is what handlers ask.
pub fn routes(app: &App, api: Router) -> Router<App> {
    let desk = Desk(Arc::new(Shared { api, approvals: Approvals::default() }));
    Router::new()
        .route("/api/llm/execute", post(code::execute))
        .route("/api/llm/parse-execute", post(code::parse_execute))
        .route("/api/llm/vm-pool/{agent}", get(agents::pool))
        .route("/api/llm/provision/{agent}", post(agents::provision))
        .route("/api/vms", post(vms::create).get(vms::list))
        .route("/api/vms/metrics", get(vms::metrics_of_all))
        .route("/api/vms/{vm}", get(vms::show).delete(vms::destroy))
        .route("/api/vms/{vm}/metrics", get(vms::metrics))
        .route("/api/vms/{vm}/tasks", get(vms::tasks))
        .route("/api/vms/{vm}/history", get(history::list))
        .route("/api/vms/{vm}/snapshots", post(vms::snapshot).get(vms::snapshots))
        .route("/api/vms/{vm}/snapshots/{snapshot}", delete(vms::remove_snapshot))
        .route("/api/vms/{vm}/rollback/{snapshot}", post(vms::rollback))
        .route("/api/vms/{vm}/upload", post(files::upload))
        .route("/api/vms/{vm}/download", get(files::download))
        .route("/api/vm-pool", any(no_addresses))
        .route("/api/vm-pool/{*rest}", any(no_addresses))
        .route("/api/v2/{*rest}", any(no_second_version))
        .route("/sessions", post(sessions::open))
        .route("/sessions/{session}", delete(sessions::close))
        .route("/sessions/{session}/execute", post(sessions::execute))
        .route("/sessions/{session}/snapshots", post(sessions::snapshot))
        .route("/sessions/{session}/rollback", post(sessions::rollback))
        .route("/sessions/{session}/info", get(sessions::info))
        .route("/ws", get(socket::open))
        .route_layer(middleware::from_fn_with_state(app.clone(), once::once))
        .layer(Extension(desk))
}

/// What handlers share.
#[derive(Clone)]
struct Desk(Arc<Shared>);

struct Shared {
    api: Router,
    approvals: Approvals,
}

/// One request, and the way to the API as whoever made it.
#[derive(Clone)]
struct Asker {
    call: Call,
    client: Client,
    desk: Desk,
}

impl Asker {
    /// The same from within an open transaction.
    fn within(&self, transaction: TransactionId) -> Self {
        let mut call = self.call.clone();
        call.engine = call.app.engine.within(transaction);
        call.within = Some(transaction);
        Self { call, client: self.client.within(transaction), desk: self.desk.clone() }
    }

    /// The same on behalf of one of the caller's agents, for the history.
    fn on_behalf_of(&self, agent: &str) -> Self {
        let agent = history::agent_name(agent);
        let mut call = self.call.clone();
        call.agent = Some(agent.clone());
        Self { call, client: self.client.on_behalf_of(agent), desk: self.desk.clone() }
    }

    fn approvals(&self) -> &Approvals {
        &self.desk.0.approvals
    }
}

impl fmt::Debug for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asker").field("actor", &self.call.actor).finish_non_exhaustive()
    }
}

impl FromRequestParts<App> for Asker {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let call = Call::from_request_parts(parts, app).await?;
        let desk = parts.extensions.get::<Desk>().cloned().ok_or_else(crate::http::nobody)?;
        let client = inside::client(&call, desk.0.api.clone(), parts)?;
        Ok(Self { call, client, desk })
    }
}

async fn no_addresses() -> ApiError {
    Failure::new(
        ErrorCode::Unsupported,
        "VMs here have no network interface, so there is no pool of addresses",
    )
    .hint("`/api/llm/vm-pool/AGENT` lists an agent's VMs; ports of a VM are reached by `offshoot port`")
    .into()
}

async fn no_second_version() -> ApiError {
    Failure::new(ErrorCode::Unsupported, "version 2 of this API was never served by anybody")
        .hint("use `/api/llm/execute`, `/api/llm/parse-execute` and `/api/vms`")
        .into()
}

#[cfg(test)]
mod tests {
    use super::is_of_wire;

    #[test]
    fn its_paths_are_known_and_others_are_not_its() {
        for path in ["/api/vms", "/api/none", "/sessions", "/sessions/x/info", "/ws"] {
            assert!(is_of_wire(path), "{path}");
        }
        for path in ["/", "/v1/vms", "/apis", "/v1/api", "/sandboxes", "/wss", "/health"] {
            assert!(!is_of_wire(path), "{path}");
        }
    }
}
