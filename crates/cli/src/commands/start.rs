use crate::{
    change::{self, Undo},
    context::Context,
    exit_code::Status,
    failure::Result,
};
use offshoot_types::VmRef;

const EXAMPLES: &str = "Examples:
  offshoot start web
  offshoot start web --timeout 20s";

/// Boot a VM
///
/// Returns when the guest answers. A VM that runs already is left as it is.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Name or id of the VM
    #[arg(value_name = "NAME")]
    vm: VmRef,
}

pub async fn run(context: &Context, args: Args) -> Result<Status> {
    let client = context.client().await?;
    let what = format!("start of `{}`", args.vm);
    let change = change::unwaited();
    let request = client.start(&args.vm, &change);
    let changed = change::see_through(context, &client, &what, Undo::Stop, request).await?;
    context.printer.answer(&changed, || args.vm.to_string())?;
    Ok(Status::DONE)
}
