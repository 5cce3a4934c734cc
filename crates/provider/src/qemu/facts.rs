//! What a device state of this QEMU is bound to.

use super::{command_line::Accelerator, host::Qemu, tsc};
use crate::{facts::Facts, parts::Hash};

pub(super) fn facts(qemu: &Qemu, digest: Hash, accelerator: Accelerator) -> Facts {
    Facts {
        arch: std::env::consts::ARCH.into(),
        vmm: qemu.version.clone(),
        vmm_digest: digest,
        isolation: accelerator.isolation(),
        machine: accelerator.machine().into(),
        cpu: accelerator.cpu().into(),
        tsc_khz: tsc::frequency_khz(),
    }
}
