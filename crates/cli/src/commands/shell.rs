use crate::{
    context::Context,
    exit_code::Status,
    failure::{Result, Stop, usage},
    options::{ProcessOptions, with_terminal},
    session::{self, Sink, Stdin},
    terminal,
};
use offshoot_types::VmRef;

const EXAMPLES: &str = "Examples:
  offshoot shell web
  offshoot shell web --user user --cwd /workspace
  offshoot shell web < commands.sh

All keys go to the shell, Ctrl-C too. At the beginning of a line, `~.` leaves whatever runs there, \
and `~~` types a `~`.";

/// Open a shell in a running VM
///
/// Ends with the shell's own status.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Name or id of the VM
    #[arg(value_name = "NAME")]
    vm: VmRef,
    #[command(flatten)]
    process: ProcessOptions,
}

pub async fn run(context: &Context, args: Args) -> Result<Status> {
    if context.printer.is_json() {
        return Err(usage("a shell cannot be one JSON document")
            .hint("use `offshoot exec NAME --json -- bash -c COMMANDS`")
            .into());
    }
    let client = context.client().await?;
    // Without a terminal here the shell is not interactive: it reads commands up to the end of the input.
    let terminal = terminal::stdin_is_terminal();
    let mut request = args.process.request(vec!["/bin/bash".into(), "--login".into()], None, false);
    if terminal {
        request = with_terminal(request);
    }
    request.stdin = true;
    let opening = context.bounded("the shell", async { Ok(client.exec(&args.vm, &request).await?) });
    let connection = context.interrupt.race(opening).await.map_err(|_| Stop::Interrupted)??;
    let options = session::Options {
        stdin: Stdin::Forwarded,
        pty: terminal,
        raw: terminal,
        sink: Sink::Passed,
        waiting_for: format!("waiting for `{}`", args.vm),
        limited: false,
    };
    let finished = session::drive(context, connection, options).await?;
    Ok(Status::of_guest(finished.status()))
}
