use crate::{
    context::Context,
    exit_code::Status,
    failure::{Result, Stop},
};
use offshoot_api::ClientError;
use offshoot_types::{ErrorCode, Failure, VmRef, VmStateName};
use serde::Serialize;

const EXAMPLES: &str = "Examples:
  offshoot wait web --for running --timeout 30s
  offshoot wait web --for destroyed";

/// Wait until a VM is in a state
///
/// Without --timeout it waits as long as it takes; a passed --timeout is exit status 6.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Name or id of the VM
    #[arg(value_name = "NAME")]
    vm: VmRef,
    /// The state to wait for
    #[arg(long = "for", value_name = "STATE", default_value = "running", value_parser = states())]
    state: String,
}

/// A destroyed VM has no record left to show.
#[derive(Debug, Serialize)]
struct Gone<'a> {
    name: &'a str,
    state: VmStateName,
}

fn states() -> clap::builder::PossibleValuesParser {
    clap::builder::PossibleValuesParser::new(VmStateName::ALL.map(VmStateName::as_str))
}

pub async fn run(context: &Context, args: Args) -> Result<Status> {
    let state = VmStateName::ALL
        .into_iter()
        .find(|state| state.as_str() == args.state)
        .expect("the parser lets only names of states through");
    let client = context.client().await?;
    let progress = context.printer.progress(format!("waiting for `{}` to be {state}", args.vm));
    let waiting = progress.during(client.wait(&args.vm, state, context.deadline));
    let waited = context.interrupt.race(waiting).await.map_err(|_| Stop::Interrupted)?;
    match waited {
        Ok(vm) => context.printer.answer(&vm, || vm.state.to_string())?,
        Err(error) if state == VmStateName::Destroyed && error.code() == ErrorCode::NotFound => {
            let name = args.vm.to_string();
            context.printer.answer(&Gone { name: &name, state }, || state.to_string())?;
        }
        Err(ClientError::Timeout { after, .. }) => {
            let vm = client.vm(&args.vm).await?;
            let message = format!("`{}` was not {state} within {after:?}: it is {}", vm.name, vm.state);
            return Err(Failure::new(ErrorCode::Timeout, message).into());
        }
        Err(error) => return Err(error.into()),
    }
    Ok(Status::DONE)
}
