//! Finding a recorded VM again, or making sure that nothing of it is left.
//!
//! ```text
//! revoke the lease --revoked--> wait for the lock --> NeverStarted
//!        | claimed
//! keeper's lock free? --yes--> exit.json, clean up --> Ended
//!        | no
//! keeper.sock answers --> Running          reclaim: TERM to the keeper, then KILL to it and to the VMM, each
//!                                          proven by pid, start time and boot to be the recorded process
//! ```

use super::{
    client::{self, Greeting},
    files::{ExitRecord, Files, KeeperRecord, Revocation, read_json},
    instance::KeptInstance,
    remove_cgroup, retry_busy,
};
use crate::{Adoption, Exit, InstanceError, InstanceRecord, ReclaimReport, process::ProcessId};
use rustix::process::Signal;
use std::{fs::File, io, time::Duration};
use tokio::time::Instant;

/// For a keeper that has claimed its lease to listen and answer.
const ADOPT: Duration = Duration::from_secs(10);
/// A keeper told to end makes its VMM flush and quit.
const GENTLE: Duration = Duration::from_secs(4);
const FORCED: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

pub(crate) async fn adopt(record: &InstanceRecord) -> Result<Adoption, InstanceError> {
    let operation = "adopting";
    let io = |source| InstanceError::Io { operation, source };
    let files = Files::of(record);
    if files.revoke().map_err(io)? == Revocation::Revoked {
        // A keeper that came too late ends by itself.
        reclaimed(record, reclaim(record).await)?;
        return Ok(Adoption::NeverStarted);
    }
    let until = Instant::now() + ADOPT;
    loop {
        if let Some(lock) = files.try_lock().map_err(io)? {
            drop(lock);
            let exit = last_word(&files);
            reclaimed(record, reclaim(record).await)?;
            return Ok(Adoption::Ended(exit));
        }
        match tokio::time::timeout_at(until, greet(&files)).await {
            Ok(Some(Greeting::Started(client))) => {
                return Ok(Adoption::Running(Box::new(KeptInstance::new(record.clone(), client))));
            }
            Ok(Some(Greeting::StartFailed(failure))) => {
                reclaimed(record, reclaim(record).await)?;
                return Ok(Adoption::Ended(failure.exit));
            }
            Ok(Some(Greeting::Ended(exit))) => {
                reclaimed(record, reclaim(record).await)?;
                return Ok(Adoption::Ended(Some(exit)));
            }
            Ok(None) if Instant::now() < until => tokio::time::sleep(LOOK_AGAIN).await,
            Ok(None) | Err(_) => return Err(InstanceError::Timeout { operation, after: ADOPT }),
        }
    }
}

/// What is left of an ended VM must be gone before it is called ended.
fn reclaimed(record: &InstanceRecord, report: ReclaimReport) -> Result<(), InstanceError> {
    if report.failed.is_empty() {
        return Ok(());
    }
    let message = format!("{} (generation {}): {}", record.vm, record.generation.0, report.failed.join("; "));
    Err(InstanceError::Io { operation: "cleaning up", source: io::Error::other(message) })
}

/// `None` while nobody listens.
async fn greet(files: &Files) -> Option<Greeting> {
    let socket = client::connect(&files.keeper_socket()).ok()?;
    client::attach(socket, files.clone()).await.ok()
}

fn last_word(files: &Files) -> Option<Exit> {
    match read_json::<ExitRecord>(&files.exit()) {
        Ok(Some(record)) => record.exit,
        // It claimed its lease and left no word: it was killed, and its VMM with it.
        Ok(None) | Err(_) => Some(Exit::KeeperLost),
    }
}

pub(crate) async fn reclaim(record: &InstanceRecord) -> ReclaimReport {
    let files = Files::of(record);
    let mut report = ReclaimReport::default();
    match files.revoke() {
        Ok(_) => {}
        Err(error) => {
            report.failed.push(format!("cannot revoke the lease in {}: {error}", record.state_dir.display()))
        }
    }
    // Read only now: a keeper that claimed its lease wrote it before.
    let known = match read_json::<KeeperRecord>(&files.keeper()) {
        Ok(known) => known,
        Err(error) => {
            report.failed.push(format!("cannot read {}: {error}", files.keeper().display()));
            None
        }
    };
    let lock = end_keeper(&files, known.as_ref().map(|known| &known.keeper), &mut report).await;
    // It may have started the VMM since.
    let known = read_json::<KeeperRecord>(&files.keeper()).ok().flatten().or(known);
    if let Some(vmm) = known.as_ref().and_then(|known| known.vmm.as_ref()) {
        end("VMM", vmm, &mut report).await;
    }
    for companion in known.iter().flat_map(|known| &known.companions) {
        end("process of the VMM", companion, &mut report).await;
    }
    if lock.is_none() {
        return report;
    }
    match files.remove_sockets() {
        Ok(removed) => report.removed.extend(removed.iter().map(|path| format!("socket {}", path.display()))),
        Err(error) => report.failed.push(format!("cannot remove the sockets: {error}")),
    }
    for group in known.iter().flat_map(|known| &known.cgroups) {
        match retry_busy(|| remove_cgroup(group)).await {
            Ok(true) => report.removed.push(format!("control group {}", group.display())),
            Ok(false) => {}
            Err(error) => report.failed.push(format!("cannot remove {}: {error}", group.display())),
        }
    }
    report
}

/// Returns the keeper's lock: the proof that there is none any more.
async fn end_keeper(files: &Files, known: Option<&ProcessId>, report: &mut ReclaimReport) -> Option<File> {
    let mut told = false;
    for (signal, limit) in
        [(None, Duration::ZERO), (Some(Signal::TERM), GENTLE), (Some(Signal::KILL), FORCED)]
    {
        if let Some(signal) = signal
            && let Some(keeper) = known
            && let Ok(Some(process)) = keeper.find()
            && process.signal(signal).is_ok()
        {
            told = true;
        }
        let until = Instant::now() + limit;
        loop {
            match files.try_lock() {
                Ok(Some(lock)) => {
                    // The lock goes a moment before the process does.
                    let until = Instant::now() + FORCED;
                    while let Some(Ok(Some(_))) = known.map(ProcessId::find)
                        && Instant::now() < until
                    {
                        tokio::time::sleep(LOOK_AGAIN).await;
                    }
                    if let Some(keeper) = known.filter(|_| told) {
                        report.removed.push(format!("keeper {}", keeper.pid));
                    }
                    return Some(lock);
                }
                Ok(None) if Instant::now() < until => tokio::time::sleep(LOOK_AGAIN).await,
                Ok(None) => break,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    // No state directory: there never was a keeper, or all of it was removed.
                    return None;
                }
                Err(error) => {
                    report.failed.push(format!("cannot lock {}: {error}", files.lock().display()));
                    return None;
                }
            }
        }
    }
    let who =
        known.map_or_else(|| "an unknown process".to_owned(), |keeper| format!("process {}", keeper.pid));
    report
        .failed
        .push(format!("a keeper still lives: {} is locked, {who} was recorded", files.lock().display()));
    None
}

async fn end(what: &str, id: &ProcessId, report: &mut ReclaimReport) {
    let gone = match id.find() {
        Ok(None) => return,
        Ok(Some(process)) => {
            let killed = process.signal(Signal::KILL);
            let until = Instant::now() + FORCED;
            while !process.has_ended() && Instant::now() < until {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            killed.map(|()| process.has_ended())
        }
        Err(error) => Err(error),
    };
    match gone {
        Ok(true) => report.removed.push(format!("{what} {}", id.pid)),
        Ok(false) => report.failed.push(format!("{what} {} survived SIGKILL", id.pid)),
        Err(error) => report.failed.push(format!("cannot end {what} {}: {error}", id.pid)),
    }
}
