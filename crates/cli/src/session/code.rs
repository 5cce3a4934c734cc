//! One piece of code in a live context, as the person or program in front of it sees it.
//!
//! ```text
//! output --> our two streams     display, value --> standard output     error --> standard error, status 1
//! Ctrl-C --> interrupt; if the code goes on for 5 s, we leave (the interpreter stays either way)
//! ```

use super::{CAPTURE_LIMIT, Captured, Text};
use crate::{
    context::Context,
    exit_code::{ExitCode, Status},
    failure::{Result, Stop},
    printer::Stream,
};
use offshoot_api::{
    ClientError,
    client::{CodeConnection, CodeEvent},
    v1,
};
use offshoot_types::{ErrorCode, Failure, Language};
use serde::Serialize;
use std::{collections::BTreeMap, time::Duration};
use tokio::time::Instant;

const PDF: &str = "application/pdf";
/// How long code may go on after it was interrupted on behalf of its user.
const GRACE: Duration = Duration::from_secs(5);

/// The code's uncaught error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Raised {
    pub name: String,
    pub message: String,
    pub traceback: String,
}

/// What the code showed, by MIME type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Shown {
    pub mime: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// It takes the place of what was shown by that id.
    pub update: bool,
}

/// `exec --context --json`.
#[derive(Debug, Serialize)]
pub struct Document {
    /// This program's own exit status.
    pub status: u8,
    pub vm: String,
    pub context: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub language: Option<Language>,
    /// The context was made for this.
    pub created: bool,
    /// Pieces of code its interpreter was given, this one included.
    pub count: u32,
    /// What the code showed on its way.
    pub displays: Vec<Shown>,
    /// Of the last expression, by MIME type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Raised>,
    /// Its time was up.
    pub interrupted: bool,
    pub stdout: String,
    pub stdout_encoding: &'static str,
    pub stderr: String,
    pub stderr_encoding: &'static str,
    /// Output beyond 16 MiB was dropped.
    pub truncated: bool,
    pub wall_us: u64,
}

/// What is known of the code so far.
#[derive(Debug, Default)]
struct Seen {
    language: Option<Language>,
    created: bool,
    count: u32,
    displays: Vec<Shown>,
    value: Option<BTreeMap<String, String>>,
    error: Option<Raised>,
    captured: Captured,
    truncated: bool,
}

/// Follows the code to its end. `limited`: it has a time limit, so a guest that stays silent beyond it exceeded that.
pub async fn follow(
    context: &Context,
    connection: CodeConnection,
    vm: String,
    name: String,
    limited: bool,
) -> Result<Status> {
    let CodeConnection { mut input, mut events } = connection;
    let mut seen = Seen::default();
    let mut leave: Option<Instant> = None;
    let (interrupted, wall_us) = loop {
        let event = tokio::select! {
            biased;
            _ = context.interrupt.arrived(), if leave.is_none() => {
                leave = Some(Instant::now() + GRACE);
                // A connection that is gone has interrupted it already, and says so below.
                let _ = input.interrupt().await;
                continue;
            }
            event = events.next() => event,
            () = until(leave) => return Err(Stop::Interrupted),
        };
        match event {
            Ok(Some(CodeEvent::Ended { interrupted, wall_us })) => break (interrupted, wall_us),
            Ok(Some(event)) => seen.take(context, event).await?,
            Ok(None) => return Err(early_end()),
            Err(_) if leave.is_some() => return Err(Stop::Interrupted),
            Err(error) => return Err(classify(error, limited)),
        }
    };
    if leave.is_some() {
        return Err(Stop::Interrupted);
    }
    let status = match (interrupted, &seen.error) {
        (true, _) => Status::Own(ExitCode::ProgramTimedOut),
        (false, Some(_)) => Status::Own(ExitCode::CheckFailed),
        (false, None) => Status::DONE,
    };
    if interrupted {
        context.printer.note("the code's time was up: it was interrupted, its variables are kept");
    }
    if context.printer.is_json() {
        context.printer.document(&seen.document(status, vm, name, interrupted, wall_us))?;
    }
    Ok(status)
}

impl Seen {
    async fn take(&mut self, context: &Context, event: CodeEvent) -> Result {
        let json = context.printer.is_json();
        match event {
            CodeEvent::Started { language, created, count, .. } => {
                (self.language, self.created, self.count) = (Some(language), created, count);
                Ok(())
            }
            CodeEvent::Display { mime, id, update } if json => {
                self.show(Shown { mime, id, update });
                Ok(())
            }
            CodeEvent::Display { mime, .. } => {
                context.printer.stream(Stream::Stdout, text_of(&mime).as_bytes()).await
            }
            CodeEvent::Output(stream, data) if json => {
                self.keep(stream, &data);
                Ok(())
            }
            CodeEvent::Output(v1::Stream::Stdout, data) => {
                context.printer.stream(Stream::Stdout, &data).await
            }
            CodeEvent::Output(v1::Stream::Stderr, data) => {
                context.printer.stream(Stream::Stderr, &data).await
            }
            CodeEvent::Value { mime } => {
                let text = (!json).then(|| text_of(&mime));
                self.value = Some(mime);
                match text {
                    Some(text) => context.printer.stream(Stream::Stdout, text.as_bytes()).await,
                    None => Ok(()),
                }
            }
            CodeEvent::Error { name, message, traceback } => {
                let raised = Raised { name, message, traceback };
                let text = raised.text();
                self.error = Some(raised);
                match json {
                    true => Ok(()),
                    false => context.printer.stream(Stream::Stderr, text.as_bytes()).await,
                }
            }
            CodeEvent::Ended { .. } => Ok(()),
        }
    }

    /// Of several by one id the last; within the limit.
    fn show(&mut self, shown: Shown) {
        if let Some(place) =
            self.displays.iter_mut().find(|place| shown.update && place.id == shown.id && shown.id.is_some())
        {
            *place = Shown { update: false, ..shown };
        } else if shown.size() <= self.room() {
            self.displays.push(shown);
        } else {
            self.truncated = true;
        }
    }

    fn room(&self) -> usize {
        let shown: usize = self.displays.iter().map(Shown::size).sum();
        let kept = self.captured.stdout.len() + self.captured.stderr.len() + shown;
        usize::try_from(CAPTURE_LIMIT.0).unwrap_or(usize::MAX).saturating_sub(kept)
    }

    /// Within the limit, both streams and all displays together.
    fn keep(&mut self, stream: v1::Stream, data: &[u8]) {
        let room = self.room();
        self.truncated |= data.len() > room;
        let to = match stream {
            v1::Stream::Stdout => &mut self.captured.stdout,
            v1::Stream::Stderr => &mut self.captured.stderr,
        };
        to.extend_from_slice(&data[..data.len().min(room)]);
    }

    fn document(
        self,
        status: Status,
        vm: String,
        context: String,
        interrupted: bool,
        wall_us: u64,
    ) -> Document {
        let Text { data: stdout, encoding: stdout_encoding } = self.captured.stdout.into();
        let Text { data: stderr, encoding: stderr_encoding } = self.captured.stderr.into();
        Document {
            status: status.number(),
            vm,
            context,
            language: self.language,
            created: self.created,
            count: self.count,
            displays: self.displays,
            value: self.value,
            error: self.error,
            interrupted,
            stdout,
            stdout_encoding,
            stderr,
            stderr_encoding,
            truncated: self.truncated,
            wall_us,
        }
    }
}

impl Shown {
    fn size(&self) -> usize {
        self.mime.iter().map(|(kind, text)| kind.len() + text.len()).sum()
    }
}

/// What a value looks like in a terminal: its text, and which other forms it has.
pub fn text_of(mime: &BTreeMap<String, String>) -> String {
    let text = mime.get("text/plain").map_or("", String::as_str);
    let pictures: Vec<&str> =
        mime.keys().map(String::as_str).filter(|kind| kind.starts_with("image/") || *kind == PDF).collect();
    match pictures.is_empty() {
        true => format!("{text}\n"),
        false => format!("{text} [{}: see `offshoot repl`, or --json]\n", pictures.join(", ")),
    }
}

impl Raised {
    fn text(&self) -> String {
        error_text(&self.name, &self.message, &self.traceback)
    }
}

/// The traceback, which names the error itself; if there is none, its name and message.
pub fn error_text(name: &str, message: &str, traceback: &str) -> String {
    match traceback.trim_end() {
        "" => format!("{name}: {message}\n"),
        traceback => format!("{traceback}\n"),
    }
}

/// Returns at the deadline, if there is one.
async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn classify(error: ClientError, limited: bool) -> Stop {
    match error.code() {
        // The guest did not keep the limit, but it has passed.
        ErrorCode::Timeout if limited => Stop::program(error, ExitCode::ProgramTimedOut),
        _ => error.into(),
    }
}

pub fn early_end() -> Stop {
    Failure::new(ErrorCode::Internal, "the daemon ended the stream without saying how the code ended").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_output_is_bounded_and_says_so() {
        let limit = CAPTURE_LIMIT.0 as usize;
        let mut seen = Seen::default();
        seen.keep(v1::Stream::Stdout, &vec![b'x'; limit - 1]);
        assert!(!seen.truncated);
        seen.keep(v1::Stream::Stderr, b"ab");
        assert_eq!((seen.captured.stderr.as_slice(), seen.truncated), (&b"a"[..], true));
        seen.keep(v1::Stream::Stdout, b"more");
        assert_eq!(seen.captured.stdout.len(), limit - 1);
    }

    #[test]
    fn displays_are_kept_bounded_and_the_last_of_one_id_in_place_of_the_first() {
        let shown = |text: String, id: Option<&str>, update| Shown {
            mime: [("text/plain".to_owned(), text)].into(),
            id: id.map(str::to_owned),
            update,
        };
        let mut seen = Seen::default();
        seen.show(shown("1".into(), Some("a"), false));
        seen.show(shown("2".into(), None, false));
        seen.show(shown("3".into(), Some("a"), true));
        seen.show(shown("4".into(), Some("b"), true));
        let texts: Vec<&str> = seen.displays.iter().map(|shown| shown.mime["text/plain"].as_str()).collect();
        assert_eq!((texts, seen.truncated), (vec!["3", "2", "4"], false));
        seen.show(shown("x".repeat(CAPTURE_LIMIT.0 as usize), None, false));
        assert_eq!((seen.displays.len(), seen.truncated), (3, true));
    }

    #[test]
    fn a_picture_is_named_behind_its_text() {
        let mime = |kinds: &[&str]| kinds.iter().map(|&kind| (kind.to_owned(), "t".to_owned())).collect();
        assert_eq!(text_of(&mime(&["text/plain", "text/html"])), "t\n");
        assert!(text_of(&mime(&["text/plain", "image/png"])).starts_with("t [image/png: "));
    }

    #[test]
    fn an_error_without_a_traceback_still_names_itself() {
        let raised = |traceback: &str| Raised {
            name: "ValueError".into(),
            message: "no".into(),
            traceback: traceback.into(),
        };
        assert_eq!(raised("").text(), "ValueError: no\n");
        assert_eq!(
            raised("Traceback\n  line 1\nValueError: no\n").text(),
            "Traceback\n  line 1\nValueError: no\n"
        );
    }
}
