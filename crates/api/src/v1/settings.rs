//! How a VM behaves without being asked each time: its snapshot policy, and when it rests.

use super::{InvalidField, invalid::parse, schema};
use jiff::Timestamp;
use offshoot_types::{self as types, AutoSnapshot, OnTimeout, TimeLimit, Wake};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use utoipa::ToSchema;

/// Shortest time without work after which a VM may be suspended, and shortest time it may run.
const LEAST_MS: u64 = 1000;
/// Longest of either: beyond a year a limit is a mistake.
const MOST_MS: u64 = 365 * 24 * 3600 * 1000;

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

/// When a VM rests by itself, and how long it may run. Nothing of it holds for a VM that is destroyed with its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Life {
    /// Suspended once nothing was asked of it for so long: no open stream, running process or code, file access,
    /// connection or transaction. Absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_suspend_ms: Option<u64>,
    /// Whether a request that needs the guest continues it while it is suspended: `auto` (if it was suspended by itself),
    /// `always`, `never`.
    #[schema(schema_with = schema::wake)]
    pub wake: Wake,
    /// How long it may run after each start. Absent: for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// What becomes of it then: `suspend`, `stop`, `destroy`.
    #[schema(schema_with = schema::on_timeout)]
    pub on_timeout: OnTimeout,
    /// When that is, while it has a process; it then waits for the end of an open transaction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schema::timestamp)]
    pub deadline: Option<Timestamp>,
}

impl Life {
    pub fn new(life: types::Life, deadline: Option<Timestamp>) -> Self {
        let types::Life { idle_suspend, wake, timeout, on_timeout } = life;
        let ms = |span: Duration| span.as_millis() as u64;
        Self {
            idle_suspend_ms: idle_suspend.map(ms),
            wake,
            timeout_ms: timeout.map(ms),
            on_timeout,
            deadline,
        }
    }
}

/// What is to be another than before; of a new VM, than no limits, `auto` and `suspend`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetLife {
    /// 1000 or more; 0 is never. As it was if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_suspend_ms: Option<u64>,
    /// As it was if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wake: Option<String>,
    /// 1000 or more; 0 is no limit. Of a VM that runs it counts from now, which extends or shortens its time. As it was if
    /// absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// As it was if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_timeout: Option<String>,
}

impl TryFrom<SetLife> for types::LifeChange {
    type Error = InvalidField;
    fn try_from(wire: SetLife) -> Result<Self, InvalidField> {
        Ok(Self {
            idle_suspend: limit("idle_suspend_ms", wire.idle_suspend_ms)?,
            wake: wire.wake.as_deref().map(|text| parse("wake", text)).transpose()?,
            timeout: limit("timeout_ms", wire.timeout_ms)?,
            on_timeout: wire.on_timeout.as_deref().map(|text| parse("on_timeout", text)).transpose()?,
        })
    }
}

fn limit(field: &str, ms: Option<u64>) -> Result<Option<TimeLimit>, InvalidField> {
    match ms {
        None => Ok(None),
        Some(0) => Ok(Some(TimeLimit::None)),
        Some(ms @ LEAST_MS..=MOST_MS) => Ok(Some(TimeLimit::After(Duration::from_millis(ms)))),
        Some(ms) => {
            Err(InvalidField::new(field, format!("{ms} is neither 0 nor between {LEAST_MS} and {MOST_MS}")))
        }
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

    #[test]
    fn a_limit_is_set_lifted_or_left_and_a_bad_one_is_refused_by_its_name() {
        let change = |wire: &str| types::LifeChange::try_from(serde_json::from_str::<SetLife>(wire).unwrap());
        assert_eq!(change("{}"), Ok(types::LifeChange::default()));
        let set =
            change(r#"{"idle_suspend_ms": 0, "timeout_ms": 90000, "on_timeout": "stop", "wake": "never"}"#);
        let set = set.unwrap();
        assert_eq!(set.idle_suspend, Some(TimeLimit::None));
        assert_eq!(set.timeout, Some(TimeLimit::After(Duration::from_secs(90))));
        assert_eq!((set.on_timeout, set.wake), (Some(OnTimeout::Stop), Some(Wake::Never)));
        for (wire, field) in [
            (r#"{"idle_suspend_ms": 1}"#, "idle_suspend_ms"),
            (r#"{"timeout_ms": 31536000001}"#, "timeout_ms"),
            (r#"{"on_timeout": "kill"}"#, "on_timeout"),
            (r#"{"wake": "sometimes"}"#, "wake"),
        ] {
            assert_eq!(change(wire).unwrap_err().field, field);
        }
    }
}
