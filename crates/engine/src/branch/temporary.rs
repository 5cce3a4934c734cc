//! A fork that lives as long as what asked for it.

use super::forks::{ForkSettings, Order};
use crate::{core::Core, error, manager::VmHandle, reaper::Reap, saga::thaw::Identity, tasks::TaskKind};
use offshoot_policy::Grant;
use offshoot_types::{
    ErrorCode, Failure, ForkSource, Lifetime, Operation, OperationOutcome, OperationState, TransactionId,
    VmName, VmRef,
};
use std::sync::Arc;

/// Dropping it has it destroyed. A daemon that dies leaves a VM that belongs to a request: its next start destroys it.
#[derive(Debug)]
pub(crate) struct Temporary {
    pub handle: VmHandle,
    core: Arc<Core>,
    /// Why it is destroyed.
    over: &'static str,
    gone: bool,
}

/// What is asked for.
pub(crate) struct TemporaryFork {
    pub source: ForkSource,
    pub name: VmName,
    pub identity: Identity,
    pub within: Option<TransactionId>,
    /// Why it is destroyed, in the end.
    pub over: &'static str,
}

impl Temporary {
    /// Detached with the fork inside: one whose caller leaves before it is ready is destroyed like any other.
    pub async fn fork(core: &Arc<Core>, grant: Grant, asked: TemporaryFork) -> Result<Self, Failure> {
        let (core, owner) = (core.clone(), grant.actor().owner());
        let TemporaryFork { source, name, identity, within, over } = asked;
        let settings = ForkSettings::default();
        let order = Order { name: Some(name), count: 1, lifetime: Lifetime::Request, identity, settings };
        core.clone()
            .detached(TaskKind::Acceptor, async move {
                let report = core.fork(source, order, grant, within).await?;
                let fork = report.forks.first().ok_or_else(error::shutting_down)?;
                let handle = core.manager.find(&VmRef::Id(fork.vm), &owner)?;
                Ok(Self { handle, core, over, gone: false })
            })
            .await
    }

    /// Returns once nothing of it is left, or the reaper has it.
    pub async fn destroy(mut self) {
        let done = |operation: &Operation| {
            matches!(operation.state, OperationState::Ended { outcome: OperationOutcome::Done })
        };
        self.gone = match self.core.destroy(self.handle.id, self.over).await {
            Ok(operation) => done(&operation),
            Err(failure) => failure.code == ErrorCode::NotFound,
        };
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.gone {
            // A closed reaper means that the engine ends; the next start finds it by its lifetime.
            let _ = self.core.reaper.send(Reap { vm: self.handle.id, reason: self.over });
        }
    }
}

/// `VM-WORD`, with as much of the VM's name as fits: told apart from what people call theirs by the word.
pub(crate) fn name(vm: &VmName, word: &str) -> Result<VmName, Failure> {
    const LONGEST: usize = 63;
    let kept: String = vm.as_str().chars().take(LONGEST.saturating_sub(word.len() + 1)).collect();
    format!("{kept}-{word}").parse().map_err(|error: offshoot_types::InvalidName| {
        Failure::new(ErrorCode::Internal, "a temporary fork could not be named").caused_by(&error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_valid_however_long_that_of_the_vm_is() {
        let short = name(&"a".parse().unwrap(), "race-01234567-64").unwrap();
        assert_eq!(short.as_str(), "a-race-01234567-64");
        let long: VmName = "x".repeat(63).parse().unwrap();
        let (one, two) = (name(&long, "race-01234567-1").unwrap(), name(&long, "race-01234567-2").unwrap());
        assert_ne!(one, two);
    }
}
