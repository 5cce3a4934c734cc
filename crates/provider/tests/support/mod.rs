//! Real VMs for this crate's tests: QEMU or gVisor, an image, keepers, and what is left of them.

#![allow(dead_code, reason = "each test binary uses a part")]

pub mod session;

use async_trait::async_trait;
use offshoot_image::{AgentBinary, Image, Store};
use offshoot_provider::{
    BootPlan, DiskStack, Durability, InstanceRecord, Provider,
    conformance::Harness,
    disk,
    gvisor::{self, GvisorProvider},
    process::ProcessId,
    qemu::{Acceleration, Options, PROBE_DEADLINE, ProbeImage, QemuProvider, TranslationCaches},
};
use offshoot_types::{
    CpuCount, DiskMib, Generation, ImageRef, IsolationClass, LayerId, MemMib, ProviderKind, VmId,
};
use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};
use tempfile::TempDir;

/// A busy host boots slowly; a hung guest is found out all the same.
const BOOT: Duration = Duration::from_secs(60);

/// The image under test; a machine without one cannot run these tests, and says so.
pub fn image() -> &'static Image {
    static IMAGE: OnceLock<Image> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let root = std::env::var_os("OFFSHOOT_IMAGES").map(PathBuf::from);
        let root =
            root.or_else(|| Store::default_root().ok()).expect("set OFFSHOOT_IMAGES to an image store");
        let store = Store::open(&root).expect("the image store opens");
        let tag = ImageRef::Tag("base".into());
        let image = store.resolve(&tag).unwrap_or_else(|error| {
            panic!(
                "real-VM tests need image `base` in {}: {error}; build it with `offshoot image build base` \
                 or run `cargo xtask test`",
                root.display()
            )
        });
        match std::env::var_os("OFFSHOOT_GUEST_BIN") {
            None => image,
            Some(path) => {
                let agent = AgentBinary::read(Path::new(&path), env!("CARGO_PKG_VERSION")).expect("an agent");
                store.with_agent(&image, &agent).expect("an image with that agent")
            }
        }
    })
}

pub fn keeper_exe() -> PathBuf {
    std::env::var_os("OFFSHOOT_BIN")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_keeper-for-tests")), PathBuf::from)
}

pub struct Real {
    /// Sockets' paths are short, so everything is below `/tmp`.
    pub directory: TempDir,
    kind: ProviderKind,
    probe_cache: PathBuf,
    started: Mutex<Vec<InstanceRecord>>,
}

impl Real {
    pub fn new() -> Self {
        Self::of(ProviderKind::Qemu)
    }

    /// Sandboxes of gVisor.
    pub fn sandbox() -> Self {
        Self::of(ProviderKind::Gvisor)
    }

    fn of(kind: ProviderKind) -> Self {
        let directory = tempfile::Builder::new().prefix("offshoot-test-").tempdir_in("/tmp").unwrap();
        // One probe per test run would be five seconds per test where KVM hangs.
        let probe_cache = std::env::temp_dir().join("offshoot-test-probe");
        Self { directory, kind, probe_cache, started: Mutex::default() }
    }

    pub fn options(&self) -> Options {
        Options {
            offshoot_exe: keeper_exe(),
            probe_cache: self.probe_cache.clone(),
            qemu: None,
            acceleration: Acceleration::Auto,
            probe_image: Some(ProbeImage { kernel: image().kernel(), initramfs: image().initramfs() }),
            probe_deadline: PROBE_DEADLINE,
            translation_caches: TranslationCaches::default(),
        }
    }

    fn gvisor_options(&self) -> gvisor::Options {
        gvisor::Options {
            offshoot_exe: keeper_exe(),
            probe_cache: self.probe_cache.clone(),
            agents: self.probe_cache.join("agents"),
            runsc: None,
            probe_deadline: gvisor::PROBE_DEADLINE,
        }
    }

    /// What this host was proven to give; asked by a daemon of its own.
    fn proven(&self) -> Result<IsolationClass, String> {
        let provider = self.provider();
        let asked = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(provider.capabilities()).isolation
        });
        asked.join().unwrap()
    }

    /// Asked once.
    fn isolation(&self) -> IsolationClass {
        static CLASS: OnceLock<IsolationClass> = OnceLock::new();
        match self.kind {
            ProviderKind::Gvisor => IsolationClass::UserSpaceKernel,
            _ => *CLASS
                .get_or_init(|| self.proven().unwrap_or_else(|why| panic!("real-VM tests need QEMU: {why}"))),
        }
    }
}

#[async_trait]
impl Harness for Real {
    fn provider(&self) -> Arc<dyn Provider> {
        match self.kind {
            ProviderKind::Gvisor => Arc::new(GvisorProvider::new(self.gvisor_options())),
            _ => Arc::new(QemuProvider::new(self.options())),
        }
    }

    fn unavailable(&self) -> Option<String> {
        match self.kind {
            ProviderKind::Gvisor => self.proven().err(),
            _ => None,
        }
    }

    fn plan(&self) -> BootPlan {
        let vm = VmId::new();
        let (state, runtime) = (
            self.directory.path().join(vm.simple()),
            self.directory.path().join("r").join(&vm.simple()[20..]),
        );
        for directory in [&state, &runtime] {
            std::fs::create_dir_all(directory).unwrap();
        }
        let data_disk = state.join("disk.qcow2");
        let size = DiskMib::from_mib(1024).unwrap();
        disk::create_overlay(&image().disk(), size, &data_disk, Durability::Volatile).unwrap();
        let plan = BootPlan {
            vm,
            name: "real-vm".parse().unwrap(),
            generation: Generation(1),
            image: image().digest.clone(),
            kernel: image().kernel(),
            initramfs: image().initramfs(),
            root: image().root(),
            disk: DiskStack { layers: vec![data_disk], template: image().disk() },
            durability: Durability::Flushed,
            memory: MemMib::from_mib(256).unwrap(),
            cpus: CpuCount::ONE,
            state_dir: state,
            runtime_dir: runtime,
            boot_deadline: BOOT,
            min_isolation: None,
        };
        self.started.lock().unwrap().push(self.record(&plan));
        plan
    }

    fn record(&self, plan: &BootPlan) -> InstanceRecord {
        InstanceRecord {
            provider: self.kind,
            isolation: self.isolation(),
            vm: plan.vm,
            generation: plan.generation,
            state_dir: plan.state_dir.clone(),
            runtime_dir: plan.runtime_dir.clone(),
            memory_base: None,
        }
    }

    fn layer(&self, below: &Path) -> PathBuf {
        let path = self.directory.path().join(LayerId::new().simple()).with_extension("qcow2");
        let size = DiskMib::from_mib(disk::inspect(below).unwrap().size.0 >> 20).unwrap();
        disk::create_layer(below, size, &path, Durability::Volatile).unwrap();
        path
    }

    fn checkpoint_dir(&self) -> PathBuf {
        let directory = self.directory.path().join(LayerId::new().simple());
        std::fs::create_dir(&directory).unwrap();
        directory
    }

    fn permit_start(&self, plan: &BootPlan) {
        std::fs::write(plan.state_dir.join("lease.pending"), "").unwrap();
    }

    async fn kill_vmm(&self, record: &InstanceRecord) {
        kill(&vmm(record));
    }

    async fn leftovers(&self, record: &InstanceRecord) -> Vec<String> {
        let mut left = processes_of(record.vm);
        for socket in ["keeper.sock", "channel.sock", "runsc"] {
            let path = record.runtime_dir.join(socket);
            left.extend(path.exists().then(|| path.display().to_string()));
        }
        let group = format!("offshoot-{}-g{}", record.vm.simple(), record.generation.0);
        left.extend(find_directories(Path::new("/sys/fs/cgroup"), &group, 5));
        left
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        drop(self.started.get_mut().unwrap().drain(..).map(KillOnDrop).collect::<Vec<_>>());
    }
}

/// A failed test leaves no VM behind either.
pub struct KillOnDrop(pub InstanceRecord);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let json = keeper_json(&self.0).unwrap_or_default();
        for process in ["keeper", "vmm"] {
            if let Ok(id) = serde_json::from_value::<ProcessId>(json[process].clone()) {
                kill(&id);
            }
        }
    }
}

pub fn keeper_json(record: &InstanceRecord) -> Option<serde_json::Value> {
    serde_json::from_str(&std::fs::read_to_string(record.state_dir.join("keeper.json")).ok()?).ok()
}

pub fn keeper(record: &InstanceRecord) -> ProcessId {
    serde_json::from_value(keeper_json(record).expect("a keeper")["keeper"].clone()).unwrap()
}

pub fn vmm(record: &InstanceRecord) -> ProcessId {
    serde_json::from_value(keeper_json(record).expect("a keeper")["vmm"].clone()).expect("a VMM")
}

pub fn kill(id: &ProcessId) {
    if let Ok(Some(process)) = id.find() {
        process.signal(rustix::process::Signal::KILL).unwrap();
        assert!(process.wait(Duration::from_secs(5)), "it survives SIGKILL");
    }
}

/// Command lines of living processes that belong to a VM.
pub fn processes_of(vm: VmId) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(command) = std::fs::read(entry.path().join("cmdline")) else { continue };
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if command.contains(&vm.simple()) || command.contains(&vm.to_string()) {
            found.push(format!("{}: {command}", entry.file_name().display()));
        }
    }
    found
}

fn find_directories(root: &Path, name: &str, depth: usize) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && depth > 0 {
            if entry.file_name() == name {
                found.push(entry.path().display().to_string());
            }
            found.extend(find_directories(&entry.path(), name, depth - 1));
        }
    }
    found
}
