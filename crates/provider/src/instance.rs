//! The `Provider` and `Instance` traits: contracts, records and errors.

use crate::{
    disk::{self, DiskError},
    facts::Facts,
    memory::{Delta, Memory},
};
use async_trait::async_trait;
use offshoot_types::{
    Bytes, CpuCount, Generation, ImageDigest, IsolationClass, MemMib, ProviderKind, SnapshotId, VmId, VmName,
};
use serde::{Deserialize, Serialize};
use std::{
    fmt::Debug,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

/// The byte pipe to the agent inside a VM.
pub trait GuestIo: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> GuestIo for T {}

/// What a provider can do on this host, found by probing; never a constant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    pub kind: ProviderKind,
    /// The class proven on this host, or why there is none (missing package, no permission).
    pub isolation: Result<IsolationClass, String>,
    /// Name and version of the VMM, e.g. `QEMU 7.2.22`.
    pub vmm: Option<String>,
    /// How the class was proven, or why a stronger one was not: one sentence each, for `doctor`.
    pub notes: Vec<String>,
    pub pause: bool,
    pub live_snapshot: bool,
    /// See [`Provider::keeps_disk`].
    pub disk: bool,
}

/// Everything needed to boot a VM once. Paths are absolute; files named here exist and were verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootPlan {
    pub vm: VmId,
    pub name: VmName,
    pub generation: Generation,
    pub image: ImageDigest,
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    pub root: PathBuf,
    pub disk: DiskStack,
    pub durability: Durability,
    pub memory: MemMib,
    pub cpus: CpuCount,
    /// `vms/<id>/g<generation>`: console log, records. Made by the caller, mode 0700.
    pub state_dir: PathBuf,
    /// Short directory for sockets. Made by the caller, mode 0700.
    pub runtime_dir: PathBuf,
    /// From VMM start to the guest agent's handshake.
    pub boot_deadline: Duration,
    /// `boot` fails rather than run anything weaker than this.
    pub min_isolation: Option<IsolationClass>,
}

/// A data disk: layers over an image's disk template. Every layer is a qcow2 file made by [`crate::disk`]; no byte of
/// its header ever comes from a guest, and the VMM is told the whole stack, so nothing in a header is believed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStack {
    /// Newest first. The first one alone is written to; the others are frozen and may be shared.
    pub layers: Vec<PathBuf>,
    /// Raw, shared by all VMs of the image.
    pub template: PathBuf,
}

impl DiskStack {
    /// The layer the VM writes to.
    pub fn top(&self) -> Option<&PathBuf> {
        self.layers.first()
    }
}

/// Everything needed to continue a VM, or a copy of it, from a checkpoint.
#[derive(Debug, Clone)]
pub struct RestorePlan {
    /// As for a boot. Kernel and initramfs are in the memory already and not opened; `boot_deadline` is that of the
    /// load. The disk's first layer is a new one above the checkpoint's frozen layer.
    pub boot: BootPlan,
    /// As [`Checkpoint`] left it; verified by the caller.
    pub device_state: PathBuf,
    pub memory: Memory,
}

impl RestorePlan {
    /// What the instance's record says of its memory: see [`InstanceRecord::memory_base`].
    pub fn memory_base(&self) -> Option<SnapshotId> {
        self.memory.base_id()
    }
}

/// What to do once the state has been taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AfterCheckpoint {
    /// The CPUs go on, if they ran before.
    Continue,
    /// The CPUs stand still until [`Instance::resume`] or the end.
    Hold,
}

/// What to take of a VM's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointPlan {
    /// Where the device state is written as `device.state`. Private to this checkpoint; made by the caller, 0700.
    pub dir: PathBuf,
    /// Without it only the disk's layer is frozen.
    pub memory: bool,
    /// The new first layer, made by [`crate::disk::create_layer`] above the present one: the VM writes there afterwards.
    /// A path that is the VM's first layer already is accepted while its CPUs have stood still since; afterwards what is
    /// below it is no longer of the same instant as the memory, and it is refused.
    pub next_layer: PathBuf,
    pub then: AfterCheckpoint,
}

/// A VM's state at one instant.
#[derive(Debug)]
pub struct Checkpoint {
    /// `None` if only the disk was asked for.
    pub memory: Option<Delta>,
    /// How long the CPUs stood still for it; zero if they did before.
    pub paused: Duration,
    /// Size of the device state.
    pub device_state: Bytes,
}

/// What a guest's `fsync` on its data disk means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Durability {
    /// It reaches the host's disk: for every VM that outlives one request.
    #[default]
    Flushed,
    /// It is answered at once: for VMs that are destroyed with the request that made them.
    Volatile,
}

/// What is written down to find an instance again after the daemon died. Stored before the process exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceRecord {
    pub provider: ProviderKind,
    pub isolation: IsolationClass,
    pub vm: VmId,
    pub generation: Generation,
    pub state_dir: PathBuf,
    pub runtime_dir: PathBuf,
    /// The snapshot whose complete memory this process maps, and its next checkpoint's delta is against; `None`: zeros.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_base: Option<SnapshotId>,
}

/// How a VMM process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exit {
    /// The guest powered off and the VMM left with status 0.
    PoweredOff,
    Code(i32),
    Signal(i32),
    /// The guest's kernel panicked (seen on the console), then the VMM left.
    GuestPanic {
        line: String,
    },
    /// The keeper itself is gone; the VMM died with it.
    KeeperLost,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum BootStep {
    #[error("probe")]
    Probe,
    #[error("keeper")]
    Keeper,
    #[error("vmm")]
    Vmm,
    #[error("channel")]
    Channel,
    #[error("handshake")]
    Handshake,
}

/// What was taken back after a failure, and what could not be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UndoReport {
    pub undone: Vec<String>,
    pub failed: Vec<String>,
}

/// A boot that failed: the step, the cause, and what became of what had been built.
#[derive(Debug, thiserror::Error)]
#[error("boot failed at {step}: {message}")]
pub struct BootError {
    pub step: BootStep,
    /// Says what failed, on what, in the VMM's or guest's own words where it had some (bounded).
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
    /// The last console lines, bounded and made printable; guest data.
    pub console_tail: Vec<String>,
    pub undo: UndoReport,
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl BootError {
    /// Before anything was made.
    pub(crate) fn at(step: BootStep, message: String) -> Self {
        Self {
            step,
            message,
            hint: None,
            console_tail: Vec::new(),
            undo: UndoReport::default(),
            source: None,
        }
    }

    pub(crate) fn caused(
        step: BootStep,
        message: String,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self { source: Some(Box::new(source)), ..Self::at(step, message) }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    #[error("the VM's process has ended ({exit:?})")]
    Ended { exit: Exit },
    #[error("{operation} was not answered by the VMM within {after:?}")]
    Timeout { operation: &'static str, after: Duration },
    #[error("the VMM refused {operation}: {message}")]
    Refused { operation: &'static str, message: String },
    #[error("{operation} is not supported by provider `{provider}`")]
    Unsupported { operation: &'static str, provider: ProviderKind },
    #[error("{operation} failed")]
    Io {
        operation: &'static str,
        #[source]
        source: std::io::Error,
    },
}

/// Measured, never configured, figures of a running instance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub pss: Bytes,
    pub rss: Bytes,
    pub cpu_time: Duration,
    /// Of the guest's memory, the pages that are the process's own: what a snapshot copies, and no other VM shares.
    /// `None` where a snapshot's cost does not follow from them.
    #[serde(default)]
    pub own_memory: Option<Bytes>,
}

/// What to look at when a VM misbehaves. Everything here is bounded; the console is guest data.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnostics {
    /// The last console lines, made printable.
    pub console_tail: Vec<String>,
    /// The last lines the VMM itself complained with.
    pub vmm_stderr: Vec<String>,
    /// The limits in force on the VM's processes, and why others are not: one sentence each.
    pub limits: Vec<String>,
}

/// One rung of the stop ladder that was tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StopStep {
    /// The agent was asked to sync and power off (done by the caller, who holds the channel).
    GuestShutdown,
    /// The VMM was asked to quit.
    VmmQuit,
    Term,
    Kill,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopReport {
    /// Each rung tried, in order, with the time it was given; the last one worked.
    pub steps: Vec<(StopStep, Duration)>,
    pub exit: Exit,
}

/// What a reconciling daemon found of a recorded instance.
#[derive(Debug)]
pub enum Adoption {
    /// The keeper answered: it runs on, undisturbed.
    Running(Box<dyn Instance>),
    /// It had ended, in this way if the keeper could still tell. Nothing of it is left.
    Ended(Option<Exit>),
    /// No process was ever started, and none can be any more.
    NeverStarted,
}

/// What [`Provider::reclaim`] removed and observed gone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReclaimReport {
    pub removed: Vec<String>,
    pub failed: Vec<String>,
}

/// A kind of VMM on this host.
///
/// Callers: the engine's driver tasks, one VM each; calls for different VMs run concurrently. Every method may
/// be cancelled by dropping its future; what it leaves is found again through the `InstanceRecord`, which the
/// caller stores *before* calling `boot`.
#[async_trait]
pub trait Provider: Send + Sync + Debug {
    fn kind(&self) -> ProviderKind;

    /// Whether what a VM writes lies on a disk that outlives its process. Where it does not, a state is always one with
    /// memory, and before a stop its guest is asked for what was written, which a start gives back to the next one.
    fn keeps_disk(&self) -> bool {
        true
    }

    /// Probes if it has not been done since the host booted, else answers from memory.
    async fn capabilities(&self) -> Capabilities;

    /// Starts a keeper and under it the VMM, and returns once the channel to the guest can be opened. The
    /// guest's own readiness is the caller's to await (`Instance::channel`, then the handshake).
    /// On failure everything this call made is gone, or is named in `BootError::undo.failed`.
    async fn boot(&self, plan: &BootPlan) -> Result<Box<dyn Instance>, BootError>;

    /// As [`boot`](Self::boot), continuing from a checkpoint: returns when the CPUs run. The guest's user processes are
    /// still frozen then, as they were when the checkpoint was taken; thawing them is the caller's (guest-proto).
    async fn restore(&self, plan: &RestorePlan) -> Result<Box<dyn Instance>, BootError> {
        let (name, kind) = (&plan.boot.name, self.kind());
        let message = format!("restoring VM `{name}` is not supported by provider `{kind}`");
        Err(BootError::at(BootStep::Probe, message))
    }

    /// What a state saved here is bound to. Probes like [`capabilities`](Self::capabilities).
    async fn facts(&self) -> Result<Facts, String> {
        Err(format!("provider `{}` saves no states", self.kind()))
    }

    /// Makes at `to`, which must not exist, one layer of `layers`, newest first, that are frozen and lie over each other:
    /// it reads as they do over whatever they lie over. It appears complete, flushed and frozen, or not at all. Refused
    /// while a VM writes to one of them. Blocks.
    fn merge_layers(&self, layers: &[PathBuf], to: &Path) -> Result<(), DiskError> {
        let Some(oldest) = layers.last() else { return Err(DiskError::Layers { layers: 0 }) };
        let disk::Layer { below, kind, .. } = disk::inspect(oldest)?;
        disk::merge(layers, &below, kind, to)
    }

    /// Finds a recorded instance again after a daemon restart. Never signals a process it cannot prove to be
    /// the recorded one.
    async fn adopt(&self, record: &InstanceRecord) -> Result<Adoption, InstanceError>;

    /// Ends whatever is left of a recorded instance and removes its sockets and cgroup; idempotent. After it
    /// returns without `failed` entries no process of this instance exists and none can start.
    async fn reclaim(&self, record: &InstanceRecord) -> ReclaimReport;
}

/// A running VMM.
#[async_trait]
pub trait Instance: Send + Sync + Debug {
    fn record(&self) -> &InstanceRecord;

    /// The byte pipe to the guest agent. Opening it again invalidates the earlier one: bytes in flight are
    /// lost, which the protocol's resync layer expects.
    async fn channel(&self) -> Result<Box<dyn GuestIo>, InstanceError>;

    async fn pause(&self) -> Result<(), InstanceError>;
    async fn resume(&self) -> Result<(), InstanceError>;
    /// What the VMM says, not what was last asked of it.
    async fn is_paused(&self) -> Result<bool, InstanceError>;

    /// Takes the VM's state while its CPUs stand still, as short as its written pages allow. On failure the VM runs on
    /// (or stands still, if it did before) on its old disk layer or on the new one: both are right, for the new one is
    /// above the old. If the answer is lost, ask again with another new layer above that one: whether the VM writes to
    /// that one by now or not, both are right. A lost answer to [`AfterCheckpoint::Hold`] may leave the CPUs standing.
    async fn checkpoint(&self, _plan: &CheckpointPlan) -> Result<Checkpoint, InstanceError> {
        Err(InstanceError::Unsupported { operation: "taking a checkpoint", provider: self.record().provider })
    }

    /// Has the VMM read what lies below the layer it writes to from other files with the same content: `layers` is the
    /// whole disk, newest first, its own layer included. The VM runs on meanwhile. On failure it reads what it did; both
    /// are right.
    async fn restack(&self, _layers: &[PathBuf]) -> Result<(), InstanceError> {
        Err(InstanceError::Unsupported {
            operation: "reading the disk from other layers",
            provider: self.record().provider,
        })
    }

    /// Ends the VMM: waits `grace` for an exit already under way (the guest was asked to power off), then VMM
    /// quit, TERM and KILL, each rung with its own deadline. Returns once the process is observed gone.
    async fn stop(&self, grace: Duration) -> Result<StopReport, InstanceError>;

    /// `Some` once the VMM has ended.
    fn exit(&self) -> watch::Receiver<Option<Exit>>;

    /// At most half a second old.
    async fn usage(&self) -> Result<Usage, InstanceError>;

    /// Also answers after the VMM has ended.
    async fn diagnostics(&self) -> Diagnostics;
}
