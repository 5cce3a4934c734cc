//! How a VM behaves without being asked each time: its snapshot policy.

use super::{InvalidField, invalid::parse, schema};
use offshoot_types::{self as types, AutoSnapshot};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// When snapshots of a VM are taken without being asked for, and what a failed exec does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotPolicy {
    /// `never`, `before-exec` (strictly before each), `on-failure` (what a failed exec left), `before-risky` (before an
    /// exec that looks risky).
    #[schema(schema_with = schema::auto_snapshot)]
    pub mode: AutoSnapshot,
    /// Whether a failed exec takes the VM back to the state before it.
    pub auto_rollback: bool,
}

impl From<types::SnapshotPolicy> for SnapshotPolicy {
    fn from(policy: types::SnapshotPolicy) -> Self {
        Self { mode: policy.auto, auto_rollback: policy.rollback_on_failure }
    }
}

/// What is to be another than before; of a new VM, than `never` and no rollback.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetSnapshotPolicy {
    /// As it was if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// As it was if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_rollback: Option<bool>,
}

impl TryFrom<SetSnapshotPolicy> for types::SnapshotPolicyChange {
    type Error = InvalidField;
    fn try_from(wire: SetSnapshotPolicy) -> Result<Self, InvalidField> {
        let auto = wire.mode.as_deref().map(|mode| parse("mode", mode)).transpose()?;
        Ok(Self { auto, rollback_on_failure: wire.auto_rollback })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use offshoot_types::SnapshotPolicyChange;

    #[test]
    fn a_policy_is_changed_in_what_is_named_and_refused_by_the_name_of_the_field() {
        let change = |wire: &str| {
            let wire: SetSnapshotPolicy = serde_json::from_str(wire).unwrap();
            SnapshotPolicyChange::try_from(wire)
        };
        assert_eq!(change("{}"), Ok(SnapshotPolicyChange::default()));
        let both =
            SnapshotPolicyChange { auto: Some(AutoSnapshot::BeforeRisky), rollback_on_failure: Some(true) };
        assert_eq!(change(r#"{"mode": "before-risky", "auto_rollback": true}"#), Ok(both));
        assert_eq!(change(r#"{"mode": "always"}"#).unwrap_err().field, "mode");
    }
}
