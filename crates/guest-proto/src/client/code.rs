//! Code in a live context, as the host sees it.
//!
//! ```text
//! Started --> Output* --> (Value | Error)? --> Ended        (checked: order, sizes, nothing after the end)
//!    '-- Failed: it never ran
//! ```

use super::{
    ClientError,
    call::{self, Call, Context, Reader, Writer},
};
use crate::message::{
    CHUNK, CodeEvent, CodeInput, ContextInfo, HostOpen, MAX_CONTEXTS, MAX_VALUE, RunCode, TEXT_PLAIN,
    is_context_name,
};
use futures::FutureExt as _;
use std::collections::BTreeMap;

/// Media types a value may be represented in, and bytes of one's name.
const MAX_REPRESENTATIONS: usize = 16;
const MAX_MEDIA_TYPE: usize = 128;

/// Code that waits its turn or runs. Dropping it interrupts the code.
#[derive(Debug)]
pub struct CodeHandle {
    context: Context,
    reader: Reader,
    writer: Writer,
    phase: Phase,
}

pub(super) async fn run(context: Context, run: RunCode) -> Result<CodeHandle, ClientError> {
    let Call { context, reader, writer } = Call::open(context, &HostOpen::RunCode(run)).await?;
    Ok(CodeHandle { context, reader, writer, phase: Phase::Waiting })
}

pub(super) async fn list(context: Context) -> Result<Vec<ContextInfo>, ClientError> {
    let operation = context.operation;
    let contexts: Vec<ContextInfo> = Call::open(context, &HostOpen::ListContexts).await?.reply().await?;
    if contexts.len() > MAX_CONTEXTS {
        return Err(ClientError::protocol(operation, format!("{} contexts", contexts.len())));
    }
    for context in &contexts {
        check_context_name(&context.context).map_err(|problem| ClientError::protocol(operation, problem))?;
    }
    Ok(contexts)
}

impl CodeHandle {
    /// The next event, however long it takes: the code may wait its turn, and run without a word. `None` after
    /// `Ended` or `Failed`. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<CodeEvent>, ClientError> {
        if self.phase == Phase::Over {
            return match self.reader.recv::<CodeEvent>().now_or_never() {
                Some(Ok(Some(_))) => Err(self.protocol("an event after the last one".into())),
                _ => Ok(None),
            };
        }
        let event: CodeEvent = call::next(&self.context, &mut self.reader).await?;
        self.phase = self.phase.after(&event).map_err(|problem| self.protocol(problem))?;
        Ok(Some(event))
    }

    /// As Ctrl-C would; an interpreter that does not yield within 2 s is killed. Code that waits its turn never
    /// runs. Not cancel-safe: after a cancelled call every further one fails.
    pub async fn interrupt(&mut self) -> Result<(), ClientError> {
        call::send(&self.context, &mut self.writer, &CodeInput::Interrupt).await
    }

    fn protocol(&self, problem: String) -> ClientError {
        ClientError::protocol(self.context.operation, problem)
    }
}

/// Knows what may come next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Waiting,
    Running,
    /// A value or an error has come.
    Concluded,
    Over,
}

impl Phase {
    fn after(self, event: &CodeEvent) -> Result<Self, String> {
        match (self, event) {
            (Self::Waiting, CodeEvent::Started { .. }) => Ok(Self::Running),
            (Self::Waiting, CodeEvent::Failed(_)) => Ok(Self::Over),
            (Self::Running, CodeEvent::Output { data, .. }) if data.is_empty() || data.len() > CHUNK => {
                Err(format!("{} bytes of output in one event", data.len()))
            }
            (Self::Running, CodeEvent::Output { .. }) => Ok(Self::Running),
            (Self::Running, CodeEvent::Value { mime }) => check_value(mime).map(|()| Self::Concluded),
            (Self::Running, CodeEvent::Error { name, message, traceback }) => {
                match name.len() + message.len() + traceback.len() {
                    0..=MAX_VALUE => Ok(Self::Concluded),
                    size => Err(format!("an error of {size} bytes")),
                }
            }
            (Self::Running | Self::Concluded, CodeEvent::Ended { .. }) => Ok(Self::Over),
            (phase, event) => {
                let name = match event {
                    CodeEvent::Started { .. } => "a start",
                    CodeEvent::Output { .. } => "output",
                    CodeEvent::Value { .. } => "a value",
                    CodeEvent::Error { .. } => "an error",
                    CodeEvent::Ended { .. } => "an end",
                    CodeEvent::Failed(_) => "a failure",
                };
                Err(format!("{name} where the code is {phase:?}"))
            }
        }
    }
}

fn check_value(mime: &BTreeMap<String, String>) -> Result<(), String> {
    if !mime.contains_key(TEXT_PLAIN) {
        return Err(format!("a value without {TEXT_PLAIN}"));
    }
    if mime.len() > MAX_REPRESENTATIONS {
        return Err(format!("a value in {} representations", mime.len()));
    }
    let odd = |name: &String| {
        !(1..=MAX_MEDIA_TYPE).contains(&name.len()) || !name.chars().all(|c| c.is_ascii_graphic())
    };
    if mime.keys().any(odd) {
        return Err("a media type that is none".into());
    }
    match mime.values().map(String::len).sum::<usize>() {
        0..=MAX_VALUE => Ok(()),
        size => Err(format!("a value of {size} bytes")),
    }
}

pub(super) fn check_context_name(name: &str) -> Result<(), String> {
    if is_context_name(name) { Ok(()) } else { Err("a context's name that is none".into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{GuestError, GuestErrorKind, Language, OutputStream};

    fn started() -> CodeEvent {
        CodeEvent::Started { language: Language::Python, pid: 1, created: true }
    }

    fn output(length: usize) -> CodeEvent {
        CodeEvent::Output { stream: OutputStream::Stdout, data: vec![0; length] }
    }

    fn value(representations: &[(&str, usize)]) -> CodeEvent {
        let mime = representations.iter().map(|&(name, size)| (name.to_owned(), "v".repeat(size)));
        CodeEvent::Value { mime: mime.collect() }
    }

    fn error(size: usize) -> CodeEvent {
        CodeEvent::Error { name: "E".repeat(size), message: String::new(), traceback: String::new() }
    }

    fn ended() -> CodeEvent {
        CodeEvent::Ended { interrupted: false, wall_us: 1 }
    }

    fn admit(events: &[CodeEvent]) -> Result<Phase, String> {
        events.iter().try_fold(Phase::Waiting, |phase, event| phase.after(event))
    }

    #[test]
    fn code_starts_once_and_concludes_once() {
        let failed = CodeEvent::Failed(GuestError { kind: GuestErrorKind::Other, message: String::new() });
        assert_eq!(admit(std::slice::from_ref(&failed)), Ok(Phase::Over));
        assert_eq!(admit(&[started(), ended()]), Ok(Phase::Over));
        assert_eq!(admit(&[started(), output(1), value(&[(TEXT_PLAIN, 1)]), ended()]), Ok(Phase::Over));
        assert_eq!(admit(&[started(), error(1), ended()]), Ok(Phase::Over));
        for wrong in [
            vec![output(1)],
            vec![ended()],
            vec![started(), started()],
            vec![started(), failed],
            vec![started(), error(1), output(1)],
            vec![started(), error(1), value(&[(TEXT_PLAIN, 1)])],
            vec![started(), ended(), ended()],
        ] {
            assert!(admit(&wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn absurd_sizes_and_names_are_refused() {
        let plain = (TEXT_PLAIN, 1);
        for (event, allowed) in [
            (output(CHUNK), true),
            (output(CHUNK + 1), false),
            (output(0), false),
            (error(MAX_VALUE), true),
            (error(MAX_VALUE + 1), false),
            (value(&[plain, ("image/svg+xml", 5)]), true),
            (value(&[(TEXT_PLAIN, MAX_VALUE)]), true),
            (value(&[plain, ("text/html", MAX_VALUE)]), false),
            (value(&[("text/html", 1)]), false),
            (value(&[plain, ("a\nb", 1)]), false),
            (value(&[plain, ("", 1)]), false),
        ] {
            let size = format!("{event:?}").len();
            assert_eq!(admit(&[started(), event]).is_ok(), allowed, "an event of {size}");
        }
        let many: Vec<String> = (0..MAX_REPRESENTATIONS).map(|n| format!("x/{n}")).collect();
        let many: Vec<(&str, usize)> = many.iter().map(|name| (name.as_str(), 1)).chain([plain]).collect();
        assert!(admit(&[started(), value(&many)]).is_err());
    }
}
