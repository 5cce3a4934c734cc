//! The host's images, for callers. The store blocks and may hash gigabytes, so every access
//! runs where blocking is allowed.

use offshoot_api::v1;
use offshoot_engine::StoredImages;
use offshoot_image::{AgentBinary, Image, Store, StoreError};
use offshoot_types::{ErrorCode, Failure, ImageDigest, ImageRef, MemMib};
use std::{collections::BTreeSet, path::Path};
use tokio::task::spawn_blocking;

/// Cheap to clone.
#[derive(Debug, Clone)]
pub struct HostImages {
    store: Store,
    agent: AgentBinary,
}

/// What a new VM needs to know of its image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageForVm {
    pub digest: ImageDigest,
    pub default_memory: MemMib,
}

impl HostImages {
    pub fn open(root: &Path, agent: AgentBinary) -> Result<Self, Failure> {
        let store = Store::open(root).map_err(|error| error.failure())?;
        Ok(Self { store, agent })
    }

    pub fn root(&self) -> &Path {
        self.store.root()
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    /// What the engine boots VMs from.
    pub fn to_boot_from(&self) -> StoredImages {
        StoredImages { store: self.store.clone(), agent: self.agent.clone() }
    }

    /// The image as its name stands now: what a VM made now is bound to.
    pub async fn for_new_vm(&self, image: ImageRef) -> Result<ImageForVm, Failure> {
        self.blocking(move |store| {
            let image = store.resolve(&image)?;
            Ok(ImageForVm { digest: image.digest, default_memory: image.manifest.default_memory })
        })
        .await
    }

    pub async fn list(&self) -> Result<Vec<v1::Image>, Failure> {
        self.blocking(|store| {
            let listing = store.list()?;
            for (digest, error) in listing.broken {
                tracing::warn!(%digest, %error, "an image cannot be read");
            }
            Ok(listing.images.into_iter().map(wire).collect())
        })
        .await
    }

    /// Returns the images that are gone with their last tag.
    pub async fn remove(
        &self,
        image: ImageRef,
        in_use: BTreeSet<ImageDigest>,
    ) -> Result<Vec<ImageDigest>, Failure> {
        self.blocking(move |store| store.remove(&image, &in_use).map(|removed| removed.images)).await
    }

    /// Reads every part in full.
    pub async fn verify(&self, image: ImageRef) -> Result<v1::ImageVerified, Failure> {
        self.blocking(move |store| {
            let image = store.resolve(&image)?;
            store.verify(&image)?;
            let file = |(kind, part): (offshoot_image::PartKind, offshoot_image::Part)| v1::ImageFile {
                name: kind.to_string(),
                sha256: part.digest.hex(),
                size_bytes: part.size,
            };
            let parts = image.manifest.parts.iter().map(file).collect();
            Ok(v1::ImageVerified { digest: image.digest, parts })
        })
        .await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Failure> {
        let store = self.store.clone();
        let done = spawn_blocking(move || work(&store)).await.map_err(|error| {
            Failure::new(ErrorCode::Internal, "reading the image store broke off").caused_by(&error)
        })?;
        done.map_err(|error| error.failure())
    }
}

fn wire(image: Image) -> v1::Image {
    let size_bytes = image.size();
    v1::Image {
        digest: image.digest,
        tags: image.tags,
        default_memory_mib: image.manifest.default_memory.mib().into(),
        size_bytes,
        kernel: Some(image.manifest.kernel_release),
        created: Some(image.manifest.created),
    }
}
