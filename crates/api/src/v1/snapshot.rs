//! Snapshots: states of a VM that were kept.

use super::{InvalidField, invalid::parse, schema};
use jiff::Timestamp;
use offshoot_types::{
    OperationId, SnapshotId, SnapshotKind, SnapshotName, SnapshotOrigin, SnapshotState, VmId, VmName,
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Longest note of a snapshot, in bytes.
const MAX_NOTE: usize = 1024;

/// Keep a VM's present state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TakeSnapshot {
    /// `^[a-z0-9][a-z0-9_-]{0,62}$`, unique per VM; without one it is found by its id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Leave the memory out: whoever continues from it boots.
    #[serde(default)]
    pub disk_only: bool,
    /// Free text, at most 1024 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// A checked [`TakeSnapshot`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSnapshot {
    pub name: Option<SnapshotName>,
    pub kind: SnapshotKind,
    pub note: Option<String>,
}

impl TryFrom<TakeSnapshot> for NewSnapshot {
    type Error = InvalidField;
    fn try_from(wire: TakeSnapshot) -> Result<Self, InvalidField> {
        if let Some(bytes) = wire.note.as_ref().map(String::len).filter(|bytes| *bytes > MAX_NOTE) {
            return Err(InvalidField::new("note", format!("{bytes} bytes are more than {MAX_NOTE}")));
        }
        Ok(Self {
            name: wire.name.as_deref().map(|name| parse("name", name)).transpose()?,
            kind: if wire.disk_only { SnapshotKind::DiskOnly } else { SnapshotKind::Full },
            note: wire.note,
        })
    }
}

/// A state of a VM that was kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Snapshot {
    #[schema(schema_with = schema::uuid)]
    pub id: SnapshotId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub name: Option<SnapshotName>,
    /// Whose state it is; that VM may have been destroyed since.
    #[schema(schema_with = schema::uuid)]
    pub vm: VmId,
    #[schema(value_type = String)]
    pub vm_name: VmName,
    /// What it holds: `full` (memory, devices, disk) or `disk-only`.
    #[schema(schema_with = schema::snapshot_kind)]
    pub kind: SnapshotKind,
    /// Who wanted it, which decides who lets it go.
    #[schema(schema_with = schema::snapshot_origin)]
    pub origin: SnapshotOrigin,
    /// How much of it is safe. A `volatile` one is usable at once and becomes `durable` by itself.
    #[schema(schema_with = schema::snapshot_state)]
    pub state: SnapshotState,
    /// The snapshot its VM continued from, or took last, before this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schema::uuid)]
    pub parent: Option<SnapshotId>,
    /// False if the guest did not hold its processes still while it was taken: it cannot be forked.
    pub quiesced: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// What it alone takes on the host's disk: device state, pages and disk layer.
    pub size_bytes: u64,
    /// Of the VM; a `full` one restores all of it.
    pub memory_mib: u64,
    /// The VM's present state descends from it directly.
    pub current: bool,
    #[schema(schema_with = schema::timestamp)]
    pub created: Timestamp,
    /// How long the VM stood still for it, in microseconds; only in the answer to whoever took it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_us: Option<u64>,
    /// That took it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schema::uuid)]
    pub operation: Option<OperationId>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotList {
    /// A parent comes before its children.
    pub snapshots: Vec<Snapshot>,
    /// Of the next page, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// Options of a removal, in the query since the request has no body.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct RemoveSnapshotQuery {
    /// Merge it into what depends on it, rather than refuse.
    #[serde(default)]
    pub prune: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotsRemoved {
    /// The one asked for, and with `prune` those that went with it.
    #[schema(value_type = Vec<String>)]
    pub removed: Vec<SnapshotId>,
}

/// The hash of everything in an export, on its response: what [`ImportQuery::expect`] takes.
pub const EXPORT_HASH_HEADER: &str = "x-offshoot-hash";

/// Options of an import, in the query since the body is the snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ImportQuery {
    /// Of the VM to be made. Without it, as the VM it was exported of or the next free name after that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The hash that the exporting side announced: anything else is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<String>,
    /// Leave memory and device state out: the VM boots from the disk.
    #[serde(default)]
    pub disk_only: bool,
}

/// What an export became.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Imported {
    /// The new VM's: `suspended` in this state, or `stopped` if it is of the disk alone.
    #[schema(schema_with = schema::uuid)]
    pub vm: VmId,
    #[schema(value_type = String)]
    pub name: VmName,
    pub snapshot: Snapshot,
    /// Of everything that was read, in hex digits. Whoever handed it over vouches for it, nobody else: compare it with
    /// what the exporting side announced.
    pub hash: String,
}

/// What reading every byte of a snapshot found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotVerified {
    #[schema(schema_with = schema::uuid)]
    pub snapshot: SnapshotId,
    /// Names of the parts that were read, the disk's layers included.
    pub parts: Vec<String>,
    pub bytes: u64,
    /// What is missing or differs, one sentence each; empty: every byte is as it was written.
    pub faults: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_or_note_that_cannot_be_is_refused_by_its_field() {
        let refused = |wire: TakeSnapshot| NewSnapshot::try_from(wire).unwrap_err().field;
        assert_eq!(refused(TakeSnapshot { name: Some("A".into()), ..Default::default() }), "name");
        let note = Some("x".repeat(MAX_NOTE + 1));
        assert_eq!(refused(TakeSnapshot { note, ..Default::default() }), "note");
        let disk = TakeSnapshot { disk_only: true, ..Default::default() };
        assert_eq!(NewSnapshot::try_from(disk).unwrap().kind, SnapshotKind::DiskOnly);
    }
}
