//! `vm_config`: how code is to be run. Also what Terraphim's roles say of it (`vm_execution`), an object or `true`.

use super::{
    asked::{either, timeout},
    settings::MAX_CODE,
};
use offshoot_api::v1::InvalidField;
use offshoot_code::Language;
use offshoot_types::{ErrorCode, Failure};
use serde::{Deserialize, Deserializer, de::Error};
use serde_json::Value;
use std::time::Duration;

/// As it was sent.
#[derive(Debug, Clone, Default)]
pub struct VmConfig(Sent);

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sent {
    enabled: Option<bool>,
    vm_id: Option<String>,
    vm_type: Option<String>,
    default_vm_type: Option<String>,
    auto_provision: Option<bool>,
    allowed_languages: Option<Vec<String>>,
    code_validation: Option<bool>,
    max_code_length: Option<usize>,
    execution_timeout_ms: Option<u64>,
    timeout_ms: Option<u64>,
    timeout_seconds: Option<u64>,
    working_dir: Option<String>,
    snapshot_on_execution: Option<bool>,
    snapshot_on_failure: Option<bool>,
    auto_rollback_on_failure: Option<bool>,
    stop_on_failure: Option<bool>,
    fresh: Option<bool>,
    on_risk: Option<OnRisk>,
    api_base_url: Option<String>,
    vm_pool_size: Option<u64>,
    history: Option<History>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct History {
    enabled: Option<bool>,
    snapshot_on_execution: Option<bool>,
    snapshot_on_failure: Option<bool>,
    auto_rollback_on_failure: Option<bool>,
    max_history_entries: Option<u64>,
    persist_history: Option<bool>,
    integration_mode: Option<String>,
}

/// What becomes of code that looks as if it could do harm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnRisk {
    /// It runs after a snapshot, whatever else is said of snapshots.
    #[default]
    Snapshot,
    /// It runs once somebody has approved it.
    Ask,
    Deny,
}

impl<'de> Deserialize<'de> for VmConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let sent = match Value::deserialize(deserializer)? {
            Value::Bool(enabled) => Sent { enabled: Some(enabled), ..Sent::default() },
            object @ Value::Object(_) => Sent::deserialize(object).map_err(D::Error::custom)?,
            _ => return Err(D::Error::custom("it is an object, or true")),
        };
        Ok(Self(sent))
    }
}

/// Checked and complete.
#[derive(Debug, Clone)]
pub struct Config {
    pub vm: Option<String>,
    pub vm_type: Option<String>,
    pub auto_provision: bool,
    pub languages: Vec<Language>,
    /// Bytes; `None`: nothing is checked but what can be run at all.
    pub max_code: Option<usize>,
    pub timeout: Option<Duration>,
    pub working_dir: Option<String>,
    pub snapshot_on_execution: bool,
    pub snapshot_on_failure: bool,
    pub auto_rollback: bool,
    pub stop_on_failure: bool,
    pub fresh: bool,
    pub on_risk: OnRisk,
    /// What was said and changes nothing, each as a sentence.
    pub warnings: Vec<String>,
}

impl Config {
    /// What holds where nothing is said. A snapshot is taken before every execution: without any there is no last success to
    /// go back to.
    fn default_of() -> Self {
        Self {
            vm: None,
            vm_type: None,
            auto_provision: true,
            languages: Language::ALL.to_vec(),
            max_code: Some(MAX_CODE),
            timeout: None,
            working_dir: None,
            snapshot_on_execution: true,
            snapshot_on_failure: true,
            auto_rollback: false,
            stop_on_failure: true,
            fresh: false,
            on_risk: OnRisk::default(),
            warnings: Vec::new(),
        }
    }

    pub fn of(sent: Option<VmConfig>) -> Result<Self, Failure> {
        let default = Self::default_of();
        let Some(VmConfig(sent)) = sent else { return Ok(default) };
        if sent.enabled == Some(false) {
            return Err(Failure::new(ErrorCode::Denied, "`vm_config` says that nothing is to be executed")
                .hint("set its `enabled` to true, or leave it out"));
        }
        let history = sent.history.unwrap_or_default();
        unkept(&history)?;
        let languages = sent.allowed_languages.map(|names| {
            let parsed = names.iter().map(|name| name.parse());
            parsed
                .collect::<Result<Vec<Language>, _>>()
                .map_err(|error| InvalidField::new("vm_config.allowed_languages", error))
        });
        let limit = either("vm_config.timeout_ms", sent.execution_timeout_ms, sent.timeout_ms)?;
        let vm_type = either("vm_config.vm_type", sent.vm_type, sent.default_vm_type)?;
        let of = |field, one, other, default| either(field, one, other).map(|said| said.unwrap_or(default));
        let mut warnings = Vec::new();
        let mut idle = |said: bool, warning: &str| {
            if said {
                warnings.push(warning.to_owned());
            }
        };
        idle(sent.api_base_url.is_some(), "`vm_config.api_base_url` changes nothing here");
        idle(
            sent.vm_pool_size.is_some_and(|size| size != 1),
            "`vm_config.vm_pool_size` changes nothing: an agent has one VM, and the daemon its warm pool",
        );
        idle(
            history.max_history_entries.is_some(),
            "`vm_config.history.max_history_entries` changes nothing: how long history is kept is the daemon's to say",
        );
        Ok(Self {
            vm: sent.vm_id,
            vm_type,
            auto_provision: sent.auto_provision.unwrap_or(default.auto_provision),
            languages: languages.transpose()?.unwrap_or(default.languages),
            max_code: match sent.code_validation {
                Some(false) => None,
                _ => sent.max_code_length.or(default.max_code),
            },
            timeout: timeout(sent.timeout_seconds, limit).map_err(|error| error.within("vm_config"))?,
            working_dir: sent.working_dir,
            snapshot_on_execution: of(
                "vm_config.snapshot_on_execution",
                sent.snapshot_on_execution,
                history.snapshot_on_execution,
                default.snapshot_on_execution,
            )?,
            snapshot_on_failure: of(
                "vm_config.snapshot_on_failure",
                sent.snapshot_on_failure,
                history.snapshot_on_failure,
                default.snapshot_on_failure,
            )?,
            auto_rollback: of(
                "vm_config.auto_rollback_on_failure",
                sent.auto_rollback_on_failure,
                history.auto_rollback_on_failure,
                default.auto_rollback,
            )?,
            stop_on_failure: sent.stop_on_failure.unwrap_or(default.stop_on_failure),
            fresh: sent.fresh.unwrap_or(default.fresh),
            on_risk: sent.on_risk.unwrap_or_default(),
            warnings,
        })
    }

    /// Refuses code that these settings do not allow.
    pub fn allow(&self, language: Language, code: &str) -> Result<(), Failure> {
        let invalid = |message: String| Failure::new(ErrorCode::InvalidArgument, message);
        if !self.languages.contains(&language) {
            return Err(invalid(format!("{language} is none of `vm_config.allowed_languages`")));
        }
        match self.max_code.filter(|most| code.len() > *most) {
            Some(most) => Err(invalid(format!("the code has {} bytes, and {most} are allowed", code.len()))
                .hint("set `vm_config.max_code_length`")),
            None => Ok(()),
        }
    }
}

/// A history that is not kept, or is kept elsewhere, is not what can be had.
fn unkept(history: &History) -> Result<(), Failure> {
    let unsupported = |what: &str| {
        Err(Failure::new(ErrorCode::Unsupported, format!("{what}: history is always kept, by the daemon"))
            .hint("leave it out"))
    };
    if history.enabled == Some(false) {
        return unsupported("`vm_config.history.enabled` is false");
    }
    if history.persist_history == Some(false) {
        return unsupported("`vm_config.history.persist_history` is false");
    }
    match history.integration_mode.as_deref() {
        None | Some("http") => Ok(()),
        Some(_) => unsupported("`vm_config.history.integration_mode` is not `http`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> Result<Config, Failure> {
        Config::of(Some(serde_json::from_str(json).unwrap()))
    }

    /// Terraphim's own defaults could never go back: no snapshot was taken before anything.
    #[test]
    fn rollback_after_default_config_succeeds() {
        for config in [Config::of(None).unwrap(), config("true").unwrap(), config("{}").unwrap()] {
            assert!(config.snapshot_on_execution && config.snapshot_on_failure && !config.auto_rollback);
            assert_eq!((config.max_code, config.on_risk), (Some(10_000), OnRisk::Snapshot));
        }
    }

    #[test]
    fn what_a_role_says_is_read_and_what_changes_nothing_is_told() {
        let role = r#"{"enabled":true,"api_base_url":"http://localhost:8080","vm_pool_size":2,
            "default_vm_type":"focal-optimized","execution_timeout_ms":30000,
            "allowed_languages":["python","javascript","bash","rust"],"auto_provision":true,"code_validation":true,
            "max_code_length":10000,"history":{"enabled":true,"snapshot_on_execution":false,"snapshot_on_failure":true,
            "auto_rollback_on_failure":true,"max_history_entries":100,"persist_history":true,"integration_mode":"http"}}"#;
        let config = config(role).unwrap();
        assert_eq!(
            (config.vm_type.as_deref(), config.timeout),
            (Some("focal-optimized"), Some(Duration::from_secs(30)))
        );
        assert!(!config.snapshot_on_execution && config.auto_rollback);
        assert_eq!((config.languages.len(), config.warnings.len()), (4, 3));
        assert!(config.allow(Language::Go, "x").unwrap_err().message.contains("go"));
        assert!(config.allow(Language::Bash, &"x".repeat(10_001)).is_err());
        config.allow(Language::Bash, "x").unwrap();
    }

    #[test]
    fn what_cannot_be_had_is_refused() {
        assert_eq!(config("false").unwrap_err().code, ErrorCode::Denied);
        for json in [
            r#"{"history":{"persist_history":false}}"#,
            r#"{"history":{"enabled":false}}"#,
            r#"{"history":{"integration_mode":"direct"}}"#,
        ] {
            assert_eq!(config(json).unwrap_err().code, ErrorCode::Unsupported, "{json}");
        }
        for json in [
            r#"{"allowed_languages":["cobol"]}"#,
            r#"{"timeout_ms":1,"execution_timeout_ms":2}"#,
            r#"{"snapshot_on_failure":true,"history":{"snapshot_on_failure":false}}"#,
        ] {
            assert_eq!(config(json).unwrap_err().code, ErrorCode::InvalidArgument, "{json}");
        }
        for json in ["3", r#"{"colour":1}"#, r#"{"on_risk":"maybe"}"#] {
            assert!(serde_json::from_str::<VmConfig>(json).is_err(), "{json}");
        }
    }
}
