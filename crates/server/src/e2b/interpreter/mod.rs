//! The code interpreter of one sandbox: its live contexts, as E2B's SDKs use them.
//!
//! ```text
//! POST /execute    code in a context --> lines of JSON (execute), each value as one object (result)
//! GET, POST /contexts    DELETE /contexts/{id}    POST /contexts/{id}/restart
//! GET /health
//! ```
//! A context is a live context of the VM, and its id is the context's name. Code that names none runs in the default one
//! of its language, made by the first such code; those of Python and JavaScript are listed before that, as clients expect.

mod contexts;
mod execute;
mod failure;
mod result;

use crate::http::App;
use axum::{
    Router,
    routing::{delete, get, post},
};
use offshoot_types::{ContextName, Language};

/// Bytes of one request: code with what it is to find in its environment.
const MAX_BODY: usize = 2 * 1024 * 1024;

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/health", get(async || "OK"))
        .route("/execute", post(execute::execute))
        .route("/contexts", get(contexts::list).post(contexts::create))
        .route("/contexts/{id}", delete(contexts::remove))
        .route("/contexts/{id}/restart", post(contexts::restart))
}

/// The context of code that names none.
fn default_context(language: Language) -> ContextName {
    format!("default-{language}").parse().expect("a language's name is lower-case letters")
}

/// The language whose default context this is.
fn default_of(context: &ContextName) -> Option<Language> {
    Language::ALL.into_iter().find(|&language| *context == default_context(language))
}
