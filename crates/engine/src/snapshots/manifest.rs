//! What a snapshot says of itself: enough to check every byte of it before anything of it is used.

use crate::host_key::HostKey;
use offshoot_provider::{
    facts::Facts,
    parts::{Hash, Part},
};
use offshoot_types::{
    CpuCount, DiskMib, ErrorCode, Failure, ImageDigest, LayerId, MemMib, ProviderKind, SnapshotId,
    SnapshotKind, VmId,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{fs, path::Path};

/// Of [`Manifest::format`].
const FORMAT: u32 = 1;
pub(super) const FILE: &str = "manifest.json";
pub(crate) const DEVICE_STATE: &str = "device.state";
pub(super) const RAM_DELTA: &str = "ram.delta";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    pub format: u32,
    pub id: SnapshotId,
    pub vm: VmId,
    pub parent: Option<SnapshotId>,
    pub kind: SnapshotKind,
    pub provider: ProviderKind,
    /// What its memory and device state are bound to; `None` for a snapshot of the disk only.
    pub machine: Option<Facts>,
    pub image: ImageDigest,
    pub memory: MemMib,
    /// The snapshot whose complete memory `ram_delta` is against; `None`: zeros.
    pub memory_base: Option<SnapshotId>,
    pub cpus: CpuCount,
    pub disk: DiskMib,
    /// Newest first, below them the image's template.
    pub layers: Vec<LayerPart>,
    /// Both or, for a snapshot of the disk only, neither.
    pub device_state: Option<Part>,
    pub ram_delta: Option<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LayerPart {
    pub layer: LayerId,
    /// Relative to the state directory.
    pub path: String,
    pub part: Part,
}

/// As it lies on the disk: the text that was authenticated, byte for byte.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Signed {
    manifest: String,
    /// Keyed BLAKE3 of `manifest` with the host's key.
    tag: Hash,
}

impl Manifest {
    pub const FORMAT: u32 = FORMAT;

    /// The file's content.
    pub fn sign(&self, key: &HostKey) -> Result<Vec<u8>, Failure> {
        let text = serde_json::to_string(self).map_err(|error| unwritable(&error))?;
        let tag = key.authenticate(text.as_bytes());
        serde_json::to_vec_pretty(&Signed { manifest: text, tag }).map_err(|error| unwritable(&error))
    }

    /// As the record keeps it.
    pub fn as_value(&self) -> Result<Value, Failure> {
        serde_json::to_value(self).map_err(|error| unwritable(&error))
    }

    /// Whether the file says what the record does, whoever wrote it.
    pub fn is_of(path: &Path, recorded: &Value) -> bool {
        let text = fs::read(path).ok().and_then(|bytes| serde_json::from_slice::<Signed>(&bytes).ok());
        text.and_then(|signed| serde_json::from_str::<Value>(&signed.manifest).ok())
            .is_some_and(|found| found == *recorded)
    }

    /// Reads the file of snapshot `id`; whatever is not what this host wrote for it is refused.
    pub fn open(path: &Path, bytes: &[u8], id: SnapshotId, key: &HostKey) -> Result<Self, Failure> {
        let refused = |why: &str| {
            Failure::new(ErrorCode::Snapshot, format!("`{}` {why}", path.display()))
                .hint("the snapshot cannot be used; `offshoot snapshot rm` removes it")
        };
        let signed: Signed = serde_json::from_slice(bytes).map_err(|_| refused("is no manifest"))?;
        if !key.is_ours(signed.manifest.as_bytes(), &signed.tag) {
            return Err(refused("was changed, or was not written by this host"));
        }
        let manifest: Self =
            serde_json::from_str(&signed.manifest).map_err(|_| refused("is of another version"))?;
        if manifest.format != FORMAT {
            return Err(refused(&format!("has format {}, and this version reads {FORMAT}", manifest.format)));
        }
        if manifest.id != id {
            return Err(refused(&format!("is the one of snapshot {}", manifest.id)));
        }
        Ok(manifest)
    }
}

fn unwritable(error: &serde_json::Error) -> Failure {
    Failure::new(ErrorCode::Internal, "a manifest could not be written").caused_by(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        Manifest {
            format: FORMAT,
            id: SnapshotId::new(),
            vm: VmId::new(),
            parent: None,
            kind: SnapshotKind::Full,
            provider: ProviderKind::Fake,
            machine: None,
            image: "0a".repeat(32).parse().unwrap(),
            memory: MemMib::from_mib(128).unwrap(),
            memory_base: None,
            cpus: CpuCount::ONE,
            disk: DiskMib::from_mib(64).unwrap(),
            layers: vec![LayerPart { layer: LayerId::new(), path: "disks/a".into(), part: Part::of(b"a") }],
            device_state: Some(Part::of(b"devices")),
            ram_delta: Some(Part::of(b"pages")),
        }
    }

    #[test]
    fn snapshot_version_matrix() {
        let dir = tempfile::tempdir().unwrap();
        let key = HostKey::load(dir.path(), "snapshots.key").unwrap();
        let path = Path::new("/s/manifest.json");
        for (format, read) in [(FORMAT, true), (FORMAT + 1, false), (0, false), (u32::MAX, false)] {
            let manifest = Manifest { format, ..manifest() };
            let opened = Manifest::open(path, &manifest.sign(&key).unwrap(), manifest.id, &key);
            assert_eq!(opened.is_ok(), read);
            // Signed by us, so it is the version that is refused, and by its number.
            let said = opened.err().map(|failure| failure.message).unwrap_or_default();
            assert!(read || said.contains(&format!("has format {format}")), "{said}");
        }
    }

    #[test]
    fn a_manifest_is_read_back_and_every_flipped_byte_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let key = HostKey::load(dir.path(), "snapshots.key").unwrap();
        let (manifest, path) = (manifest(), Path::new("/s/manifest.json"));
        let bytes = manifest.sign(&key).unwrap();
        assert_eq!(Manifest::open(path, &bytes, manifest.id, &key).unwrap(), manifest);
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            // A flip in the white space between the two fields changes nothing that counts.
            match Manifest::open(path, &flipped, manifest.id, &key) {
                Ok(same) => assert_eq!(same, manifest, "byte {at}"),
                Err(failure) => {
                    assert_eq!(failure.code, ErrorCode::Snapshot);
                    assert!(failure.message.contains("/s/manifest.json"), "{failure:?}");
                }
            }
        }
        assert!(Manifest::open(path, &bytes, SnapshotId::new(), &key).is_err(), "another snapshot's");
        let other = HostKey::load(tempfile::tempdir().unwrap().path(), "snapshots.key").unwrap();
        let foreign = Manifest::open(path, &bytes, manifest.id, &other).unwrap_err();
        assert!(foreign.message.contains("not written by this host"), "{foreign:?}");
    }
}
