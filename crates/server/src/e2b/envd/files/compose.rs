//! One file made of several, which were uploaded apart.

use super::{HttpError, Written};
use crate::{
    e2b::{envd::guest::in_guest, sandbox::Sandbox},
    http::read_body,
};
use axum::{Json, body::Body};
use offshoot_api::v1::MAX_JSON;
use offshoot_guest_proto::{client::Entries, message::MAX_ENTRY_PATHS};
use offshoot_types::{Failure, FileAccess};
use serde::Deserialize;

#[derive(Debug, Deserialize)]
struct Compose {
    #[serde(default)]
    source_paths: Vec<String>,
    #[serde(default)]
    destination: String,
    username: Option<String>,
}

/// They are gone once the whole is in place.
pub async fn compose(sandbox: Sandbox, body: Body) -> Result<Json<Written>, HttpError> {
    let body = read_body(body, MAX_JSON).await.map_err(Failure::from)?;
    let request: Compose = serde_json::from_slice(&body)
        .map_err(|error| HttpError::invalid(format!("invalid request body: {error}")))?;
    let Compose { source_paths, destination, username } = request;
    if source_paths.is_empty() {
        return Err(HttpError::invalid("source_paths must not be empty"));
    }
    if destination.is_empty() {
        return Err(HttpError::invalid("destination is required"));
    }
    if source_paths.iter().map(String::len).sum::<usize>() > MAX_ENTRY_PATHS {
        return Err(HttpError::invalid(format!("source_paths: more than {MAX_ENTRY_PATHS} bytes together")));
    }
    let user = username.as_deref().filter(|user| !user.is_empty()).unwrap_or(&sandbox.user);
    let path = destination.as_str();
    let composed = async |entries: Entries| entries.compose(source_paths, path).await;
    Ok(Json(in_guest(&sandbox, user, FileAccess::Write, path, composed).await?.into()))
}
