//! What the engine needs of images: verified files to boot from. A trait, so that the engine is tested without
//! a built image.

use offshoot_image::{AgentBinary, Store};
use offshoot_types::{Failure, ImageDigest, ImageRef};
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

/// The host's image store. Every VM boots with the agent of this version: an image built with another one lends
/// its other parts.
#[derive(Debug, Clone)]
pub struct StoredImages {
    pub store: Store,
    pub agent: AgentBinary,
}

impl Images for StoredImages {
    fn boot_files(&self, digest: &ImageDigest) -> Result<BootFiles, Failure> {
        let prepare = || {
            let image = self.store.resolve(&ImageRef::Digest(digest.clone()))?;
            let image = self.store.with_agent(&image, &self.agent)?;
            self.store.check(&image)?;
            Ok(BootFiles {
                kernel: image.kernel(),
                initramfs: image.initramfs(),
                root: image.root(),
                disk_template: image.disk(),
            })
        };
        prepare().map_err(|error: offshoot_image::StoreError| error.failure())
    }
}
