//! What the wire calls envd: processes, files and health of one sandbox.
//!
//! ```text
//! /process.Process/*         connect --> the engine's execs: a process is an exec, its pid the guest's
//! /filesystem.Filesystem/*   connect --> the guest's entries (paths as a shell's user types them)
//! /files                     bytes, either way; multipart, gzip, ranges
//! /health /metrics /envs
//! ```

mod connect;
mod process;

use crate::http::App;
use axum::{
    Json, Router,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::json;

/// Of a port's routes, those there are; every other is answered as an unknown one.
pub(super) fn routes() -> Router<App> {
    let process = Router::new()
        .route("/Start", post(process::start))
        .route("/Connect", post(process::connect))
        .route("/List", post(process::list))
        .route("/SendInput", post(process::send_input))
        .route("/StreamInput", post(process::stream_input))
        .route("/CloseStdin", post(process::close_stdin))
        .route("/SendSignal", post(process::send_signal))
        .route("/Update", post(process::update));
    Router::new()
        .route("/health", get(async || StatusCode::NO_CONTENT))
        .nest("/process.Process", process)
        .fallback(unknown)
}

async fn unknown() -> Response {
    let message = "there is nothing of this name in a sandbox";
    (StatusCode::NOT_FOUND, Json(json!({ "code": 404, "message": message }))).into_response()
}
