use crate::{context::Context, exit_code::Status, failure::Result, view};
use jiff::Timestamp;

const EXAMPLES: &str = "Examples:
  offshoot list
  offshoot list --json";

/// List all VMs
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, visible_alias = "ls")]
pub struct Args {}

pub async fn run(context: &Context, _: Args) -> Result<Status> {
    let list = context.client().await?.vms().await?;
    if list.vms.is_empty() && !context.printer.is_json() {
        context.printer.note("no VMs; make one with `offshoot create NAME`");
        return Ok(Status::DONE);
    }
    context.printer.answer(&list, || view::vm_table(&list.vms, Timestamp::now()))?;
    Ok(Status::DONE)
}
