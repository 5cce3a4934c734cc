//! The engine's failures, worded for callers: they name the VM, the state it is in and what to do next.
//! Everything outward is a [`Failure`]; this module is the one place that words them.

use crate::link::chain;
use offshoot_guest_proto::{client::ClientError, message::GuestErrorKind};
use offshoot_policy::Required;
use offshoot_store::{OpenError, StoreError};
use offshoot_types::{
    Action, ContextName, ErrorCode, ExecId, Failure, OperationId, TransactionId, VmName, VmRef,
};
use std::{io, path::PathBuf, time::Duration};

/// Why an engine could not be started. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot open the record {}", path.display())]
    Store {
        path: PathBuf,
        #[source]
        source: OpenError,
    },
    #[error("cannot prepare {}", path.display())]
    Directory {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot read the record")]
    Read {
        #[source]
        source: StoreError,
    },
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        match &error {
            StartError::Store { source, .. } => source.into(),
            StartError::Read { source } => source.into(),
            StartError::Directory { path, .. } => Failure::new(ErrorCode::Unavailable, error.to_string())
                .caused_by(&error)
                .hint(format!("check the permissions of {} and the space on its disk", path.display())),
        }
    }
}

/// `known` are the names the caller may see; the nearest ones are suggested.
pub(crate) fn vm_not_found<'a>(vm: &VmRef, known: impl IntoIterator<Item = &'a VmName>) -> Failure {
    let failure = Failure::new(ErrorCode::NotFound, format!("there is no VM `{vm}`"));
    let near = nearest(&vm.to_string(), known.into_iter().map(VmName::as_str));
    match near.as_slice() {
        [] => failure.hint("`offshoot list` shows the VMs there are"),
        names => {
            let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
            failure.hint(format!("did you mean {}?", quoted.join(" or ")))
        }
    }
}

/// It existed when the request was accepted.
pub(crate) fn vm_gone(vm: &VmName) -> Failure {
    Failure::new(ErrorCode::NotFound, format!("VM `{vm}` has been destroyed"))
        .hint("`offshoot list` shows the VMs there are")
}

pub(crate) fn operation_not_found(id: OperationId) -> Failure {
    Failure::new(ErrorCode::NotFound, format!("there is no operation {id}"))
        .hint("old operations are forgotten after a while")
}

pub(crate) fn exec_not_found(vm: &VmName, exec: ExecId) -> Failure {
    Failure::new(ErrorCode::NotFound, format!("VM `{vm}` has no exec {exec}"))
        .hint(format!("`offshoot status {vm}` lists its processes; ended ones are kept for a while only"))
}

pub(crate) fn shutting_down() -> Failure {
    Failure::new(ErrorCode::Interrupted, "the daemon is shutting down and accepts nothing new")
        .hint("repeat the command; it starts a new daemon")
}

/// A caller handed a permit for another command than the method carries out: a defect of the transport.
pub(crate) fn wrong_permit(method: &'static str, action: Action) -> Failure {
    Failure::new(ErrorCode::Internal, format!("`{method}` was called with a permit for `{action}`"))
        .hint("this is a defect of offshoot; please report it")
}

/// The VM moved on, and policy now wants something first.
pub(crate) fn obligation(required: &Required) -> Failure {
    let wanted: Vec<String> = required.obligations.iter().map(ToString::to_string).collect();
    Failure::new(
        ErrorCode::Denied,
        format!("the VM has changed, and policy now requires {}", wanted.join(", ")),
    )
    .hint("repeat the command")
}

pub(crate) fn process_gone(vm: &VmName) -> Failure {
    Failure::new(ErrorCode::WrongState, format!("the process of VM `{vm}` has just ended"))
        .hint(format!("`offshoot status {vm}` shows its state"))
}

pub(crate) fn vm_ended(vm: &VmName, how: &str) -> Failure {
    Failure::new(ErrorCode::Interrupted, format!("VM `{vm}` ended while this was running ({how})")).hint(
        format!("`offshoot status {vm}` shows its state, `offshoot logs {vm} --console` its last words"),
    )
}

/// Why the guest of the state that a rollback left is gone.
pub(crate) fn rolled_back(vm: &VmName) -> String {
    format!("VM `{vm}` was taken back to an earlier state")
}

pub(crate) fn guest_silent(vm: &VmName, why: &str) -> Failure {
    Failure::new(ErrorCode::Guest, format!("the guest of VM `{vm}` does not answer: {why}")).hint(format!(
        "`offshoot logs {vm} --console` may show why; `offshoot restart {vm}` starts it afresh"
    ))
}

pub(crate) fn timeout_not_enforced(vm: &VmName, after: Duration) -> Failure {
    let after = after.as_secs_f64();
    let message = format!(
        "the guest of VM `{vm}` did not end the process when its time was up (given up after {after:.1} s)"
    );
    // The caller's limit has passed, whoever failed to keep it.
    Failure::new(ErrorCode::Timeout, message).hint(format!(
        "`offshoot logs {vm} --console` may show why; `offshoot restart {vm}` starts it afresh"
    ))
}

pub(crate) fn exec_lost(vm: &VmName, exec: ExecId) -> Failure {
    Failure::new(ErrorCode::Guest, format!("the guest of VM `{vm}` no longer knows exec {exec}"))
        .hint("how it ended cannot be told; the guest may have restarted")
}

pub(crate) fn transaction_not_found(vm: &VmName, id: TransactionId) -> Failure {
    Failure::new(ErrorCode::NotFound, format!("VM `{vm}` has no transaction {id}"))
        .hint("old transactions are forgotten after a while")
}

/// Code is never sent twice.
pub(crate) fn code_lost(vm: &VmName, context: &ContextName, started: bool) -> Failure {
    let what = if started {
        "while its code ran: that was interrupted"
    } else {
        "before its code ran, or just then"
    };
    let message = format!("the connection to context `{context}` of VM `{vm}` was lost {what}");
    Failure::new(ErrorCode::Guest, message)
        .hint("the context keeps its variables; look at them before running it again")
}

pub(crate) fn code_not_interrupted(vm: &VmName, context: &ContextName) -> Failure {
    let message =
        format!("the guest of VM `{vm}` did not end the code in context `{context}` when it was interrupted");
    Failure::new(ErrorCode::Timeout, message)
        .hint(format!("`offshoot context restart {vm} {context}` begins it anew, without its variables"))
}

pub(crate) fn input_lost(vm: &VmName) -> Failure {
    Failure::new(
        ErrorCode::Guest,
        format!("the connection to the guest of VM `{vm}` was lost while input was being sent"),
    )
    .hint("how much of the input arrived cannot be told; the process was left as it is")
}

/// What a guest's answer, or the lack of one, means to the caller.
pub fn guest_failure(vm: &VmName, error: &ClientError) -> Failure {
    let code = match error {
        ClientError::Guest(refused) => match refused.kind {
            GuestErrorKind::NotFound | GuestErrorKind::UnknownUser => ErrorCode::NotFound,
            GuestErrorKind::AlreadyExists => ErrorCode::AlreadyExists,
            GuestErrorKind::PermissionDenied => ErrorCode::Denied,
            GuestErrorKind::NotADirectory
            | GuestErrorKind::IsADirectory
            | GuestErrorKind::NotEmpty
            | GuestErrorKind::InvalidArgument => ErrorCode::InvalidArgument,
            GuestErrorKind::ExecFailed => ErrorCode::ExecFailed,
            GuestErrorKind::NoSpace | GuestErrorKind::Exhausted => ErrorCode::NoResource,
            GuestErrorKind::ConnectionRefused => ErrorCode::Unavailable,
            GuestErrorKind::Unsupported => ErrorCode::Unsupported,
            GuestErrorKind::Other => ErrorCode::Guest,
        },
        ClientError::Closed { .. } | ClientError::Timeout { .. } => {
            return guest_silent(vm, &chain(error));
        }
        ClientError::Protocol { .. } => ErrorCode::Guest,
        ClientError::TooManyStreams { .. } => ErrorCode::Busy,
        ClientError::Request { .. } => ErrorCode::InvalidArgument,
    };
    Failure::new(code, format!("in VM `{vm}`: {}", chain(error)))
}

/// At most three candidates within an edit distance of a third of the longer word, nearest first.
fn nearest<'a>(wanted: &str, known: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut found: Vec<(usize, &str)> = known
        .filter_map(|name| {
            let distance = edit_distance(wanted, name);
            let near = distance <= wanted.len().max(name.len()).div_ceil(3) || name.starts_with(wanted);
            near.then_some((distance, name))
        })
        .collect();
    found.sort_unstable();
    found.into_iter().take(3).map(|(_, name)| name).collect()
}

/// Levenshtein distance on bytes: names are ASCII.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edit_distance_counts_insertions_deletions_and_substitutions() {
        let cases =
            [("", "", 0), ("abc", "abc", 0), ("abc", "ab", 1), ("kitten", "sitting", 3), ("", "xyz", 3)];
        for (a, b, distance) in cases {
            assert_eq!(edit_distance(a, b), distance, "{a} {b}");
            assert_eq!(edit_distance(b, a), distance, "{b} {a}");
        }
    }

    #[test]
    fn an_unknown_vm_is_answered_with_the_nearest_names() {
        let known: Vec<VmName> = ["worker-1", "worker-2", "database"].map(|n| n.parse().unwrap()).into();
        let failure = vm_not_found(&"woker-1".parse().unwrap(), &known);
        assert_eq!(failure.code, ErrorCode::NotFound);
        assert_eq!(failure.message, "there is no VM `woker-1`");
        assert_eq!(failure.hint.unwrap(), "did you mean `worker-1` or `worker-2`?");
        let far = vm_not_found(&"zzz".parse().unwrap(), &known);
        assert!(far.hint.unwrap().contains("offshoot list"));
    }
}
