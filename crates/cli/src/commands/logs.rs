use crate::{
    context::Context,
    exit_code::Status,
    failure::{Result, usage},
    printer::{Stream, without_controls},
    session::Text,
    view,
};
use futures::StreamExt;
use offshoot_api::{
    Client, ClientError,
    v1::{Event, EventDetail, EventQuery},
};
use offshoot_types::{ErrorCode, VmId, VmRef, VmStateName};
use serde::Serialize;
use std::io::IsTerminal;

const EXAMPLES: &str = "Examples:
  offshoot logs web
  offshoot logs web --follow
  offshoot logs web --console --lines 50";

/// One long poll while following.
const POLL_MS: u64 = 30_000;

/// Show what happened to a VM, or what its console printed
///
/// With --json and --follow, one document per line.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Name or id of the VM; also of one that is destroyed
    #[arg(value_name = "NAME")]
    vm: VmRef,
    /// Go on until the VM is destroyed
    #[arg(short, long)]
    follow: bool,
    /// What its kernel and agent printed in the present or latest boot
    #[arg(long)]
    console: bool,
    /// Only the last so many lines of what there is already
    #[arg(short = 'n', long, value_name = "COUNT")]
    lines: Option<usize>,
}

pub async fn run(context: &Context, args: Args) -> Result<Status> {
    let client = context.client().await?;
    match args.console {
        true => console(context, &client, &args).await?,
        false => events(context, &client, &args).await?,
    }
    Ok(Status::DONE)
}

/// Whose events are meant.
#[derive(Debug)]
enum Subject {
    Existing(VmId),
    /// Nobody is called so now, but somebody may have been.
    Remembered(VmRef, ClientError),
}

impl Subject {
    fn owns(&self, event: &Event) -> bool {
        match self {
            Self::Existing(id) => event.vm == Some(*id),
            Self::Remembered(VmRef::Id(id), _) => event.vm == Some(*id),
            Self::Remembered(VmRef::Name(name), _) => event.vm_name.as_ref() == Some(name),
        }
    }
}

/// `logs --json`.
#[derive(Debug, Serialize)]
struct Log {
    events: Vec<Event>,
}

async fn events(context: &Context, client: &Client, args: &Args) -> Result {
    let subject = match client.vm(&args.vm).await {
        Ok(vm) => Subject::Existing(vm.id),
        Err(error) if error.code() == ErrorCode::NotFound => Subject::Remembered(args.vm.clone(), error),
        Err(error) => return Err(error.into()),
    };
    let mut query = EventQuery::default();
    let mut seen: Vec<Event> = Vec::new();
    loop {
        let page = client.events(&query).await?;
        if page.events.is_empty() {
            break;
        }
        query.after = page.next_after;
        seen.extend(page.events.into_iter().filter(|event| subject.owns(event)));
    }
    let gone = match subject {
        Subject::Remembered(_, error) if seen.is_empty() => return Err(error.into()),
        Subject::Remembered(..) => true,
        Subject::Existing(_) => seen.iter().any(is_end),
    };
    if let Some(lines) = args.lines {
        seen.drain(..seen.len().saturating_sub(lines));
    }
    if context.printer.is_json() && !args.follow {
        return context.printer.document(&Log { events: seen });
    }
    seen.iter().try_for_each(|event| tell(context, event))?;
    if !args.follow || gone {
        return Ok(());
    }
    query.wait_ms = Some(POLL_MS);
    let mut ended = false;
    while !ended {
        let page = client.events(&query).await?;
        query.after = page.next_after;
        for event in page.events.iter().filter(|event| subject.owns(event)) {
            tell(context, event)?;
            ended |= is_end(event);
        }
    }
    Ok(())
}

fn tell(context: &Context, event: &Event) -> Result {
    match context.printer.is_json() {
        true => context.printer.document_line(event),
        false => context.printer.data(&view::event_line(event)),
    }
}

fn is_end(event: &Event) -> bool {
    matches!(event.detail, EventDetail::StateChanged { to: VmStateName::Destroyed, .. })
}

/// `logs --console --json`.
#[derive(Debug, Serialize)]
struct ConsoleLog {
    console: String,
    encoding: &'static str,
}

async fn console(context: &Context, client: &Client, args: &Args) -> Result {
    let json = context.printer.is_json();
    if args.follow && (json || args.lines.is_some()) {
        return Err(usage("`--console --follow` is a stream of bytes")
            .hint("leave out `--follow`, or `--json` and `--lines`")
            .into());
    }
    let mut stream = client.console(&args.vm, args.follow).await?;
    if json || args.lines.is_some() {
        let mut whole = Vec::new();
        while let Some(chunk) = stream.next().await {
            whole.extend_from_slice(&chunk?);
        }
        let kept = args.lines.map_or(&whole[..], |lines| last_lines(&whole, lines));
        if json {
            let Text { data, encoding } = kept.to_vec().into();
            return context.printer.document(&ConsoleLog { console: data, encoding });
        }
        return show(context, kept).await;
    }
    while let Some(chunk) = stream.next().await {
        show(context, &chunk?).await?;
    }
    Ok(())
}

/// A guest may print what it likes, but not drive the terminal of whoever reads its log.
async fn show(context: &Context, bytes: &[u8]) -> Result {
    if std::io::stdout().is_terminal() {
        context.printer.stream(Stream::Stdout, &without_controls(bytes)).await
    } else {
        context.printer.stream(Stream::Stdout, bytes).await
    }
}

fn last_lines(bytes: &[u8], count: usize) -> &[u8] {
    let body = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let mut starts = body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
    match count {
        0 => &[],
        _ => &bytes[starts.nth(count - 1).unwrap_or(0)..],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_counted_from_the_end() {
        assert_eq!(last_lines(b"a\nb\nc\n", 2), b"b\nc\n");
        assert_eq!(last_lines(b"a\nb\nc", 1), b"c");
        assert_eq!(last_lines(b"a\nb\n", 9), b"a\nb\n");
        assert_eq!(last_lines(b"a\nb\n", 0), b"");
        assert_eq!(last_lines(b"", 3), b"");
    }
}
