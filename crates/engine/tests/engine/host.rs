//! A host in memory: its "processes" outlive the engines of a test, as real ones outlive a daemon.
//!
//! `offshoot_provider::fake` keeps the provider's contract and is what everyone else tests against. This one
//! breaks it in the ways an engine must survive: it reclaims nothing, hangs in a pause, falls silent, loses its
//! channel.

use crate::guest::Guest;
use async_trait::async_trait;
use offshoot_guest_proto::server;
use offshoot_provider::{
    Adoption, BootError, BootPlan, BootStep, Capabilities, Diagnostics, Exit, GuestIo, Instance,
    InstanceError, InstanceRecord, Provider, ReclaimReport, StopReport, StopStep, UndoReport, Usage,
};
use offshoot_types::{Generation, IsolationClass, ProviderKind, VmId};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
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
    processes: Mutex<HashMap<(VmId, Generation), Arc<Process>>>,
    faults: Mutex<Faults>,
    boots: AtomicUsize,
    most_of_one_vm: AtomicUsize,
}

/// What goes wrong from now on.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    pub boot_fails: bool,
    /// The process lives, its guest never answers.
    pub guest_mute: bool,
    /// The VMM pauses and never says so.
    pub pause_hangs: bool,
    pub reclaim_fails: bool,
    /// The guest ignores a shutdown, and so does the VMM until it is killed.
    pub stubborn: bool,
}

pub struct Process {
    pub record: InstanceRecord,
    pub guest: Arc<Guest>,
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
    pub fn boots(&self) -> usize {
        self.inner.boots.load(Ordering::SeqCst)
    }
    /// The most processes any one VM ever had at once.
    pub fn most_of_one_vm(&self) -> usize {
        self.inner.most_of_one_vm.load(Ordering::SeqCst)
    }

    fn started(&self, process: &Arc<Process>) {
        let mut processes = self.inner.processes.lock().unwrap();
        processes.insert((process.record.vm, process.record.generation), process.clone());
        let of_vm = processes.values().filter(|p| p.record.vm == process.record.vm && p.is_alive()).count();
        self.inner.most_of_one_vm.fetch_max(of_vm, Ordering::SeqCst);
        self.inner.boots.fetch_add(1, Ordering::SeqCst);
    }
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

    async fn capabilities(&self) -> Capabilities {
        Capabilities {
            kind: ProviderKind::Fake,
            isolation: Ok(IsolationClass::EmulatedVm),
            vmm: None,
            notes: vec!["in memory".into()],
            pause: true,
            live_snapshot: false,
        }
    }

    async fn boot(&self, plan: &BootPlan) -> Result<Box<dyn Instance>, BootError> {
        assert!(plan.state_dir.is_dir() && plan.runtime_dir.is_dir(), "directories are made by the caller");
        assert!(plan.data_disk.is_file() && plan.root.is_file(), "files were verified");
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
        std::fs::write(plan.state_dir.join("console.log"), "booted\n").unwrap();
        std::fs::write(plan.runtime_dir.join("keeper.sock"), "").unwrap();
        let record = InstanceRecord {
            provider: ProviderKind::Fake,
            isolation: IsolationClass::EmulatedVm,
            vm: plan.vm,
            generation: plan.generation,
            state_dir: plan.state_dir.clone(),
            runtime_dir: plan.runtime_dir.clone(),
        };
        let exit = watch::Sender::new(None);
        let guest = Guest::new(plan.name.as_str(), exit.clone(), faults.stubborn);
        guest.set_mute(faults.guest_mute);
        let paused = watch::Sender::new(false);
        let process = Arc::new(Process { record, guest, exit, paused, channel: Mutex::default() });
        self.host.started(&process);
        Ok(Box::new(MemoryInstance { host: self.host.clone(), process }))
    }

    async fn adopt(&self, record: &InstanceRecord) -> Result<Adoption, InstanceError> {
        let found = self.host.inner.processes.lock().unwrap().get(&(record.vm, record.generation)).cloned();
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
        if let Some(process) = processes.remove(&(record.vm, record.generation)) {
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
        Ok(Usage::default())
    }

    async fn diagnostics(&self) -> Diagnostics {
        Diagnostics { console_tail: vec!["last words".into()], ..Diagnostics::default() }
    }
}
