use crate::{
    context::Context,
    exit_code::Status,
    failure::{Result, usage},
    mcp::{clients::Agent, install, revived::Revived},
    options::VmOptions,
};
use clap::Subcommand;
use offshoot_api::{Client, v1::CreateVm};
use offshoot_mcp::{AtEnd, Options, Session, serve_stdio};
use offshoot_types::VmRef;
use std::{io::IsTerminal, sync::Arc};

const EXAMPLES: &str = "Examples:
  offshoot mcp install
  offshoot mcp install claude-desktop --write
  offshoot mcp
  offshoot mcp --image full --memory 1G --at-end destroy
  offshoot mcp --vm web

Clients start `offshoot mcp` themselves; standard output is the protocol's. A tool that is called without `vm` uses a VM \
of the session's own, made on first use: named mcp-..., labelled offshoot.mcp, suspended when it is idle for 10 minutes \
unless --idle-suspend says otherwise, and at the session's end dealt with as --at-end says.";

/// Serve agents that speak the Model Context Protocol, on standard input and output
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    action: Option<Action>,
    /// Where a tool names no VM it uses this one, instead of one of the session's own; it is left as it is at the end
    #[arg(long, value_name = "VM")]
    vm: Option<VmRef>,
    /// What becomes of the session's own VM at its end: `suspend`, `stop`, `destroy` or `keep`
    #[arg(long, value_name = "WHAT", default_value_t)]
    at_end: AtEnd,
    #[command(flatten)]
    own: VmOptions,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Print what a client needs to know, or write it where the client reads it
    Install(Install),
}

const INSTALL_EXAMPLES: &str = "Examples:
  offshoot mcp install
  offshoot mcp install cursor
  offshoot mcp install codex --write

What a client has configured besides is kept, and what was there is set aside in a file beside it before it is changed. \
Start the client anew afterwards.";

#[derive(Debug, clap::Args)]
#[command(after_help = INSTALL_EXAMPLES)]
struct Install {
    /// Which client; all are listed if absent
    #[arg(value_enum, value_name = "CLIENT")]
    client: Option<Agent>,
    /// Write it into the client's file, instead of printing it
    #[arg(long, requires = "client")]
    write: bool,
}

pub async fn run(context: &Context, args: Args) -> Result<Status> {
    match args.action {
        Some(Action::Install(Install { client, write })) => install::run(context, client, write),
        None => serve(context, args).await,
    }
}

async fn serve(context: &Context, args: Args) -> Result<Status> {
    if context.printer.is_json() {
        return Err(usage("standard output is the protocol's").hint("leave out `--json`").into());
    }
    if std::io::stdin().is_terminal() {
        context.printer.note("this is for a client that speaks MCP: `offshoot mcp install` tells one of it");
    }
    let own = args.own.settings();
    let options = Options {
        vm: args.vm,
        create: CreateVm {
            image: own.image,
            provider: own.provider,
            isolation: own.isolation,
            memory_mib: own.memory_mib,
            cpus: own.cpus,
            disk_mib: own.disk_mib,
            labels: own.labels,
            snapshot_policy: own.snapshot_policy,
            life: own.life,
            ..CreateVm::default()
        },
        at_end: args.at_end,
    };
    let dial = Arc::new(Revived::find(context).await?);
    let client = context.speaking_for_us(Client::dialling(dial, None));
    let session = Session::new(client, options)?;
    let leave = async {
        context.interrupt.arrived().await;
    };
    let served = serve_stdio(session.clone(), leave).await;
    let ended = session.end(false).await;
    served?;
    if let Some((vm, what)) = ended? {
        tracing::info!(%vm, %what, "the session is over");
    }
    Ok(Status::DONE)
}
