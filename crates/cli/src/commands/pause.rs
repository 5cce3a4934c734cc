use crate::{
    change::{self, Undo},
    context::Context,
    exit_code::Status,
    failure::Result,
};
use offshoot_types::VmRef;

const EXAMPLES: &str = "Examples:
  offshoot pause web";

/// Halt the CPUs of a running VM
///
/// Its memory stays as it is; `resume` lets it run on.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Name or id of the VM
    #[arg(value_name = "NAME")]
    vm: VmRef,
}

pub async fn run(context: &Context, args: Args) -> Result<Status> {
    let client = context.client().await?;
    let what = format!("pause of `{}`", args.vm);
    let change = change::unwaited();
    let request = client.pause(&args.vm, &change);
    let changed = change::see_through(context, &client, &what, Undo::LetItFinish, request).await?;
    context.printer.answer(&changed, || args.vm.to_string())?;
    Ok(Status::DONE)
}
