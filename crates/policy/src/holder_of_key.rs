//! "An API key is good for the verbs, the VMs and the provider it was made for, and for keys that are no stronger."
//!
//! How many VMs it may have is the ledger's to say, which counts and admits in one transaction.

use crate::{
    KeyFacts, RuleId,
    judge::{Question, Verdict},
};
use offshoot_types::{
    Action, Command, ForkSource, KeyId, KeyLimits, ProviderChoice, ProviderKind, Scope, SnapshotRef, Target,
    VmName, VmPrefix, VmRef,
};

const HOLDER: RuleId = RuleId::fixed("holder-of-key/holder");
const NO_KEY: RuleId = RuleId::fixed("holder-of-key/no-such-key");
const SCOPE: RuleId = RuleId::fixed("holder-of-key/scope");
const PREFIX: RuleId = RuleId::fixed("holder-of-key/vm-prefix");
const PROVIDER: RuleId = RuleId::fixed("holder-of-key/provider");
const STRONGER: RuleId = RuleId::fixed("holder-of-key/stronger-key");

/// A rule that says no, and why.
struct No(RuleId, String);

pub(crate) fn judge(id: KeyId, question: &Question<'_>) -> Verdict {
    let checked = match question.facts.key.as_ref().filter(|key| key.id == id) {
        None => Err(No(NO_KEY, format!("API key {id} does not exist any more"))),
        Some(KeyFacts { limits, .. }) => scopes(limits, question)
            .and_then(|()| limits.vm_prefix.as_ref().map_or(Ok(()), |prefix| names(prefix, question)))
            .and_then(|()| limits.provider.map_or(Ok(()), |only| provider(only, question.command)))
            .and_then(|()| no_stronger(limits, question.command)),
    };
    match checked {
        Ok(()) => Verdict::Permit { rules: vec![HOLDER] },
        Err(No(rule, sentence)) => {
            let hint = "`offshoot key create` makes a key that is good for it, if you may".to_owned();
            Verdict::Deny { rules: vec![rule], sentence, hint: Some(hint) }
        }
    }
}

fn scopes(limits: &KeyLimits, question: &Question<'_>) -> Result<(), No> {
    let missing = Scope::of(question.action).iter().find(|scope| !limits.scopes.has(**scope));
    let Some(missing) = missing else { return Ok(()) };
    let action = question.action;
    Err(No(SCOPE, format!("this API key may not {action}: it does not have the scope `{missing}`")))
}

/// Every VM that is named, or made, is one of the key's; what cannot be told is not.
fn names(prefix: &VmPrefix, question: &Question<'_>) -> Result<(), No> {
    let beyond = |what: String| {
        Err(No(
            PREFIX,
            format!("this API key is good for VMs whose names begin with `{prefix}` only, not for {what}"),
        ))
    };
    let check = |name: &VmName| match prefix.begins(name) {
        true => Ok(()),
        false => beyond(format!("`{name}`")),
    };
    if let Command::Fork { name: Some(name), .. } = question.command {
        check(name)?;
    }
    if let Command::Diff { to, .. } = question.command {
        match to {
            ForkSource::Vm(VmRef::Name(name))
            | ForkSource::Snapshot(SnapshotRef::Named { vm: VmRef::Name(name), .. }) => check(name)?,
            ForkSource::Vm(_) | ForkSource::Snapshot(_) => {
                return beyond("what is named by an id here".into());
            }
        }
    }
    match (&question.facts.vm, question.command.target()) {
        (Some(vm), _) => check(&vm.name),
        (None, Target::NewVm(name) | Target::Vm(VmRef::Name(name))) => check(&name),
        (None, Target::Snapshot(SnapshotRef::Named { vm: VmRef::Name(name), .. })) => check(&name),
        // Answered with what is the key's only.
        (None, Target::Daemon) if matches!(question.command, Command::Inspect { vm: None }) => Ok(()),
        (None, Target::Daemon) if matches!(question.command, Command::CreateKey { .. }) => Ok(()),
        // To learn that it is not there.
        (None, Target::Vm(VmRef::Id(_))) if question.action == Action::Inspect => Ok(()),
        (None, Target::Vm(_)) => beyond("a VM that is not there".into()),
        (None, Target::Snapshot(_) | Target::Operation(_)) => beyond("what belongs to an unknown VM".into()),
        (None, Target::Image(_) | Target::Daemon) => beyond(format!("`{}`", question.action)),
    }
}

fn provider(only: ProviderKind, command: &Command) -> Result<(), No> {
    match command {
        Command::Create { spec } if spec.provider != ProviderChoice::Named(only) => {
            Err(No(PROVIDER, format!("this API key makes VMs on the provider `{only}` only: name it")))
        }
        _ => Ok(()),
    }
}

fn no_stronger(limits: &KeyLimits, command: &Command) -> Result<(), No> {
    let Command::CreateKey { limits: wanted, .. } = command else { return Ok(()) };
    limits.cover(wanted).map_err(|stronger| {
        No(STRONGER, format!("this API key makes no key that is good for more than itself: {stronger}"))
    })
}
