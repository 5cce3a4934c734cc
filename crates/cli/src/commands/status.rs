use crate::{context::Context, exit_code::Status, failure::Result, view};
use jiff::Timestamp;
use offshoot_api::v1::{Daemon, Vm};
use offshoot_types::VmRef;
use serde::Serialize;

const EXAMPLES: &str = "Examples:
  offshoot status
  offshoot status web
  offshoot status web --json";

/// Show a VM, or the daemon and all VMs
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Name or id of the VM
    #[arg(value_name = "NAME")]
    vm: Option<VmRef>,
}

/// `status --json` without a name.
#[derive(Debug, Serialize)]
struct Overview {
    daemon: Daemon,
    vms: Vec<Vm>,
}

pub async fn run(context: &Context, args: Args) -> Result<Status> {
    let client = context.client().await?;
    match args.vm {
        Some(vm) => {
            let vm = client.vm(&vm).await?;
            context.printer.answer(&vm, || view::vm_details(&vm, Timestamp::now()))?;
        }
        None => {
            let overview = Overview { daemon: client.daemon().await?, vms: client.vms().await?.vms };
            context.printer.answer(&overview, || {
                let daemon = view::daemon_details(&overview.daemon);
                match overview.vms.is_empty() {
                    true => daemon,
                    false => format!("{daemon}\n{}", view::vm_table(&overview.vms, Timestamp::now())),
                }
            })?;
        }
    }
    Ok(Status::DONE)
}
