//! What a VM has written, where its disk is its memory: kept before its process ends, and put back into the next one.
//!
//! ```text
//! stop:   freeze -> guest tells how much -> the host has room? -> programs end -> tree --> archive, durable, recorded
//!            '-- whatever fails: unfreeze, the VM runs on with all of its files --'             |
//! start:  process, handshake <---------------- tree, checked against the record ----------------'
//! ```
//! The record says of an archive whether the next start begins with it. It does from the move to `Stopping` on, and no longer
//! once the VM runs: of a process that ends by itself nothing is kept, and what was kept before would be another disk.

use super::{Change, StepFuture, stop};
use crate::{
    capture, error,
    kept_disk::{self, Reader, Writer},
    machine::Machine,
};
use offshoot_guest_proto::client::{ClientError, DiskOffer};
use offshoot_types::{ErrorCode, Failure, VmStateName};
use std::path::PathBuf;
use tokio::time::Instant;

/// Beyond the memory a VM has: for the words around its files.
const WORDS: u64 = 64 << 20;

/// Whether a VM's disk lies in its memory.
fn is_in_memory(machine: &Machine) -> Result<bool, Failure> {
    Ok(!machine.core.provider(machine.row.provider)?.keeps_disk())
}

fn directory(machine: &Machine) -> PathBuf {
    machine.core.layout.vm(machine.id())
}

/// Refuses to stop a VM of which nothing would be left.
pub(super) fn may_stop<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        if !is_in_memory(machine)? {
            return Ok(());
        }
        let (name, provider) = (machine.name(), machine.row.provider);
        let refused = |why: &str, hint: String| {
            let message = format!(
                "VM `{name}` cannot be stopped: with provider `{provider}` what it has written lies in its memory, {why}"
            );
            Err(Failure::new(ErrorCode::Unsupported, message).hint(hint))
        };
        match machine.state() {
            VmStateName::Running | VmStateName::Paused if change.grace.is_zero() => refused(
                "and without a grace it would be lost",
                format!("`offshoot stop {name}` keeps it; `offshoot destroy {name}` gives it up"),
            ),
            VmStateName::Suspended => refused(
                "which is kept as it is while it is suspended",
                format!("`offshoot resume {name}` first; `offshoot destroy {name}` gives it up"),
            ),
            VmStateName::Failed if machine.row.kept_disk.as_ref().is_none_or(|kept| !kept.current) => {
                refused(
                    "and was lost when its process ended",
                    format!(
                        "`offshoot rollback {name}` goes back to a snapshot; `offshoot destroy {name}` gives it up"
                    ),
                )
            }
            _ => Ok(()),
        }
    })
}

/// Has the guest send what was written, and returns once that is durable.
pub(super) fn keep<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        let runs = matches!(machine.state(), VmStateName::Running | VmStateName::Paused);
        if !runs || !is_in_memory(machine)? {
            return Ok(());
        }
        stop::resume_if_paused(machine).await;
        if machine.state() == VmStateName::Paused && machine.is_going() {
            machine.move_to(offshoot_types::VmState::Running, change).await?;
        }
        let name = machine.name().clone();
        let Some(live) = &machine.live else { return Err(error::process_gone(&name)) };
        let link = live.link.clone();
        capture::freeze(machine, change).await?;
        let client = link.client(change.deadline.min(Instant::now() + stop::SHUTDOWN_ANSWER)).await;
        let client = client.map_err(|error| not_kept(&error::guest_silent(&name, &error.to_string())))?;
        let offer = client.keep_disk().await.map_err(|error| not_kept(&refused(machine, &error)))?;
        let (dir, used) = (directory(machine), offer.used().bytes);
        let room = machine.blocking(move || kept_disk::check_room(&dir, used)).await;
        if let Err(failure) = room {
            // It goes on in any case: the undo sees to that.
            drop(offer.decline().await);
            return Err(not_kept(&failure));
        }
        receive(machine, change, offer).await.map_err(|failure| not_kept(&failure))
    })
}

async fn receive(machine: &mut Machine, change: &Change, offer: DiskOffer) -> Result<(), Failure> {
    let (dir, operation) = (directory(machine), change.operation);
    let before = machine.row.kept_disk.as_ref().map(|kept| kept.file.clone());
    let limit = machine.row.spec.memory.bytes().0.saturating_mul(2).saturating_add(WORDS);
    let silent = |machine: &Machine, error: &ClientError| error::guest_failure(machine.name(), error);
    let mut tree = offer.accept(limit).await.map_err(|error| silent(machine, &error))?;
    let to = dir.clone();
    let made = machine.blocking(move || {
        kept_disk::remove_others(&to, before.as_deref())?;
        Writer::create(&to, operation)
    });
    let mut writer = made.await?;
    while let Some(bytes) = tree.next().await.map_err(|error| silent(machine, &error))? {
        writer.take(&bytes);
        if writer.is_full() {
            writer = machine.blocking(move || writer.write()).await?;
        }
    }
    let kept = machine.blocking(move || writer.finish()).await?;
    let (vm, file) = (machine.id(), kept.file.clone());
    machine.write(move |tx| tx.set_vm_kept_disk(vm, Some(&kept))).await?;
    machine.blocking(move || kept_disk::remove_others(&dir, Some(&file))).await
}

/// A guest that does not know what it was asked for was started by a daemon of before.
fn refused(machine: &Machine, error: &ClientError) -> Failure {
    let name = machine.name();
    match error {
        ClientError::Guest(_) | ClientError::Protocol { .. } => {
            let message = format!("the guest of VM `{name}` cannot tell what it has written: {error}");
            Failure::new(ErrorCode::Unsupported, message).hint(format!(
                "VMs that this version starts can be stopped; `offshoot suspend {name}` keeps all of this one"
            ))
        }
        error => error::guest_failure(name, error),
    }
}

/// What became of the VM goes with whatever went wrong.
fn not_kept(failure: &Failure) -> Failure {
    let message =
        format!("what the VM has written could not be kept, so it runs on with it: {}", failure.message);
    Failure { message, ..failure.clone() }
}

/// The VM goes on with its files; programs may be started in it again.
pub(super) fn go_on<'a>(machine: &'a mut Machine, _: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        if !is_in_memory(machine)? || !matches!(machine.state(), VmStateName::Running | VmStateName::Paused) {
            return Ok(());
        }
        capture::unfreeze(machine).await?;
        let dir = directory(machine);
        // That stays, whichever stop made it: no start begins with it, as the VM goes on to write.
        let keep = machine.row.kept_disk.as_ref().map(|kept| kept.file.clone());
        // What is half written and cannot be removed now goes with the next stop, or with the VM.
        drop(machine.blocking(move || kept_disk::remove_others(&dir, keep.as_deref())).await);
        Ok(())
    })
}

/// Removes what was kept, once the record does not name it any more. What cannot be removed now goes with the next stop, or
/// with the VM.
pub(super) async fn forget(machine: &Machine) {
    let dir = directory(machine);
    drop(machine.blocking(move || kept_disk::remove_others(&dir, None)).await);
}

/// Refuses to start a VM with a disk that is not the one it had last.
pub(super) fn is_there<'a>(machine: &'a mut Machine, _: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        if machine.row.memory.is_some() || machine.state() == VmStateName::Running || !is_in_memory(machine)?
        {
            return Ok(());
        }
        match machine.row.kept_disk.clone() {
            Some(kept) if kept.current => {
                let dir = directory(machine);
                return machine.blocking(move || kept_disk::check(&dir, &kept)).await;
            }
            None if machine.row.last_start.is_none() => return Ok(()),
            _ => {}
        }
        let name = machine.name();
        let message = format!(
            "VM `{name}` cannot be started: its process ended without a stop, and what it had written was lost with it"
        );
        Err(Failure::new(ErrorCode::WrongState, message).hint(format!(
            "`offshoot rollback {name}` goes back to a snapshot, if there is one; `offshoot destroy {name}` gives it up"
        )))
    })
}

/// Puts back what was kept. Nothing else runs in the guest yet.
pub(super) fn put_back<'a>(machine: &'a mut Machine, _: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        if machine.row.memory.is_some() || machine.state() == VmStateName::Running || !is_in_memory(machine)?
        {
            return Ok(());
        }
        let Some(kept) = machine.row.kept_disk.clone().filter(|kept| kept.current) else { return Ok(()) };
        let name = machine.name().clone();
        let Some(live) = &machine.live else { return Err(error::process_gone(&name)) };
        let link = live.link.clone();
        let client = link.client(Instant::now() + stop::SHUTDOWN_ANSWER).await;
        let client = client.map_err(|error| error::guest_silent(&name, &error.to_string()))?;
        let failed = |error: ClientError| error::guest_failure(&name, &error);
        let mut writer = client.put_disk_back().await.map_err(failed)?;
        let dir = directory(machine);
        let mut reader = machine.blocking(move || Reader::open(&dir, &kept)).await?;
        loop {
            let read = machine.blocking(move || {
                let block = reader.next()?;
                Ok((reader, block))
            });
            let (again, block) = read.await?;
            reader = again;
            match block {
                Some(block) => writer.send(&block).await.map_err(failed)?,
                None => return writer.finish().await.map_err(failed),
            }
        }
    })
}
