//! States of a VM that were kept, and how they are named.

use crate::{InvalidName, SnapshotId, SnapshotName, VmRef};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// What a snapshot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotKind {
    /// Memory, devices and disk of one instant.
    Full,
    /// The disk; whoever continues from it boots.
    DiskOnly,
}

/// Who wanted a snapshot, which decides who may let it go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotOrigin {
    /// Somebody asked for it: kept until somebody removes it.
    Manual,
    /// Taken before an exec or at the beginning of a transaction.
    Auto,
    /// What a rollback, a commit or a race left behind: `undo` goes back to it.
    Undo,
    /// What forks of a running VM continue from.
    Fork,
    /// The memory of a suspended VM.
    Suspend,
    /// What warm VMs of an image continue from.
    Template,
    /// The base to which a VM that runs was moved, or is to be: part of no history.
    Rebase,
}

impl SnapshotOrigin {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Manual => "manual",
            Self::Auto => "auto",
            Self::Undo => "undo",
            Self::Fork => "fork",
            Self::Suspend => "suspend",
            Self::Template => "template",
            Self::Rebase => "rebase",
        }
    }
}
impl fmt::Display for SnapshotOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How much of a snapshot is safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotState {
    /// Usable by this daemon at once; gone with it.
    Volatile,
    /// Hashed from the bytes as copied, and flushed to the disk.
    Durable,
    /// A part does not match its hash: never used again.
    Damaged,
}

impl SnapshotState {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Volatile => "volatile",
            Self::Durable => "durable",
            Self::Damaged => "damaged",
        }
    }
}
impl fmt::Display for SnapshotState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// `VM@NAME`, or an id.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum SnapshotRef {
    Id(SnapshotId),
    Named { vm: VmRef, name: SnapshotName },
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSnapshotRef {
    #[error("`{text}` names no snapshot: use VM@NAME or a snapshot's id")]
    Form { text: String },
    #[error(transparent)]
    Name(#[from] InvalidName),
}

impl FromStr for SnapshotRef {
    type Err = InvalidSnapshotRef;
    fn from_str(text: &str) -> Result<Self, InvalidSnapshotRef> {
        match text.split_once('@') {
            Some((vm, name)) => Ok(Self::Named { vm: vm.parse()?, name: name.parse()? }),
            None if text.len() == 36 => {
                text.parse().map(Self::Id).map_err(|_| InvalidSnapshotRef::Form { text: text.into() })
            }
            None => Err(InvalidSnapshotRef::Form { text: text.into() }),
        }
    }
}
impl TryFrom<String> for SnapshotRef {
    type Error = InvalidSnapshotRef;
    fn try_from(text: String) -> Result<Self, InvalidSnapshotRef> {
        text.parse()
    }
}
impl From<SnapshotRef> for String {
    fn from(snapshot: SnapshotRef) -> String {
        snapshot.to_string()
    }
}
impl fmt::Display for SnapshotRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Named { vm, name } => write!(f, "{vm}@{name}"),
        }
    }
}

/// What forks continue from: a VM as it is now, or a snapshot. A text with `@` or a snapshot's id is a snapshot; an id
/// that could be either is looked up as a VM first.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ForkSource {
    Vm(VmRef),
    Snapshot(SnapshotRef),
}

/// Where a rollback goes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RollbackTo {
    /// The newest snapshot of the VM.
    Newest,
    /// The newest snapshot taken before the most recent failed exec began.
    LastGood,
    Snapshot(SnapshotRef),
}

/// When snapshots are taken without being asked for, and what a failure does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotPolicy {
    pub auto: AutoSnapshot,
    /// Whether a failed exec takes the VM back to the snapshot before it.
    pub rollback_on_failure: bool,
}

impl SnapshotPolicy {
    /// This policy with what `change` names taken from there.
    pub fn changed(self, change: SnapshotPolicyChange) -> Self {
        Self {
            auto: change.auto.unwrap_or(self.auto),
            rollback_on_failure: change.rollback_on_failure.unwrap_or(self.rollback_on_failure),
        }
    }
}

/// What is to be another than before in a [`SnapshotPolicy`]; the rest stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotPolicyChange {
    pub auto: Option<AutoSnapshot>,
    pub rollback_on_failure: Option<bool>,
}

impl From<SnapshotPolicy> for SnapshotPolicyChange {
    fn from(policy: SnapshotPolicy) -> Self {
        Self { auto: Some(policy.auto), rollback_on_failure: Some(policy.rollback_on_failure) }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AutoSnapshot {
    #[default]
    Never,
    /// Strictly before every exec.
    BeforeExec,
    /// After an exec that failed: what it left, to look at.
    OnFailure,
    /// Before an exec that looks risky (removing trees, writing to devices, changing many files).
    BeforeRisky,
}

impl AutoSnapshot {
    pub const ALL: [Self; 4] = [Self::Never, Self::BeforeExec, Self::OnFailure, Self::BeforeRisky];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::BeforeExec => "before-exec",
            Self::OnFailure => "on-failure",
            Self::BeforeRisky => "before-risky",
        }
    }
}
impl fmt::Display for AutoSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text:.40}` is not one of never, before-exec, on-failure, before-risky")]
pub struct UnknownAutoSnapshot {
    text: String,
}

impl FromStr for AutoSnapshot {
    type Err = UnknownAutoSnapshot;
    fn from_str(text: &str) -> Result<Self, UnknownAutoSnapshot> {
        let found = Self::ALL.into_iter().find(|auto| auto.as_str() == text);
        found.ok_or_else(|| UnknownAutoSnapshot { text: text.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_vm_at_name_or_an_id_and_nothing_else() {
        let id = SnapshotId::new();
        assert_eq!(id.to_string().parse(), Ok(SnapshotRef::Id(id)));
        let named: SnapshotRef = "work@before-upgrade".parse().unwrap();
        assert_eq!(named.to_string(), "work@before-upgrade");
        for wrong in ["", "work", "@x", "a@", "a@b@c", "A@b"] {
            assert!(wrong.parse::<SnapshotRef>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_policy_is_written_as_it_is_read_and_a_change_keeps_what_it_does_not_name() {
        for auto in AutoSnapshot::ALL {
            assert_eq!(auto.to_string().parse(), Ok(auto));
            assert_eq!(serde_json::to_string(&auto).unwrap(), format!("\"{auto}\""));
        }
        assert!("Never".parse::<AutoSnapshot>().unwrap_err().to_string().contains("before-risky"));
        let policy = SnapshotPolicy { auto: AutoSnapshot::OnFailure, rollback_on_failure: true };
        assert_eq!(policy.changed(SnapshotPolicyChange::default()), policy);
        let off = SnapshotPolicyChange { auto: None, rollback_on_failure: Some(false) };
        assert_eq!(policy.changed(off), SnapshotPolicy { rollback_on_failure: false, ..policy });
        assert_eq!(SnapshotPolicy::default().changed(policy.into()), policy);
    }
}
