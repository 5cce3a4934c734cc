//! What a decision may rest on besides actor and command. Gathered by the caller just before it asks.

use offshoot_types::{
    Command, Generation, KeyId, KeyLimits, Labels, Owner, ProviderKind, SnapshotRef, Target, VmId, VmName,
    VmRef, VmStateName,
};

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// The VM the command names; `None` if it names none, or none that exists.
    pub vm: Option<VmFacts>,
    /// The VM that the other thing is of which the command names ([`Command::beside`]); it may be destroyed.
    pub beside: Option<VmName>,
    /// The key that an actor asks with; `None` if it has none, or none that holds.
    pub key: Option<KeyFacts>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFacts {
    pub id: KeyId,
    pub limits: KeyLimits,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmFacts {
    pub id: VmId,
    pub name: VmName,
    pub owner: Owner,
    pub labels: Labels,
    pub provider: ProviderKind,
    pub state: VmStateName,
    pub generation: Generation,
}

impl Facts {
    pub const NONE: Self = Self { vm: None, beside: None, key: None };

    /// These, for somebody who asks with this key.
    #[must_use]
    pub fn with_key(self, key: Option<KeyFacts>) -> Self {
        Self { key, ..self }
    }

    /// Whether these facts can be about what `command` acts on. Judging one VM by the facts of another would
    /// let a foreign VM through, so a mismatch is denied before any rule is asked.
    pub(crate) fn are_about(&self, command: &Command) -> bool {
        match (&self.vm, command.target()) {
            (Some(vm), Target::Vm(named) | Target::Snapshot(SnapshotRef::Named { vm: named, .. })) => {
                match named {
                    VmRef::Id(id) => vm.id == id,
                    VmRef::Name(name) => vm.name == name,
                }
            }
            // An operation or snapshot belongs to some VM, which only the caller can look up.
            (Some(_), Target::Operation(_) | Target::Snapshot(SnapshotRef::Id(_))) => true,
            (Some(_), Target::NewVm(_) | Target::Image(_) | Target::Daemon) => false,
            (None, _) => true,
        }
    }
}
