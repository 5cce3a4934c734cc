//! Puts the parts together: the one place that knows which images, providers and policy an engine runs on.

use crate::{ServeOptions, images::HostImages};
use offshoot_engine::{Options, SystemClock};
use offshoot_policy::Policy;
use offshoot_provider::{
    Provider,
    qemu::{Acceleration, Options as QemuOptions, QemuProvider},
};
use offshoot_types::NodeName;
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
    fn assemble(&self, state_dir: &Path) -> Vec<Arc<dyn Provider>> {
        match self {
            Self::Given(providers) => providers.clone(),
            Self::Host { offshoot_exe } => vec![Arc::new(QemuProvider::new(QemuOptions {
                offshoot_exe: offshoot_exe.clone(),
                probe_cache: state_dir.join("probe.json"),
                qemu: None,
                acceleration: Acceleration::Auto,
                probe_image: None,
            }))],
        }
    }
}

/// Everything the engine runs on.
pub fn engine_options(
    options: &ServeOptions,
    state_dir: &Path,
    runtime_dir: &Path,
    images: &HostImages,
    policy: &Policy,
) -> Options {
    Options {
        runtime_dir: runtime_dir.into(),
        images: Arc::new(images.to_boot_from()),
        providers: options.providers.assemble(state_dir),
        policy: policy.clone(),
        limits: options.limits,
        deadlines: options.deadlines,
        clock: Arc::new(SystemClock),
        node: NodeName::default(),
        checkpoints: options.checkpoints.clone(),
    }
}

/// The owner of the socket is whoever runs the daemon.
pub fn policy() -> Policy {
    Policy::owner_of_socket(rustix::process::geteuid().as_raw())
}
