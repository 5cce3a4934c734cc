//! Standing still for a snapshot, and waking as a machine of its own.

use super::HostTime;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Hooks one thaw runs at most.
pub const MAX_HOOKS: usize = 32;

/// Answer to `Freeze`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Frozen {
    /// Processes and threads that stand still.
    pub processes: u32,
    /// From the order to the last of them standing still, by the guest's clock.
    pub took_us: u64,
}

/// What a restored state needs to be told before its programs may run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Thaw {
    /// Of this start of a VM: never used for another. A repeated thaw of the same instance answers what the first
    /// one did.
    pub instance: [u8; 16],
    /// The guest's clock is stepped to this, so it is to be read last: see [`HostTime::now`].
    pub time: HostTime,
    /// Fresh from the host's kernel, for this thaw only.
    pub entropy: Entropy,
    /// For a fork. A rollback stays who it was.
    pub identity: Option<NewIdentity>,
}

/// Random bytes; never shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Entropy(#[serde(with = "serde_bytes")] pub [u8; 64]);

impl fmt::Debug for Entropy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Entropy(..)")
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewIdentity {
    pub hostname: String,
    /// Written as 32 hexadecimal digits, see [`NewIdentity::machine_id_text`].
    pub machine_id: [u8; 16],
}

impl NewIdentity {
    /// As `/etc/machine-id` has it, without the newline.
    pub fn machine_id_text(&self) -> String {
        format!("{:032x}", u128::from_be_bytes(self.machine_id))
    }
}

/// What was done before user processes ran again. The guest attests; it is the host who decides what that is worth.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Thawed {
    pub kernel_random: Reseeded,
    /// Guest clock minus host clock after the step, the way of the message not counted.
    pub clock_offset_ns: i64,
    pub hostname: String,
    /// Of `/etc/machine-id`; empty where there is none.
    pub machine_id: String,
    /// Fingerprints (`SHA256:...`) of the SSH host keys made for this identity; empty where there is no SSH server,
    /// and without a new identity.
    pub ssh_host_keys: Vec<String>,
    /// Connections into the VM that were open when it was frozen and are no more.
    pub connections_dropped: u32,
    pub interpreters: Vec<InterpreterThawed>,
    /// User processes that may hold random state of their own, which nobody can reseed for them.
    pub processes_not_reseeded: u32,
    /// `/etc/offshoot/thaw.d/*`, in the order they ran.
    pub hooks: Vec<HookRun>,
}

/// Whether a source of random numbers differs from that of every other copy of the same state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Reseeded {
    Yes,
    /// It never was part of the state: the host's kernel answers each request.
    HostProvided,
    No {
        reason: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InterpreterThawed {
    pub context: String,
    pub language: super::Language,
    pub random: Reseeded,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HookRun {
    pub name: String,
    /// Exit status; 128 and the signal's number where one ended it (137: killed, also for taking too long), 126 where
    /// it could not be run.
    pub status: i32,
}
