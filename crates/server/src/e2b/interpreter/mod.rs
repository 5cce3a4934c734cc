//! The code interpreter of one sandbox.

use crate::http::App;
use axum::Router;

/// Of a port's routes, those there are; every other is answered as an unknown one.
pub(super) fn routes() -> Router<App> {
    Router::new()
}
