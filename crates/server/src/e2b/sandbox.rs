//! The VM that a request is for, opened.

use super::refusal::Refusal;
use crate::http::{App, Call};
use axum::{extract::FromRequestParts, http::request::Parts};
use offshoot_types::{VmId, VmName};

/// Handlers below the router take this. That there is one means that whoever asks may work in this VM; each thing they do
/// is permitted by `call` all the same.
#[derive(Debug, Clone)]
pub struct Sandbox {
    pub call: Call,
    pub vm: VmId,
    /// Its id on the wire.
    pub name: VmName,
    /// As whom things are done: whom the request names, else the default user.
    pub user: String,
}

/// Whom the images make for people.
pub const DEFAULT_USER: &str = "user";

impl FromRequestParts<App> for Sandbox {
    type Rejection = Refusal;
    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, Refusal> {
        // The router puts it there before it hands a request on.
        parts.extensions.get::<Self>().cloned().ok_or(Refusal::Unauthorized)
    }
}
