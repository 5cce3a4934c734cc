//! What callers see of VMs, execs and the engine itself: snapshots of facts, safe to print.

use jiff::Timestamp;
use offshoot_provider::{Capabilities, Usage};
use offshoot_types::{
    Attestations, CpuCount, DiskMib, Environment, ExecId, ExecSpec, ExecStatus, Generation, ImageDigest,
    ImageRef, IsolationClass, Labels, LastStart, Life, Lifetime, MemMib, NodeName, OperationId, Owner,
    ProviderKind, SnapshotId, SnapshotPolicy, VmId, VmName, VmState,
};

/// One VM as it is now: record, process and guest as last observed.
#[derive(Debug, Clone, PartialEq)]
pub struct VmView {
    pub id: VmId,
    pub name: VmName,
    pub owner: Owner,
    pub labels: Labels,
    /// What its processes find in their environment. The values may be secrets.
    pub env: Environment,
    pub node: NodeName,
    pub image: ImageRef,
    pub image_digest: ImageDigest,
    pub provider: ProviderKind,
    pub isolation: IsolationClass,
    pub state: VmState,
    pub generation: Generation,
    pub lifetime: Lifetime,
    /// When snapshots are taken without being asked for.
    pub policy: SnapshotPolicy,
    /// When it rests by itself.
    pub life: Life,
    /// It is suspended, and a request that needs its guest continues it.
    pub wakes: bool,
    /// When its time is up; `None` without a process, and without a limit.
    pub deadline: Option<Timestamp>,
    pub memory: MemMib,
    pub cpus: CpuCount,
    pub disk: DiskMib,
    pub created: Timestamp,
    pub updated: Timestamp,
    /// When the present process was started; `None` without one.
    pub started_at: Option<Timestamp>,
    /// `None` without a process or before its first handshake.
    pub guest: Option<GuestView>,
    /// Measured when asked for by [`Engine::vm`](crate::Engine::vm); not in lists.
    pub usage: Option<Usage>,
    /// The operation under way, if any.
    pub operation: Option<OperationId>,
    /// What it continues from when it is started next; `None`: it boots.
    pub suspended_to: Option<SnapshotId>,
    /// Where it stands in the tree of states: the parent of its next snapshot.
    pub position: Option<SnapshotId>,
    /// What its guest attested when it was renewed last; `None` for one that booted, or since the daemon's start.
    pub attestations: Option<Attestations>,
    /// What its latest process was begun from; `None` before the first one.
    pub last_start: Option<LastStart>,
}

/// What the guest said of itself in its handshake (untrusted), and whether it answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestView {
    pub kernel: String,
    pub agent_version: String,
    /// From kernel start to agent ready, as the guest measured it.
    pub ready_ms: u64,
    pub health: GuestHealth,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestHealth {
    /// The last heartbeat was answered.
    Responsive,
    /// Its process lives, but heartbeats go unanswered.
    Silent,
    /// The channel was lost and is being opened again.
    Reconnecting,
}

impl GuestHealth {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Responsive => "responsive",
            Self::Silent => "silent",
            Self::Reconnecting => "reconnecting",
        }
    }
}

/// One process run in a VM by `exec`, running or lately ended.
#[derive(Debug, Clone, PartialEq)]
pub struct ExecView {
    pub id: ExecId,
    pub vm: VmId,
    pub operation: OperationId,
    pub spec: ExecSpec,
    pub pid: Option<u32>,
    pub started: Timestamp,
    pub state: ExecState,
}

#[derive(Debug, Clone, PartialEq)]
pub enum ExecState {
    Running,
    Ended(ExecStatus),
    Failed(offshoot_types::Failure),
    /// The daemon or the VM went away and how it ended is not known.
    Interrupted,
}

/// A provider of this engine with what it proved on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProviderView {
    pub capabilities: Capabilities,
    /// What `auto` picks.
    pub preferred: bool,
}

/// What an engine has to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Census {
    /// VMs that exist in any state.
    pub vms: usize,
    /// VMs that have a process.
    pub live: usize,
    pub operations: usize,
    pub execs: usize,
    /// Of the live VMs and the operations, those that are not the daemon's own: its warm pool keeps no daemon.
    pub wanted: usize,
}

impl Census {
    /// Whether a daemon that nobody started by hand may leave.
    pub const fn is_idle(&self) -> bool {
        self.wanted == 0 && self.execs == 0
    }
}
