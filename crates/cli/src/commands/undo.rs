use crate::{change, commands::rollback, context::Context, exit_code::Status, failure::Result};
use offshoot_types::VmRef;

const EXAMPLES: &str = "Examples:
  offshoot rollback web
  offshoot undo web";

/// Take back a VM's last rollback, commit or race
///
/// Nothing is lost by it either: a second undo takes back the first.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Name or id of the VM
    #[arg(value_name = "NAME")]
    vm: VmRef,
}

pub async fn run(context: &Context, args: Args) -> Result<Status> {
    let client = context.client().await?;
    let what = format!("undo for `{}`", args.vm);
    let done = change::answered(context, &what, client.undo(&args.vm)).await?;
    rollback::tell(context, &args.vm, &done)
}
