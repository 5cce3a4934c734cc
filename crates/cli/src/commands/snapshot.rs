use crate::{
    branches, change,
    context::Context,
    exit_code::{ExitCode, Status},
    failure::{Result, usage},
    options::Switch,
    trace::TraceEvent,
    view::{fields, size},
};
use clap::Subcommand;
use jiff::Timestamp;
use offshoot_api::{
    Client,
    v1::{RemoveSnapshotQuery, SetSnapshotPolicy, Snapshot, TakeSnapshot},
};
use offshoot_types::{AutoSnapshot, SnapshotName, SnapshotRef, VmRef};

mod portable;

const EXAMPLES: &str = "Examples:
  offshoot snapshot web
  offshoot snapshot web before --note 'before the upgrade'
  offshoot snapshot list web --tree
  offshoot snapshot rm web@before
  offshoot snapshot export web@before web.snap
  offshoot snapshot import web.snap --name web2
  offshoot snapshot policy web before-exec --auto-rollback on

`offshoot snapshot take VM` is the long form, for a VM that is called like one of the commands above.";

/// Keep the present state of a VM; list, check and remove what is kept
///
/// Prints how the snapshot is named from now on: VM@NAME, or an id if it got no name. A running VM stands still for a
/// few milliseconds.
#[derive(Debug, clap::Args)]
#[command(
    after_help = EXAMPLES,
    subcommand_negates_reqs = true,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    override_usage = "offshoot snapshot [OPTIONS] <VM> [NAME]\n       offshoot snapshot <COMMAND>"
)]
pub struct Args {
    #[command(subcommand)]
    action: Option<Action>,
    /// Name or id of the VM
    #[arg(value_name = "VM", required = true)]
    vm: Option<VmRef>,
    #[command(flatten)]
    how: How,
}

/// What a snapshot is to be.
#[derive(Debug, clap::Args)]
struct How {
    /// Name of the snapshot, unique among those of the VM
    #[arg(value_name = "NAME")]
    name: Option<SnapshotName>,
    /// Leave the memory out: whoever continues from it boots
    #[arg(long)]
    disk_only: bool,
    /// Something to remember it by
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Keep the present state of a VM
    Take {
        #[arg(value_name = "VM")]
        vm: VmRef,
        #[command(flatten)]
        how: How,
    },
    /// List the snapshots of a VM, or all
    #[command(visible_alias = "ls")]
    List {
        #[arg(value_name = "VM")]
        vm: Option<VmRef>,
        /// Show each below the one it came of
        #[arg(long)]
        tree: bool,
    },
    /// Show one
    Show {
        #[arg(value_name = "SNAPSHOT")]
        snapshot: SnapshotRef,
    },
    /// Remove one; refused while others, VMs or transactions need it
    #[command(visible_alias = "remove")]
    Rm {
        #[arg(value_name = "SNAPSHOT")]
        snapshot: SnapshotRef,
        /// Also one that others came after: what differs from it is merged with it, and loses nothing
        #[arg(long)]
        prune: bool,
    },
    /// Show or change when snapshots of a VM are taken without being asked for
    ///
    /// It holds for what begins from then on. Snapshots that were taken so are removed by age and count.
    Policy {
        #[arg(value_name = "VM")]
        vm: VmRef,
        /// `never`, `before-exec` (strictly before each), `on-failure` (what a failed command left) or `before-risky`
        /// (before commands that look as if somebody may want them undone) [default: as it is]
        #[arg(value_name = "WHEN")]
        mode: Option<AutoSnapshot>,
        /// Whether a failed command takes the VM back to the state before it [default: as it is]
        #[arg(long, value_name = "on|off", hide_possible_values = true)]
        auto_rollback: Option<Switch>,
    },
    /// Read every byte of one and compare; exits with 1 if any differs
    Verify {
        #[arg(value_name = "SNAPSHOT")]
        snapshot: SnapshotRef,
    },
    /// Write one with all it needs to a file, and print its hash
    Export(portable::Export),
    /// Make a VM of an exported one
    Import(portable::Import),
}

pub async fn run(context: &Context, args: Args) -> Result<Status> {
    let action = chosen(args)?;
    let client = context.client().await?;
    match action {
        Action::Take { vm, how } => take(context, &client, &vm, how).await,
        Action::List { vm, tree } => {
            context.abandonable("the list", list(context, &client, vm, tree)).await?;
            Ok(Status::DONE)
        }
        Action::Show { snapshot } => {
            context.abandonable("the snapshot", show(context, &client, &snapshot)).await?;
            Ok(Status::DONE)
        }
        Action::Policy { vm, mode, auto_rollback } => {
            policy(context, &client, &vm, mode, auto_rollback).await?;
            Ok(Status::DONE)
        }
        Action::Rm { snapshot, prune } => remove(context, &client, &snapshot, prune).await,
        Action::Verify { snapshot } => {
            context.abandonable("the check", verify(context, &client, &snapshot)).await
        }
        Action::Export(export) => context.abandonable("the export", export.run(context, &client)).await,
        Action::Import(import) => import.run(context, &client).await,
    }
}

/// `snapshot VM` is `snapshot take VM`. What mixes both forms could mean either.
fn chosen(args: Args) -> Result<Action> {
    match (args.action, args.vm) {
        (None, Some(vm)) => Ok(Action::Take { vm, how: args.how }),
        (Some(action), None) if !args.how.disk_only && args.how.note.is_none() => Ok(action),
        (Some(_), Some(vm)) => Err(usage(format!(
            "after `{vm}` comes the name of a snapshot, not a command"
        ))
        .hint(format!(
            "the command comes first, as in `offshoot snapshot list {vm}`; for a snapshot of that name \
                 there is `offshoot snapshot take {vm} NAME`"
        ))
        .into()),
        (Some(_), None) => Err(usage("`--disk-only` and `--note` are for taking a snapshot")
            .hint("put them behind `offshoot snapshot take VM`")
            .into()),
        (None, None) => {
            Err(usage("which VM is missing").hint("`offshoot snapshot --help` shows the forms").into())
        }
    }
}

async fn take(context: &Context, client: &Client, vm: &VmRef, how: How) -> Result<Status> {
    let request = TakeSnapshot { name: how.name.map(String::from), disk_only: how.disk_only, note: how.note };
    let what = format!("snapshot of `{vm}`");
    let taken = change::answered(context, &what, client.snapshot(vm, &request)).await?;
    if let Some(micros) = taken.paused_us {
        TraceEvent::StoodStill { micros }.emit();
    }
    if !taken.quiesced && !context.printer.is_json() {
        context.printer.warn("its guest did not hold still: one can go back to it, but not fork it");
    }
    context.printer.answer(&taken, || branches::reference(&taken))?;
    Ok(Status::DONE)
}

async fn list(context: &Context, client: &Client, vm: Option<VmRef>, tree: bool) -> Result {
    let list = match &vm {
        Some(vm) => client.snapshots_of(vm).await?,
        None => client.snapshots().await?,
    };
    if list.snapshots.is_empty() && !context.printer.is_json() {
        context.printer.note("no snapshots; take one with `offshoot snapshot NAME`");
        return Ok(());
    }
    let now = Timestamp::now();
    context.printer.answer(&list, || match tree {
        true => branches::tree(&list.snapshots, now),
        false => branches::table(&list.snapshots, now),
    })
}

async fn show(context: &Context, client: &Client, snapshot: &SnapshotRef) -> Result {
    let shown: Snapshot = client.show_snapshot(snapshot).await?;
    context.printer.answer(&shown, || branches::details(&shown, Timestamp::now()))
}

async fn remove(context: &Context, client: &Client, snapshot: &SnapshotRef, prune: bool) -> Result<Status> {
    let what = format!("removal of `{snapshot}`");
    let query = RemoveSnapshotQuery { prune };
    let removed = change::answered(context, &what, client.remove_snapshot(snapshot, &query)).await?;
    context.printer.answer(&removed, || removed.removed.iter().map(|id| format!("{id}\n")).collect())?;
    Ok(Status::DONE)
}

async fn policy(
    context: &Context,
    client: &Client,
    vm: &VmRef,
    mode: Option<AutoSnapshot>,
    auto_rollback: Option<Switch>,
) -> Result {
    let policy = if mode.is_none() && auto_rollback.is_none() {
        let shown = context.abandonable("the policy", async { Ok(client.vm(vm).await?) });
        shown.await?.snapshot_policy
    } else {
        let change = SetSnapshotPolicy {
            mode: mode.map(|mode| mode.to_string()),
            auto_rollback: auto_rollback.map(Switch::is_on),
        };
        let what = format!("change of the snapshot policy of `{vm}`");
        change::answered(context, &what, client.set_snapshot_policy(vm, &change)).await?
    };
    context.printer.answer(&policy, || {
        let rollback = Switch::word(policy.auto_rollback).to_owned();
        fields(&[("snapshots", policy.mode.to_string()), ("auto-rollback", rollback)])
    })
}

async fn verify(context: &Context, client: &Client, snapshot: &SnapshotRef) -> Result<Status> {
    let progress = context.printer.progress(format!("reading `{snapshot}`"));
    let verified = progress.during(client.verify_snapshot(snapshot)).await?;
    context.printer.answer(&verified, || match verified.faults.as_slice() {
        [] => {
            format!("{} parts, {}: every byte as it was written", verified.parts.len(), size(verified.bytes))
        }
        faults => faults.iter().map(|fault| format!("{}\n", crate::printer::visible(fault))).collect(),
    })?;
    Ok(match verified.faults.is_empty() {
        true => Status::DONE,
        false => Status::Own(ExitCode::CheckFailed),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Verb};
    use clap::Parser;

    fn parsed(line: &str) -> Result<Action> {
        let words = ["offshoot", "snapshot"].into_iter().chain(line.split(' '));
        let cli = Cli::try_parse_from(words).map_err(|error| usage(error.to_string()))?;
        let Verb::Snapshot(args) = cli.verb else { panic!("the verb is snapshot") };
        chosen(args)
    }

    #[test]
    fn a_vm_or_a_command_and_never_a_guess_between_them() {
        let taken = |line: &str| match parsed(line) {
            Ok(Action::Take { vm, how }) => (vm.to_string(), how.name.map(String::from), how.disk_only),
            other => panic!("{line}: {other:?}"),
        };
        assert_eq!(taken("web"), ("web".into(), None, false));
        assert_eq!(taken("web before"), ("web".into(), Some("before".into()), false));
        assert_eq!(taken("--disk-only web before --note x"), ("web".into(), Some("before".into()), true));
        assert_eq!(taken("take list"), ("list".into(), None, false), "a VM called like a command");
        assert_eq!(taken("take web list"), ("web".into(), Some("list".into()), false));
        assert!(matches!(parsed("list"), Ok(Action::List { vm: None, tree: false })));
        assert!(matches!(parsed("--json list"), Ok(Action::List { vm: None, .. })));
        assert!(matches!(parsed("list web --tree"), Ok(Action::List { vm: Some(_), tree: true })));
        assert!(matches!(parsed("rm web@before --prune"), Ok(Action::Rm { prune: true, .. })));
        assert!(matches!(parsed("policy web"), Ok(Action::Policy { mode: None, auto_rollback: None, .. })));
        let both = parsed("policy web on-failure --auto-rollback on");
        let (mode, on) = (Some(AutoSnapshot::OnFailure), Some(Switch::On));
        assert!(matches!(both, Ok(Action::Policy { mode: m, auto_rollback: a, .. }) if (m, a) == (mode, on)));
        for wrong in ["policy web sometimes", "policy web --auto-rollback yes", "policy"] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
        assert!(matches!(parsed("export web@before -"), Ok(Action::Export(_))));
        assert!(matches!(parsed("import - --name b --disk-only"), Ok(Action::Import(_))));
        for wrong in ["web list", "--disk-only list", "--note x verify web@a", "show web", "--tree"] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }
}
