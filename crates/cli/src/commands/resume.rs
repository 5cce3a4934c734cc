use crate::{
    change::{self, Undo},
    context::Context,
    exit_code::Status,
    failure::Result,
};
use offshoot_types::VmRef;

const EXAMPLES: &str = "Examples:
  offshoot resume web";

/// Let a paused or suspended VM run on
///
/// Nothing inside notices but the clock.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Name or id of the VM
    #[arg(value_name = "NAME")]
    vm: VmRef,
}

pub async fn run(context: &Context, args: Args) -> Result<Status> {
    let client = context.client().await?;
    let what = format!("resume of `{}`", args.vm);
    let change = change::unwaited();
    let request = client.resume(&args.vm, &change);
    let changed = change::see_through(context, &client, &what, Undo::LetItFinish, request).await?;
    context.printer.answer(&changed, || args.vm.to_string())?;
    Ok(Status::DONE)
}
