//! What a VM's process was begun from.

use serde::{Deserialize, Serialize};
use std::fmt;

/// From the fastest to the slowest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StartedFrom {
    /// An instance of the warm pool became the VM's.
    Pool,
    /// The template of its image was restored.
    Template,
    /// A state of its own: it was suspended, or is a fork.
    Snapshot,
    /// The kernel of its image.
    Boot,
}

impl StartedFrom {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pool => "pool",
            Self::Template => "template",
            Self::Snapshot => "snapshot",
            Self::Boot => "boot",
        }
    }
}
impl fmt::Display for StartedFrom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A VM's latest start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastStart {
    pub from: StartedFrom,
    /// Why it was not taken from the warm pool, as the end of a sentence; `None`: it was, or has a state of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_pooled: Option<String>,
}
