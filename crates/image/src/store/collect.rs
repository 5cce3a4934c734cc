//! Removing images, and the blobs that nothing names any more.

use super::{
    FileLock, Store, StoreError,
    error::{At, IoAt},
    stage::{StageRecord, StageState},
};
use crate::{BlobDigest, manifest::manifest_blob};
use offshoot_types::{ImageDigest, ImageRef};
use serde::Serialize;
use std::{
    collections::BTreeSet,
    fs, io,
    path::Path,
    time::{Duration, SystemTime},
};

/// An interrupted build that nobody took up for so long is given up.
const ABANDONED: Duration = Duration::from_secs(7 * 24 * 3600);

/// What [`Store::remove`] did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// The tag taken away, if the image was named by one.
    pub tag: Option<String>,
    /// Images that are gone: the named one, unless another tag keeps it, and those derived from it for other agents.
    pub images: Vec<ImageDigest>,
    pub collected: Collected,
}

/// What became of blobs without an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "blobs")]
pub enum Collected {
    Freed {
        files: u64,
        bytes: u64,
    },
    /// A build is under way and may be about to name them: the next removal frees them.
    Deferred,
}

impl Store {
    /// Removes a tag, and the image with it once no tag is left. `in_use` holds the images of existing VMs.
    ///
    /// An image and those derived from it by [`Store::with_agent`] share their root filesystem and count as one: the
    /// image is in use if any of them is, and goes together with them.
    pub fn remove(&self, image: &ImageRef, in_use: &BTreeSet<ImageDigest>) -> Result<Removed, StoreError> {
        let removed = {
            let _lock = self.lock()?;
            let target = self.digest_of(image)?;
            let tags: Vec<String> =
                self.tags()?.into_iter().filter(|(_, meant)| *meant == target).map(|(tag, _)| tag).collect();
            let tag = match image {
                ImageRef::Tag(tag) => Some(tag.clone()),
                ImageRef::Digest(_) => None,
            };
            let kept_by_another_tag = tag.is_some() && tags.iter().any(|other| Some(other) != tag.as_ref());
            let mut images = Vec::new();
            if !kept_by_another_tag {
                let family = self.family(target)?;
                let users = family.iter().filter(|member| in_use.contains(*member)).count();
                if users > 0 {
                    return Err(StoreError::InUse { image: image.clone(), users });
                }
                images = family;
            }
            // The tag goes first: a tag without an image would be an error to every reader.
            let tags = if kept_by_another_tag { tag.iter().cloned().collect() } else { tags };
            for name in tags {
                remove_if_there(&self.tag_path(&name))?;
            }
            for digest in &images {
                remove_if_there(&self.image_marker(digest))?;
            }
            (tag, images)
        };
        let collected = self.collect()?;
        Ok(Removed { tag: removed.0, images: removed.1, collected })
    }

    /// The image, and untagged images with the same root. A damaged image, which must be removable too, stands alone.
    fn family(&self, digest: ImageDigest) -> Result<Vec<ImageDigest>, StoreError> {
        let images = self.list()?.images;
        let root = images.iter().find(|image| image.digest == digest).map(|image| image.manifest.parts.root);
        let mut family = vec![digest];
        for other in images {
            let related = Some(other.manifest.parts.root) == root && other.tags.is_empty();
            if related && !family.contains(&other.digest) {
                family.push(other.digest);
            }
        }
        Ok(family)
    }

    /// Frees blobs that neither an image nor an unfinished build names.
    pub fn collect(&self) -> Result<Collected, StoreError> {
        let path = self.root.join("builders");
        let Some(_no_builder) = FileLock::try_exclusive(&path).at(At::Lock, &path)? else {
            return Ok(Collected::Deferred);
        };
        let _lock = self.lock()?;
        let mut named = BTreeSet::new();
        for digest in self.image_digests()? {
            named.insert(manifest_blob(&digest));
            // A manifest that cannot be read keeps its parts out of reach of everyone, so they need no keeping.
            if let Ok(image) = self.resolve(&ImageRef::Digest(digest)) {
                named.extend(image.manifest.parts.iter().map(|(_, part)| part.digest));
            }
        }
        let stages = self.stage_records()?;
        for (_, record) in stages.iter().filter(|(_, record)| record.state == StageState::Pending) {
            named.extend(record.blobs.values().map(|part| part.digest));
        }
        for (name, record) in &stages {
            if !record.blobs.values().all(|part| named.contains(&part.digest)) {
                remove_if_there(&self.root.join("stages").join(name))?;
            }
        }
        let (mut files, mut bytes) = (0, 0);
        for name in self.names("blobs/sha256")? {
            let Ok(digest) = format!("sha256:{name}").parse::<BlobDigest>() else { continue };
            if named.contains(&digest) {
                continue;
            }
            let path = self.blob(digest);
            let size = fs::metadata(&path).map(|metadata| metadata.len()).unwrap_or(0);
            remove_if_there(&path)?;
            self.forget_identity(digest);
            files += 1;
            bytes += size;
        }
        Ok(Collected::Freed { files, bytes })
    }

    /// Readable records by file name. Unreadable and abandoned ones are removed.
    fn stage_records(&self) -> Result<Vec<(String, StageRecord)>, StoreError> {
        let mut records = Vec::new();
        for name in self.names("stages")?.into_iter().filter(|name| name.ends_with(".json")) {
            let path = self.root.join("stages").join(&name);
            let record = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
            match record {
                Some(record) if !is_abandoned(&path, &record) => records.push((name, record)),
                _ => remove_if_there(&path)?,
            }
        }
        Ok(records)
    }
}

fn is_abandoned(path: &Path, record: &StageRecord) -> bool {
    let age = || SystemTime::now().duration_since(fs::metadata(path)?.modified()?).map_err(io::Error::other);
    record.state == StageState::Pending && age().is_ok_and(|age| age > ABANDONED)
}

fn remove_if_there(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.at(At::Remove, path),
    }
}
