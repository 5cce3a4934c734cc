use crate::{
    context::Context,
    duration::Span,
    exit_code::Status,
    failure::{Result, Stop, file, usage},
    options::{ProcessOptions, with_terminal},
    session::{self, Program, Sink, Stdin},
    terminal,
};
use offshoot_api::{
    Client,
    client::{ExecConnection, ExecEvent},
    v1::{AttachQuery, CodeRequest, Started},
};
use offshoot_types::{ContextName, ErrorCode, ExecId, Failure, Language, VmRef};
use serde::Serialize;
use tokio::io::AsyncReadExt;

const EXAMPLES: &str = "Examples:
  offshoot exec web -- ls -l /
  offshoot exec web --timeout 10s --user user -- make test
  echo hello | offshoot exec -i web -- cat
  offshoot exec -it web -- python3
  offshoot exec web --context main -c 'x = 41'
  offshoot exec web --context main -c 'x + 1'

The first Ctrl-C goes to the process as a signal; if it is still there after 5 s, its whole tree is killed. \
In a terminal (-it) Ctrl-C is a key like any other, and `~.` at the beginning of a line leaves.

A live context is made on first use and keeps its variables, also in snapshots and forks of the VM. What the code \
prints passes through; what it displays (figures too) and the value of its last expression, unless that is None or \
undefined, are printed as text, with --json in all their forms. --env is for this code only. An \
uncaught error goes to standard error with its traceback, and the status is 1. Ctrl-C and --timeout interrupt the \
code; the variables stay.";

/// Larger code does not fit a message to the guest.
const MAX_CODE: u64 = 256 * 1024;

/// Run a program in a running VM, or code in a live context
///
/// Ends with the program's own status: 128 + N after signal N, 124 when --timeout has passed, 127 if there is no
/// such program, 125 for any failure that is not the program's.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, override_usage = "offshoot exec [OPTIONS] <NAME> [--] <ARGV>...\n       offshoot exec [OPTIONS] <NAME> --context <CONTEXT> -c <CODE>")]
pub struct Args {
    /// Name or id of the VM
    #[arg(value_name = "NAME")]
    vm: VmRef,
    /// The program and its arguments
    #[arg(value_name = "ARGV", trailing_var_arg = true, required_unless_present_any = ["attach", "context"])]
    argv: Vec<String>,
    /// Pass our standard input to it; otherwise its own is empty
    #[arg(short, long)]
    interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,
    /// Kill it, and all it started, after this long [default: no limit]
    #[arg(long, value_name = "DURATION")]
    timeout: Option<Span>,
    /// Leave it running and print its id
    #[arg(short, long, conflicts_with_all = ["interactive", "tty"])]
    detach: bool,
    /// Take up the streams of a process that runs or has lately ended, by its id
    #[arg(long, value_name = "EXEC", conflicts_with_all = ["argv", "detach", "timeout"])]
    attach: Option<ExecId>,
    /// Run code in this live context, an interpreter that keeps its variables
    #[arg(long, value_name = "CONTEXT", requires = "code", conflicts_with_all = ["argv", "interactive", "tty", "detach", "attach", "max_output"])]
    context: Option<ContextName>,
    /// Language of a new context: python, javascript or bash [default: python]
    #[arg(short, long, value_name = "LANGUAGE", requires = "context")]
    lang: Option<Language>,
    /// Code for the context; `-` reads it from standard input
    #[arg(short, long, value_name = "CODE", requires = "context", allow_hyphen_values = true)]
    code: Option<String>,
    #[command(flatten)]
    process: ProcessOptions,
}

pub async fn run(context: &Context, args: Args) -> Result<Status> {
    if let Some(name) = &args.context {
        return in_context(context, &args, name).await;
    }
    let json = context.printer.is_json();
    if json && args.tty {
        return Err(usage("a terminal and one JSON document exclude each other")
            .hint("leave out `--tty` or `--json`")
            .into());
    }
    if args.tty && args.interactive && !terminal::stdin_is_terminal() {
        // The end of our input cannot be told to a program that reads a terminal; it would wait for ever.
        return Err(usage("`--interactive --tty` needs a terminal as standard input")
            .hint("leave out `--tty` to pass a file or a pipe")
            .into());
    }
    let client = args.process.speaking(context.client().await?);
    let connection = context.interrupt.race(open(&client, &args, json)).await;
    let connection = connection.map_err(|_| Stop::Interrupted)??;
    if args.detach {
        return detach(context, connection).await;
    }
    let options = session::Options {
        stdin: if args.interactive { Stdin::Forwarded } else { Stdin::Empty },
        pty: args.tty,
        raw: args.tty && args.interactive && terminal::stdin_is_terminal(),
        sink: Sink::of(&context.printer),
        waiting_for: format!("waiting for `{}`", args.vm),
        limited: args.timeout.is_some(),
    };
    let finished = session::drive(context, connection, options).await?;
    let status = Status::of_guest(finished.status());
    if json {
        context.printer.document(&Program::new(finished, status))?;
    }
    Ok(status)
}

async fn in_context(context: &Context, args: &Args, name: &ContextName) -> Result<Status> {
    let code = match args.code.as_deref() {
        Some("-") => context.interrupt.race(read_code()).await.map_err(|_| Stop::Interrupted)??,
        given => given.unwrap_or_default().to_owned(),
    };
    let request = CodeRequest {
        context: name.to_string(),
        language: args.lang.map(|language| language.to_string()),
        code,
        timeout_ms: args.timeout.map(Span::millis),
        user: Some(args.process.user.clone()),
        cwd: args.process.cwd.clone(),
        env: args.process.environment(),
        ..CodeRequest::default()
    };
    let client = args.process.speaking(context.client().await?);
    let opening = context.interrupt.race(client.run_code(&args.vm, &request)).await;
    let connection = opening.map_err(|_| Stop::Interrupted)??;
    let (vm, name) = (args.vm.to_string(), name.to_string());
    session::code::follow(context, connection, vm, name, args.timeout.is_some()).await
}

/// All of standard input, as text.
async fn read_code() -> Result<String> {
    let mut code = Vec::new();
    let read = tokio::io::stdin().take(MAX_CODE + 1).read_to_end(&mut code).await;
    read.map_err(|error| file("read", "standard input".as_ref(), error))?;
    if code.len() as u64 > MAX_CODE {
        return Err(usage(format!("the code on standard input is larger than {MAX_CODE} bytes"))
            .hint("`offshoot cp` it into the VM, and let a few lines of code read it there")
            .into());
    }
    String::from_utf8(code).map_err(|_| usage("the code on standard input is not UTF-8").into())
}

async fn open(client: &Client, args: &Args, json: bool) -> Result<ExecConnection> {
    if let Some(exec) = args.attach {
        return Ok(client.attach(&args.vm, exec, &AttachQuery::default()).await?);
    }
    let mut request = args.process.request(args.argv.clone(), args.timeout, json);
    request.stdin = args.interactive;
    if args.tty {
        request = with_terminal(request);
    }
    Ok(client.exec(&args.vm, &request).await?)
}

/// `exec --detach --json`.
#[derive(Debug, Serialize)]
struct Detached {
    exec: ExecId,
    started: Started,
}

async fn detach(context: &Context, connection: ExecConnection) -> Result<Status> {
    let (mut input, mut events) = connection.split();
    let started = loop {
        match events.next().await? {
            Some(ExecEvent::Started(started)) => break started,
            Some(ExecEvent::Ended(_)) | None => {
                return Err(
                    Failure::new(ErrorCode::Internal, "the process ended without having started").into()
                );
            }
            Some(_) => {}
        }
    };
    input.detach().await?;
    while let Some(event) = events.next().await? {
        if matches!(event, ExecEvent::Detached | ExecEvent::Ended(_)) {
            break;
        }
    }
    context
        .printer
        .answer(&Detached { exec: started.exec, started: started.clone() }, || started.exec.to_string())?;
    Ok(Status::DONE)
}
