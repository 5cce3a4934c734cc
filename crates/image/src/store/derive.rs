//! The same image with another agent: a new initramfs and manifest, every other part shared.

use super::{
    Image, Store, StoreError,
    error::{At, IoAt},
};
use crate::{AgentBinary, AgentInfo, BlobDigest, Manifest, Parts, initramfs};
use offshoot_types::ImageRef;
use std::fs;

impl Store {
    /// The image with `agent` as its `/init`: `image` itself if it has that agent already, else one derived from it.
    /// Takes milliseconds, is the same image each time, and moves no tag.
    pub fn with_agent(&self, image: &Image, agent: &AgentBinary) -> Result<Image, StoreError> {
        let info = AgentInfo { version: agent.version().into(), digest: agent.digest() };
        if image.manifest.agent == info {
            return Ok(image.clone());
        }
        self.derive(image, agent, info, None)
    }

    pub(crate) fn derive(
        &self,
        image: &Image,
        agent: &AgentBinary,
        info: AgentInfo,
        tag: Option<&str>,
    ) -> Result<Image, StoreError> {
        let path = image.initramfs();
        let old = fs::read(&path).at(At::Read, &path)?;
        let (expected, actual) = (image.manifest.parts.initramfs.digest, BlobDigest::of(&old));
        if actual != expected {
            // Damage must not get a digest of its own.
            return Err(StoreError::Mismatch { part: "the initramfs".into(), path, expected, actual });
        }
        let new = initramfs::replace_agent(&old, agent.bytes())
            .map_err(|source| StoreError::Initramfs { digest: image.digest.clone(), source })?;
        let _builder = self.builder()?;
        let scratch = self.scratch()?;
        let parts = Parts { initramfs: self.add_bytes(&scratch, &new)?, ..image.manifest.parts };
        let manifest = Manifest { agent: info, parts, ..image.manifest.clone() };
        let known = self.resolve(&ImageRef::Digest(manifest.digest()));
        match (known, tag) {
            (Ok(known), None) => Ok(known),
            _ => self.publish(&scratch, &manifest, tag),
        }
    }
}
