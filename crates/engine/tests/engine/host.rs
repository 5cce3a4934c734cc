//! A host in memory: its "processes" outlive the engines of a test, as real ones outlive a daemon.
//!
//! `offshoot_provider::fake` keeps the provider's contract and is what everyone else tests against. This one
//! breaks it in the ways an engine must survive: it reclaims nothing, hangs in a pause, falls silent, loses its
//! channel.

use crate::guest::{Guest, State};
use async_trait::async_trait;
use offshoot_guest_proto::server;
use offshoot_provider::{
    Adoption, AfterCheckpoint, BootError, BootPlan, BootStep, Capabilities, Checkpoint, CheckpointPlan,
    Diagnostics, Exit, GuestIo, Instance, InstanceError, InstanceRecord, Provider, ReclaimReport,
    RestorePlan, StopReport, StopStep, UndoReport, Usage,
    disk::DiskError,
    facts::Facts,
    memory::{DeltaWriter, PAGE},
    parts::Part,
};
use offshoot_types::{Bytes, ImageDigest, IsolationClass, ProviderKind, SnapshotId, VmId};
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{sync::watch, task::AbortHandle};

#[derive(Debug, Clone, Default)]
pub struct Host {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// By the directory each was started in: which VM it is of may change.
    processes: Mutex<HashMap<PathBuf, Arc<Process>>>,
    faults: Mutex<Faults>,
    boots: AtomicUsize,
    /// The next process that is measured has much memory of its own.
    swollen: AtomicBool,
    most_of_one_vm: AtomicUsize,
}

/// What goes wrong from now on.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    pub boot_fails: bool,
    /// The process lives, its guest never answers.
    pub guest_mute: bool,
    /// The guest is of an image of before: it speaks another version of the protocol.
    pub guest_old: bool,
    /// The VMM pauses and never says so.
    pub pause_hangs: bool,
    pub reclaim_fails: bool,
    /// What a VM writes lies in its memory.
    pub no_disk: bool,
    /// Such a guest carries what it has written; it fails to at the start.
    pub carries: bool,
    pub putting_back_fails: bool,
    pub checkpoint_fails: bool,
    pub restore_fails: bool,
    /// The VMM was upgraded.
    pub another_vmm: bool,
    /// Restored guests refuse to be renewed.
    pub guest_stale: bool,
    /// The guest ignores a shutdown, and so does the VMM until it is killed.
    pub stubborn: bool,
}

pub struct Process {
    pub record: InstanceRecord,
    pub guest: Arc<Guest>,
    /// What it was booted or restored with.
    pub image: ImageDigest,
    pub durability: offshoot_provider::Durability,
    memory: Bytes,
    exit: watch::Sender<Option<Exit>>,
    paused: watch::Sender<bool>,
    channel: Mutex<Option<AbortHandle>>,
}

impl std::fmt::Debug for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Process").field(&self.record.vm).field(&self.record.generation).finish()
    }
}

impl Process {
    /// As `kill -9` of the VMM would.
    pub fn end(&self, exit: Exit) {
        self.cut_channel();
        self.exit.send_if_modified(|known| {
            let first = known.is_none();
            known.get_or_insert(exit);
            first
        });
    }
    /// The pipe to the agent breaks; the agent lives.
    pub fn cut_channel(&self) {
        if let Some(channel) = self.channel.lock().unwrap().take() {
            channel.abort();
        }
    }
    fn top(&self) -> PathBuf {
        self.guest.disk.lock().unwrap().layers[0].clone()
    }
    pub fn is_paused(&self) -> bool {
        *self.paused.borrow()
    }
    pub fn is_alive(&self) -> bool {
        self.exit.borrow().is_none()
    }
}

impl Host {
    pub fn provider(&self) -> Arc<dyn Provider> {
        Arc::new(MemoryProvider { host: self.clone() })
    }
    pub fn set_faults(&self, faults: Faults) {
        *self.inner.faults.lock().unwrap() = faults;
    }
    fn faults(&self) -> Faults {
        self.inner.faults.lock().unwrap().clone()
    }
    /// Everything of a process that is not reclaimed, dead ones included.
    pub fn processes(&self) -> Vec<Arc<Process>> {
        self.inner.processes.lock().unwrap().values().cloned().collect()
    }
    pub fn process(&self, vm: VmId) -> Arc<Process> {
        let alive = self.processes().into_iter().find(|p| p.record.vm == vm && p.is_alive());
        alive.expect("the VM has a process")
    }
    /// The next process that is measured has much memory of its own, once.
    pub fn swell(&self) {
        self.inner.swollen.store(true, Ordering::SeqCst);
    }
    /// Takes that back.
    pub fn shrink(&self) {
        self.inner.swollen.store(false, Ordering::SeqCst);
    }
    pub fn boots(&self) -> usize {
        self.inner.boots.load(Ordering::SeqCst)
    }
    /// The most processes that ever wrote to one disk layer at once.
    pub fn most_of_one_vm(&self) -> usize {
        self.inner.most_of_one_vm.load(Ordering::SeqCst)
    }

    fn started(&self, process: &Arc<Process>) {
        let mut processes = self.inner.processes.lock().unwrap();
        processes.insert(process.record.state_dir.clone(), process.clone());
        self.inner.boots.fetch_add(1, Ordering::SeqCst);
        let tops = processes.values().filter(|p| p.is_alive()).map(|p| p.top());
        let mut writers: HashMap<PathBuf, usize> = HashMap::new();
        for top in tops {
            *writers.entry(top).or_default() += 1;
        }
        let most = writers.into_values().max().unwrap_or_default();
        self.inner.most_of_one_vm.fetch_max(most, Ordering::SeqCst);
    }

    fn begin(&self, plan: &BootPlan, state: State, memory_base: Option<SnapshotId>) -> Arc<Process> {
        let faults = self.faults();
        std::fs::write(plan.state_dir.join("console.log"), "booted\n").unwrap();
        std::fs::write(plan.runtime_dir.join("keeper.sock"), "").unwrap();
        let record = InstanceRecord {
            provider: ProviderKind::Fake,
            isolation: IsolationClass::EmulatedVm,
            vm: plan.vm,
            generation: plan.generation,
            state_dir: plan.state_dir.clone(),
            runtime_dir: plan.runtime_dir.clone(),
            memory_base,
        };
        let exit = watch::Sender::new(None);
        let disk = plan.disk.clone();
        let guest = Guest::new(plan.name.as_str(), exit.clone(), faults.stubborn, disk, state);
        guest.set_mute(faults.guest_mute);
        guest.old.store(faults.guest_old, Ordering::SeqCst);
        let paused = watch::Sender::new(false);
        let memory = plan.memory.bytes();
        let process = Arc::new(Process {
            record,
            guest,
            image: plan.image.clone(),
            durability: plan.durability,
            memory,
            exit,
            paused,
            channel: Mutex::default(),
        });
        self.started(&process);
        process
    }
}

/// A guest's state as pages: its length, then itself.
fn pages(state: &State) -> Vec<u8> {
    let text = serde_json::to_vec(state).unwrap();
    let mut pages = (text.len() as u64).to_le_bytes().to_vec();
    pages.extend(text);
    pages.resize(pages.len().next_multiple_of(PAGE as usize), 0);
    pages
}

#[derive(Debug)]
struct MemoryProvider {
    host: Host,
}

#[async_trait]
impl Provider for MemoryProvider {
    fn kind(&self) -> ProviderKind {
        ProviderKind::Fake
    }

    fn keeps_disk(&self) -> bool {
        !self.host.faults().no_disk
    }

    async fn capabilities(&self) -> Capabilities {
        Capabilities {
            kind: ProviderKind::Fake,
            isolation: Ok(IsolationClass::EmulatedVm),
            vmm: None,
            notes: vec!["in memory".into()],
            pause: true,
            live_snapshot: true,
            disk: true,
        }
    }

    async fn facts(&self) -> Result<Facts, String> {
        Ok(Facts {
            arch: std::env::consts::ARCH.into(),
            vmm: if self.host.faults().another_vmm { "another".into() } else { "one".into() },
            vmm_digest: Part::of(b"none").root,
            isolation: IsolationClass::EmulatedVm,
            machine: "memory".into(),
            cpu: "none".into(),
            tsc_khz: 1,
        })
    }

    async fn boot(&self, plan: &BootPlan) -> Result<Box<dyn Instance>, BootError> {
        assert!(plan.state_dir.is_dir() && plan.runtime_dir.is_dir(), "directories are made by the caller");
        assert!(
            plan.disk.layers.iter().all(|layer| layer.is_file()) && plan.root.is_file(),
            "files were verified"
        );
        let faults = self.host.faults();
        if faults.boot_fails {
            return Err(BootError {
                step: BootStep::Vmm,
                message: "qemu: no such machine".into(),
                hint: None,
                console_tail: vec!["last words".into()],
                undo: UndoReport::default(),
                source: None,
            });
        }
        if faults.no_disk {
            crate::guest::forget(&plan.disk.layers[0]);
        }
        let process = self.host.begin(plan, State::default(), None);
        process.guest.carries.store(faults.carries, Ordering::SeqCst);
        process.guest.carrying_fails.store(faults.putting_back_fails, Ordering::SeqCst);
        Ok(Box::new(MemoryInstance { host: self.host.clone(), process }))
    }

    fn merge_layers(&self, layers: &[PathBuf], to: &Path) -> Result<(), DiskError> {
        let processes = self.host.processes();
        if let Some(path) =
            layers.iter().find(|layer| processes.iter().any(|p| p.is_alive() && p.top() == **layer))
        {
            return Err(DiskError::Written { path: path.clone() });
        }
        crate::guest::merge(layers, to);
        Ok(())
    }

    async fn restore(&self, plan: &RestorePlan) -> Result<Box<dyn Instance>, BootError> {
        let boot = &plan.boot;
        assert!(boot.disk.layers.iter().all(|layer| layer.is_file()), "{:?}", boot.disk);
        assert!(plan.device_state.is_file(), "{:?}", plan.device_state);
        plan.memory.check(boot.memory.bytes()).unwrap();
        let faults = self.host.faults();
        if faults.restore_fails {
            return Err(BootError {
                step: BootStep::Vmm,
                message: "qemu: the device state is of another machine".into(),
                hint: None,
                console_tail: Vec::new(),
                undo: UndoReport::default(),
                source: None,
            });
        }
        let mut length = [0; 8];
        plan.memory.read_at(0, &mut length).unwrap();
        let mut text = vec![0; usize::try_from(u64::from_le_bytes(length)).unwrap()];
        plan.memory.read_at(8, &mut text).unwrap();
        let state: State = serde_json::from_slice(&text).unwrap();
        let process = self.host.begin(boot, state, plan.memory.base_id());
        process.guest.stale.store(faults.guest_stale, Ordering::SeqCst);
        process.guest.carries.store(faults.carries, Ordering::SeqCst);
        Ok(Box::new(MemoryInstance { host: self.host.clone(), process }))
    }

    async fn adopt(&self, record: &InstanceRecord) -> Result<Adoption, InstanceError> {
        let found = self.host.inner.processes.lock().unwrap().get(&record.state_dir).cloned();
        Ok(match found {
            None => Adoption::NeverStarted,
            Some(process) => match process.exit.borrow().clone() {
                Some(exit) => Adoption::Ended(Some(exit)),
                None => {
                    let process = process.clone();
                    Adoption::Running(Box::new(MemoryInstance { host: self.host.clone(), process }))
                }
            },
        })
    }

    async fn reclaim(&self, record: &InstanceRecord) -> ReclaimReport {
        if self.host.faults().reclaim_fails {
            return ReclaimReport { removed: vec![], failed: vec!["cgroup: device or resource busy".into()] };
        }
        let mut processes = self.host.inner.processes.lock().unwrap();
        if let Some(process) = processes.remove(&record.state_dir) {
            process.end(Exit::Signal(9));
        }
        // A provider removes its sockets; the directory is the engine's.
        let _ = std::fs::remove_file(record.runtime_dir.join("keeper.sock"));
        ReclaimReport { removed: vec!["process".into()], failed: vec![] }
    }
}

#[derive(Debug)]
struct MemoryInstance {
    host: Host,
    process: Arc<Process>,
}

#[async_trait]
impl Instance for MemoryInstance {
    fn record(&self) -> &InstanceRecord {
        &self.process.record
    }

    async fn channel(&self) -> Result<Box<dyn GuestIo>, InstanceError> {
        if let Some(exit) = self.process.exit.borrow().clone() {
            return Err(InstanceError::Ended { exit });
        }
        let (host, guest) = tokio::io::duplex(256 * 1024);
        let services = self.process.guest.clone();
        let serving = tokio::spawn(async move { server::serve(guest, services).await });
        let earlier = self.process.channel.lock().unwrap().replace(serving.abort_handle());
        if let Some(earlier) = earlier {
            earlier.abort();
        }
        Ok(Box::new(host))
    }

    async fn pause(&self) -> Result<(), InstanceError> {
        self.process.paused.send_replace(true);
        if self.host.faults().pause_hangs {
            std::future::pending::<()>().await;
        }
        Ok(())
    }
    async fn resume(&self) -> Result<(), InstanceError> {
        self.process.paused.send_replace(false);
        Ok(())
    }
    async fn is_paused(&self) -> Result<bool, InstanceError> {
        Ok(*self.process.paused.borrow())
    }

    async fn checkpoint(&self, plan: &CheckpointPlan) -> Result<Checkpoint, InstanceError> {
        if let Some(exit) = self.process.exit.borrow().clone() {
            return Err(InstanceError::Ended { exit });
        }
        assert!(plan.dir.is_dir() && plan.next_layer.is_file(), "made by the caller: {plan:?}");
        if self.host.faults().checkpoint_fails {
            let message = "no space left on device".into();
            return Err(InstanceError::Refused { operation: "taking a checkpoint", message });
        }
        let memory = plan.memory.then(|| {
            let mut delta = DeltaWriter::new(self.process.record.memory_base, self.process.memory).unwrap();
            delta.append(0, &pages(&self.process.guest.state())).unwrap();
            std::fs::write(plan.dir.join("device.state"), "devices").unwrap();
            delta.finish().unwrap()
        });
        {
            let mut disk = self.process.guest.disk.lock().unwrap();
            if disk.layers[0] != plan.next_layer {
                disk.layers.insert(0, plan.next_layer.clone());
            }
            self.process.guest.open(&disk.layers);
        }
        if plan.then == AfterCheckpoint::Hold {
            self.process.paused.send_replace(true);
        }
        Ok(Checkpoint { memory, paused: Duration::from_millis(1), device_state: Bytes(7) })
    }

    async fn restack(&self, layers: &[PathBuf]) -> Result<(), InstanceError> {
        let mut disk = self.process.guest.disk.lock().unwrap();
        let place =
            layers.iter().position(|layer| *layer == disk.layers[0]).expect("its own layer is among them");
        disk.layers = layers[place..].to_vec();
        self.process.guest.open(&disk.layers);
        Ok(())
    }

    async fn stop(&self, grace: Duration) -> Result<StopReport, InstanceError> {
        let mut exit = self.process.exit.subscribe();
        let by_itself = tokio::time::timeout(grace, exit.wait_for(Option::is_some)).await;
        let mut steps = vec![(StopStep::GuestShutdown, grace)];
        if by_itself.is_err() {
            let rung = if self.host.faults().stubborn { StopStep::Kill } else { StopStep::VmmQuit };
            steps.push((rung, Duration::ZERO));
            self.process.end(Exit::Signal(9));
        }
        let exit = self.process.exit.borrow().clone().expect("it was ended above");
        Ok(StopReport { steps, exit })
    }

    fn exit(&self) -> watch::Receiver<Option<Exit>> {
        self.process.exit.subscribe()
    }

    async fn usage(&self) -> Result<Usage, InstanceError> {
        let swollen = self.host.inner.swollen.swap(false, Ordering::SeqCst);
        let own_memory = Some(Bytes(if swollen { 1 << 30 } else { PAGE }));
        Ok(Usage { own_memory, ..Usage::default() })
    }

    async fn diagnostics(&self) -> Diagnostics {
        Diagnostics { console_tail: vec!["last words".into()], ..Diagnostics::default() }
    }
}
