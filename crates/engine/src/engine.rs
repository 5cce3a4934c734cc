//! The handle transports hold: every change and every read goes through a permit.
//!
//! ```text
//! Authorized<Command> --submit--> journaled Operation --> the VM's driver --> outcome, new generation
//!                     --exec / attach--> ExecSession        (streams; an operation too)
//!                     --guest--> GuestAccess                (files, TCP; writes are operations)
//!                     --vm, vms, events, ...--> views       (reads; `Command::Inspect`)
//! ```
//! No method takes a bare `Command`. A permit for another verb than the method's is a defect of the caller and
//! answered as such.

use crate::{
    Census, Console, EventStream, ExecSession, ExecView, GuestAccess, Options, ProviderView, RequestVm,
    StartError, StateDirLock, VmView,
};
use offshoot_policy::{Authorized, Facts};
use offshoot_types::{
    Actor, Command, EventId, Failure, Generation, Operation, OperationId, Target, VmId, VmStateName,
};
use std::time::Duration;
use tokio::sync::watch;

/// A running engine. Cheap to clone; dropping every clone without [`shutdown`](Self::shutdown) leaves the VMs
/// running, as a crash would.
#[derive(Debug, Clone)]
pub struct Engine {
    core: std::sync::Arc<crate::core::Core>,
}

/// What [`Engine::wait_vm`] waits for: any of the states (none named: any state), newer than the generation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VmCondition {
    pub states: Vec<VmStateName>,
    pub newer_than: Option<Generation>,
}

impl VmCondition {
    pub fn met(&self, view: &VmView) -> bool {
        let state = self.states.is_empty() || self.states.contains(&view.state.name());
        state && self.newer_than.is_none_or(|generation| view.generation > generation)
    }
}

/// Which operations [`Engine::operations`] lists, newest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OperationPage {
    /// Only those older than this one.
    pub before: Option<OperationId>,
    pub limit: u32,
}
impl Default for OperationPage {
    fn default() -> Self {
        Self { before: None, limit: 100 }
    }
}

/// What a shutdown does with running VMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnShutdown {
    /// They live on with their keepers; the next engine adopts them.
    LeaveVms,
    StopVms { grace: Duration },
}

/// How a shutdown went; nothing in it prevents the next start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShutdownReport {
    pub left_running: Vec<VmId>,
    /// VMs that were to be stopped and could not be.
    pub not_stopped: Vec<(VmId, Failure)>,
    /// Operations that were still running when the drain ended; the next start completes or undoes them.
    pub interrupted: Vec<OperationId>,
}

impl Engine {
    /// Opens the store, brings record and world together (VMs that run are adopted undisturbed, what was half
    /// made is completed or undone), and takes requests from then on.
    ///
    /// Returns as soon as every VM's state is known; recoveries that take longer (an interrupted stop, say) go
    /// on in their drivers, where requests queue behind them. [`settled`](Self::settled) awaits those.
    pub async fn start(lock: StateDirLock, options: Options) -> Result<Self, StartError>;

    /// Waits until every change that an earlier engine left unfinished has been completed or undone.
    pub async fn settled(&self);

    /// What policy may rest its decision about `target` on, read now.
    pub fn facts(&self, actor: &Actor, target: &Target) -> Facts;

    /// Accepts create, start, stop, restart, pause, resume and destroy. Once this returns the operation is on
    /// disk and will be carried out, completed or undone, whatever happens to this process.
    pub async fn submit(&self, permit: Authorized<Command>) -> Result<Operation, Failure>;

    /// The operation once it has ended, or as it is after `limit`.
    pub async fn wait(&self, operation: OperationId, limit: Option<Duration>) -> Result<Operation, Failure>;

    /// Creates a VM that lives as long as the returned guard: for `offshoot run`. The spec's lifetime must be
    /// `Lifetime::Request`. Returns when the VM is `Stopped`.
    pub async fn create_for_request(&self, permit: Authorized<Command>) -> Result<RequestVm, Failure>;

    /// Runs a process ([`Command::Exec`]). Returns when the guest was asked; the session's first event tells
    /// whether it started.
    pub async fn exec(&self, permit: Authorized<Command>) -> Result<ExecSession, Failure>;

    /// Takes over the streams of a process ([`Command::Attach`]), replaying output from these offsets as far
    /// as the guest's ring still holds it. An earlier session of the process ends with `Detached`.
    pub async fn attach(&self, permit: Authorized<Command>, from: AttachFrom) -> Result<ExecSession, Failure>;

    /// Access to files ([`Command::Files`]) or a TCP port ([`Command::Connect`]) of a running guest.
    pub async fn guest(&self, permit: Authorized<Command>) -> Result<GuestAccess, Failure>;

    // ---- reads: permits for `Command::Inspect` and `Command::InspectOperation`

    /// The VM named, with usage measured now.
    pub async fn vm(&self, permit: Authorized<Command>) -> Result<VmView, Failure>;
    /// All VMs of the actor's owner, by name.
    pub fn vms(&self, permit: Authorized<Command>) -> Result<Vec<VmView>, Failure>;
    /// The VM once the condition is met, or as it is after `limit`; a destroyed VM ends the wait.
    pub async fn wait_vm(&self, permit: Authorized<Command>, until: VmCondition, limit: Option<Duration>) -> Result<VmView, Failure>;
    /// Processes of the VM named that run or have lately ended.
    pub async fn execs(&self, permit: Authorized<Command>) -> Result<Vec<ExecView>, Failure>;
    pub async fn operation(&self, permit: Authorized<Command>, wait: Option<Duration>) -> Result<Operation, Failure>;
    /// Operations of the VM named, or of all, newest first.
    pub async fn operations(&self, permit: Authorized<Command>, page: OperationPage) -> Result<Vec<Operation>, Failure>;
    /// Events of the VM named, or of all, after `after` (`None`: from now on), then as they happen.
    pub async fn events(&self, permit: Authorized<Command>, after: Option<EventId>) -> Result<EventStream, Failure>;
    /// The console of the VM's present or latest boot.
    pub async fn console(&self, permit: Authorized<Command>) -> Result<Console, Failure>;

    // ---- facts about the engine itself

    pub fn census(&self) -> Census;
    /// Changes whenever the census does; for a daemon that leaves when idle.
    pub fn census_changes(&self) -> watch::Receiver<Census>;
    pub async fn providers(&self) -> Vec<ProviderView>;
    pub fn options(&self) -> &Options;

    /// Accepts nothing new, waits a bounded time for running operations, then leaves or stops the VMs.
    pub async fn shutdown(&self, vms: OnShutdown) -> ShutdownReport;
}

// RequestVm { fn id(&self) -> VmId; fn name(&self) -> &VmName; async fn destroy(self) -> Result<Operation, Failure>;
//             async fn keep? no: create with Lifetime::Kept instead } ; Drop enqueues destroy.
// GuestAccess { fn client(&self) -> &guest_proto::client::Client; async fn complete(self, Result<(), Failure>) }
// EventStream { async fn next(&mut self) -> Result<Event, Failure> }
// Console { async fn next(&mut self, Follow::{No,Yes}) -> Result<Option<Bytes>, Failure> }
// AttachFrom { stdout: u64, stderr: u64 }
