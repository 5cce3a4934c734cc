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
use tokio::time::{Instant, timeout};

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
    let mut pictures = Pictures::default();
    // Says at once that there is no such VM, that it does not run, or that the context is another language's.
    let nothing = partner.request(String::new());
    let first = context
        .interrupt
        .race(client.run_code(&partner.vm, &nothing))
        .await
        .map_err(|_| Stop::Interrupted)??;
    let mut number = follow(context, first, &mut pictures).await?;
    context.printer.note(&format!(
        "{} in context `{}` of `{}`; Ctrl-D leaves, the variables stay",
        partner.language, partner.context, partner.vm
    ));
    loop {
        editor.ask(format!("{}[{}]> ", partner.language, number));
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
                    let found = timeout(COMPLETION, completions(client, partner, &word)).await;
                    // What cannot be had in time is not worth a message in the middle of a line.
                    drop(reply.send(found.unwrap_or_default()));
                }
            }
        };
        let Some(line) = line else { return Ok(Status::DONE) };
        if line.trim().is_empty() {
            continue;
        }
        let connection = client.run_code(&partner.vm, &partner.request(line)).await?;
        number = follow(context, connection, &mut pictures).await?;
    }
}

/// Prints what comes of code; answers the number of the next.
async fn follow(context: &Context, connection: CodeConnection, pictures: &mut Pictures) -> Result<u32> {
    let CodeConnection { mut input, mut events } = connection;
    let printer = &context.printer;
    let (mut number, mut give_up) = (1, None);
    loop {
        let event = tokio::select! {
            biased;
            signal = context.interrupt.arrived() => {
                if signal != Signal::Interrupt {
                    return Err(Stop::Interrupted);
                }
                context.interrupt.answered();
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
            Some(CodeEvent::Started { count, created, .. }) => {
                if created && count == 1 && number != 1 {
                    printer.note("the interpreter was begun anew: its variables are gone");
                }
                number = count + 1;
            }
            Some(CodeEvent::Output(v1::Stream::Stdout, data)) => {
                printer.stream(Stream::Stdout, &data).await?
            }
            Some(CodeEvent::Output(v1::Stream::Stderr, data)) => {
                printer.stream(Stream::Stderr, &data).await?
            }
            Some(CodeEvent::Display { mime, .. } | CodeEvent::Value { mime }) => {
                show(context, &mime, pictures).await?;
            }
            Some(CodeEvent::Error { name, message, traceback }) => {
                let text = error_text(&name, &message, &traceback);
                printer.stream(Stream::Stderr, text.as_bytes()).await?;
            }
            Some(CodeEvent::Ended { .. }) => return Ok(number),
            None => return Err(early_end()),
        }
    }
}

/// The text of a value, and where its pictures are now.
async fn show(context: &Context, mime: &BTreeMap<String, String>, pictures: &mut Pictures) -> Result {
    let text = mime.get("text/plain").map_or("", String::as_str);
    context.printer.stream(Stream::Stdout, format!("{text}\n").as_bytes()).await?;
    for path in pictures.save(mime)? {
        context.printer.note(&format!("saved as {}", path.display()));
    }
    Ok(())
}

/// What the interpreter knows that begins like `word`; nothing where it is busy or cannot say.
async fn completions(client: &Client, partner: &Partner, word: &str) -> Vec<String> {
    let Some(code) = complete::question(partner.language, word) else { return Vec::new() };
    let Ok(CodeConnection { mut events, .. }) = client.run_code(&partner.vm, &partner.request(code)).await
    else {
        return Vec::new();
    };
    let mut printed = Vec::new();
    while let Ok(Some(event)) = events.next().await {
        if let CodeEvent::Output(v1::Stream::Stdout, data) = event {
            printed.extend_from_slice(&data);
        }
    }
    complete::answer(word, &String::from_utf8_lossy(&printed))
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
