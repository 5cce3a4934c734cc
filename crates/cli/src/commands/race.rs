use crate::{
    context::Context,
    duration::Span,
    exit_code::{ExitCode, Status},
    failure::{Result, Stop},
    options::ProcessOptions,
    session::{CAPTURE_LIMIT, race},
};
use offshoot_api::v1::{CommandLine, RaceRequest};
use offshoot_types::VmRef;

const EXAMPLES: &str = "Examples:
  offshoot race web -n 4 -- ./try-something-random
  offshoot race web -n 4 --score 'cat /score' -- sh -c 'shuf -i 1-99 -n 1 >/score'

Each racer is a fork of the VM; lines of output begin with its number. The VM continues as the first that exits with \
0, or with --score as the one whose score is highest, and the others are removed. `undo` takes that back. On Ctrl-C \
the race is off and the VM stays as it was.";

/// Run a command in several forks of a VM at once; the VM continues as the winner
///
/// Exits with 0 if one won, and with 1 if none did: the VM is then as it was.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, override_usage = "offshoot race [OPTIONS] <NAME> [--] <ARGV>...")]
pub struct Args {
    /// Name or id of the VM
    #[arg(value_name = "NAME")]
    vm: VmRef,
    /// The program and its arguments
    #[arg(value_name = "ARGV", trailing_var_arg = true, required = true)]
    argv: Vec<String>,
    /// How many forks run it
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 4)]
    count: u32,
    /// Run by bash in each fork whose command exited with 0; prints a number, and the highest wins
    #[arg(long, value_name = "CMD")]
    score: Option<String>,
    /// Kill the program of a racer, and all it started, after this long [default: no limit]
    #[arg(long, value_name = "DURATION")]
    timeout: Option<Span>,
    #[command(flatten)]
    process: ProcessOptions,
}

pub async fn run(context: &Context, args: Args) -> Result<Status> {
    let json = context.printer.is_json();
    let mut exec = args.process.request(args.argv, args.timeout, json);
    if json && args.process.max_output.is_none() {
        // All of them together are held in memory.
        exec.limits.max_output_bytes = Some(CAPTURE_LIMIT.0 / u64::from(args.count.max(1)));
    }
    let score = args.score.map(|script| CommandLine { argv: None, shell: Some(script) });
    let request = RaceRequest { count: args.count, exec, score };
    let client = args.process.speaking(context.client().await?);
    let opening = context.interrupt.race(client.race(&args.vm, &request)).await;
    let events = opening.map_err(|_| Stop::Interrupted)??;
    let outcome = race::follow(context, events, &args.vm.to_string()).await?;
    Ok(match outcome.winner {
        Some(_) => Status::DONE,
        None => Status::Own(ExitCode::CheckFailed),
    })
}
