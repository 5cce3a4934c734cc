//! What the wire calls envd: processes, files and health of one sandbox.
//!
//! ```text
//! /process.Process/*         connect --> the engine's execs: a process is an exec, its pid the guest's
//! /filesystem.Filesystem/*   connect --> the guest's entries (paths as a shell's user types them)
//! /files                     bytes, either way; multipart, gzip, ranges
//! /health /metrics /envs
//! ```

mod connect;
mod files;
mod filesystem;
mod guest;
mod metrics;
mod process;

use crate::http::App;
use axum::{
    Extension, Json, Router,
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
    let filesystem = Router::new()
        .route("/Stat", post(filesystem::stat))
        .route("/MakeDir", post(filesystem::make_dir))
        .route("/Move", post(filesystem::r#move))
        .route("/ListDir", post(filesystem::list_dir))
        .route("/Remove", post(filesystem::remove))
        .route("/WatchDir", post(filesystem::watch_dir))
        .route("/CreateWatcher", post(filesystem::create_watcher))
        .route("/GetWatcherEvents", post(filesystem::get_watcher_events))
        .route("/RemoveWatcher", post(filesystem::remove_watcher))
        .layer(Extension(filesystem::Watchers::default()));
    Router::new()
        .route("/health", get(async || StatusCode::NO_CONTENT))
        .route("/metrics", get(metrics::metrics))
        .route("/envs", get(metrics::envs))
        .route("/files", get(files::read).post(files::write))
        .route("/files/compose", post(files::compose))
        .nest("/process.Process", process)
        .nest("/filesystem.Filesystem", filesystem)
        .fallback(unknown)
}

async fn unknown() -> Response {
    let message = "there is nothing of this name in a sandbox";
    (StatusCode::NOT_FOUND, Json(json!({ "code": 404, "message": message }))).into_response()
}
