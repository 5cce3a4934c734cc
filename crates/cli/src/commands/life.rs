use crate::{change, context::Context, exit_code::Status, failure::Result, options::LifeOptions, view};
use jiff::Timestamp;
use offshoot_types::VmRef;

const EXAMPLES: &str = "Examples:
  offshoot life web
  offshoot life web --idle-suspend 10m
  offshoot life web --lifetime 2h --on-timeout stop
  offshoot life web --idle-suspend never --lifetime never

Open streams, running commands and code, file transfers, connections and transactions are work: a VM that has some is \
not idle. Programs that run on their own inside it are not. A transaction is let to end before the VM's time is up.";

/// Show or change when a VM rests by itself, and how long it may run
///
/// A new --lifetime counts from now if the VM runs, and from each start after that. What is not named stays as it is.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Name or id of the VM
    #[arg(value_name = "NAME")]
    vm: VmRef,
    #[command(flatten)]
    life: LifeOptions,
}

pub async fn run(context: &Context, args: Args) -> Result<Status> {
    let client = context.client().await?;
    let vm = &args.vm;
    let life = match args.life.change() {
        None => context.abandonable("the settings", async { Ok(client.vm(vm).await?) }).await?.life,
        Some(change) => {
            let what = format!("change of how `{vm}` rests");
            change::answered(context, &what, client.set_life(vm, &change)).await?
        }
    };
    context.printer.answer(&life, || view::life_details(&life, Timestamp::now()))?;
    Ok(Status::DONE)
}
