//! Starting a VM behind a keeper, and taking back what was made if that fails.

use super::{Greeting, KeptInstance, LaunchError, launch, recovery::reclaim, spec::Spec, wire::StartFailed};
use crate::{BootError, BootStep, Instance, InstanceRecord, UndoReport};
use std::{os::fd::BorrowedFd, path::Path};

/// `passed`: the memory files the specification speaks of, in its order.
pub(crate) async fn start(
    exe: &Path,
    spec: &Spec,
    passed: &[BorrowedFd<'_>],
    record: InstanceRecord,
) -> Result<Box<dyn Instance>, BootError> {
    let error = match launch(exe, spec, passed, spec.start_deadline).await {
        Ok(Greeting::Started(client)) => return Ok(Box::new(KeptInstance::new(record, client))),
        Ok(Greeting::StartFailed(failed)) => start_failed(failed),
        Ok(Greeting::Ended(exit)) => {
            BootError::at(BootStep::Vmm, format!("the VMM ended at once ({exit:?})"))
        }
        // Somebody else's keeper: nothing was made, nothing must be taken back.
        Err(error @ LaunchError::InUse { .. }) => return Err(launch_failed(error)),
        Err(error) => launch_failed(error),
    };
    let undo = reclaim(&record).await;
    Err(BootError { undo: UndoReport { undone: undo.removed, failed: undo.failed }, ..error })
}

fn launch_failed(error: LaunchError) -> BootError {
    let hint = match &error {
        LaunchError::InUse { .. } => Some("stop the VM that runs there, or reclaim it".to_owned()),
        _ => None,
    };
    let step = if matches!(error, LaunchError::Late { .. }) { BootStep::Vmm } else { BootStep::Keeper };
    BootError { hint, ..BootError::caused(step, "no keeper with a VMM could be started".into(), error) }
}

fn start_failed(failed: StartFailed) -> BootError {
    let StartFailed { step, message, hint, console_tail, .. } = failed;
    BootError { hint, console_tail, ..BootError::at(step, message) }
}
