//! From a Debian kernel package to what a micro-VM boots.
//!
//! ```text
//! boot/vmlinuz-R --bzimage--> compressed payload --compression--> ELF with a PVH entry   (part `kernel`)
//! lib/modules/R  --modules--> the needed modules in load order, decompressed             (into the initramfs)
//! ```
//! QEMU's microvm starts an uncompressed ELF kernel directly, by PVH: no real-mode stub runs and nothing is
//! decompressed inside the guest, where that is slow without hardware virtualisation.

mod bzimage;
mod compression;
mod modules;

pub(crate) use bzimage::extract_vmlinux;
pub(crate) use modules::{Module, ModuleTree};

use crate::ElfError;
use std::{io, path::PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error("the kernel package holds no `boot/vmlinuz-*`")]
    NoKernel,
    #[error("not a Linux bzImage: {reason}")]
    NotBzImage { reason: &'static str },
    #[error("the {what} is compressed in a way this version does not know (it starts with {magic:02x?})")]
    UnknownCompression { what: String, magic: Vec<u8> },
    #[error("decompress the {what} ({format})")]
    Decompress { what: String, format: &'static str, source: io::Error },
    #[error("the {what} is larger than {limit} bytes when decompressed")]
    TooLarge { what: String, limit: usize },
    #[error("the kernel inside the bzImage cannot be used")]
    NotElf(#[source] ElfError),
    #[error("the kernel has no PVH entry point (it was built without CONFIG_PVH)")]
    NoPvhEntry,
    #[error("the kernel has no module `{name}`, which is needed{}", needed_by(.by))]
    NoModule { name: String, by: Option<String> },
    #[error("the modules {cycle} depend on each other")]
    ModuleCycle { cycle: String },
    #[error("`{}` is not a kernel module: {reason}", path.display())]
    NotModule { path: PathBuf, reason: &'static str },
    #[error("read `{}`", path.display())]
    Read { path: PathBuf, source: io::Error },
}

fn needed_by(by: &Option<String>) -> String {
    by.as_ref().map(|by| format!(" by `{by}`")).unwrap_or_default()
}
