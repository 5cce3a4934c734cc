//! What clients ask, in both of their spellings. What is not known is refused, never dropped.

use super::{config::VmConfig, settings::MAX_TIMEOUT};
use offshoot_api::v1::InvalidField;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::time::Duration;

/// Longest name of an agent or session, in bytes: it is kept as a label.
const MAX_NAME: usize = 200;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Execute {
    pub agent_id: String,
    pub language: String,
    pub code: String,
    pub vm_id: Option<String>,
    /// Modules that have to be there.
    pub requirements: Option<Vec<String>>,
    pub timeout_seconds: Option<u64>,
    pub timeout_ms: Option<u64>,
    pub working_dir: Option<String>,
    /// Given back as it is, but for `fresh`.
    pub metadata: Option<Map<String, Value>>,
    /// In a process of its own rather than in the agent's interpreter.
    pub fresh: Option<bool>,
    pub vm_config: Option<VmConfig>,
    /// Of a block that was held.
    pub approval_id: Option<String>,
}

impl Execute {
    pub fn is_fresh(&self) -> Result<bool, InvalidField> {
        let said = self.metadata.as_ref().and_then(|metadata| metadata.get("fresh"));
        match (self.fresh, said) {
            (Some(fresh), _) => Ok(fresh),
            (None, None) => Ok(false),
            (None, Some(Value::Bool(fresh))) => Ok(*fresh),
            (None, Some(_)) => Err(InvalidField::new("metadata.fresh", "it is neither true nor false")),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParseExecute {
    pub agent_id: String,
    pub llm_response: String,
    #[serde(default)]
    pub auto_execute: bool,
    pub auto_execute_threshold: Option<f64>,
    pub vm_config: Option<VmConfig>,
    /// Of blocks that were held before.
    #[serde(default)]
    pub approvals: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewVm {
    pub vm_type: Option<String>,
    pub vm_name: Option<String>,
    pub name: Option<String>,
    pub memory_mb: Option<u64>,
    pub vcpus: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provision {
    pub vm_type: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TakeSnapshot {
    pub name: Option<String>,
    pub description: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollback {
    pub create_pre_rollback_snapshot: Option<bool>,
    /// Both are in the path already; what clients say here has to be the same.
    pub vm_id: Option<String>,
    pub snapshot_id: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionCommand {
    pub command: String,
    pub timeout_seconds: Option<u64>,
    pub timeout_ms: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionRollback {
    pub snapshot_id: String,
}

/// A time limit in one of its two spellings.
pub fn timeout(seconds: Option<u64>, milliseconds: Option<u64>) -> Result<Option<Duration>, InvalidField> {
    let (field, limit) = match (seconds, milliseconds) {
        (None, None) => return Ok(None),
        (Some(_), Some(_)) => {
            return Err(InvalidField::new("timeout_ms", "give either this or `timeout_seconds`, not both"));
        }
        (Some(seconds), None) => ("timeout_seconds", Duration::from_secs(seconds)),
        (None, Some(milliseconds)) => ("timeout_ms", Duration::from_millis(milliseconds)),
    };
    match limit {
        Duration::ZERO => Err(InvalidField::new(field, "0 allows nothing at all; leave it out")),
        limit if limit > MAX_TIMEOUT => Err(InvalidField::new(field, "it is above 24 hours")),
        limit => Ok(Some(limit)),
    }
}

/// A name of clients' own, of any characters.
pub fn name<'a>(field: &'static str, name: &'a str) -> Result<&'a str, InvalidField> {
    match name.len() {
        1..=MAX_NAME => Ok(name),
        bytes => {
            Err(InvalidField::new(field, format!("it has {bytes} bytes, and 1 to {MAX_NAME} are allowed")))
        }
    }
}

/// One of two spellings; the same in both is fine.
pub fn either<T: PartialEq>(
    field: &'static str,
    one: Option<T>,
    other: Option<T>,
) -> Result<Option<T>, InvalidField> {
    match (one, other) {
        (Some(one), Some(other)) if one != other => {
            Err(InvalidField::new(field, "it is given twice, and differently"))
        }
        (one, other) => Ok(one.or(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_read_in_both_spellings_and_not_in_both_at_once() {
        assert_eq!(timeout(Some(2), None), Ok(Some(Duration::from_secs(2))));
        assert_eq!(timeout(None, Some(2)), Ok(Some(Duration::from_millis(2))));
        assert_eq!(timeout(None, None), Ok(None));
        assert_eq!(timeout(Some(0), None).unwrap_err().field, "timeout_seconds");
        assert_eq!(timeout(None, Some(u64::MAX)).unwrap_err().field, "timeout_ms");
        assert_eq!(timeout(Some(1), Some(1)).unwrap_err().field, "timeout_ms");
    }

    #[test]
    fn two_spellings_may_say_the_same_only() {
        assert_eq!(either("name", Some("a"), Some("a")), Ok(Some("a")));
        assert_eq!(either("name", None, Some("a")), Ok(Some("a")));
        assert!(either("name", Some("a"), Some("b")).is_err());
    }

    #[test]
    fn unknown_fields_are_refused() {
        let wire = r#"{"agent_id":"a","language":"python","code":"1","sandbox":true}"#;
        assert!(serde_json::from_str::<Execute>(wire).unwrap_err().to_string().contains("sandbox"));
    }
}
