//! The manifest: what an image consists of and came from. Its bytes, as stored, are what the image's digest covers.

use crate::{BlobDigest, Recipe};
use offshoot_types::{ImageDigest, MemMib};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The layout this version of Offshoot writes and reads.
pub const FORMAT: u32 = 1;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub format: u32,
    /// The machine the image runs on, as `uname -m` prints it.
    pub arch: String,
    /// When the root filesystem was built. An image derived from another keeps its date.
    pub created: jiff::Timestamp,
    /// The version of Offshoot that built it.
    pub offshoot: String,
    pub default_memory: MemMib,
    pub kernel_release: String,
    pub agent: AgentInfo,
    pub parts: Parts,
    pub recipe: Recipe,
    /// Identifies how the recipe was carried out: an image made another way is not current.
    pub method: BlobDigest,
    /// Everything installed in the root, and the kernel's package, sorted by name.
    pub packages: Vec<Package>,
    /// Modules in the initramfs, in load order.
    pub modules: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentInfo {
    pub version: String,
    pub digest: BlobDigest,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parts {
    /// Uncompressed ELF kernel with a PVH entry.
    pub kernel: Part,
    /// Agent and modules, cpio newc.
    pub initramfs: Part,
    /// erofs, shared read-only by all VMs of the image.
    pub root: Part,
    /// Small empty ext4, the backing file of each VM's data disk.
    pub disk: Part,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    pub digest: BlobDigest,
    pub size: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PartKind {
    Kernel,
    Initramfs,
    Root,
    Disk,
}

impl fmt::Display for PartKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Kernel => "kernel",
            Self::Initramfs => "initramfs",
            Self::Root => "root",
            Self::Disk => "disk",
        })
    }
}

impl Parts {
    pub fn iter(&self) -> impl Iterator<Item = (PartKind, Part)> {
        [
            (PartKind::Kernel, self.kernel),
            (PartKind::Initramfs, self.initramfs),
            (PartKind::Root, self.root),
            (PartKind::Disk, self.disk),
        ]
        .into_iter()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Package {
    pub name: String,
    pub version: String,
    pub architecture: String,
}

#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("the manifest has format {found}, this version reads format {FORMAT}")]
    Format { found: u32 },
    #[error("the manifest is not valid")]
    Syntax(#[source] serde_json::Error),
}

impl Manifest {
    /// Canonical bytes: compact JSON in the order of the declarations above.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a manifest holds only strings, numbers and lists of them")
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ManifestError> {
        // The format comes first, so that a newer manifest is called newer and not malformed.
        #[derive(Deserialize)]
        struct Versioned {
            format: u32,
        }
        let Versioned { format } = serde_json::from_slice(bytes).map_err(ManifestError::Syntax)?;
        if format != FORMAT {
            return Err(ManifestError::Format { found: format });
        }
        serde_json::from_slice(bytes).map_err(ManifestError::Syntax)
    }

    pub fn digest(&self) -> ImageDigest {
        image_digest(BlobDigest::of(&self.to_bytes()))
    }
}

/// An image is named by the digest of its manifest's blob.
pub(crate) fn image_digest(manifest: BlobDigest) -> ImageDigest {
    manifest.to_string().parse().expect("both kinds of digest have one text form")
}

pub(crate) fn manifest_blob(image: &ImageDigest) -> BlobDigest {
    image.to_string().parse().expect("both kinds of digest have one text form")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample() -> Manifest {
        let part = |bytes: &[u8]| Part { digest: BlobDigest::of(bytes), size: bytes.len() as u64 };
        Manifest {
            format: FORMAT,
            arch: "x86_64".into(),
            created: jiff::Timestamp::UNIX_EPOCH,
            offshoot: "0.1.0".into(),
            default_memory: MemMib::MIN,
            kernel_release: "6.1.0-1-cloud-amd64".into(),
            agent: AgentInfo { version: "0.1.0".into(), digest: BlobDigest::of(b"agent") },
            parts: Parts {
                kernel: part(b"kernel"),
                initramfs: part(b"initramfs"),
                root: part(b"root"),
                disk: part(b"disk"),
            },
            recipe: Recipe::load("base").unwrap(),
            method: BlobDigest::of(b"method"),
            packages: vec![Package {
                name: "python3".into(),
                version: "3.11.2-1+b1".into(),
                architecture: "amd64".into(),
            }],
            modules: vec!["virtio".into()],
        }
    }

    #[test]
    fn a_manifest_keeps_its_bytes_and_digest_through_a_round_trip() {
        let manifest = sample();
        let read = Manifest::from_bytes(&manifest.to_bytes()).unwrap();
        assert_eq!(read, manifest);
        assert_eq!(read.to_bytes(), manifest.to_bytes());
        assert_eq!(read.digest(), manifest.digest());
        assert_eq!(manifest_blob(&manifest.digest()), BlobDigest::of(&manifest.to_bytes()));
    }

    #[test]
    fn a_newer_format_and_an_unknown_field_are_told_apart() {
        let text = String::from_utf8(sample().to_bytes()).unwrap();
        let newer = text.replacen("\"format\":1", "\"format\":2,\"novelty\":true", 1);
        assert!(matches!(Manifest::from_bytes(newer.as_bytes()), Err(ManifestError::Format { found: 2 })));
        let unknown = text.replacen("\"format\":1", "\"format\":1,\"novelty\":true", 1);
        assert!(matches!(Manifest::from_bytes(unknown.as_bytes()), Err(ManifestError::Syntax(_))));
    }
}
