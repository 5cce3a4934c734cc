use crate::{
    change::{self, Undo},
    context::Context,
    exit_code::Status,
    failure::Result,
};
use offshoot_types::VmRef;

const EXAMPLES: &str = "Examples:
  offshoot suspend web
  offshoot resume web";

/// Write the memory of a VM to disk and end its process
///
/// It takes no memory of the host then. `resume` or `start` continues it where it was.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Name or id of the VM
    #[arg(value_name = "NAME")]
    vm: VmRef,
}

pub async fn run(context: &Context, args: Args) -> Result<Status> {
    let client = context.client().await?;
    let what = format!("suspension of `{}`", args.vm);
    let change = change::unwaited();
    let request = client.suspend(&args.vm, &change);
    let changed = change::see_through(context, &client, &what, Undo::LetItFinish, request).await?;
    context.printer.answer(&changed, || args.vm.to_string())?;
    Ok(Status::DONE)
}
