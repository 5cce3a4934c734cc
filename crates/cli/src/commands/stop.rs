use crate::{
    change::{self, Undo},
    context::Context,
    duration::Span,
    exit_code::Status,
    failure::Result,
};
use offshoot_api::v1::Change;
use offshoot_types::VmRef;

const EXAMPLES: &str = "Examples:
  offshoot stop web
  offshoot stop web --grace 500ms";

/// Shut a VM down; its disk is kept
///
/// The guest is asked first; what has not ended within the grace is ended by force.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Name or id of the VM
    #[arg(value_name = "NAME")]
    vm: VmRef,
    /// How long the guest may take to shut down by itself
    #[arg(long, value_name = "DURATION", default_value = "10s")]
    grace: Span,
}

pub async fn run(context: &Context, args: Args) -> Result<Status> {
    let client = context.client().await?;
    let what = format!("stop of `{}`", args.vm);
    let change = Change { grace_ms: Some(args.grace.millis()), ..change::unwaited() };
    let request = client.stop(&args.vm, &change);
    let changed = change::see_through(context, &client, &what, Undo::LetItFinish, request).await?;
    context.printer.answer(&changed, || args.vm.to_string())?;
    Ok(Status::DONE)
}
