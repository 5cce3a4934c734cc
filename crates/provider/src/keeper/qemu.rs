//! A virtual machine of QEMU's: its process, its disk and its memory.

use super::{
    channel::Channel,
    checkpoint,
    disk::Disk,
    guest_memory::{GuestMemory, Mapped},
    log::KeeperLog,
    machine::{CallError, Machine, StartError, Taken},
    run::{Failed, Given, Journal, PassedMemory},
    spec::{Restore, Spec},
    vmm::Vmm,
    wire::Checkpoint,
};
use crate::{BootStep, Exit, StopReport, memory::Delta, process::ProcessId};
use async_trait::async_trait;
use offshoot_types::SnapshotId;
use std::{
    fs::File,
    io,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{Arc, PoisonError},
    time::Duration,
};
use tokio::sync::{Mutex, watch};

#[derive(Debug)]
pub(super) struct Qemu {
    pub vmm: Vmm,
    pub channel: Channel,
    /// Held by whoever moves the CPUs from running to standing still or back, so that one of them does at a time.
    pub disk: Mutex<Disk>,
    /// Or why it cannot be read.
    pub memory: Result<Arc<GuestMemory>, String>,
    pub memory_base: Option<SnapshotId>,
    pub log: Arc<KeeperLog>,
}

pub(super) async fn start(
    spec: &Spec,
    log: &Arc<KeeperLog>,
    given: Given,
    mut journal: Journal<'_>,
) -> Result<(Box<dyn Machine>, Vec<String>), Failed> {
    let Given { disk, memory: PassedMemory { base, delta }, confinement } = given;
    let mapped = mapped(base.as_ref());
    let state = state_to_pass(spec.restore.as_ref(), base)?;
    let confine = move |pid| confinement.lock().unwrap_or_else(PoisonError::into_inner).place(pid);
    let (vmm, channel) = Vmm::start(spec, journal.files, state, log.clone(), confine)?;
    let ready = async {
        journal.write(vmm.id(), Vec::new())?;
        // Before the guest looks for it: the VMM finds the connection waiting.
        channel.open().await.map_err(|error| StartError {
            step: BootStep::Channel,
            message: format!("cannot connect to the VMM's channel: {error}"),
        })?;
        vmm.ready(spec.start_deadline).await?;
        let limits = vmm.confined().await?;
        let memory = mapped.and_then(|mapped| GuestMemory::open(vmm.id().pid, mapped, spec.memory));
        let memory =
            memory.map(Arc::new).map_err(|error| format!("cannot look into the guest's memory: {error}"));
        if spec.restore.is_some() {
            fill(memory.clone(), delta)
                .await
                .map_err(|message| StartError { step: BootStep::Vmm, message })?;
            vmm.load(spec.start_deadline).await?;
        }
        vmm.go().await?;
        Ok((memory, limits))
    };
    match ready.await {
        Ok((memory, limits)) => {
            let (disk, memory_base, log) = (Mutex::new(disk), spec.memory_base, log.clone());
            Ok((Box::new(Qemu { vmm, channel, disk, memory, memory_base, log }), limits))
        }
        Err(error) => {
            vmm.stop(Duration::ZERO).await;
            let exit = vmm.exit().borrow().clone();
            Err(Failed { error, exit, vmm_stderr: vmm.stderr_lines() })
        }
    }
}

#[async_trait]
impl Machine for Qemu {
    fn id(&self) -> &ProcessId {
        self.vmm.id()
    }

    fn companions(&self) -> Vec<ProcessId> {
        Vec::new()
    }

    fn exit(&self) -> watch::Receiver<Option<Exit>> {
        self.vmm.exit()
    }

    fn stderr_lines(&self) -> Vec<String> {
        self.vmm.stderr_lines()
    }

    async fn reopen_channel(&self) -> io::Result<OwnedFd> {
        self.channel.reopen().await
    }

    // Not in the middle of a checkpoint, which tells the CPUs what to do itself.
    async fn pause(&self) -> Result<(), CallError> {
        let _disk = self.disk.lock().await;
        self.vmm.pause().await
    }

    async fn resume(&self) -> Result<(), CallError> {
        let mut disk = self.disk.lock().await;
        disk.in_use();
        self.vmm.resume().await
    }

    async fn is_paused(&self) -> Result<bool, CallError> {
        let _disk = self.disk.lock().await;
        self.vmm.is_paused().await
    }

    async fn checkpoint(&self, plan: &Checkpoint) -> Result<Taken, CallError> {
        checkpoint::take(self, plan).await
    }

    async fn restack(&self, layers: &[PathBuf]) -> Result<(), CallError> {
        self.disk.lock().await.restack(&self.vmm, layers).await
    }

    async fn stop(&self, grace: Duration) -> Option<StopReport> {
        self.vmm.stop(grace).await
    }
}

/// What the VMM's list of mappings will call the guest's memory.
fn mapped(base: Option<&File>) -> io::Result<Mapped> {
    match base {
        Some(base) => Mapped::of(base),
        None => Mapped::of(&File::open("/dev/zero")?),
    }
}

/// In the order of their numbers: see [`super::spec`].
fn state_to_pass(restore: Option<&Restore>, base: Option<File>) -> Result<Vec<OwnedFd>, StartError> {
    let Some(Restore { device_state, .. }) = restore else { return Ok(Vec::new()) };
    let opened = File::open(device_state).map_err(|error| StartError {
        step: BootStep::Keeper,
        message: format!("cannot open the device state `{}`: {error}", device_state.display()),
    })?;
    Ok([Some(opened), base].into_iter().flatten().map(OwnedFd::from).collect())
}

/// Puts the delta's pages over the base's, before any CPU runs.
async fn fill(memory: Result<Arc<GuestMemory>, String>, delta: Option<Delta>) -> Result<(), String> {
    let Some(delta) = delta else { return Ok(()) };
    let memory = memory?;
    let filled = tokio::task::spawn_blocking(move || memory.inject(&delta)).await;
    let filled = filled.map_err(io::Error::other).and_then(|filled| filled);
    filled.map_err(|error| format!("cannot fill the guest's memory: {error}"))
}
