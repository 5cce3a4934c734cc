//! What the engine needs of images: verified files to boot from. A trait, so that the engine is tested without
//! a built image.

use offshoot_types::{Failure, ImageDigest};
use std::{fmt::Debug, path::PathBuf};

/// Files of one image, checked just now. They are immutable and shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootFiles {
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    pub root: PathBuf,
    /// What the data disk of a new VM reads from until the guest writes.
    pub disk_template: PathBuf,
}

/// Where VMs boot from.
pub trait Images: Send + Sync + Debug {
    /// Checks every part of the image and says where it is. Called before each boot; may hash a part that was
    /// not verified before, hence blocks, and is called where that is allowed.
    fn boot_files(&self, digest: &ImageDigest) -> Result<BootFiles, Failure>;
}
