//! The engine's failures, worded for callers: they name the VM, the state it is in and what to do next.
//! Everything outward is a [`Failure`]; this module is the one place that words them.

use offshoot_types::{
    ErrorCode, ExecId, Failure, OperationId, VmName, VmRef, VmStateName,
};

/// Why an engine could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot open the store {}", path.display())]
    Store {
        path: std::path::PathBuf,
        #[source]
        source: offshoot_store::StoreError,
    },
    #[error("cannot prepare {}", path.display())]
    Directory {
        path: std::path::PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot read the store")]
    Read {
        #[source]
        source: offshoot_store::StoreError,
    },
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        let code = match &error {
            StartError::Store { .. } | StartError::Read { .. } => ErrorCode::Internal,
            StartError::Directory { .. } => ErrorCode::Unavailable,
        };
        let hint = match &error {
            StartError::Store { path, .. } => format!("check that {} is a store of this version and that its disk is not full", path.display()),
            StartError::Read { .. } => "check that the disk of the state directory is readable".into(),
            StartError::Directory { path, .. } => format!("check the permissions of {} and the space on its disk", path.display()),
        };
        Failure::new(code, error.to_string()).caused_by(&error).hint(hint)
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

pub(crate) fn operation_not_found(id: OperationId) -> Failure {
    Failure::new(ErrorCode::NotFound, format!("there is no operation {id}"))
}

pub(crate) fn exec_not_found(vm: &VmName, exec: ExecId) -> Failure {
    Failure::new(ErrorCode::NotFound, format!("VM `{vm}` has no exec {exec}"))
        .hint(format!("`offshoot status {vm}` lists its processes; ended ones are kept for a while only"))
}

pub(crate) fn name_taken(name: &VmName, state: VmStateName) -> Failure {
    Failure::new(ErrorCode::AlreadyExists, format!("VM `{name}` already exists ({state})"))
        .hint(format!("choose another name, or remove it with `offshoot destroy {name}`"))
}

pub(crate) fn shutting_down() -> Failure {
    Failure::new(ErrorCode::Interrupted, "the daemon is shutting down and accepts nothing new")
        .hint("repeat the command; it starts a new daemon")
}

/// A caller handed a permit for another command than the method carries out: a defect of the transport.
pub(crate) fn wrong_permit(method: &'static str, action: offshoot_types::Action) -> Failure {
    Failure::new(ErrorCode::Internal, format!("`{method}` was called with a permit for `{action}`"))
}

pub(crate) fn store_failed(operation: &'static str, error: &offshoot_store::StoreError) -> Failure {
    Failure::new(ErrorCode::Internal, format!("the store failed at {operation}"))
        .caused_by(error)
        .hint("check the space and health of the disk that holds the state directory")
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
        for (a, b, distance) in [("", "", 0), ("abc", "abc", 0), ("abc", "ab", 1), ("kitten", "sitting", 3), ("", "xyz", 3)] {
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
