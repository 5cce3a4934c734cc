use crate::{branches, change, context::Context, exit_code::Status, failure::Result};
use clap::Subcommand;
use offshoot_api::Client;
use offshoot_types::{ContextName, VmRef};
use serde::Serialize;

const EXAMPLES: &str = "Examples:
  offshoot exec web --context main -c 'x = 41'
  offshoot context list web
  offshoot context restart web main
  offshoot context rm web main";

/// List live contexts, restart or remove them
///
/// A live context is an interpreter that keeps its variables from one `offshoot exec --context` to the next, and in
/// every snapshot and fork of its VM.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, subcommand_required = true, arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the live contexts of a VM
    #[command(visible_alias = "ls")]
    List {
        #[arg(value_name = "VM")]
        vm: VmRef,
    },
    /// End an interpreter
    #[command(visible_alias = "remove")]
    Rm {
        #[arg(value_name = "VM")]
        vm: VmRef,
        #[arg(value_name = "CONTEXT")]
        name: ContextName,
    },
    /// End an interpreter and begin it anew, without its variables
    Restart {
        #[arg(value_name = "VM")]
        vm: VmRef,
        #[arg(value_name = "CONTEXT")]
        name: ContextName,
    },
}

/// `context rm --json`, `context restart --json`.
#[derive(Debug, Serialize)]
struct Done {
    context: ContextName,
}

pub async fn run(context: &Context, args: Args) -> Result<Status> {
    let client = context.client().await?;
    match args.action {
        Action::List { vm } => context.abandonable("the list", list(context, &client, &vm)).await?,
        Action::Rm { vm, name } => {
            let what = format!("removal of context `{name}`");
            change::answered(context, &what, client.remove_context(&vm, &name)).await?;
            context.printer.answer(&Done { context: name.clone() }, || name.to_string())?;
        }
        Action::Restart { vm, name } => {
            let what = format!("restart of context `{name}`");
            change::answered(context, &what, client.restart_context(&vm, &name)).await?;
            context.printer.answer(&Done { context: name.clone() }, || name.to_string())?;
        }
    }
    Ok(Status::DONE)
}

async fn list(context: &Context, client: &Client, vm: &VmRef) -> Result {
    let list = client.contexts(vm).await?;
    if list.contexts.is_empty() && !context.printer.is_json() {
        context
            .printer
            .note(&format!("no live contexts; `offshoot exec {vm} --context main -c CODE` makes one"));
        return Ok(());
    }
    context.printer.answer(&list, || branches::contexts(&list.contexts))
}
