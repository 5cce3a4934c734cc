//! Bytes of files: `/files`, either way, and `/files/compose`.

mod compose;
mod error;
mod gzip;
mod range;
mod read;
mod write;

pub use compose::compose;
pub use error::HttpError;
pub use read::read;
pub use write::write;

use crate::{e2b::sandbox::Sandbox, http::App};
use axum::{extract::FromRequestParts, http::request::Parts};
use offshoot_guest_proto::message::Entry;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Which file, and whose. The signature that may come with it was checked before.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct FileQuery {
    path: Option<String>,
    username: Option<String>,
}

impl FromRequestParts<App> for FileQuery {
    type Rejection = HttpError;
    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, HttpError> {
        let query = parts.uri.query().unwrap_or_default();
        serde_urlencoded::from_str(query).map_err(|error| HttpError::invalid(format!("the query: {error}")))
    }
}

impl FileQuery {
    /// Whom the query names, else whom the request does.
    fn user<'a>(&'a self, sandbox: &'a Sandbox) -> &'a str {
        self.username.as_deref().filter(|user| !user.is_empty()).unwrap_or(&sandbox.user)
    }
}

/// What was written.
#[derive(Debug, Serialize)]
pub struct Written {
    path: String,
    name: String,
    r#type: &'static str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, String>,
}

impl From<Entry> for Written {
    fn from(entry: Entry) -> Self {
        let name = super::filesystem::name_of(&entry.path).to_owned();
        Self { name, path: entry.path, r#type: "file", metadata: entry.attributes }
    }
}
