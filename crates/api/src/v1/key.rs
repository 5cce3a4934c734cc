//! API keys.

use super::{InvalidField, invalid::parse, schema};
use jiff::{SignedDuration, Timestamp};
use offshoot_types::{KeyId, KeyName, ProviderKind, Scopes, VmPrefix};
use serde::{Deserialize, Serialize};
use std::num::NonZeroU32;
use utoipa::ToSchema;

/// Longest life of a key that ends: ten years.
const MOST_TTL_MS: u64 = 10 * 366 * 24 * 3600 * 1000;

/// What a new key is to be good for. Whatever is absent is as whoever makes it has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateKey {
    /// `^[a-z0-9][a-z0-9_-]{0,62}$`, unique; `key-` and digits if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Of `vms:read`, `vms:write`, `exec`, `files`, `snapshots`, `images`, `keys`, `daemon`, and `*` for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scopes: Option<Vec<String>>,
    /// It is good for VMs whose names begin so, and no others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm_prefix: Option<String>,
    /// It makes VMs on this one only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// VMs that exist at once of those made with it; 1 or more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_vms: Option<u32>,
    /// Requests a second, in bursts of as many; 1 or more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u32>,
    /// After this nobody is known by it any more; 1000 or more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<u64>,
}

/// A checked [`CreateKey`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewKey {
    pub name: KeyName,
    pub scopes: Option<Scopes>,
    pub vm_prefix: Option<VmPrefix>,
    pub provider: Option<ProviderKind>,
    pub max_vms: Option<NonZeroU32>,
    pub rate: Option<NonZeroU32>,
    pub ttl: Option<SignedDuration>,
}

impl TryFrom<CreateKey> for NewKey {
    type Error = InvalidField;
    fn try_from(wire: CreateKey) -> Result<Self, InvalidField> {
        let positive = |field, value: Option<u32>| match value {
            None => Ok(None),
            Some(value) => NonZeroU32::new(value)
                .map(Some)
                .ok_or_else(|| InvalidField::new(field, "0 would be good for nothing; leave it out")),
        };
        let name = match &wire.name {
            Some(name) => parse("name", name)?,
            None => format!("key-{}", &KeyId::new().simple()[20..]).parse().expect("digits are a valid name"),
        };
        let scopes = wire.scopes.map(|words| Scopes::parse(words.iter().map(String::as_str))).transpose();
        let ttl = match wire.ttl_ms {
            None => None,
            Some(ms @ 1000..=MOST_TTL_MS) => Some(SignedDuration::from_millis(ms as i64)),
            Some(ms) => {
                let problem = format!("{ms} is not between 1000 and {MOST_TTL_MS}");
                return Err(InvalidField::new("ttl_ms", problem));
            }
        };
        Ok(Self {
            name,
            scopes: scopes.map_err(|error| InvalidField::new("scopes", error))?,
            vm_prefix: wire.vm_prefix.as_deref().map(|text| parse("vm_prefix", text)).transpose()?,
            provider: wire.provider.as_deref().map(|text| parse("provider", text)).transpose()?,
            max_vms: positive("max_vms", wire.max_vms)?,
            rate: positive("rate", wire.rate)?,
            ttl,
        })
    }
}

/// One key, without its secret. A limit that is absent is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Key {
    #[schema(schema_with = schema::uuid)]
    pub id: KeyId,
    pub name: String,
    /// `*`: all there are and will be.
    pub scopes: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm_prefix: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_vms: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schema::timestamp)]
    pub expires: Option<Timestamp>,
    /// The key it was made with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schema::uuid)]
    pub parent: Option<KeyId>,
    #[schema(schema_with = schema::timestamp)]
    pub created: Timestamp,
}

/// A new key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeyCreated {
    /// The secret, shown this once.
    pub key: String,
    #[serde(flatten)]
    pub details: Key,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeyList {
    pub keys: Vec<Key>,
    /// Of the next page, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeysRemoved {
    /// With those that were made with it.
    #[schema(value_type = Vec<String>)]
    pub removed: Vec<KeyId>,
}
