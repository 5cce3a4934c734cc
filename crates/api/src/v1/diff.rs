//! What differs between two states.

use super::{InvalidField, fork::source, schema};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use offshoot_types::{ForkSource, SnapshotId, VmId, VmName};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Most differences of each kind that one answer tells.
pub const MAX_DIFFERENCES: u32 = 100_000;
/// As many are told if nothing else is said.
pub const DEFAULT_DIFFERENCES: u32 = 1000;

/// Compare two states, each a VM as it is or a snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiffRequest {
    /// A VM's name or id, `VM@NAME`, or a snapshot's id. An id that could be both is a VM's first. If absent, the
    /// snapshot that `to` came of: of a VM the one it continues from or was last kept as, of a snapshot its parent;
    /// snapshots that were taken for forks or to suspend a VM are passed over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The same; what differs is told as the way from `from` to here.
    pub to: String,
    /// What is compared; everything if absent or empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kinds: Vec<DiffKind>,
    /// Most differences of each kind that are told, the first ones; the others are counted. At most 100000; 1000 if
    /// absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DiffKind {
    Files,
    Packages,
    Processes,
}

/// A checked [`DiffRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDiff {
    pub from: Option<ForkSource>,
    pub to: ForkSource,
    pub files: bool,
    pub packages: bool,
    pub processes: bool,
    pub limit: u32,
}

impl TryFrom<DiffRequest> for NewDiff {
    type Error = InvalidField;
    fn try_from(wire: DiffRequest) -> Result<Self, InvalidField> {
        let limit = wire.limit.unwrap_or(DEFAULT_DIFFERENCES);
        if !(1..=MAX_DIFFERENCES).contains(&limit) {
            return Err(InvalidField::new(
                "limit",
                format!("{limit} is not between 1 and {MAX_DIFFERENCES}"),
            ));
        }
        let wanted = |kind| wire.kinds.is_empty() || wire.kinds.contains(&kind);
        Ok(Self {
            from: wire.from.as_deref().map(|text| source("from", text)).transpose()?,
            to: source("to", &wire.to)?,
            files: wanted(DiffKind::Files),
            packages: wanted(DiffKind::Packages),
            processes: wanted(DiffKind::Processes),
            limit,
        })
    }
}

/// What differs. Guest data: never trusted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Diff {
    pub from: DiffSubject,
    pub to: DiffSubject,
    /// Whether anything that was compared differs.
    pub differs: bool,
    /// In the order of a walk: a directory right before what it holds. Absent if not asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<FileDifferences>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packages: Option<PackageDifferences>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processes: Option<ProcessDifferences>,
}

/// One of the two states.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiffSubject {
    #[schema(schema_with = schema::uuid)]
    pub vm: VmId,
    #[schema(value_type = String)]
    pub name: VmName,
    /// Absent for a VM that was not suspended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schema::uuid)]
    pub snapshot: Option<SnapshotId>,
    /// Absent if it was not necessary to look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub looked_at: Option<LookedAt>,
}

/// How a state was looked into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LookedAt {
    /// The VM itself, while it ran.
    Running,
    /// A copy that continued from its memory, and is gone.
    Memory,
    /// A copy that booted from its disk, and is gone.
    Disk,
}

/// How many there are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiffCounts {
    pub added: u64,
    pub modified: u64,
    pub removed: u64,
    /// How many of them are counted and not told.
    pub more: u64,
    /// What could not be told, in either state, because its path is longer than paths are.
    pub left_out: u64,
    /// Why it is not known what differs; then nothing is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Difference {
    Added,
    Modified,
    Removed,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileDifferences {
    #[serde(flatten)]
    pub counts: DiffCounts,
    pub changes: Vec<FileDifference>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileDifference {
    pub difference: Difference,
    /// Absolute. U+FFFD stands in place of bytes that are not UTF-8.
    pub path: String,
    /// The very bytes in base64, of a path that is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_base64: Option<String>,
    /// Absent where it was added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<FileFacts>,
    /// Absent where it was removed. Equal to `from` where only the content differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<FileFacts>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileFacts {
    pub kind: DiskKind,
    /// Permission bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// In bytes; 0 of everything but files.
    pub size: u64,
    /// Where a symbolic link leads. U+FFFD stands in place of bytes that are not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The very bytes in base64, of a target that is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_base64: Option<String>,
    /// The number of a device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DiskKind {
    File,
    Directory,
    Symlink,
    Fifo,
    Socket,
    CharDevice,
    BlockDevice,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PackageDifferences {
    #[serde(flatten)]
    pub counts: DiffCounts,
    pub changes: Vec<PackageDifference>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PackageDifference {
    pub difference: Difference,
    pub manager: PackageManager,
    /// With dpkg `NAME:ARCHITECTURE`.
    pub name: String,
    /// The version; absent where it was not installed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PackageManager {
    Dpkg,
    Pip,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProcessDifferences {
    #[serde(flatten)]
    pub counts: DiffCounts,
    pub changes: Vec<ProcessDifference>,
}

/// Processes with the same command line and user are told together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProcessDifference {
    pub difference: Difference,
    pub user: String,
    /// At most 4096 bytes of it; `[NAME]` of a process that shows none. U+FFFD stands in place of bytes that are not
    /// UTF-8.
    pub command: String,
    /// The very bytes in base64, of a command line that is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command_base64: Option<String>,
    /// How many ran.
    pub from: u64,
    pub to: u64,
}

/// Bytes as text, and as they are where that is not the same.
pub fn text_of(bytes: Vec<u8>) -> (String, Option<String>) {
    match String::from_utf8(bytes) {
        Ok(text) => (text, None),
        Err(error) => {
            let bytes = error.as_bytes();
            (String::from_utf8_lossy(bytes).into_owned(), Some(STANDARD.encode(bytes)))
        }
    }
}

/// The bytes again.
pub fn bytes_of(text: &str, base64: Option<&String>) -> Vec<u8> {
    let raw = base64.and_then(|raw| STANDARD.decode(raw).ok());
    raw.unwrap_or_else(|| text.as_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(to: &str) -> DiffRequest {
        DiffRequest { to: to.into(), ..DiffRequest::default() }
    }

    #[test]
    fn everything_is_compared_unless_something_is_named() {
        let all = NewDiff::try_from(request("web@before")).unwrap();
        assert_eq!(all.to, ForkSource::Snapshot("web@before".parse().unwrap()));
        assert!(all.files && all.packages && all.processes && all.from.is_none());
        assert_eq!(all.limit, DEFAULT_DIFFERENCES);
        let one = DiffRequest { kinds: vec![DiffKind::Files], from: Some("a".into()), ..request("b") };
        let one = NewDiff::try_from(one).unwrap();
        assert!(one.files && !one.packages && !one.processes);
        assert_eq!(one.from, Some(ForkSource::Vm("a".parse().unwrap())));
    }

    #[test]
    fn every_bad_field_is_named() {
        let refused = |wire: DiffRequest| NewDiff::try_from(wire).unwrap_err().field;
        assert_eq!(refused(request("a@")), "to");
        assert_eq!(refused(DiffRequest { from: Some(String::new()), ..request("a") }), "from");
        for limit in [0, MAX_DIFFERENCES + 1] {
            assert_eq!(refused(DiffRequest { limit: Some(limit), ..request("a") }), "limit");
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_told_twice() {
        assert_eq!(text_of(b"/a".to_vec()), ("/a".into(), None));
        let (text, raw) = text_of(b"/\xff".to_vec());
        assert_eq!((text.as_str(), raw.as_deref()), ("/\u{fffd}", Some("L/8=")));
        assert_eq!(bytes_of(&text, raw.as_ref()), b"/\xff");
    }
}
