use crate::{branches, change, context::Context, exit_code::Status, failure::Result, trace::TraceEvent};
use offshoot_api::v1::{RollbackRequest, RolledBack};
use offshoot_types::{InvalidSnapshotRef, SnapshotName, SnapshotRef, VmRef};
use std::str::FromStr;

const EXAMPLES: &str = "Examples:
  offshoot rollback web
  offshoot rollback web before
  offshoot rollback web --last-good

What the VM was until then is kept: `undo` goes back to it. If the rollback fails, the VM runs on as it was.";

/// Let a VM continue from an earlier state
///
/// Without a snapshot, from its newest one.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Name or id of the VM
    #[arg(value_name = "VM")]
    vm: VmRef,
    /// A snapshot of it by name, or any as VM@NAME or by id
    #[arg(value_name = "SNAPSHOT", conflicts_with = "last_good")]
    snapshot: Option<Whither>,
    /// The newest snapshot taken before the most recent failed command began
    #[arg(long)]
    last_good: bool,
}

/// A snapshot as its VM's own command line may name it: the VM need not be repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Whither {
    Own(SnapshotName),
    Named(SnapshotRef),
}

impl FromStr for Whither {
    type Err = InvalidSnapshotRef;
    fn from_str(text: &str) -> Result<Self, InvalidSnapshotRef> {
        match text.parse() {
            Ok(snapshot) => Ok(Self::Named(snapshot)),
            // An id is also a possible name; it is never meant as one.
            Err(InvalidSnapshotRef::Form { .. }) => Ok(Self::Own(text.parse()?)),
            Err(invalid) => Err(invalid),
        }
    }
}

impl Whither {
    fn reference(&self, vm: &VmRef) -> SnapshotRef {
        match self {
            Self::Own(name) => SnapshotRef::Named { vm: vm.clone(), name: name.clone() },
            Self::Named(snapshot) => snapshot.clone(),
        }
    }
}

pub async fn run(context: &Context, args: Args) -> Result<Status> {
    let client = context.client().await?;
    let snapshot = args.snapshot.map(|snapshot| snapshot.reference(&args.vm).to_string());
    let request = RollbackRequest { snapshot, last_good: args.last_good };
    let what = format!("rollback of `{}`", args.vm);
    let done = change::answered(context, &what, client.rollback(&args.vm, &request)).await?;
    tell(context, &args.vm, &done)
}

/// Says what a rollback or an undo came to.
pub fn tell(context: &Context, vm: &VmRef, done: &RolledBack) -> Result<Status> {
    if let Some(said) = &done.attestations {
        TraceEvent::Renewed { name: &vm.to_string(), said }.emit();
    }
    if let Some(warning) = done.warning.as_ref().filter(|_| !context.printer.is_json()) {
        context.printer.warn(warning);
    }
    context.printer.note(&branches::rolled_back(&vm.to_string(), done));
    context.printer.answer(done, || vm.to_string())?;
    Ok(Status::DONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_name_is_a_snapshot_of_the_vm_itself() {
        let vm: VmRef = "web".parse().unwrap();
        let to = |text: &str| text.parse::<Whither>().map(|to| to.reference(&vm).to_string());
        assert_eq!(to("before").unwrap(), "web@before");
        assert_eq!(to("other@before").unwrap(), "other@before");
        let id = offshoot_types::SnapshotId::new().to_string();
        assert_eq!(to(&id).unwrap(), id);
        for wrong in ["", "A", "web@", "a b"] {
            assert!(to(wrong).is_err(), "{wrong}");
        }
    }
}
