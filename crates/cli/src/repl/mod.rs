//! A conversation with a live context: a line is read, run, and what came of it printed, until the end of the input.
//!
//! ```text
//! editor (a thread, for it waits on the terminal) --line--> code in the context --> output, displays, value | error
//!      '--Tab: which names begin so?--> the interpreter itself
//! Ctrl-C: at the prompt, the line is given up; while code runs, that is interrupted     Ctrl-D, SIGTERM: the end
//! ```

mod complete;
mod editor;
mod pictures;

use crate::{
    context::Context,
    exit_code::Status,
    failure::{Result, Stop},
    interrupt::Signal,
    printer::Stream,
    session::code::{early_end, error_text},
};
use editor::{Editor, Heard};
use offshoot_api::{
    Client,
    client::{CodeConnection, CodeEvent},
    v1::{self, CodeRequest},
};
use offshoot_types::{ErrorCode, Failure, Language, VmRef};
use pictures::Pictures;
use std::{collections::BTreeMap, time::Duration};
use tokio::time::{Instant, timeout_at};

/// How long code may go on after it was interrupted; the guest kills an interpreter that does not yield in 2 s.
const GRACE: Duration = Duration::from_secs(10);
/// What Tab is worth waiting for.
const COMPLETION: Duration = Duration::from_millis(1500);

/// The context that is talked to.
#[derive(Debug)]
pub struct Partner {
    pub vm: VmRef,
    pub context: String,
    pub language: Language,
    pub user: String,
    pub cwd: Option<String>,
}

impl Partner {
    fn request(&self, code: String) -> CodeRequest {
        CodeRequest {
            context: self.context.clone(),
            language: Some(self.language.to_string()),
            code,
            user: Some(self.user.clone()),
            cwd: self.cwd.clone(),
            ..CodeRequest::default()
        }
    }
}

/// Talks until the input ends. What the code does wrong is told, and is no failure of the conversation.
pub async fn converse(context: &Context, client: &Client, partner: &Partner) -> Result<Status> {
    let history = context.paths.prepare()?.path().join("repl-history");
    let mut editor = Editor::start(partner.language, history)?;
    let mut talk = Talk { context, pictures: Pictures::default(), number: 1 };
    // Says at once that there is no such VM, that it does not run, or that the context is another language's.
    let nothing = partner.request(String::new());
    let first = context
        .interrupt
        .race(client.run_code(&partner.vm, &nothing))
        .await
        .map_err(|_| Stop::Interrupted)??;
    talk.follow(first).await?;
    context.printer.note(&format!(
        "{} in context `{}` of `{}`; Ctrl-D leaves, the variables stay",
        partner.language, partner.context, partner.vm
    ));
    // What came while names were looked up: in the middle of a line it would be in the way.
    let mut meanwhile = Vec::new();
    loop {
        editor.ask(format!("{}[{}]> ", partner.language, talk.number));
        let line = loop {
            let heard = tokio::select! {
                biased;
                signal = context.interrupt.arrived() => match signal {
                    // Ours is the terminal: a key is no signal here. It comes from somebody else, or from a pipe.
                    Signal::Interrupt | Signal::Hangup | Signal::Terminate => return Err(Stop::Interrupted),
                },
                heard = editor.heard() => heard,
            };
            match heard {
                Heard::Line(line) => break Some(line),
                Heard::GivenUp => break Some(String::new()),
                Heard::End => break None,
                Heard::Failed(failure) => return Err(failure.into()),
                Heard::Tab { word, reply } => {
                    drop(reply.send(completions(client, partner, &word, &mut meanwhile).await));
                }
            }
        };
        for event in meanwhile.drain(..) {
            talk.tell(event).await?;
        }
        let Some(line) = line else { return Ok(Status::DONE) };
        if line.trim().is_empty() {
            continue;
        }
        let connection = client.run_code(&partner.vm, &partner.request(line)).await?;
        talk.follow(connection).await?;
    }
}

/// What is said to the user.
#[derive(Debug)]
struct Talk<'a> {
    context: &'a Context,
    pictures: Pictures,
    /// Of the next code; 1 until there was any.
    number: u32,
}

impl Talk<'_> {
    /// Prints what comes of code, to its end.
    async fn follow(&mut self, connection: CodeConnection) -> Result {
        let CodeConnection { mut input, mut events } = connection;
        let interrupt = &self.context.interrupt;
        let mut give_up = None;
        loop {
            let event = tokio::select! {
                biased;
                signal = interrupt.arrived() => {
                    if signal != Signal::Interrupt {
                        return Err(Stop::Interrupted);
                    }
                    interrupt.answered();
                    give_up.get_or_insert(Instant::now() + GRACE);
                    // A connection that is gone has interrupted it already, and says so below.
                    let _gone = input.interrupt().await;
                    continue;
                }
                event = events.next() => event?,
                () = until(give_up) => {
                    let message = "the code was interrupted and goes on all the same";
                    return Err(Failure::new(ErrorCode::Timeout, message).into());
                }
            };
            match event {
                Some(CodeEvent::Ended { .. }) => return Ok(()),
                Some(event) => self.tell(event).await?,
                None => return Err(early_end()),
            }
        }
    }

    async fn tell(&mut self, event: CodeEvent) -> Result {
        let printer = &self.context.printer;
        match event {
            CodeEvent::Started { count, created, .. } => {
                if is_anew(self.number, created) {
                    printer.note("the interpreter was begun anew: its variables are gone");
                }
                self.number = count.saturating_add(1);
            }
            CodeEvent::Output(v1::Stream::Stdout, data) => printer.stream(Stream::Stdout, &data).await?,
            CodeEvent::Output(v1::Stream::Stderr, data) => printer.stream(Stream::Stderr, &data).await?,
            CodeEvent::Display { mime, .. } | CodeEvent::Value { mime } => self.show(&mime).await?,
            CodeEvent::Error { name, message, traceback } => {
                let text = error_text(&name, &message, &traceback);
                printer.stream(Stream::Stderr, text.as_bytes()).await?;
            }
            CodeEvent::Ended { .. } => {}
        }
        Ok(())
    }

    /// The text of a value, and where its pictures are now.
    async fn show(&mut self, mime: &BTreeMap<String, String>) -> Result {
        let printer = &self.context.printer;
        let text = mime.get("text/plain").map_or("", String::as_str);
        printer.stream(Stream::Stdout, format!("{text}\n").as_bytes()).await?;
        for path in self.pictures.save(mime)? {
            printer.note(&format!("saved as {}", path.display()));
        }
        Ok(())
    }
}

/// Whether the interpreter that code was given to is another than that of the code before, which would have numbered it so.
fn is_anew(expected: u32, created: bool) -> bool {
    created && expected != 1
}

/// What the interpreter knows that begins like `word`; nothing where it is busy or cannot say. What else comes is put into
/// `meanwhile`. What cannot be had in time is not worth a message in the middle of a line.
async fn completions(
    client: &Client,
    partner: &Partner,
    word: &str,
    meanwhile: &mut Vec<CodeEvent>,
) -> Vec<String> {
    let Some(code) = complete::question(partner.language, word) else { return Vec::new() };
    let (deadline, request) = (Instant::now() + COMPLETION, partner.request(code));
    let Ok(Ok(CodeConnection { mut events, .. })) =
        timeout_at(deadline, client.run_code(&partner.vm, &request)).await
    else {
        return Vec::new();
    };
    let mut printed = Vec::new();
    while let Ok(Ok(Some(event))) = timeout_at(deadline, events.next()).await {
        match event {
            CodeEvent::Output(v1::Stream::Stdout, data) => printed.extend_from_slice(&data),
            CodeEvent::Output(..) | CodeEvent::Display { .. } | CodeEvent::Started { .. } => {
                meanwhile.push(event);
            }
            // Of the question: what cannot be looked up is not there.
            CodeEvent::Value { .. } | CodeEvent::Error { .. } | CodeEvent::Ended { .. } => {}
        }
    }
    let (found, rest) = complete::answer(word, &String::from_utf8_lossy(&printed));
    if !rest.is_empty() {
        meanwhile.push(CodeEvent::Output(v1::Stream::Stdout, rest.into()));
    }
    found
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::is_anew;

    #[test]
    fn an_interpreter_is_begun_anew_where_there_was_one_before() {
        assert!(is_anew(3, true));
        assert!(!is_anew(1, true), "the first is made for the conversation");
        assert!(!is_anew(3, false) && !is_anew(1, false));
    }
}
