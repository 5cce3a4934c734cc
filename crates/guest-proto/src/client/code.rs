//! Code in a live context, as the host sees it.
//!
//! ```text
//! Started --> (Output | Display)* --> (Value | Error)? --> Ended     (checked: order, sizes, nothing after the end)
//!    '-- Failed: it never ran
//! ```
//! What came in parts is whole again before it is passed on.

use super::{
    ClientError,
    call::{self, Call, Context, Reader, Writer},
};
use crate::message::{
    CHUNK, CodeEvent, CodeFrame, CodeInput, ContextInfo, HostOpen, MAX_CONTEXTS, MAX_DISPLAY_ID, MAX_ERROR,
    MAX_PART, MAX_REPRESENTATIONS, MAX_VALUE, RunCode, TEXT_PLAIN, is_context_name,
};
use futures::FutureExt as _;
use std::collections::BTreeMap;

/// Bytes of the name of a media type.
const MAX_MEDIA_TYPE: usize = 128;

/// Code that waits its turn or runs. Dropping it interrupts the code.
#[derive(Debug)]
pub struct CodeHandle {
    context: Context,
    reader: Reader,
    writer: Writer,
    phase: Phase,
    parts: Parts,
}

pub(super) async fn run(context: Context, run: RunCode) -> Result<CodeHandle, ClientError> {
    let Call { context, reader, writer } = Call::open(context, &HostOpen::RunCode(run)).await?;
    Ok(CodeHandle { context, reader, writer, phase: Phase::Waiting, parts: Parts::default() })
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
            return match self.reader.recv::<CodeFrame>().now_or_never() {
                Some(Ok(Some(_))) => Err(self.protocol("an event after the last one".into())),
                _ => Ok(None),
            };
        }
        loop {
            let frame: CodeFrame = call::next(&self.context, &mut self.reader).await?;
            let whole = match frame {
                CodeFrame::Part { mime, text } if self.phase == Phase::Running => {
                    self.parts.add(mime, &text).map(|()| None)
                }
                CodeFrame::Part { .. } => Err(format!("a part where the code is {:?}", self.phase)),
                CodeFrame::Event(event) => self.parts.complete(event).map(Some),
            };
            if let Some(event) = whole.map_err(|problem| self.protocol(problem))? {
                self.phase = self.phase.after(&event).map_err(|problem| self.protocol(problem))?;
                return Ok(Some(event));
            }
        }
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
            (Self::Running, CodeEvent::Display { id, update, .. })
                if *update && id.is_none() || id.as_ref().is_some_and(|id| id.len() > MAX_DISPLAY_ID) =>
            {
                Err("a display that cannot be shown anew".into())
            }
            (Self::Running, CodeEvent::Display { mime, .. }) => check_value(mime).map(|()| Self::Running),
            (Self::Running, CodeEvent::Value { mime }) => check_value(mime).map(|()| Self::Concluded),
            (Self::Running, CodeEvent::Error { name, message, traceback }) => {
                match name.len() + message.len() + traceback.len() {
                    0..=MAX_ERROR => Ok(Self::Concluded),
                    size => Err(format!("an error of {size} bytes")),
                }
            }
            (Self::Running | Self::Concluded, CodeEvent::Ended { .. }) => Ok(Self::Over),
            (phase, event) => {
                let name = match event {
                    CodeEvent::Started { .. } => "a start",
                    CodeEvent::Output { .. } => "output",
                    CodeEvent::Display { .. } => "a display",
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

/// What has come of the event to come.
#[derive(Debug, Default)]
struct Parts {
    texts: BTreeMap<String, String>,
    size: usize,
}

impl Parts {
    fn add(&mut self, mime: String, text: &str) -> Result<(), String> {
        self.size += text.len();
        if !(1..=MAX_PART).contains(&text.len()) || self.size > MAX_VALUE {
            return Err(format!("a part of {} bytes, {} in all", text.len(), self.size));
        }
        if self.texts.len() == MAX_REPRESENTATIONS && !self.texts.contains_key(&mime) {
            return Err("parts of too many representations".into());
        }
        self.texts.entry(mime).or_default().push_str(text);
        Ok(())
    }

    /// The event with its parts put in front of what it brought itself.
    fn complete(&mut self, mut event: CodeEvent) -> Result<CodeEvent, String> {
        if self.texts.is_empty() {
            return Ok(event);
        }
        let Self { texts, .. } = std::mem::take(self);
        let (CodeEvent::Display { mime, .. } | CodeEvent::Value { mime }) = &mut event else {
            return Err("parts of what has none".into());
        };
        for (kind, mut text) in texts {
            let rest = mime.get_mut(&kind).ok_or("a part of a representation that does not follow")?;
            text.push_str(rest);
            *rest = text;
        }
        Ok(event)
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
        CodeEvent::Started { language: Language::Python, pid: 1, created: true, count: 1 }
    }

    fn output(length: usize) -> CodeEvent {
        CodeEvent::Output { stream: OutputStream::Stdout, data: vec![0; length] }
    }

    fn value(representations: &[(&str, usize)]) -> CodeEvent {
        let mime = representations.iter().map(|&(name, size)| (name.to_owned(), "v".repeat(size)));
        CodeEvent::Value { mime: mime.collect() }
    }

    fn display(id: Option<&str>, update: bool) -> CodeEvent {
        let mime = [(TEXT_PLAIN.to_owned(), "1".to_owned())].into();
        CodeEvent::Display { mime, id: id.map(str::to_owned), update }
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
        let shown = [started(), display(None, false), output(1), display(Some("a"), true), error(1), ended()];
        assert_eq!(admit(&shown), Ok(Phase::Over));
        for wrong in [
            vec![output(1)],
            vec![ended()],
            vec![started(), started()],
            vec![started(), failed],
            vec![started(), error(1), output(1)],
            vec![display(None, false)],
            vec![started(), error(1), display(None, false)],
            vec![started(), display(None, true)],
            vec![started(), display(Some(&"i".repeat(MAX_DISPLAY_ID + 1)), false)],
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
            (error(MAX_ERROR), true),
            (error(MAX_ERROR + 1), false),
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

    #[test]
    fn parts_are_put_together_and_bounded() {
        let mut parts = Parts::default();
        for text in ["ab", "cd"] {
            parts.add("text/html".into(), text).unwrap();
        }
        let whole = parts.complete(value(&[(TEXT_PLAIN, 1), ("text/html", 2)])).unwrap();
        let CodeEvent::Value { mime } = whole else { panic!("a value stays one") };
        assert_eq!((mime["text/html"].as_str(), mime[TEXT_PLAIN].as_str()), ("abcdvv", "v"));
        // Taken: the next event has none.
        assert_eq!(parts.complete(ended()), Ok(ended()));
        parts.add("text/html".into(), "x").unwrap();
        assert!(
            parts.complete(value(&[(TEXT_PLAIN, 1)])).is_err(),
            "of a representation that does not follow"
        );
        parts.add("text/html".into(), "x").unwrap();
        assert!(parts.complete(ended()).is_err(), "an end has no parts");
        assert!(Parts::default().add("a/b".into(), "").is_err());
        assert!(Parts::default().add("a/b".into(), &"x".repeat(MAX_PART + 1)).is_err());
        let mut flood = Parts::default();
        let part = "x".repeat(MAX_PART);
        let taken = (0..).take_while(|_| flood.add("a/b".into(), &part).is_ok()).count();
        assert_eq!(taken, MAX_VALUE / MAX_PART);
        let mut many = Parts::default();
        for n in 0..MAX_REPRESENTATIONS {
            many.add(format!("a/{n}"), "x").unwrap();
        }
        assert!(many.add("a/more".into(), "x").is_err());
    }
}
