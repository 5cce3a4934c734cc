use crate::{
    context::Context,
    duration::Span,
    exit_code::Status,
    failure::{Result, Stop},
    options::ProcessOptions,
    session::{
        Stdin, Text,
        attempt::{self, Tried},
    },
};
use offshoot_api::v1::{CommandLine, ExitStatus, Problem, RollbackCauseName, TryRequest};
use offshoot_types::{SnapshotId, TransactionId, VmRef};
use serde::Serialize;

const EXAMPLES: &str = "Examples:
  offshoot try web -- apt-get install -y nginx
  offshoot try web --check 'curl -fs localhost' -- systemctl restart nginx
  offshoot try web --timeout 5m -- make test

The VM is as it was before, memory and disk, if the command or its check does not exit with 0, if time is up, if the \
guest crashes, on Ctrl-C, and if this program or the daemon is killed. Until it ends, other changes of the VM are \
refused. `undo` takes back what was kept. What the check prints goes to standard error.";

/// Run a command in a VM and undo all it did if it fails
///
/// Ends with the command's own status: 0 if it was kept, 128 + N after signal N, 1 if the check failed, 124 when
/// --timeout has passed, 127 if there is no such program, 125 for any failure that is not the command's.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, override_usage = "offshoot try [OPTIONS] <NAME> [--] <ARGV>...")]
pub struct Args {
    /// Name or id of the VM
    #[arg(value_name = "NAME")]
    vm: VmRef,
    /// The program and its arguments
    #[arg(value_name = "ARGV", trailing_var_arg = true, required = true)]
    argv: Vec<String>,
    /// Run by bash after a command that exited with 0; must exit with 0 too
    #[arg(long, value_name = "CMD")]
    check: Option<String>,
    /// Roll back after this long, command and check together [default: no limit]
    #[arg(long, value_name = "DURATION")]
    timeout: Option<Span>,
    /// Pass our standard input to it; otherwise its own is empty
    #[arg(short, long)]
    interactive: bool,
    #[command(flatten)]
    process: ProcessOptions,
}

/// `try --json`.
#[derive(Debug, Serialize)]
struct Document {
    /// This program's own exit status.
    status: u8,
    committed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<RollbackCauseName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// How the command ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    exit: Option<ExitStatus>,
    /// Why the command or the check did not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<Problem>,
    transaction: TransactionId,
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshot: Option<SnapshotId>,
    stdout: String,
    stdout_encoding: &'static str,
    stderr: String,
    stderr_encoding: &'static str,
    check_stdout: String,
    check_stdout_encoding: &'static str,
    check_stderr: String,
    check_stderr_encoding: &'static str,
    /// Output beyond the limit was dropped.
    truncated: bool,
}

pub async fn run(context: &Context, args: Args) -> Result<Status> {
    let json = context.printer.is_json();
    let mut exec = args.process.request(args.argv, None, json);
    exec.stdin = args.interactive;
    let request = TryRequest {
        exec,
        check: args.check.map(|script| CommandLine { argv: None, shell: Some(script) }),
        timeout_ms: args.timeout.map(Span::millis),
    };
    let client = args.process.speaking(context.client().await?);
    let opening = context.interrupt.race(client.try_exec(&args.vm, &request)).await;
    let connection = opening.map_err(|_| Stop::Interrupted)??;
    let options = attempt::Options {
        vm: args.vm.to_string(),
        stdin: if args.interactive { Stdin::Forwarded } else { Stdin::Empty },
        json,
        limited: args.timeout.is_some(),
    };
    let tried = attempt::attempt(context, connection, options).await?;
    let status = tried.status();
    if json {
        context.printer.document(&document(tried, status))?;
    }
    Ok(status)
}

fn document(tried: Tried, status: Status) -> Document {
    let Text { data: stdout, encoding: stdout_encoding } = tried.command.stdout.into();
    let Text { data: stderr, encoding: stderr_encoding } = tried.command.stderr.into();
    let Text { data: check_stdout, encoding: check_stdout_encoding } = tried.check.stdout.into();
    let Text { data: check_stderr, encoding: check_stderr_encoding } = tried.check.stderr.into();
    Document {
        status: status.number(),
        committed: tried.outcome.end.committed,
        cause: tried.outcome.end.cause,
        reason: tried.outcome.end.reason,
        exit: tried.outcome.status,
        problem: tried.problem,
        transaction: tried.outcome.transaction,
        snapshot: tried.snapshot,
        stdout,
        stdout_encoding,
        stderr,
        stderr_encoding,
        check_stdout,
        check_stdout_encoding,
        check_stderr,
        check_stderr_encoding,
        truncated: tried.truncated,
    }
}
