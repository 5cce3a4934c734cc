use crate::{change, context::Context, exit_code::Status, failure::Result, trace::TraceEvent};
use offshoot_api::v1::ForkRequest;
use offshoot_types::VmName;

const EXAMPLES: &str = "Examples:
  offshoot fork web
  offshoot fork web --count 3
  offshoot fork web@before --name trial

A running source stands still for its snapshot only, and goes on undisturbed. Each fork has its own disk, host name, \
machine id and random numbers; -v and --json show what its guest said was renewed. If one fork cannot be made, none is.";

/// Make VMs that continue from a VM as it is now, or from a snapshot
///
/// Prints their names, one a line, once all of them run.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A VM by name or id, or a snapshot as VM@NAME or by id
    #[arg(value_name = "VM|SNAPSHOT")]
    source: String,
    /// How many
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 1)]
    count: u32,
    /// Name of the fork, or of several up to NAME-1, NAME-2, ... [default: the next free VM-1, VM-2, ...]
    #[arg(long, value_name = "NAME")]
    name: Option<VmName>,
}

pub async fn run(context: &Context, args: Args) -> Result<Status> {
    let client = context.client().await?;
    let request = ForkRequest {
        source: args.source.clone(),
        name: args.name.map(String::from),
        count: Some(args.count),
    };
    let what = format!("fork of `{}`", args.source);
    let forked = change::answered(context, &what, client.fork(&request)).await?;
    if let Some(micros) = forked.paused_us {
        TraceEvent::StoodStill { micros }.emit();
    }
    for fork in &forked.forks {
        if let Some(said) = &fork.attestations {
            TraceEvent::Renewed { name: fork.name.as_str(), said }.emit();
        }
    }
    context
        .printer
        .answer(&forked, || forked.forks.iter().map(|fork| format!("{}\n", fork.name)).collect())?;
    Ok(Status::DONE)
}
