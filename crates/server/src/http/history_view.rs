//! What the engine knows of a run, as the wire says it.

use offshoot_api::v1::{
    ExitStatus, HistoryEntry, HistoryKind, HistoryOutput, HistoryStateName, Output, VmBefore,
};
use offshoot_engine::{self as engine, HistoryRecord, HistoryStream};
use offshoot_types::{OperationKind, OperationOutcome, OperationState};
use std::fmt::Write;

/// `bytes`: it was read with both ends of its streams.
pub fn entry(record: HistoryRecord, bytes: bool) -> HistoryEntry {
    let duration_us = record.duration().map(|took| u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    let (state, problem) = match record.state {
        OperationState::Ended { outcome: OperationOutcome::Done } => (HistoryStateName::Ended, None),
        OperationState::Ended { outcome: OperationOutcome::Failed { failure } } => {
            (HistoryStateName::Failed, Some(failure.into()))
        }
        OperationState::Ended { outcome: OperationOutcome::Interrupted { .. } } => {
            (HistoryStateName::Interrupted, None)
        }
        OperationState::Pending | OperationState::Waiting { .. } | OperationState::Running { .. } => {
            (HistoryStateName::Running, None)
        }
    };
    let truncated = record.output.as_ref().is_some_and(|output| output.truncated);
    let (stdout, stderr) = match record.output {
        Some(output) => (Some(stream(output.stdout, bytes)), Some(stream(output.stderr, bytes))),
        None => (None, None),
    };
    HistoryEntry {
        id: record.operation,
        kind: match record.kind {
            OperationKind::Context => HistoryKind::Code,
            _ => HistoryKind::Exec,
        },
        vm: record.vm,
        vm_name: record.vm_name,
        actor: record.actor.to_string(),
        agent: record.agent,
        what: record.what,
        what_bytes: record.what_bytes,
        language: record.language,
        context: record.context,
        user: record.user,
        cwd: record.cwd,
        transaction: record.transaction,
        before: record.before.map(|snapshot| VmBefore { snapshot, exact: record.exact }),
        snapshot_after: record.after,
        undone_by: record.undone_by,
        started: record.started,
        ended: record.ended,
        duration_us,
        state,
        succeeded: record.failed.map(|failed| !failed),
        exit: record.status.map(ExitStatus::from),
        interrupted: record.interrupted,
        error: record.error,
        result: record.result,
        problem,
        truncated,
        stdout,
        stderr,
    }
}

pub fn entry_with_kept(shown: engine::HistoryEntry) -> HistoryEntry {
    let engine::HistoryEntry { record, stdout, stderr } = shown;
    let mut entry = entry(record, true);
    for (stream, kept) in [(&mut entry.stdout, stdout), (&mut entry.stderr, stderr)] {
        if let Some(stream) = stream {
            stream.kept_bytes = Some(kept);
        }
    }
    entry
}

fn stream(stream: HistoryStream, bytes: bool) -> HistoryOutput {
    let hex = |hash: [u8; 32]| {
        hash.iter().fold(String::with_capacity(64), |mut text, byte| {
            write!(text, "{byte:02x}").expect("a String takes any text");
            text
        })
    };
    let end = |part: Vec<u8>| (bytes && !part.is_empty()).then(|| Output::from_bytes(part));
    HistoryOutput {
        bytes: stream.bytes,
        lost_bytes: stream.lost,
        kept_bytes: None,
        hash: stream.hash.map(hex),
        head: end(stream.head),
        tail: end(stream.tail),
    }
}
