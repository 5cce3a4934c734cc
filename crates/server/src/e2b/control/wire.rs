//! The documents of the control plane. Unknown fields of requests are passed over: clients send more with each version.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// How long a new sandbox lives unless its maker says otherwise, in seconds.
pub const DEFAULT_TIMEOUT: u64 = 300;
/// The same for those of older SDKs, forks and resumed ones.
pub const SHORT_TIMEOUT: u64 = 15;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NewSandbox {
    #[serde(rename = "templateID")]
    pub template: String,
    pub timeout: Option<u64>,
    pub auto_pause: Option<bool>,
    pub auto_pause_memory: Option<bool>,
    pub auto_resume: Option<AutoResume>,
    #[serde(rename = "allow_internet_access")]
    pub internet: Option<bool>,
    pub network: Option<Network>,
    pub metadata: Option<BTreeMap<String, String>>,
    pub env_vars: Option<BTreeMap<String, String>>,
    pub mcp: Option<Value>,
    pub iam: Option<Value>,
    pub volume_mounts: Option<Vec<Value>>,
}

#[derive(Debug, Deserialize)]
pub struct AutoResume {
    pub enabled: bool,
}

/// Rules for what goes out and comes in; most of them are refused.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Network {
    pub allow_public_traffic: Option<bool>,
    pub allow_out: Option<Vec<Value>>,
    pub deny_out: Option<Vec<Value>>,
    pub dns_servers: Option<Vec<Value>>,
    pub egress_proxy: Option<Value>,
    pub mask_request_host: Option<Value>,
    pub https_ports: Option<Vec<Value>>,
    pub rules: Option<BTreeMap<String, Value>>,
    #[serde(rename = "allow_internet_access")]
    pub internet: Option<bool>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sandbox {
    #[serde(rename = "templateID")]
    pub template: String,
    #[serde(rename = "sandboxID")]
    pub sandbox: String,
    #[serde(rename = "clientID")]
    pub client: String,
    pub envd_version: &'static str,
    pub envd_access_token: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traffic_access_token: Option<String>,
    pub domain: String,
    pub alias: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ListedSandbox {
    #[serde(rename = "templateID")]
    pub template: String,
    #[serde(rename = "sandboxID")]
    pub sandbox: String,
    #[serde(rename = "clientID")]
    pub client: String,
    pub alias: String,
    pub started_at: Timestamp,
    pub end_at: Timestamp,
    pub cpu_count: u16,
    #[serde(rename = "memoryMB")]
    pub memory: u64,
    #[serde(rename = "diskSizeMB")]
    pub disk: u64,
    pub state: State,
    pub envd_version: &'static str,
    pub metadata: BTreeMap<String, String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SandboxDetail {
    #[serde(flatten)]
    pub listed: ListedSandbox,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub envd_access_token: Option<String>,
    /// There is no way out of a sandbox yet, whatever was asked for.
    pub allow_internet_access: bool,
    pub domain: String,
    pub lifecycle: Lifecycle,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pause_mode: Option<PauseMode>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Lifecycle {
    pub auto_resume: bool,
    pub on_timeout: OnTimeout,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnTimeout {
    Kill,
    Pause,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PauseMode {
    Full,
    Filesystem,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Running,
    Paused,
}

#[derive(Debug, Deserialize)]
pub struct Timeout {
    pub timeout: u64,
}

#[derive(Debug, Default, Deserialize)]
pub struct Refresh {
    pub duration: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pause {
    pub memory: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
pub struct Connect {
    pub timeout: Option<u64>,
    pub memory: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
pub struct Fork {
    pub timeout: Option<u64>,
    pub count: Option<u32>,
}

/// One of the copies of a fork: they are all made, or none.
#[derive(Debug, Serialize)]
pub struct Forked {
    pub sandbox: Sandbox,
}

#[derive(Debug, Default, Deserialize)]
pub struct TakeSnapshot {
    pub name: Option<String>,
    pub memory: Option<bool>,
}

#[derive(Debug, Serialize)]
pub struct Snapshot {
    #[serde(rename = "snapshotID")]
    pub id: String,
    pub names: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Metric {
    pub timestamp: Timestamp,
    pub timestamp_unix: i64,
    pub cpu_count: u32,
    pub cpu_used_pct: f64,
    pub mem_used: u64,
    pub mem_total: u64,
    pub mem_cache: u64,
    pub disk_used: u64,
    pub disk_total: u64,
}

#[derive(Debug, Serialize)]
pub struct LogEntry {
    pub timestamp: Timestamp,
    pub message: String,
    pub level: &'static str,
    pub fields: BTreeMap<String, String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Template {
    #[serde(rename = "templateID")]
    pub template: String,
    #[serde(rename = "buildID")]
    pub build: String,
    pub aliases: Vec<String>,
    pub names: Vec<String>,
    pub public: bool,
    pub cpu_count: u16,
    #[serde(rename = "memoryMB")]
    pub memory: u64,
    #[serde(rename = "diskSizeMB")]
    pub disk: u64,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub last_spawned_at: Option<Timestamp>,
    pub spawn_count: u64,
    pub build_count: u64,
    pub envd_version: &'static str,
    pub build_status: &'static str,
}
