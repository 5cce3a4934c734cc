//! What a guest attests after it was restored.

use offshoot_types::{self as types, ContextName, Language};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What was renewed in a restored guest, as it says itself. No fork is handed out without it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Attestations {
    /// The kernel's random numbers.
    pub kernel_random: Reseeded,
    /// Guest clock minus host clock after it was set, in nanoseconds.
    pub clock_offset_ns: i64,
    pub hostname: String,
    pub machine_id: String,
    /// `SHA256:...` of each new host key; empty if the identity was kept or the guest has no SSH server.
    pub ssh_host_keys: Vec<String>,
    /// Connections of the state before that were cut.
    pub connections_dropped: u32,
    /// Each live context, and whether its random numbers were renewed.
    pub interpreters: Vec<Interpreter>,
    /// Other processes, whose own random state nobody can renew for them.
    pub processes_not_reseeded: u32,
    /// Programs of `/etc/offshoot/thaw.d` and how they ended.
    pub hooks: Vec<ThawHook>,
    /// From the host's request to the guest's answer, in microseconds.
    pub took_us: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Interpreter {
    #[schema(value_type = String)]
    pub context: ContextName,
    #[schema(schema_with = super::schema::language)]
    pub language: Language,
    pub random: Reseeded,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ThawHook {
    pub name: String,
    pub status: i32,
}

impl From<types::Reseeded> for Reseeded {
    fn from(reseeded: types::Reseeded) -> Self {
        match reseeded {
            types::Reseeded::Yes => Self::Yes,
            types::Reseeded::HostProvided => Self::HostProvided,
            types::Reseeded::No { reason } => Self::No { reason },
        }
    }
}

impl From<types::Attestations> for Attestations {
    fn from(said: types::Attestations) -> Self {
        let interpreter = |known: types::Interpreter| Interpreter {
            context: known.context,
            language: known.language,
            random: known.random.into(),
        };
        let hook = |hook: types::ThawHook| ThawHook { name: hook.name, status: hook.status };
        Self {
            kernel_random: said.kernel_random.into(),
            clock_offset_ns: said.clock_offset_ns,
            hostname: said.hostname,
            machine_id: said.machine_id,
            ssh_host_keys: said.ssh_host_keys,
            connections_dropped: said.connections_dropped,
            interpreters: said.interpreters.into_iter().map(interpreter).collect(),
            processes_not_reseeded: said.processes_not_reseeded,
            hooks: said.hooks.into_iter().map(hook).collect(),
            took_us: said.took_us,
        }
    }
}
