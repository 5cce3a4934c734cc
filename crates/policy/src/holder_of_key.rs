//! "An API key is good for the verbs, the VMs and the provider it was made for, and for keys that are no stronger."
//!
//! How many VMs it may have is the ledger's to say, which counts and admits in one transaction.

use crate::{
    KeyFacts, RuleId,
    judge::{Question, Verdict},
};
use offshoot_types::{
    Action, Command, KeyId, KeyLimits, ProviderChoice, ProviderKind, Scope, SnapshotRef, Target, VmName,
    VmPrefix, VmRef,
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
            .and_then(|()| limits.provider.map_or(Ok(()), |only| provider(only, question)))
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
    let missing = match question.command {
        // Whoever may do anything in a VM may know how it is; to learn which there are is another matter.
        Command::Inspect { vm: Some(_) } if ABOUT_VMS.iter().any(|scope| limits.scopes.has(*scope)) => None,
        command => {
            let more = beyond_its_action(command).iter();
            Scope::of(question.action).iter().chain(more).find(|scope| !limits.scopes.has(**scope))
        }
    };
    let Some(missing) = missing else { return Ok(()) };
    let action = question.action;
    Err(No(SCOPE, format!("this API key may not {action}: it does not have the scope `{missing}`")))
}

const ABOUT_VMS: [Scope; 4] = [Scope::VmsWrite, Scope::Exec, Scope::Files, Scope::Snapshots];

/// What a command does besides what its action says.
const fn beyond_its_action(command: &Command) -> &'static [Scope] {
    match command {
        Command::Try { .. } => &[Scope::Snapshots],
        // It makes VMs, and one takes the place of the VM.
        Command::Race { .. } => &[Scope::Snapshots, Scope::VmsWrite],
        _ => &[],
    }
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
    if let Some(other) = question.command.beside() {
        match (&question.facts.beside, other) {
            (Some(name), _) => check(name)?,
            (
                None,
                Target::Vm(VmRef::Name(name))
                | Target::Snapshot(SnapshotRef::Named { vm: VmRef::Name(name), .. }),
            ) => check(&name)?,
            (None, _) => return beyond("what belongs to an unknown VM".into()),
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

/// What is made is made on one provider only.
fn provider(only: ProviderKind, question: &Question<'_>) -> Result<(), No> {
    let made_on = match question.command {
        Command::Create { spec } => matches!(spec.provider, ProviderChoice::Named(named) if named == only),
        // They run where their origin does.
        Command::Fork { .. } | Command::Race { .. } => {
            question.facts.vm.as_ref().is_some_and(|vm| vm.provider == only)
        }
        // Where it runs is in what is imported, which nobody has read yet.
        Command::ImportSnapshot { .. } => false,
        _ => true,
    };
    match made_on {
        true => Ok(()),
        false => Err(No(
            PROVIDER,
            format!("this API key makes VMs on the provider `{only}` only, and by its name"),
        )),
    }
}

fn no_stronger(limits: &KeyLimits, command: &Command) -> Result<(), No> {
    let Command::CreateKey { limits: wanted, .. } = command else { return Ok(()) };
    limits.cover(wanted).map_err(|stronger| {
        No(STRONGER, format!("this API key makes no key that is good for more than itself: {stronger}"))
    })
}
