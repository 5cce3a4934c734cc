//! The daemon itself.

use super::{Pool, Problem, schema};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{net::SocketAddr, path::PathBuf};
use utoipa::ToSchema;

/// Answered from memory, without touching disk or guests: the cheapest round trip there is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// Always `ok`: the socket appears only once the engine has brought record and world together.
    pub status: String,
    pub version: String,
    pub pid: u32,
}

/// What somebody without a key is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Alive {
    /// Always `ok`.
    pub status: String,
}

/// Who serves a state directory: the content of its `daemon.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DaemonRecord {
    pub pid: u32,
    #[schema(schema_with = schema::timestamp)]
    pub started: Timestamp,
    pub mode: DaemonMode,
    pub version: String,
    #[schema(value_type = String)]
    pub socket: PathBuf,
    /// TCP ports it listens on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub listen: Vec<SocketAddr>,
    #[schema(value_type = String)]
    pub state_dir: PathBuf,
}

/// The daemon and what keeps it busy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Daemon {
    #[serde(flatten)]
    pub record: DaemonRecord,
    #[schema(value_type = String)]
    pub images_dir: PathBuf,
    /// VMs in any state.
    pub vms: u64,
    /// VMs that have a process.
    pub live_vms: u64,
    /// Operations under way.
    pub operations: u64,
    /// Processes under way that a caller follows or may attach to.
    pub execs: u64,
    /// Open connections, this one included.
    pub connections: u64,
    #[serde(default)]
    pub pool: Pool,
}

/// The one line a starting daemon writes to whoever started it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StartReport {
    /// The socket accepts requests. `pid` is another daemon's if that one was quicker.
    Ready {
        pid: u32,
        socket: PathBuf,
    },
    Failed(Problem),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DaemonMode {
    /// Started by a verb that needed one; ends by itself when idle, and yields to an explicit one.
    Autostarted,
    /// Started by `offshoot serve`.
    Explicit,
}

impl DaemonMode {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Autostarted => "autostarted",
            Self::Explicit => "explicit",
        }
    }
}

/// End the daemon. VMs live on unless `vms`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StopDaemon {
    /// Stop all VMs first.
    #[serde(default)]
    pub vms: bool,
    /// Asked by a daemon that takes over: refused with `busy` by an explicit one.
    #[serde(default)]
    pub handover: bool,
}

/// The daemon ends once open requests have drained; its lock is free when it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Stopping {
    pub pid: u32,
}
