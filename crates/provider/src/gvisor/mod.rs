//! Sandboxes of gVisor: a kernel in user space, at native speed where there is no hardware virtualisation.
//!
//! ```text
//! boot: find runsc -> prove it -> check the image -> write the bundle -> launch a keeper -> agent started -> Instance
//!        Probe        Probe        Probe              Keeper             Keeper            Vmm
//! ```
//! The same image, agent and keeper as a virtual machine's. Different: what a guest writes lies in its memory, over the
//! image's root; it is part of every state that is saved, and gone when the sandbox ends. So there is no state of a disk alone.

mod agent;
mod bundle;
mod host;
mod probe;

use crate::{
    Adoption, BootError, BootPlan, BootStep, Capabilities, Instance, InstanceError, InstanceRecord, Provider,
    ReclaimReport, RestorePlan, disk,
    facts::Facts,
    keeper::{
        self,
        spec::{Limits, Monitor, Restore, Spec},
    },
    program::Digest,
    speed::Speed,
    task,
};
use async_trait::async_trait;
use host::{NoRunsc, Runsc};
use offshoot_types::{Bytes, IsolationClass, MemMib, ProviderKind};
use probe::Verdict;
use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::FileExt,
    },
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::sync::Mutex;

/// What `runsc`, the sandbox's kernel and the process that serves files take beside the guest's memory.
const OWN_MEMORY: Bytes = Bytes(192 << 20);
/// On the host each thread of the guest is a thread, too, besides those of the sandbox's kernel.
const THREADS: u32 = 8192;
/// Where the superblock of an erofs has its UUID.
const UUID_AT: u64 = 1024 + 48;
/// The UUID of roots that are built so that a sandbox can map every file of theirs: see `offshoot-image`.
const MAPPABLE_ROOT: [u8; 16] = *b"offshoot\x80\0root\0\x02";

#[derive(Debug, Clone)]
pub struct Options {
    /// The `offshoot` executable, to spawn `offshoot keeper`.
    pub offshoot_exe: PathBuf,
    /// Directory where the result of the probe is remembered until the host boots again.
    pub probe_cache: PathBuf,
    /// Directory for the agents of images, shared by all sandboxes.
    pub agents: PathBuf,
    /// Instead of the `runsc` found on `PATH`.
    pub runsc: Option<PathBuf>,
    /// How long the first program may take; [`PROBE_DEADLINE`] unless there is a reason.
    pub probe_deadline: Duration,
}

/// A working sandbox needs a fortieth of this.
pub const PROBE_DEADLINE: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct GvisorProvider {
    options: Options,
    runsc: Mutex<Option<Runsc>>,
    /// Held while probing, so that boots at the same time probe once. What it was found for comes with it.
    verdict: Mutex<Option<(String, Verdict)>>,
    digest: Digest,
}

/// Why a sandbox cannot be prepared.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("cannot {what}")]
    Io {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("the image's initramfs `{}` has no agent", initramfs.display())]
    NoAgent { initramfs: PathBuf },
    #[error("the image's root `{}` was built for virtual machines alone", root.display())]
    NotMappable { root: PathBuf },
}

impl GvisorProvider {
    pub fn new(options: Options) -> Self {
        Self { options, runsc: Mutex::new(None), verdict: Mutex::new(None), digest: Digest::default() }
    }

    async fn find(&self) -> Result<Runsc, NoRunsc> {
        let mut found = self.runsc.lock().await;
        let (given, known) = (self.options.runsc.clone(), found.clone());
        let finding = tokio::task::spawn_blocking(move || Runsc::find(given.as_deref(), known));
        let runsc = finding.await.unwrap_or(Err(NoRunsc::Missing))?;
        *found = Some(runsc.clone());
        Ok(runsc)
    }

    async fn verdict(&self, runsc: &Runsc) -> Verdict {
        let mut known = self.verdict.lock().await;
        if let Some((identity, verdict)) = &*known
            && *identity == runsc.identity
        {
            return verdict.clone();
        }
        let (cache, deadline) = (self.options.probe_cache.clone(), self.options.probe_deadline);
        let probed = runsc.clone();
        let probed = task::on_own_thread("gvisor-probe", move || probe::probe(&cache, &probed, deadline));
        let verdict =
            probed.await.unwrap_or_else(|error| Verdict::Fails(format!("gVisor was not tried: {error}")));
        *known = Some((runsc.identity.clone(), verdict.clone()));
        verdict
    }

    /// How fast programs compute in sandboxes here, by `agent`, in one and on the host.
    pub async fn speed(&self, agent: PathBuf) -> Result<Speed, String> {
        let runsc = self.find().await.map_err(|error| error.to_string())?;
        if let Verdict::Fails(why) = self.verdict(&runsc).await {
            return Err(why);
        }
        let cache = self.options.probe_cache.clone();
        task::on_own_thread("gvisor-speed", move || probe::speed(&cache, &runsc, &agent))
            .await
            .unwrap_or_else(|error| Err(error.to_string()))
    }

    /// That sandboxes work here and are as strong as is asked.
    async fn proven(&self, plan: &BootPlan) -> Result<Runsc, BootError> {
        let probe = |message: String| BootError::at(BootStep::Probe, message);
        let runsc = self
            .find()
            .await
            .map_err(|error| BootError { hint: Some(host::INSTALL.into()), ..probe(error.to_string()) })?;
        if let Verdict::Fails(why) = self.verdict(&runsc).await {
            return Err(probe(why));
        }
        let class = IsolationClass::UserSpaceKernel;
        match plan.min_isolation.filter(|wanted| class < *wanted) {
            Some(wanted) => Err(BootError {
                hint: Some("provider `qemu` gives a virtual machine".into()),
                ..probe(format!("isolation `{wanted}` is required, provider `gvisor` gives `{class}`"))
            }),
            None => Ok(runsc),
        }
    }

    async fn prepare(&self, plan: &BootPlan, restore: Option<&RestorePlan>) -> Result<Spec, BootError> {
        let runsc = self.proven(plan).await?;
        disk::check(&plan.disk).map_err(|error| {
            BootError::caused(BootStep::Keeper, "the data disk cannot be used".into(), error)
        })?;
        let bundle = plan.state_dir.join("bundle");
        let (writing, agents, to) = (plan.clone(), self.options.agents.clone(), bundle.clone());
        let written = tokio::task::spawn_blocking(move || write_bundle(&writing, &agents, &to)).await;
        let written = written.unwrap_or_else(|error| {
            Err(Failure::Io { what: "prepare a sandbox".into(), source: io::Error::other(error) })
        });
        written.map_err(|error| {
            let hint = match &error {
                Failure::NotMappable { .. } => Some("build the image again: `offshoot image build`".into()),
                Failure::Io { .. } | Failure::NoAgent { .. } => None,
            };
            let message = format!("VM `{}` cannot be a sandbox", plan.name);
            BootError { hint, ..BootError::caused(BootStep::Probe, message, error) }
        })?;
        Ok(Spec {
            vm: plan.vm,
            name: plan.name.clone(),
            generation: plan.generation,
            state_dir: plan.state_dir.clone(),
            runtime_dir: plan.runtime_dir.clone(),
            monitor: Monitor::Sandbox { bundle },
            program: runsc.program,
            arguments: bundle::arguments(bundle::Writes::Agent).map(Into::into).to_vec(),
            harmless_stderr: Vec::new(),
            disk: plan.disk.clone(),
            durability: plan.durability,
            memory: plan.memory.bytes(),
            memory_base: restore.and_then(RestorePlan::memory_base),
            restore: restore.map(|plan| Restore {
                device_state: plan.device_state.clone(),
                delta_runs: plan.memory.delta.as_ref().map(|delta| delta.runs().len() as u64),
            }),
            limits: Limits { memory: memory_limit(plan.memory), processes: THREADS, cpus: plan.cpus },
            start_deadline: plan.boot_deadline,
        })
    }

    async fn start(
        &self,
        plan: &BootPlan,
        restore: Option<&RestorePlan>,
    ) -> Result<Box<dyn Instance>, BootError> {
        let spec = self.prepare(plan, restore).await?;
        let record = InstanceRecord {
            provider: ProviderKind::Gvisor,
            isolation: IsolationClass::UserSpaceKernel,
            vm: plan.vm,
            generation: plan.generation,
            state_dir: plan.state_dir.clone(),
            runtime_dir: plan.runtime_dir.clone(),
            memory_base: spec.memory_base,
        };
        let memory = restore.map(|plan| &plan.memory);
        let base = memory.and_then(|memory| memory.base.as_ref()).map(|base| base.file().as_fd());
        let delta = memory.and_then(|memory| memory.delta.as_ref()).map(|delta| delta.file().as_fd());
        let passed: Vec<BorrowedFd<'_>> = base.into_iter().chain(delta).collect();
        keeper::start(&self.options.offshoot_exe, &spec, &passed, record).await
    }
}

/// What the processes of a sandbox may use together.
fn memory_limit(guest: MemMib) -> Bytes {
    Bytes(guest.bytes().0 + OWN_MEMORY.0)
}

fn write_bundle(plan: &BootPlan, agents: &Path, to: &Path) -> Result<(), Failure> {
    let root = plan.root.clone();
    if !is_mappable(&root)? {
        return Err(Failure::NotMappable { root });
    }
    let agent = agent::place(&plan.initramfs, agents)?;
    let contents = bundle::of_vm(plan.name.as_str(), plan.vm.simple().as_str(), &plan.root, &agent);
    contents
        .write(to)
        .map_err(|source| Failure::Io { what: format!("write the bundle `{}`", to.display()), source })
}

/// Whether every file of an image's root begins at a page of the image. The end of a file that is packed beside its inode
/// can be read by a sandbox and not mapped: no program of such a root starts.
fn is_mappable(root: &Path) -> Result<bool, Failure> {
    let mut uuid = [0; 16];
    let read = File::open(root).and_then(|file| file.read_exact_at(&mut uuid, UUID_AT));
    read.map_err(|source| Failure::Io {
        what: format!("read the image's root `{}`", root.display()),
        source,
    })?;
    Ok(uuid == MAPPABLE_ROOT)
}

#[async_trait]
impl Provider for GvisorProvider {
    fn kind(&self) -> ProviderKind {
        ProviderKind::Gvisor
    }

    fn keeps_disk(&self) -> bool {
        false
    }

    async fn capabilities(&self) -> Capabilities {
        let unavailable = |why: String, vmm: Option<String>, notes: Vec<String>| Capabilities {
            kind: ProviderKind::Gvisor,
            isolation: Err(why),
            vmm,
            notes,
            pause: false,
            live_snapshot: false,
            disk: false,
        };
        let runsc = match self.find().await {
            Ok(runsc) => runsc,
            Err(error) => return unavailable(error.to_string(), None, vec![host::INSTALL.into()]),
        };
        match self.verdict(&runsc).await {
            Verdict::Fails(why) => unavailable(why, Some(runsc.version), Vec::new()),
            Verdict::Works => Capabilities {
                kind: ProviderKind::Gvisor,
                isolation: Ok(IsolationClass::UserSpaceKernel),
                vmm: Some(runsc.version),
                notes: vec![
                    "gVisor works: a program was run in a sandbox".into(),
                    "what a VM of it writes lies in its memory: part of every snapshot, and written to this host's disk when it is stopped".into(),
                    "programs in it gain no rights by their set-user-id bit".into(),
                ],
                pause: true,
                live_snapshot: true,
                disk: false,
            },
        }
    }

    async fn boot(&self, plan: &BootPlan) -> Result<Box<dyn Instance>, BootError> {
        self.start(plan, None).await
    }

    async fn restore(&self, plan: &RestorePlan) -> Result<Box<dyn Instance>, BootError> {
        let memory = plan.memory.check(plan.boot.memory.bytes());
        memory.map_err(|error| {
            let message = format!("VM `{}` cannot have this memory", plan.boot.name);
            BootError::caused(BootStep::Probe, message, error)
        })?;
        self.start(&plan.boot, Some(plan)).await
    }

    async fn facts(&self) -> Result<Facts, String> {
        let runsc = self.find().await.map_err(|error| error.to_string())?;
        let digest = self.digest.of(&runsc.program).await?;
        let cpu = tokio::task::spawn_blocking(processor).await.map_err(io::Error::other);
        let cpu = cpu.and_then(|cpu| cpu).map_err(|error| format!("cannot read `{CPUINFO}`: {error}"))?;
        Ok(Facts {
            arch: std::env::consts::ARCH.into(),
            vmm: runsc.version,
            vmm_digest: digest,
            isolation: IsolationClass::UserSpaceKernel,
            machine: bundle::MACHINE.into(),
            cpu,
            // The clock of a sandbox is the host's, whatever its rate.
            tsc_khz: 0,
        })
    }

    async fn adopt(&self, record: &InstanceRecord) -> Result<Adoption, InstanceError> {
        keeper::adopt(record).await
    }

    async fn reclaim(&self, record: &InstanceRecord) -> ReclaimReport {
        keeper::reclaim(record).await
    }
}

const CPUINFO: &str = "/proc/cpuinfo";

/// The host's own processor, which programs in a sandbox run on directly, by its model.
fn processor() -> io::Result<String> {
    let text = std::fs::read_to_string(CPUINFO)?;
    let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    Ok(model.map_or_else(|| "unknown".to_owned(), |(_, model)| model.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(uuid: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().write_all_at(uuid, UUID_AT).unwrap();
        file
    }

    #[test]
    fn only_a_root_built_to_be_mapped_is() {
        assert!(is_mappable(root(&MAPPABLE_ROOT).path()).unwrap());
        assert!(!is_mappable(root(b"offshoot\x80\0root\0\x01").path()).unwrap());
        assert!(is_mappable(root(b"short").path()).is_err());
    }

    #[tokio::test]
    async fn a_host_without_runsc_says_so_and_how_to_get_it() {
        let directory = tempfile::tempdir().unwrap();
        let provider = GvisorProvider::new(Options {
            offshoot_exe: "/no/such/offshoot".into(),
            probe_cache: directory.path().into(),
            agents: directory.path().into(),
            runsc: Some("/no/such/runsc".into()),
            probe_deadline: PROBE_DEADLINE,
        });
        let found = provider.capabilities().await;
        assert!(found.isolation.unwrap_err().contains("/no/such/runsc"));
        assert!(found.notes[0].contains("backports"), "{:?}", found.notes);
        assert!(!found.live_snapshot && !found.pause && !found.disk);
    }
}
