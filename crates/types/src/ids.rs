//! Typed identifiers: a `VmId` can never be passed where an `OperationId` is meant.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use uuid::Uuid;

/// The text was not an id of the expected kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a valid {kind} id (expected a UUID)")]
pub struct InvalidId {
    pub text: String,
    pub kind: &'static str,
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// A new time-ordered id (UUIDv7): later ids sort after earlier ones.
            #[expect(clippy::new_without_default, reason = "a fresh random id is not a default value")]
            pub fn new() -> Self { Self(Uuid::now_v7()) }
            pub const fn from_uuid(uuid: Uuid) -> Self { Self(uuid) }
            pub const fn as_uuid(&self) -> &Uuid { &self.0 }
            /// 32 hex digits, safe as a file name.
            pub fn simple(&self) -> String { self.0.simple().to_string() }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { self.0.fmt(f) }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { write!(f, concat!($kind, ":{}"), self.0) }
        }
        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Uuid::parse_str(text).map(Self).map_err(|_| InvalidId { text: text.into(), kind: $kind })
            }
        }
    };
}

uuid_id!(/// A virtual machine, for its whole life.
    VmId, "vm");
uuid_id!(/// One journaled change that somebody asked for.
    OperationId, "operation");
uuid_id!(/// A node in the tree of states.
    SnapshotId, "snapshot");
uuid_id!(/// One layer of a disk: what was written between two snapshots.
    LayerId, "disk layer");
uuid_id!(/// A span of changes to one VM that is kept or undone as a whole.
    TransactionId, "transaction");
uuid_id!(/// One process run in a VM.
    ExecId, "exec");
uuid_id!(/// One request as the caller sees it; printed with every error.
    RequestId, "request");
uuid_id!(/// An API key; not the secret itself.
    KeyId, "key");

/// Position in the `events` table: strictly increasing, never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EventId(pub u64);

/// SHA-256 of an image manifest: what a VM is bound to, whatever a tag says later.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageDigest(String);

impl ImageDigest {
    /// 64 lower-case hex digits, without the `sha256:` prefix.
    pub fn hex(&self) -> &str {
        &self.0
    }
    /// The first twelve digits, as shown in lists.
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}
impl FromStr for ImageDigest {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        let valid = hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if valid { Ok(Self(hex.into())) } else { Err(InvalidId { text: text.into(), kind: "image" }) }
    }
}
impl TryFrom<String> for ImageDigest {
    type Error = InvalidId;
    fn try_from(text: String) -> Result<Self, InvalidId> {
        text.parse()
    }
}
impl From<ImageDigest> for String {
    fn from(digest: ImageDigest) -> String {
        digest.to_string()
    }
}
impl fmt::Display for ImageDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}
impl fmt::Debug for ImageDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "image:{}", self.short())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_made_later_sort_later() {
        let ids: Vec<VmId> = (0..100).map(|_| VmId::new()).collect();
        assert!(ids.is_sorted(), "UUIDv7 keeps creation order");
    }

    #[test]
    fn an_image_digest_round_trips_and_rejects_short_or_upper_case_text() {
        let text = format!("sha256:{}", "0a".repeat(32));
        assert_eq!(text.parse::<ImageDigest>().unwrap().to_string(), text);
        assert!("sha256:0a".parse::<ImageDigest>().is_err());
        assert!("0A".repeat(32).parse::<ImageDigest>().is_err());
    }
}
