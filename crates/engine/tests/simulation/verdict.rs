//! What became of a command, by the record.

use crate::{acts::Deed, invariants::Facts, schedule::Verb};
use offshoot_engine::Engine;
use offshoot_types::{
    Actor, ErrorCode, Failure, Operation, OperationId, OperationKind, OperationOutcome, OperationState,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing was begun.
    Refused,
    Done,
    Failed(ErrorCode),
    /// Cut off by a crash, and taken back.
    Undone,
    /// Cut off by a crash, and completed.
    Completed,
    /// It may have been carried out.
    Unsure,
}

impl Verdict {
    pub const fn happened(self) -> Option<bool> {
        match self {
            Self::Done | Self::Completed => Some(true),
            Self::Refused | Self::Failed(_) | Self::Undone => Some(false),
            Self::Unsure => None,
        }
    }
}

/// One verdict a deed. An acknowledgement that the record does not bear out is an error.
pub async fn judge(
    engine: &Engine,
    deeds: &[Deed],
    answers: Option<&[Result<(), Failure>]>,
    mark: Option<OperationId>,
    facts: &Facts,
) -> Result<Vec<Verdict>, String> {
    let mut found = Vec::new();
    // What the daemon begins by itself, such as the base of a rebase, is nobody's deed.
    let of_deeds = |operation: &&Operation| {
        mark.is_none_or(|mark| operation.id > mark) && operation.actor != Actor::Daemon
    };
    for operation in facts.operations.iter().filter(of_deeds) {
        let vm = match operation.vm {
            Some(vm) => engine.store().vm(vm).await.map_err(|error| error.to_string())?,
            None => None,
        };
        found.push((operation, vm.map(|vm| vm.name.to_string()).unwrap_or_default()));
    }
    let verdict_of = |(index, deed): (usize, &Deed)| {
        let starts = |deed: &Deed| matches!(deed.verb, Verb::Start | Verb::Resume);
        let alike = |other: &Deed| other.kind() == deed.kind() || (starts(other) && starts(deed));
        let is_same = |other: &&Deed| alike(other) && (other.vm == deed.vm || !by_vm(deed));
        let twins = deeds.iter().filter(is_same).count();
        let is_own = |(operation, vm): &&(&Operation, String)| {
            // A suspended VM is resumed by a start.
            let kind = operation.kind == deed.kind()
                || (deed.verb == Verb::Resume && operation.kind == OperationKind::Start);
            kind && (!by_vm(deed) || *vm == deed.vm)
        };
        // The first: what follows from it, such as a second destroy by the reaper, comes later.
        let operation = found.iter().rfind(is_own).map(|(operation, _)| *operation);
        let answer = answers.map(|answers| &answers[index]);
        // Of several that look the same nobody can tell which is whose.
        if twins > 1 { Ok(Verdict::Unsure) } else { verdict(deed, operation, answer) }
    };
    deeds.iter().enumerate().map(verdict_of).collect()
}

/// Whether its operation is that of the VM it names.
const fn by_vm(deed: &Deed) -> bool {
    !matches!(deed.verb, Verb::ForkSnapshot | Verb::RemoveSnapshot)
}

fn verdict(
    deed: &Deed,
    operation: Option<&Operation>,
    answer: Option<&Result<(), Failure>>,
) -> Result<Verdict, String> {
    let acknowledged = matches!(answer, Some(Ok(())));
    let lost = |what: String| {
        Err(format!("{:?} {} was acknowledged, and the record says: {what}", deed.verb, deed.vm))
    };
    let Some(operation) = operation else {
        return if acknowledged { lost("nothing".into()) } else { Ok(Verdict::Refused) };
    };
    let OperationState::Ended { outcome } = &operation.state else {
        // A process that runs on.
        return Ok(if deed.verb == Verb::Sleep { Verdict::Done } else { Verdict::Unsure });
    };
    // What a transaction did is kept if that was said, and else perhaps.
    if deed.verb.transacts() {
        return Ok(if acknowledged { Verdict::Done } else { Verdict::Unsure });
    }
    let within = matches!(
        deed.verb,
        Verb::Echo | Verb::Sleep | Verb::Rest | Verb::Rebase | Verb::Write | Verb::SetVariable
    );
    match outcome {
        OperationOutcome::Done => Ok(Verdict::Done),
        OperationOutcome::Failed { failure } if acknowledged && deed.verb != Verb::Sleep => {
            lost(format!("failed, {failure:?}"))
        }
        OperationOutcome::Failed { failure } => Ok(Verdict::Failed(failure.code)),
        // What a guest did meanwhile nobody knows.
        OperationOutcome::Interrupted { .. } if within => Ok(Verdict::Unsure),
        OperationOutcome::Interrupted { undone: true } if acknowledged => lost("undone".into()),
        OperationOutcome::Interrupted { undone: true } => Ok(Verdict::Undone),
        OperationOutcome::Interrupted { undone: false } => Ok(Verdict::Completed),
    }
}
