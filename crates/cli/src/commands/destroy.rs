use crate::{
    ask,
    change::{self, Undo},
    context::Context,
    exit_code::{ExitCode, Status},
    failure::Result,
    terminal,
};
use offshoot_api::v1::DestroyQuery;
use offshoot_types::VmRef;

const EXAMPLES: &str = "Examples:
  offshoot destroy web
  offshoot destroy web --yes";

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
}

pub async fn run(context: &Context, args: Args) -> Result<Status> {
    let client = context.client().await?;
    if !args.yes && terminal::stdin_is_terminal() {
        let vm = context.abandonable("the question", async { Ok(client.vm(&args.vm).await?) }).await?;
        let question = format!("destroy `{}` ({}) and everything on its disk?", vm.name, vm.state);
        if !ask::yes(context, &question).await? {
            context.printer.note("not destroyed");
            return Ok(Status::Own(ExitCode::CheckFailed));
        }
    }
    let what = format!("destruction of `{}`", args.vm);
    let query = DestroyQuery { wait: Some(false) };
    let request = client.destroy(&args.vm, &query);
    let changed = change::see_through(context, &client, &what, Undo::LetItFinish, request).await?;
    context.printer.answer(&changed, || args.vm.to_string())?;
    Ok(Status::DONE)
}
