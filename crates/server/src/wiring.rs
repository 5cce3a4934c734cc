//! Puts the parts together: the one place that knows which images, providers and policy an engine runs on.

use crate::{ServeOptions, images::HostImages};
use offshoot_engine::{Merging, Options, SystemClock};
use offshoot_image::Store as ImageStore;
use offshoot_policy::Policy;
use offshoot_provider::{
    Provider,
    gvisor::{self, GvisorProvider},
    qemu::{
        Acceleration, Options as QemuOptions, PROBE_DEADLINE, ProbeImage, QemuProvider, TranslationCaches,
    },
};
use offshoot_types::{ImageRef, NodeName};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// What VMs run on.
#[derive(Debug, Clone)]
pub enum Providers {
    /// Everything this host has; keepers run from this `offshoot` executable.
    Host { offshoot_exe: PathBuf },
    /// Exactly these.
    Given(Vec<Arc<dyn Provider>>),
}

impl Providers {
    fn assemble(&self, images: &ImageStore) -> Vec<Arc<dyn Provider>> {
        match self {
            Self::Given(providers) => providers.clone(),
            Self::Host { offshoot_exe } => vec![
                Arc::new(QemuProvider::new(qemu_options(offshoot_exe.clone(), Some(images)))),
                Arc::new(GvisorProvider::new(gvisor_options(offshoot_exe.clone(), Some(images)))),
            ],
        }
    }
}

/// How QEMU is found and KVM is proven: the same for the daemon and for `doctor`. The proof costs a boot, so it
/// is kept beside the images, which all state directories share, and made with `base` if that is there.
pub fn qemu_options(offshoot_exe: PathBuf, images: Option<&ImageStore>) -> QemuOptions {
    let base = images.and_then(|images| images.resolve(&ImageRef::Tag("base".into())).ok());
    QemuOptions {
        offshoot_exe,
        // Without images there is nothing to boot, so nothing to remember either.
        probe_cache: images.map(|images| images.root().join("probe")).unwrap_or_default(),
        qemu: None,
        acceleration: Acceleration::Auto,
        probe_image: base.map(|base| ProbeImage { kernel: base.kernel(), initramfs: base.initramfs() }),
        probe_deadline: PROBE_DEADLINE,
        translation_caches: TranslationCaches::default(),
    }
}

/// How `runsc` is found and proven, by the same rules. The agents of images are kept beside the images.
pub fn gvisor_options(offshoot_exe: PathBuf, images: Option<&ImageStore>) -> gvisor::Options {
    let beside = |name| images.map(|images| images.root().join(name)).unwrap_or_default();
    gvisor::Options {
        offshoot_exe,
        probe_cache: beside("probe"),
        agents: beside("agents"),
        runsc: None,
        probe_deadline: gvisor::PROBE_DEADLINE,
    }
}

/// Everything the engine runs on.
pub fn engine_options(
    options: &ServeOptions,
    runtime_dir: &Path,
    images: &HostImages,
    policy: &Policy,
) -> Options {
    Options {
        runtime_dir: runtime_dir.into(),
        images: Arc::new(images.to_boot_from()),
        providers: options.providers.assemble(images.store()),
        provider: options.provider,
        policy: policy.clone(),
        limits: options.limits,
        deadlines: options.deadlines,
        pool: options.pool,
        rebasing: options.rebasing,
        merging: Merging::default(),
        history: options.history,
        clock: Arc::new(SystemClock),
        node: NodeName::default(),
        checkpoints: options.checkpoints.clone(),
    }
}

/// The owner of the socket is whoever runs the daemon.
pub fn policy() -> Policy {
    Policy::built_in(rustix::process::geteuid().as_raw())
}
