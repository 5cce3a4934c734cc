//! Going back to a kept state, and taking that back.

use super::{Attestations, InvalidField, invalid::parse, schema};
use offshoot_types::{Generation, OperationId, RollbackTo, SnapshotId, VmId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Let a VM continue from an earlier state. What it leaves is kept; `undo` goes back to it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RollbackRequest {
    /// `VM@NAME` or a snapshot's id; the newest snapshot of the VM if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// The newest snapshot taken before the most recent failed exec began. Excludes `snapshot`.
    #[serde(default)]
    pub last_good: bool,
}

impl TryFrom<RollbackRequest> for RollbackTo {
    type Error = InvalidField;
    fn try_from(wire: RollbackRequest) -> Result<Self, InvalidField> {
        match (wire.snapshot, wire.last_good) {
            (Some(snapshot), false) => parse("snapshot", &snapshot).map(Self::Snapshot),
            (None, true) => Ok(Self::LastGood),
            (None, false) => Ok(Self::Newest),
            (Some(_), true) => {
                Err(InvalidField::new("last_good", "give either `snapshot` or `last_good`, not both"))
            }
        }
    }
}

/// The VM continues from `to`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RolledBack {
    #[schema(schema_with = schema::uuid)]
    pub operation: OperationId,
    #[schema(schema_with = schema::uuid)]
    pub vm: VmId,
    #[schema(schema_with = schema::uuid)]
    pub to: SnapshotId,
    /// What the VM was until now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schema::uuid)]
    pub undo: Option<SnapshotId>,
    #[schema(value_type = u64)]
    pub generation: Generation,
    /// Operations whose effects are gone; their records stay.
    #[schema(value_type = Vec<String>)]
    pub undone: Vec<OperationId>,
    /// Of a VM that runs again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attestations: Option<Attestations>,
    /// Something about the state gone back to that its user should know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollback_goes_to_one_place() {
        let to = |snapshot: Option<&str>, last_good| {
            RollbackTo::try_from(RollbackRequest { snapshot: snapshot.map(Into::into), last_good })
        };
        assert_eq!(to(None, false), Ok(RollbackTo::Newest));
        assert_eq!(to(None, true), Ok(RollbackTo::LastGood));
        assert_eq!(to(Some("a@b"), false), Ok(RollbackTo::Snapshot("a@b".parse().unwrap())));
        assert_eq!(to(Some("a@b"), true).unwrap_err().field, "last_good");
        assert_eq!(to(Some("a"), false).unwrap_err().field, "snapshot");
    }
}
