//! Who asks.

use crate::{KeyId, Owner, VmId};
use serde::{Deserialize, Serialize};
use std::fmt;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Actor {
    /// A process on this host, known by the kernel's word for its user id (`SO_PEERCRED`).
    LocalUser { uid: u32, owner: Owner },
    /// Whoever holds an API key; what it may do are facts about the key.
    ApiKey { id: KeyId, owner: Owner },
    /// Whoever holds the access token of one VM.
    Sandbox { vm: VmId, owner: Owner },
    /// The daemon itself: reconciliation, reaping, idle shutdown.
    Daemon,
}

impl Actor {
    /// The owner of whatever this actor makes.
    pub fn owner(&self) -> Owner {
        match self {
            Self::LocalUser { owner, .. } | Self::ApiKey { owner, .. } | Self::Sandbox { owner, .. } => {
                owner.clone()
            }
            Self::Daemon => Owner::default(),
        }
    }
}
impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LocalUser { uid, .. } => write!(f, "uid:{uid}"),
            Self::ApiKey { id, .. } => write!(f, "key:{id}"),
            Self::Sandbox { vm, .. } => write!(f, "sandbox:{vm}"),
            Self::Daemon => f.write_str("daemon"),
        }
    }
}
