//! Micro-VMs on QEMU, by KVM where that is proven to work and by software emulation (TCG) elsewhere.

use crate::{
    Adoption, BootError, BootPlan, BootStep, Capabilities, Instance, InstanceError, InstanceRecord, Provider,
    ReclaimReport, UndoReport,
};
use async_trait::async_trait;
use offshoot_types::ProviderKind;
use std::path::PathBuf;

#[derive(Debug, Clone)]
pub struct Options {
    /// The `offshoot` executable, to spawn `offshoot keeper`.
    pub offshoot_exe: PathBuf,
    /// Where the result of the KVM probe is remembered until the host boots again.
    pub probe_cache: PathBuf,
    /// Instead of the QEMU found on `PATH`.
    pub qemu: Option<PathBuf>,
    pub acceleration: Acceleration,
    /// What to prove KVM with. Without it the first boot's own kernel is used.
    pub probe_image: Option<ProbeImage>,
}

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
}

impl QemuProvider {
    pub fn new(options: Options) -> Self {
        Self { options }
    }
}

#[async_trait]
impl Provider for QemuProvider {
    fn kind(&self) -> ProviderKind {
        ProviderKind::Qemu
    }
    async fn capabilities(&self) -> Capabilities {
        Capabilities {
            kind: ProviderKind::Qemu,
            isolation: Err(format!("not built yet: {}", self.options.offshoot_exe.display())),
            vmm: None,
            notes: Vec::new(),
            pause: true,
            live_snapshot: false,
        }
    }
    async fn boot(&self, _: &BootPlan) -> Result<Box<dyn Instance>, BootError> {
        Err(BootError {
            step: BootStep::Probe,
            message: "not built yet".into(),
            hint: None,
            console_tail: Vec::new(),
            undo: UndoReport::default(),
            source: None,
        })
    }
    async fn adopt(&self, _: &InstanceRecord) -> Result<Adoption, InstanceError> {
        Err(InstanceError::Unsupported { operation: "adopt", provider: ProviderKind::Qemu })
    }
    async fn reclaim(&self, _: &InstanceRecord) -> ReclaimReport {
        ReclaimReport::default()
    }
}
