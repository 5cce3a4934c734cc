use crate::{
    context::Context,
    duration::Span,
    exit_code::{ExitCode, Status},
    failure::Result,
    history,
    options::{Variable, environment},
};
use clap::Subcommand;
use futures::TryStreamExt;
use jiff::{SignedDuration, Timestamp};
use offshoot_api::{
    Client,
    v1::{HistoryList, HistoryQuery, ReplayRequest, Stream, StreamQuery},
};
use offshoot_types::{AgentName, OperationId, VmName, VmRef};

const EXAMPLES: &str = "Examples:
  offshoot history
  offshoot history web --failures --since 2h
  offshoot history --agent planner --json
  offshoot history show 01a1fe7c-2c8e-7496-a268-c6ab187a9c91 --stdout
  offshoot history replay 01a1fe7c-2c8e-7496-a268-c6ab187a9c91 --keep again

Newest first. What a rollback took back is marked `undone` and stays. A VM that is destroyed is found by its id; one that \
is called `show` or `replay` is named behind `--`.";

const SHOW_EXAMPLES: &str = "Examples:
  offshoot history show 01a1fe7c-2c8e-7496-a268-c6ab187a9c91
  offshoot history show 01a1fe7c-2c8e-7496-a268-c6ab187a9c91 --stderr > errors";

const REPLAY_EXAMPLES: &str = "Examples:
  offshoot history replay 01a1fe7c-2c8e-7496-a268-c6ab187a9c91
  offshoot history replay 01a1fe7c-2c8e-7496-a268-c6ab187a9c91 --env TOKEN --keep again
  offshoot history replay 01a1fe7c-2c8e-7496-a268-c6ab187a9c91 --exit-code

It is run in a fork of the nearest state from before it that is kept, never in the VM itself. Values of variables and \
what was sent to it are not written down, so that it may go another way than the first time.";

/// Show what was run in VMs, by whom, and how it ended; run it again
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    list: List,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show all that is known of one of them
    Show(Show),
    /// Run one again in a fork of the state from before it, and compare
    Replay(Replay),
}

#[derive(Debug, clap::Args)]
struct List {
    /// Only what was run in this VM
    #[arg(value_name = "VM")]
    vm: Option<VmRef>,
    /// Only what did not succeed, or of which nobody knows how it ended
    #[arg(long)]
    failures: bool,
    /// Only what was run on behalf of this agent (`--agent` of what ran it)
    #[arg(long, value_name = "NAME")]
    agent: Option<AgentName>,
    /// Only what was taken back by a rollback
    #[arg(long)]
    undone: bool,
    /// Only what was begun this long ago or later, such as `1h`
    #[arg(long, value_name = "DURATION")]
    since: Option<Span>,
    /// At most so many
    #[arg(long, value_name = "COUNT", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
}

#[derive(Debug, clap::Args)]
#[command(after_help = SHOW_EXAMPLES)]
struct Show {
    #[arg(value_name = "ID")]
    id: OperationId,
    /// Print what is kept of its standard output, and nothing else
    #[arg(long, conflicts_with = "stderr")]
    stdout: bool,
    /// Print what is kept of its standard error, and nothing else
    #[arg(long)]
    stderr: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = REPLAY_EXAMPLES)]
struct Replay {
    #[arg(value_name = "ID")]
    id: OperationId,
    /// Keep the fork under this name, instead of destroying it
    #[arg(long, value_name = "NAME")]
    keep: Option<VmName>,
    /// Set a variable, KEY=VALUE, or KEY to pass on ours; may be repeated
    #[arg(long = "env", value_name = "KEY[=VALUE]")]
    env: Vec<Variable>,
    /// Exit with 1 if it is known to have gone another way
    #[arg(long)]
    exit_code: bool,
}

pub async fn run(context: &Context, args: Args) -> Result<Status> {
    let client = context.client().await?;
    match args.action {
        None => context.abandonable("the history", list(context, &client, args.list)).await?,
        Some(Action::Show(show)) => context.abandonable("the history", shown(context, &client, show)).await?,
        Some(Action::Replay(replay)) => {
            return context.abandonable("the replay", replayed(context, &client, replay)).await;
        }
    }
    Ok(Status::DONE)
}

async fn list(context: &Context, client: &Client, list: List) -> Result {
    let List { vm, failures, agent, undone, since, limit } = list;
    let now = Timestamp::now();
    // One that is longer ago than there is time was at the beginning of it.
    let ago = |span: Span| {
        let ago = SignedDuration::try_from(span.0).unwrap_or(SignedDuration::MAX);
        now.checked_sub(ago).unwrap_or(Timestamp::MIN)
    };
    let query = HistoryQuery {
        agent,
        failures,
        undone: undone.then_some(true),
        since: since.map(ago),
        limit: Some(limit),
        ..HistoryQuery::default()
    };
    let found: HistoryList = match &vm {
        Some(vm) => client.history_of(vm, &query).await?,
        None => client.history(&query).await?,
    };
    if context.printer.is_json() {
        return context.printer.document(&found);
    }
    if found.entries.is_empty() {
        context.printer.note("nothing was run, or what was is forgotten");
        return Ok(());
    }
    context.printer.data(&history::table(&found.entries, vm.is_none(), now))?;
    let shown = found.entries.len() as u64;
    if found.total > shown {
        context.printer.note(&format!("{shown} of {}; --limit shows more", found.total));
    }
    Ok(())
}

async fn shown(context: &Context, client: &Client, show: Show) -> Result {
    let entry = client.history_entry(show.id).await?;
    let stream = match (show.stdout, show.stderr) {
        (true, _) => Some((Stream::Stdout, entry.stdout.as_ref())),
        (_, true) => Some((Stream::Stderr, entry.stderr.as_ref())),
        (false, false) => None,
    };
    let Some((stream, known)) = stream.filter(|_| !context.printer.is_json()) else {
        return context.printer.answer(&entry, || history::details(&entry));
    };
    let mut bytes = client.history_stream(show.id, stream, StreamQuery::default()).await?;
    while let Some(piece) = bytes.try_next().await? {
        context.printer.stream(crate::printer::Stream::Stdout, &piece).await?;
    }
    let (total, kept) = known.map_or((0, 0), |known| (known.bytes, known.kept_bytes.unwrap_or(0)));
    if total > kept {
        context.printer.note(&format!("{} of {total} bytes are not kept", total - kept));
    }
    Ok(())
}

async fn replayed(context: &Context, client: &Client, replay: Replay) -> Result<Status> {
    let request =
        ReplayRequest { keep: replay.keep.as_ref().map(ToString::to_string), env: environment(&replay.env) };
    let progress = context.printer.progress("running it again");
    let done = progress.during(client.replay(replay.id, &request)).await?;
    context.printer.answer(&done, || history::replay(&done))?;
    for note in history::notes(&done) {
        context.printer.note(&note);
    }
    let same = done.same;
    let differs = [same.exit, same.stdout, same.stderr].contains(&Some(false));
    Ok(match replay.exit_code && differs {
        true => Status::Own(ExitCode::CheckFailed),
        false => Status::DONE,
    })
}
