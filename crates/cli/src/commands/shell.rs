use crate::{
    context::Context,
    exit_code::Status,
    failure::{Result, Stop, usage},
    options::{ProcessOptions, with_terminal},
    session::{self, Sink, Stdin},
    terminal,
};
use offshoot_api::v1::ExecRequest;
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
    let client = args.process.speaking(context.client().await?);
    let terminal = terminal::stdin_is_terminal();
    let request = request(&args.process, terminal);
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

/// Without a terminal here the shell is not interactive: it reads commands up to the end of the input, which a
/// terminal in the VM could miss.
fn request(process: &ProcessOptions, terminal: bool) -> ExecRequest {
    let mut request = process.request(vec!["/bin/bash".into(), "--login".into()], None, false);
    request.stdin = true;
    if terminal { with_terminal(request) } else { request }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Verb};
    use clap::Parser;

    #[test]
    fn the_shell_has_a_terminal_only_if_we_have_one() {
        let Verb::Shell(args) = Cli::try_parse_from(["offshoot", "shell", "web"]).unwrap().verb else {
            panic!("it is the shell")
        };
        assert!(request(&args.process, true).pty.is_some());
        let piped = request(&args.process, false);
        assert!(piped.stdin && piped.pty.is_none());
    }
}
