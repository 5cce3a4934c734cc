use crate::{
    ask,
    change::{self, Undo},
    context::Context,
    exit_code::{ExitCode, Status},
    failure::Result,
    terminal,
};
use offshoot_api::{
    Client,
    v1::{DestroyQuery, Snapshot},
};
use offshoot_types::{VmId, VmRef};

const EXAMPLES: &str = "Examples:
  offshoot destroy web
  offshoot destroy web --yes
  offshoot destroy web --snapshots

Snapshots that were taken by name or by `offshoot snapshot` stay, and forks can be made of them.";

/// Remove a VM with its disk, whatever state it is in
///
/// Asks first on a terminal. What happened to it stays in the records.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Name or id of the VM
    #[arg(value_name = "NAME")]
    vm: VmRef,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// Remove all its snapshots too
    #[arg(long)]
    snapshots: bool,
}

pub async fn run(context: &Context, args: Args) -> Result<Status> {
    let client = context.client().await?;
    if !args.yes && terminal::stdin_is_terminal() {
        let vm = context.abandonable("the question", async { Ok(client.vm(&args.vm).await?) }).await?;
        let snapshots = if args.snapshots { ", all its snapshots" } else { "" };
        let question = format!("destroy `{}` ({}), everything on its disk{snapshots}?", vm.name, vm.state);
        if !ask::yes(context, &question).await? {
            context.printer.note("not destroyed");
            return Ok(Status::Own(ExitCode::CheckFailed));
        }
    }
    let what = format!("destruction of `{}`", args.vm);
    let query = DestroyQuery { wait: Some(false), snapshots: args.snapshots };
    let request = client.destroy(&args.vm, &query);
    let mut changed = change::see_through(context, &client, &what, Undo::LetItFinish, request).await?;
    let kept = match changed.operation.vm {
        Some(id) => of(&client, id).await?,
        None => Vec::new(),
    };
    match (kept.len(), args.snapshots) {
        (0, _) => {}
        (1, false) => context.printer.note("1 snapshot of it stays; `offshoot snapshot list` shows it"),
        (count, false) => {
            context
                .printer
                .note(&format!("{count} snapshots of it stay; `offshoot snapshot list` shows them"));
        }
        (count, true) => context.printer.note(&format!("{count} snapshots of it stay: something needs them")),
    }
    changed.snapshots_kept = Some(kept.iter().map(|snapshot| snapshot.id).collect());
    context.printer.answer(&changed, || args.vm.to_string())?;
    Ok(Status::DONE)
}

/// What is left of a VM that is gone, parents before children.
async fn of(client: &Client, vm: VmId) -> Result<Vec<Snapshot>> {
    let all = client.snapshots().await?.snapshots;
    Ok(all.into_iter().filter(|snapshot| snapshot.vm == vm).collect())
}
