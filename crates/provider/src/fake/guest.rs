//! The fake guest: speaks the real protocol, runs nothing on the host.

use super::{
    contexts::Contexts,
    entries,
    exec::Execs,
    files::Files,
    host::{GuestFault, GuestFaults},
    state::Stored,
    stillness::Still,
    survey, web,
    world::{MACHINE_ID, World},
};
use crate::Exit;
use offshoot_guest_proto::{
    message::{
        ContextInfo, EntryRequest, ExecAttach, ExecStart, ExecSummary, FileRequest, Frozen, GuestError,
        GuestErrorKind, GuestHello, GuestInfo, HostHello, HostTime, Language, PROTOCOL_VERSION, Reseeded,
        RunCode, ShutdownKind, SurveyRequest, Thaw, Thawed, Usage,
    },
    server::{CodePeer, ExecPeer, FilePeer, Services, SurveyPeer, TcpPeer},
};
use offshoot_types::VmId;
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{io::AsyncWriteExt, sync::watch, time::Instant};

pub(super) const KERNEL: &str = "0.0.0-fake";
/// A port that listens besides the web server's: it sends back what it gets (RFC 862).
const ECHO: u16 = 7;

#[derive(Debug)]
pub(super) struct Guest {
    pub world: Arc<World>,
    pub execs: Execs,
    contexts: Contexts,
    booted: Instant,
    /// It had run this long when its state was stored.
    ran_before: Duration,
    memory: u64,
    /// Guest clock minus host clock.
    clock_offset_ns: Mutex<i64>,
    /// The last thaw and its answer: asked again, it answers the same.
    thawed: Mutex<Option<([u8; 16], Thawed)>>,
}

impl Guest {
    pub fn new(boot_id: String, vm: VmId, memory: u64, files: Files, faults: GuestFaults) -> Self {
        let world = Arc::new(World::new(boot_id, files, faults));
        let id = format!("{}\n", vm.as_uuid().simple());
        // Without `/etc` the guest has no machine id.
        let _ = world.files.write_whole(MACHINE_ID, id.as_bytes(), false);
        Self {
            execs: Execs::new(world.clone()),
            contexts: Contexts::new(world.clone()),
            world,
            booted: Instant::now(),
            ran_before: Duration::ZERO,
            memory,
            clock_offset_ns: Mutex::default(),
            thawed: Mutex::default(),
        }
    }

    /// Goes on where it was stored, with the clock of then; `None` if what was stored makes no sense.
    pub fn restore(stored: Stored, memory: u64, faults: GuestFaults) -> Option<Self> {
        let still = Still { paused: false, frozen: stored.frozen };
        let files = Files::of(stored.files);
        let world = World::with(stored.boot_id, files, stored.hostname, stored.random, still, faults);
        let world = Arc::new(world);
        Some(Self {
            execs: Execs::restore(world.clone(), stored.execs)?,
            contexts: Contexts::restore(world.clone(), stored.contexts),
            world,
            booted: Instant::now(),
            ran_before: Duration::from_millis(stored.uptime_ms),
            memory,
            clock_offset_ns: Mutex::new(stored.clock_ns.wrapping_sub(host_time()) as i64),
            thawed: Mutex::default(),
        })
    }

    /// All it is. The machine stands still.
    pub fn store(&self) -> Stored {
        Stored {
            boot_id: self.world.boot_id.clone(),
            hostname: self.world.hostname().clone(),
            random: self.world.random().clone(),
            frozen: self.world.still.borrow().frozen,
            clock_ns: self.now(),
            uptime_ms: self.uptime().as_millis() as u64,
            files: self.world.files.all(),
            execs: self.execs.store(),
            contexts: self.contexts.store(),
        }
    }

    /// Returns once no user process moves any more, or once they may.
    pub fn set_paused(&self, paused: bool) {
        self.world.still.send_modify(|still| still.paused = paused);
    }

    fn set_frozen(&self, frozen: bool) {
        self.world.still.send_modify(|still| still.frozen = frozen);
    }

    pub fn power(&self) -> watch::Receiver<Option<Exit>> {
        self.world.power()
    }

    fn uptime(&self) -> Duration {
        self.ran_before + self.booted.elapsed()
    }

    fn now(&self) -> u64 {
        let offset = *self.clock_offset_ns.lock().unwrap_or_else(PoisonError::into_inner);
        host_time().wrapping_add_signed(offset)
    }

    fn machine_id(&self) -> String {
        let id = self.world.files.read_whole(MACHINE_ID).unwrap_or_default();
        String::from_utf8_lossy(&id).trim().to_owned()
    }

    /// Whether `fault` is what happens now; an answer that never comes is awaited for ever.
    async fn fault(&self, fail: GuestFault, silent: GuestFault) -> Result<(), GuestError> {
        if self.world.faults.take(silent) {
            return std::future::pending().await;
        }
        if self.world.faults.take(fail) {
            let message = "a fault was injected".to_owned();
            return Err(GuestError { kind: GuestErrorKind::Other, message });
        }
        Ok(())
    }

    fn renew(&self, thaw: &Thaw) -> Result<Thawed, GuestError> {
        let entropy = &thaw.entropy.0;
        self.world.random().renew(entropy);
        *self.clock_offset_ns.lock().unwrap_or_else(PoisonError::into_inner) =
            thaw.time.0.wrapping_sub(host_time()) as i64;
        if let Some(identity) = &thaw.identity {
            self.world.hostname().clone_from(&identity.hostname);
            let id = format!("{}\n", identity.machine_id_text());
            self.world.files.write_whole(MACHINE_ID, id.as_bytes(), false)?;
        }
        Ok(Thawed {
            kernel_random: Reseeded::Yes,
            clock_offset_ns: 0,
            hostname: self.world.hostname().clone(),
            machine_id: self.machine_id(),
            ssh_host_keys: Vec::new(),
            connections_dropped: 0,
            interpreters: self.contexts.renew(entropy),
            processes_not_reseeded: self.execs.running(),
            hooks: Vec::new(),
        })
    }
}

fn host_time() -> u64 {
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    time.as_nanos() as u64
}

impl Services for Guest {
    async fn hello(&self, hello: &HostHello) -> Result<GuestHello, GuestError> {
        {
            let mut hostname = self.world.hostname();
            if hostname.is_empty() {
                hostname.clone_from(&hello.hostname);
            }
        }
        Ok(GuestHello {
            version: PROTOCOL_VERSION,
            epoch: hello.epoch,
            agent_version: env!("CARGO_PKG_VERSION").into(),
            boot_id: self.world.boot_id.clone(),
            kernel_release: KERNEL.into(),
            ready_ms: 0,
            frozen: self.world.still.borrow().frozen,
        })
    }

    fn heartbeat(&self, time: HostTime) -> i64 {
        self.now().wrapping_sub(time.0) as i64
    }

    async fn exec(&self, start: ExecStart, peer: ExecPeer) {
        self.execs.start(start, peer).await;
    }

    async fn attach(&self, attach: ExecAttach, peer: ExecPeer) {
        self.execs.attach(attach, peer).await;
    }

    async fn list_execs(&self) -> Vec<ExecSummary> {
        self.execs.list()
    }

    async fn file(&self, request: FileRequest, peer: FilePeer) {
        // A host that left in the middle wants no answer.
        let _ = self.world.files.serve(request, peer).await;
    }

    async fn entry(&self, request: EntryRequest, peer: FilePeer) {
        // A host that left in the middle wants no answer.
        let _ = entries::serve(&self.world.files, request, peer).await;
    }

    async fn usage(&self) -> Result<Usage, GuestError> {
        Ok(Usage {
            cpus: 1,
            cpu_used_percent: 12.5,
            memory_total: self.memory,
            memory_used: self.memory / 4,
            memory_cached: self.memory / 8,
            disk_total: 1 << 30,
            disk_used: 1 << 20,
        })
    }

    async fn tcp(&self, port: u16, peer: TcpPeer) {
        if port == ECHO {
            // A host that left in the middle wants nothing back.
            if let Ok(tunnel) = peer.accept().await {
                let (mut from, mut to) = tokio::io::split(tunnel);
                if tokio::io::copy(&mut from, &mut to).await.is_ok() {
                    let _ = to.shutdown().await;
                }
            }
            return;
        }
        if port == web::PORT {
            if let Ok(tunnel) = peer.accept().await {
                // As above.
                let _ = web::serve(tunnel).await;
            }
            return;
        }
        let message = format!("connect to port {port}: connection refused");
        peer.refuse(GuestError { kind: GuestErrorKind::ConnectionRefused, message }).await;
    }

    async fn info(&self) -> Result<GuestInfo, GuestError> {
        Ok(GuestInfo {
            kernel_release: KERNEL.into(),
            hostname: self.world.hostname().clone(),
            boot_id: self.world.boot_id.clone(),
            uptime_ms: self.uptime().as_millis() as u64,
            memory_total: self.memory,
            memory_available: self.memory,
            load_1m: 0.0,
            disk_total: 0,
            disk_available: 0,
            processes: 1 + self.execs.running(),
            time: HostTime(self.now()),
        })
    }

    fn may_shutdown(&self, _: ShutdownKind) -> Result<(), GuestError> {
        Ok(())
    }

    async fn shutdown(&self, _: ShutdownKind) {
        // A restart ends the machine too, as everywhere: `-no-reboot`.
        self.world.end(Exit::PoweredOff);
    }

    async fn flush(&self) -> Result<(), GuestError> {
        // Its files are its disk's.
        Ok(())
    }

    async fn freeze(&self, _: Duration) -> Result<Frozen, GuestError> {
        self.fault(GuestFault::FailFreeze, GuestFault::SilentFreeze).await?;
        let begun = Instant::now();
        self.set_frozen(true);
        Ok(Frozen { processes: self.execs.running(), took_us: begun.elapsed().as_micros() as u64 })
    }

    async fn unfreeze(&self) -> Result<(), GuestError> {
        self.set_frozen(false);
        Ok(())
    }

    async fn thaw(&self, thaw: Thaw) -> Result<Thawed, GuestError> {
        self.fault(GuestFault::FailThaw, GuestFault::SilentThaw).await?;
        let mut thawed = self.thawed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, answer)) = thawed.as_ref().filter(|(instance, _)| *instance == thaw.instance) {
            return Ok(answer.clone());
        }
        let answer = self.renew(&thaw)?;
        self.set_frozen(false);
        *thawed = Some((thaw.instance, answer.clone()));
        Ok(answer)
    }

    async fn run_code(&self, run: RunCode, peer: CodePeer) {
        self.contexts.run(run, peer).await;
    }

    async fn contexts(&self) -> Result<Vec<ContextInfo>, GuestError> {
        Ok(self.contexts.list())
    }

    async fn remove_context(&self, context: String) -> Result<(), GuestError> {
        self.contexts.remove(&context)
    }

    async fn restart_context(&self, context: String) -> Result<(), GuestError> {
        self.contexts.restart(&context)
    }

    /// Its interpreters need no start.
    async fn prepare_interpreter(&self, _: Language, _: String) -> Result<(), GuestError> {
        Ok(())
    }

    async fn survey(&self, request: SurveyRequest, peer: SurveyPeer) {
        // A host that left in the middle wants no answer.
        let _ = survey::serve(request, &self.world.files, self.execs.processes(), peer).await;
    }
}
