//! Images as callers see them: resolving, listing, checking, publishing.

use super::{
    Scratch, Store, StoreError,
    blob::Thoroughness,
    error::{At, IoAt},
    sync_directory,
};
use crate::{
    Manifest, PartKind,
    manifest::{image_digest, manifest_blob},
};
use offshoot_types::{ImageDigest, ImageRef};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// An image of a store. Its parts are immutable; [`Store::check`] before use says whether they still are what the
/// manifest says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Image {
    pub digest: ImageDigest,
    /// Tags that meant this image when it was read.
    pub tags: Vec<String>,
    pub manifest: Manifest,
    #[serde(skip)]
    blobs: PathBuf,
}

impl Image {
    pub fn part(&self, kind: PartKind) -> PathBuf {
        let parts = &self.manifest.parts;
        let part = match kind {
            PartKind::Kernel => parts.kernel,
            PartKind::Initramfs => parts.initramfs,
            PartKind::Root => parts.root,
            PartKind::Disk => parts.disk,
        };
        self.blobs.join(part.digest.hex())
    }
    pub fn kernel(&self) -> PathBuf {
        self.part(PartKind::Kernel)
    }
    pub fn initramfs(&self) -> PathBuf {
        self.part(PartKind::Initramfs)
    }
    pub fn root(&self) -> PathBuf {
        self.part(PartKind::Root)
    }
    pub fn disk(&self) -> PathBuf {
        self.part(PartKind::Disk)
    }
    /// Bytes of all parts, some of which other images may share.
    pub fn size(&self) -> u64 {
        self.manifest.parts.iter().map(|(_, part)| part.size).sum()
    }
}

/// All images of a store. One that cannot be read does not hide the others.
#[derive(Debug, Default)]
pub struct Listing {
    /// Tagged images first, by tag; then the others, oldest first.
    pub images: Vec<Image>,
    pub broken: Vec<(ImageDigest, StoreError)>,
}

impl Store {
    pub fn resolve(&self, image: &ImageRef) -> Result<Image, StoreError> {
        self.load(&self.digest_of(image)?, &self.tags()?)
    }

    /// The digest an image goes by, whether or not its manifest can be read.
    pub(super) fn digest_of(&self, image: &ImageRef) -> Result<ImageDigest, StoreError> {
        let digest = match image {
            ImageRef::Digest(digest) => digest.clone(),
            ImageRef::Tag(tag) => {
                self.tag(tag)?.ok_or_else(|| StoreError::NotFound { image: image.clone() })?
            }
        };
        if !self.image_marker(&digest).exists() {
            return Err(StoreError::NotFound { image: image.clone() });
        }
        Ok(digest)
    }

    pub fn list(&self) -> Result<Listing, StoreError> {
        let tags = self.tags()?;
        let mut listing = Listing::default();
        for digest in self.image_digests()? {
            match self.load(&digest, &tags) {
                Ok(image) => listing.images.push(image),
                Err(error) => listing.broken.push((digest, error)),
            }
        }
        listing.images.sort_by(|a, b| {
            (a.tags.is_empty(), &a.tags, a.manifest.created).cmp(&(
                b.tags.is_empty(),
                &b.tags,
                b.manifest.created,
            ))
        });
        Ok(listing)
    }

    /// Whether every part is the one in the manifest. Microseconds when the files are the very ones that were hashed
    /// before; otherwise each changed file is hashed in full.
    pub fn check(&self, image: &Image) -> Result<(), StoreError> {
        self.check_parts(image, Thoroughness::ByIdentity)
    }

    /// Hashes every part in full.
    pub fn verify(&self, image: &Image) -> Result<(), StoreError> {
        self.check_parts(image, Thoroughness::ByContent)
    }

    fn check_parts(&self, image: &Image, thoroughness: Thoroughness) -> Result<(), StoreError> {
        for (kind, part) in image.manifest.parts.iter() {
            self.check_blob(&format!("the {kind}"), part, thoroughness)?;
        }
        Ok(())
    }

    /// Makes the manifest an image, and the tag mean it. The caller holds [`Store::builder`].
    pub(crate) fn publish(
        &self,
        scratch: &Scratch,
        manifest: &Manifest,
        tag: Option<&str>,
    ) -> Result<Image, StoreError> {
        let blob = self.add_bytes(scratch, &manifest.to_bytes())?;
        let digest = image_digest(blob.digest);
        let _lock = self.lock()?;
        self.write_atomically(scratch, &self.image_marker(&digest), b"")?;
        if let Some(tag) = tag {
            self.write_atomically(scratch, &self.tag_path(tag), format!("{digest}\n").as_bytes())?;
        }
        self.load(&digest, &self.tags()?)
    }

    /// Readers see the old content or the new, also after a power cut.
    pub(super) fn write_atomically(
        &self,
        scratch: &Scratch,
        to: &Path,
        bytes: &[u8],
    ) -> Result<(), StoreError> {
        let from = scratch.join("publish");
        let write = || {
            let mut file = File::create(&from)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&from, to)?;
            sync_directory(to.parent().unwrap_or(to))
        };
        write().at(At::Write, to)
    }

    fn load(&self, digest: &ImageDigest, tags: &BTreeMap<String, ImageDigest>) -> Result<Image, StoreError> {
        let blob = manifest_blob(digest);
        let path = self.blob(blob);
        let bytes = match fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::Missing { part: "the manifest".into(), path, expected: blob });
            }
            read => read.at(At::Read, &path)?,
        };
        let actual = crate::BlobDigest::of(&bytes);
        if actual != blob {
            return Err(StoreError::Mismatch { part: "the manifest".into(), path, expected: blob, actual });
        }
        let manifest = Manifest::from_bytes(&bytes)
            .map_err(|source| StoreError::Manifest { digest: digest.clone(), source })?;
        let tags = tags.iter().filter(|(_, meant)| *meant == digest).map(|(tag, _)| tag.clone()).collect();
        Ok(Image { digest: digest.clone(), tags, manifest, blobs: self.root.join("blobs/sha256") })
    }

    pub(super) fn image_marker(&self, digest: &ImageDigest) -> PathBuf {
        self.root.join("images").join(digest.hex())
    }

    pub(super) fn image_digests(&self) -> Result<Vec<ImageDigest>, StoreError> {
        Ok(self.names("images")?.iter().filter_map(|name| name.parse().ok()).collect())
    }

    pub(super) fn tag_path(&self, tag: &str) -> PathBuf {
        self.root.join("tags").join(tag)
    }

    fn tag(&self, tag: &str) -> Result<Option<ImageDigest>, StoreError> {
        let path = self.tag_path(tag);
        match fs::read_to_string(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            read => {
                let text = read.at(At::Read, &path)?;
                text.trim_end().parse().map(Some).map_err(|_| StoreError::Tag { path })
            }
        }
    }

    pub(super) fn tags(&self) -> Result<BTreeMap<String, ImageDigest>, StoreError> {
        let mut tags = BTreeMap::new();
        for name in self.names("tags")? {
            match self.tag(&name) {
                Ok(Some(digest)) => drop(tags.insert(name, digest)),
                Ok(None) => {} // Removed since the directory was read.
                // Whoever asks for this tag is told; the others are not kept from theirs.
                Err(error) => tracing::warn!(tag = name, %error, "unreadable image tag"),
            }
        }
        Ok(tags)
    }

    /// Sorted names of the entries of one of the store's directories.
    pub(super) fn names(&self, directory: &str) -> Result<Vec<String>, StoreError> {
        let path = self.root.join(directory);
        let read = || -> io::Result<Vec<String>> {
            let entries = fs::read_dir(&path)?;
            // Names that are not UTF-8 cannot be ours.
            entries.filter_map(|entry| entry.map(|e| e.file_name().into_string().ok()).transpose()).collect()
        };
        let mut names = read().at(At::List, &path)?;
        names.sort_unstable();
        Ok(names)
    }
}
