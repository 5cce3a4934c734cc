//! Names people choose. A name is injective to a file name: two names never share a path.

use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, str::FromStr};

/// Free-form key/value pairs on every row.
pub type Labels = BTreeMap<String, String>;

/// Variables by name, as a program finds them.
pub type Environment = BTreeMap<String, String>;

const MAX: usize = 63;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not a valid {kind}: use 1 to 63 of a-z, 0-9, `-` and `_`, starting with a letter or digit"
)]
pub struct InvalidName {
    pub text: String,
    pub kind: &'static str,
}

fn is_valid(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    let first = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    first && text.len() <= MAX && text.bytes().all(inner)
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            pub fn as_str(&self) -> &str { &self.0 }
        }
        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(text: &str) -> Result<Self, InvalidName> {
                if is_valid(text) { Ok(Self(text.into())) } else { Err(InvalidName { text: text.into(), kind: $kind }) }
            }
        }
        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(text: String) -> Result<Self, InvalidName> { text.parse() }
        }
        impl From<$name> for String {
            fn from(name: $name) -> String { name.0 }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(&self.0) }
        }
    };
}

name!(/// The name of a VM, unique per owner: `^[a-z0-9][a-z0-9_-]{0,62}$`.
    VmName, "VM name");
name!(/// The name of a snapshot, unique per VM: `^[a-z0-9][a-z0-9_-]{0,62}$`.
    SnapshotName, "snapshot name");
name!(/// The name of a live interpreter, unique per VM: `^[a-z0-9][a-z0-9_-]{0,62}$`.
    ContextName, "context name");
name!(/// The name of an API key, unique per owner: `^[a-z0-9][a-z0-9_-]{0,62}$`.
    KeyName, "key name");
name!(/// Whose row this is; `local` unless several owners share a daemon.
    Owner, "owner");
name!(/// The host that holds a row; `local` outside a cluster.
    NodeName, "node name");

impl Default for Owner {
    fn default() -> Self {
        Self("local".into())
    }
}
impl Owner {
    /// Of what a daemon makes for itself, such as templates and the instances of its warm pool. No caller has it.
    pub fn daemon() -> Self {
        Self("offshoot-daemon".into())
    }
}
impl Default for NodeName {
    fn default() -> Self {
        Self("local".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_documented_pattern() {
        for good in ["a", "0", "a-b", "a_b", &"x".repeat(63)] {
            assert_eq!(good.parse::<VmName>().unwrap().as_str(), good);
        }
        for bad in ["", "-a", "_a", "A", "a b", "a/b", "..", "a.b", "é", "a\0", &"x".repeat(64)] {
            assert!(bad.parse::<VmName>().is_err(), "{bad:?} must be refused");
        }
        assert_eq!(Owner::daemon().as_str().parse::<Owner>().unwrap(), Owner::daemon());
    }
}
