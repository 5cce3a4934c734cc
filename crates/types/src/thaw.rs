//! What a guest attests after it was restored: no fork is handed out without it.

use crate::{ContextName, Language};
use serde::{Deserialize, Serialize};

/// What was renewed in a restored guest, as it says itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attestations {
    pub kernel_random: Reseeded,
    /// Guest clock minus host clock after it was set.
    pub clock_offset_ns: i64,
    pub hostname: String,
    pub machine_id: String,
    /// `SHA256:...` of each new host key; empty if the identity was kept or the guest has no SSH server.
    pub ssh_host_keys: Vec<String>,
    /// Connections of the state before that were cut.
    pub connections_dropped: u32,
    pub interpreters: Vec<Interpreter>,
    /// Processes whose user-space random state is whatever it was: nobody can renew it for them.
    pub processes_not_reseeded: u32,
    pub hooks: Vec<ThawHook>,
    /// From the host's request to the guest's answer.
    pub took_us: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reseeded", rename_all = "kebab-case")]
pub enum Reseeded {
    /// With fresh entropy of the host.
    Yes,
    /// It was never shared: the host's kernel provides it.
    HostProvided,
    No {
        reason: String,
    },
}

/// A live context and whether its random state was renewed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interpreter {
    pub context: ContextName,
    pub language: Language,
    pub random: Reseeded,
}

/// A program of `/etc/offshoot/thaw.d` and how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThawHook {
    pub name: String,
    pub status: i32,
}
