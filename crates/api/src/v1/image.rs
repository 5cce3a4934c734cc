//! Images known to the daemon. They are built by the CLI, which needs no daemon for it.

use super::schema;
use jiff::Timestamp;
use offshoot_types::ImageDigest;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageList {
    pub images: Vec<Image>,
    /// Of the next page, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Image {
    #[schema(value_type = String)]
    pub digest: ImageDigest,
    pub tags: Vec<String>,
    pub default_memory_mib: u64,
    pub size_bytes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schema::timestamp)]
    pub created: Option<Timestamp>,
}

/// Every part was read in full and matches its digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageVerified {
    #[schema(value_type = String)]
    pub digest: ImageDigest,
    pub parts: Vec<ImageFile>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageFile {
    /// `kernel`, `initramfs`, `root`, `disk`.
    pub name: String,
    /// SHA-256, hexadecimal.
    pub sha256: String,
    pub size_bytes: u64,
}
