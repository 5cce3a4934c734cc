//! The state machine of a VM.
//!
//! ```text
//! Creating -> Stopped -> Starting -> Running <-> Paused      (a fork: Creating -> Suspended)
//!                ^                      |           |
//!                |                      +-----+-----+----> Migrating -> Running (Running only)
//!                +---- Stopping <-------------+
//!                +---- Suspended <- Suspending <+          Suspended -> Starting
//! any but Migrating -> Destroyed       any -> Failed{reason, step}       Failed -> Starting
//! ```
//! Legal moves are one exhaustive match: a new state does not compile until each of its moves is decided.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Counts the moves of one VM. A handle made at an older generation is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl Generation {
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}
impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a VM is in `Failed`, and which step of which change left it there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureReason {
    /// A sentence for people.
    pub reason: String,
    /// The saga step or observation, e.g. `start/boot` or `observed/vmm-exit`.
    pub step: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum VmState {
    /// Being defined: resources are reserved, files are being made.
    Creating,
    /// Defined, no process.
    Stopped,
    Starting,
    /// The guest agent answered its handshake.
    Running,
    /// Virtual CPUs stopped, memory kept.
    Paused,
    Suspending,
    /// On disk with its memory, no process.
    Suspended,
    Stopping,
    Migrating,
    /// Recoverable: may be started or destroyed.
    Failed(FailureReason),
    /// Terminal.
    Destroyed,
}

/// A state without its data, for comparing and printing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VmStateName {
    Creating,
    Stopped,
    Starting,
    Running,
    Paused,
    Suspending,
    Suspended,
    Stopping,
    Migrating,
    Failed,
    Destroyed,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a VM cannot move from {from} to {to}")]
pub struct IllegalMove {
    pub from: VmStateName,
    pub to: VmStateName,
}

impl VmStateName {
    pub const ALL: [Self; 11] = [
        Self::Creating,
        Self::Stopped,
        Self::Starting,
        Self::Running,
        Self::Paused,
        Self::Suspending,
        Self::Suspended,
        Self::Stopping,
        Self::Migrating,
        Self::Failed,
        Self::Destroyed,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Suspending => "suspending",
            Self::Suspended => "suspended",
            Self::Stopping => "stopping",
            Self::Migrating => "migrating",
            Self::Failed => "failed",
            Self::Destroyed => "destroyed",
        }
    }

    /// Whether a VM in this state may move to `to`. Staying is never a move.
    pub const fn may_become(self, to: Self) -> bool {
        use VmStateName::*;
        match self {
            // A fork is made with a memory to continue from.
            Creating => matches!(to, Stopped | Suspended | Failed | Destroyed),
            // A rollback gives a VM without process a memory to continue from.
            Stopped => matches!(to, Starting | Suspended | Failed | Destroyed),
            // `Stopped` and `Suspended` undo a start that was given up before the guest ran anything.
            Starting => matches!(to, Running | Stopped | Suspended | Failed | Destroyed),
            Running => matches!(to, Paused | Suspending | Stopping | Migrating | Failed | Destroyed),
            Paused => matches!(to, Running | Suspending | Stopping | Failed | Destroyed),
            Suspending => matches!(to, Suspended | Running | Paused | Failed | Destroyed),
            Suspended => matches!(to, Starting | Stopped | Failed | Destroyed),
            Stopping => matches!(to, Stopped | Failed | Destroyed),
            Migrating => matches!(to, Running | Failed),
            Failed => matches!(to, Starting | Stopped | Suspended | Destroyed),
            Destroyed => false,
        }
    }

    /// Whether a VMM process belongs to a VM in this state.
    pub const fn has_process(self) -> bool {
        use VmStateName::*;
        match self {
            Starting | Running | Paused | Suspending | Stopping | Migrating => true,
            Creating | Stopped | Suspended | Failed | Destroyed => false,
        }
    }
}
impl fmt::Display for VmStateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl VmState {
    pub const fn name(&self) -> VmStateName {
        match self {
            Self::Creating => VmStateName::Creating,
            Self::Stopped => VmStateName::Stopped,
            Self::Starting => VmStateName::Starting,
            Self::Running => VmStateName::Running,
            Self::Paused => VmStateName::Paused,
            Self::Suspending => VmStateName::Suspending,
            Self::Suspended => VmStateName::Suspended,
            Self::Stopping => VmStateName::Stopping,
            Self::Migrating => VmStateName::Migrating,
            Self::Failed(_) => VmStateName::Failed,
            Self::Destroyed => VmStateName::Destroyed,
        }
    }

    /// Checks a move; the caller writes the new state, the event and the generation in one transaction.
    pub fn check_move(&self, to: &Self) -> Result<(), IllegalMove> {
        let (from, to) = (self.name(), to.name());
        if from.may_become(to) { Ok(()) } else { Err(IllegalMove { from, to }) }
    }
}
impl fmt::Display for VmState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(FailureReason { reason, step }) => write!(f, "failed at {step}: {reason}"),
            other => other.name().fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::VmStateName::{self, *};

    #[test]
    fn no_state_moves_to_itself_and_destroyed_is_final() {
        for from in VmStateName::ALL {
            assert!(!from.may_become(from), "{from} -> {from}");
            assert!(!Destroyed.may_become(from));
        }
    }

    #[test]
    fn every_state_but_migrating_has_an_exit_to_destroyed_and_any_live_state_can_fail() {
        for from in VmStateName::ALL.into_iter().filter(|s| *s != Destroyed) {
            assert_eq!(from.may_become(Destroyed), from != Migrating, "{from}");
            assert_eq!(from.may_become(Failed), from != Failed, "{from}");
        }
    }

    #[test]
    fn creating_leads_only_to_rest_or_away() {
        let reachable: Vec<_> = VmStateName::ALL.into_iter().filter(|to| Creating.may_become(*to)).collect();
        assert_eq!(reachable, [Stopped, Suspended, Failed, Destroyed]);
    }
}
