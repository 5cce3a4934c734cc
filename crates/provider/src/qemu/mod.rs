//! Micro-VMs on QEMU: by KVM where a kernel was seen to boot under it, by software emulation (TCG) elsewhere.
//!
//! ```text
//! boot: find QEMU -> resolve the accelerator -> check the disk -> launch a keeper -> VMM answers -> Instance
//!        Probe          Probe (isolation)         Keeper            Keeper             Vmm, Channel
//! ```
//! A failure at any step takes back what was made, by the same [`Provider::reclaim`] a reconciler uses.

mod command_line;
mod facts;
mod host;
mod kvm_probe;
mod tsc;

pub use command_line::TranslationCaches;

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
use command_line::{Accelerator, Setting, Start};
use host::Qemu;
use kvm_probe::Verdict;
use offshoot_types::ProviderKind;
use std::{
    os::fd::{AsFd, BorrowedFd},
    path::PathBuf,
    time::Duration,
};
use tokio::sync::Mutex;

/// Threads of QEMU besides one per processor, and of the keeper.
const THREADS: u32 = 128;

#[derive(Debug, Clone)]
pub struct Options {
    /// The `offshoot` executable, to spawn `offshoot keeper`.
    pub offshoot_exe: PathBuf,
    /// Directory where the result of the KVM probe is remembered until the host boots again.
    pub probe_cache: PathBuf,
    /// Instead of the QEMU found on `PATH`.
    pub qemu: Option<PathBuf>,
    pub acceleration: Acceleration,
    /// What to prove KVM with. Without it the first boot's own kernel is used.
    pub probe_image: Option<ProbeImage>,
    /// How long a kernel under KVM may take to reach user space; [`PROBE_DEADLINE`] unless there is a reason.
    pub probe_deadline: Duration,
    pub translation_caches: TranslationCaches,
}

/// A kernel under working KVM is in user space after a fifth of this.
pub const PROBE_DEADLINE: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Acceleration {
    /// KVM if a real kernel was seen to boot under it on this host, else TCG.
    #[default]
    Auto,
    /// KVM or nothing; still proven.
    Kvm,
    Tcg,
}

#[derive(Debug, Clone)]
pub struct ProbeImage {
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
}

#[derive(Debug)]
pub struct QemuProvider {
    options: Options,
    qemu: Mutex<Option<Qemu>>,
    /// Held while probing, so that boots at the same time probe once.
    verdict: Mutex<Option<Verdict>>,
    digest: Digest,
}

/// Which accelerator a VM gets, and why not a stronger one.
struct Resolved {
    accelerator: Result<Accelerator, String>,
    note: Option<String>,
}

impl QemuProvider {
    pub fn new(options: Options) -> Self {
        Self { options, qemu: Mutex::new(None), verdict: Mutex::new(None), digest: Digest::default() }
    }

    /// `image` is what a probe would boot; without one nothing is probed.
    async fn resolve(&self, qemu: &Qemu, image: Option<ProbeImage>) -> Resolved {
        let verdict = match self.options.acceleration {
            Acceleration::Tcg => {
                return Resolved {
                    accelerator: Ok(Accelerator::Tcg),
                    note: Some("KVM is not used: emulation was asked for".into()),
                };
            }
            Acceleration::Auto | Acceleration::Kvm => self.verdict(qemu, image).await,
        };
        let (works, note) = match verdict {
            Some(Verdict::Works) => (true, "KVM works: a kernel was booted under it".to_owned()),
            Some(Verdict::Fails(why)) => (false, why),
            None => {
                (false, "KVM was not tried yet: the first VM's kernel will show whether it works".to_owned())
            }
        };
        let accelerator = match (works, self.options.acceleration) {
            (true, _) => Ok(Accelerator::Kvm),
            (false, Acceleration::Kvm) => Err(note.clone()),
            (false, _) => Ok(Accelerator::Tcg),
        };
        Resolved { accelerator, note: Some(note) }
    }

    async fn verdict(&self, qemu: &Qemu, image: Option<ProbeImage>) -> Option<Verdict> {
        let mut known = self.verdict.lock().await;
        if known.is_none() {
            *known = match (kvm_probe::device_verdict(), image) {
                (Some(verdict), _) => Some(verdict),
                (None, None) => None,
                (None, Some(image)) => Some(self.probe(qemu.clone(), image).await),
            };
        }
        known.clone()
    }

    async fn probe(&self, qemu: Qemu, image: ProbeImage) -> Verdict {
        let (cache, deadline) = (self.options.probe_cache.clone(), self.options.probe_deadline);
        let probed =
            task::on_own_thread("kvm-probe", move || kvm_probe::probe(&cache, &qemu, &image, deadline));
        probed.await.unwrap_or_else(|error| Verdict::Fails(format!("KVM was not tried: {error}")))
    }

    /// How fast programs compute in VMs here. Boots the probe's image once per boot of the host; `agent` is run on the
    /// host for comparison, and is the image's.
    pub async fn speed(&self, agent: PathBuf) -> Result<Speed, String> {
        let qemu = self.find_qemu().await.map_err(|error| error.to_string())?;
        let image = self.options.probe_image.clone().ok_or("there is no image yet to measure a VM with")?;
        let accelerator = self.resolve(&qemu, Some(image.clone())).await.accelerator?;
        let cache = self.options.probe_cache.clone();
        task::on_own_thread("qemu-speed", move || {
            kvm_probe::speed(&cache, &qemu, accelerator, &image, &agent)
        })
        .await
        .unwrap_or_else(|error| Err(error.to_string()))
    }

    async fn find_qemu(&self) -> Result<Qemu, host::NoQemu> {
        let mut found = self.qemu.lock().await;
        let (given, known) = (self.options.qemu.clone(), found.clone());
        let finding = tokio::task::spawn_blocking(move || {
            // Measured once and then known to every command line; it takes 20 ms.
            tsc::frequency_khz();
            Qemu::find(given.as_deref(), known)
        });
        let qemu = finding.await.unwrap_or(Err(host::NoQemu::Missing))?;
        *found = Some(qemu.clone());
        Ok(qemu)
    }

    /// `restore`: what to continue from, instead of booting.
    async fn prepare(
        &self,
        plan: &BootPlan,
        restore: Option<&RestorePlan>,
    ) -> Result<(Spec, Accelerator), BootError> {
        let probe = |message: String| BootError::at(BootStep::Probe, message);
        let qemu = self.find_qemu().await.map_err(|error| {
            let missing = matches!(error, host::NoQemu::Missing);
            BootError { hint: missing.then(|| host::INSTALL.to_owned()), ..probe(error.to_string()) }
        })?;
        let own = || ProbeImage { kernel: plan.kernel.clone(), initramfs: plan.initramfs.clone() };
        let image = self.options.probe_image.clone().unwrap_or_else(own);
        let resolved = self.resolve(&qemu, Some(image)).await;
        let accelerator = resolved.accelerator.map_err(probe)?;
        if let Some(wanted) = plan.min_isolation.filter(|wanted| accelerator.isolation() < *wanted) {
            return Err(BootError {
                hint: resolved.note,
                ..probe(format!(
                    "isolation `{wanted}` is required, this host gives `{}`",
                    accelerator.isolation()
                ))
            });
        }
        disk::check(&plan.disk).map_err(|error| {
            BootError::caused(BootStep::Keeper, "the data disk cannot be used".into(), error)
        })?;
        let memory_base = restore.and_then(RestorePlan::memory_base);
        let start = match restore {
            None => Start::Boot,
            Some(_) => Start::Restore { based: memory_base.is_some() },
        };
        let setting = Setting { accelerator, start, caches: self.options.translation_caches };
        let spec = Spec {
            vm: plan.vm,
            name: plan.name.clone(),
            generation: plan.generation,
            state_dir: plan.state_dir.clone(),
            runtime_dir: plan.runtime_dir.clone(),
            monitor: Monitor::Qemu,
            program: qemu.program,
            arguments: command_line::build(plan, &setting),
            harmless_stderr: command_line::HARMLESS.map(Into::into).to_vec(),
            disk: plan.disk.clone(),
            durability: plan.durability,
            memory: plan.memory.bytes(),
            memory_base,
            restore: restore.map(|plan| Restore {
                device_state: plan.device_state.clone(),
                delta_runs: plan.memory.delta.as_ref().map(|delta| delta.runs().len() as u64),
            }),
            limits: Limits {
                memory: setting.memory_limit(plan.memory),
                processes: THREADS + u32::from(plan.cpus.get()),
                cpus: plan.cpus,
            },
            start_deadline: plan.boot_deadline,
        };
        Ok((spec, accelerator))
    }

    async fn start(
        &self,
        plan: &BootPlan,
        restore: Option<&RestorePlan>,
    ) -> Result<Box<dyn Instance>, BootError> {
        let (spec, accelerator) = self.prepare(plan, restore).await?;
        let record = InstanceRecord {
            provider: ProviderKind::Qemu,
            isolation: accelerator.isolation(),
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

#[async_trait]
impl Provider for QemuProvider {
    fn kind(&self) -> ProviderKind {
        ProviderKind::Qemu
    }

    async fn capabilities(&self) -> Capabilities {
        let unavailable = |why: String, notes: Vec<String>| Capabilities {
            kind: ProviderKind::Qemu,
            isolation: Err(why),
            vmm: None,
            notes,
            pause: false,
            live_snapshot: false,
            disk: false,
        };
        let qemu = match self.find_qemu().await {
            Ok(qemu) => qemu,
            Err(error) => return unavailable(error.to_string(), vec![host::INSTALL.into()]),
        };
        let resolved = self.resolve(&qemu, self.options.probe_image.clone()).await;
        Capabilities {
            kind: ProviderKind::Qemu,
            isolation: resolved.accelerator.map(Accelerator::isolation),
            vmm: Some(qemu.version),
            notes: resolved.note.into_iter().collect(),
            pause: true,
            live_snapshot: true,
            disk: true,
        }
    }

    async fn boot(&self, plan: &BootPlan) -> Result<Box<dyn Instance>, BootError> {
        self.start(plan, None).await
    }

    async fn restore(&self, plan: &RestorePlan) -> Result<Box<dyn Instance>, BootError> {
        let memory = plan.memory.check(plan.boot.memory.bytes());
        memory.map_err(|error| {
            BootError::caused(
                BootStep::Probe,
                format!("VM `{}` cannot have this memory", plan.boot.name),
                error,
            )
        })?;
        self.start(&plan.boot, Some(plan)).await
    }

    async fn facts(&self) -> Result<Facts, String> {
        let qemu = self.find_qemu().await.map_err(|error| error.to_string())?;
        let accelerator = self.resolve(&qemu, self.options.probe_image.clone()).await.accelerator?;
        let digest = self.digest.of(&qemu.program).await?;
        Ok(facts::facts(&qemu, digest, accelerator))
    }

    async fn adopt(&self, record: &InstanceRecord) -> Result<Adoption, InstanceError> {
        keeper::adopt(record).await
    }

    async fn reclaim(&self, record: &InstanceRecord) -> ReclaimReport {
        keeper::reclaim(record).await
    }
}
