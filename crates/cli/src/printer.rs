//! The only place that writes to the terminal.
//!
//! ```text
//! data      -> standard output      what was asked for; with --json exactly one document, errors included
//! the rest  -> standard error       notes, warnings, progress, and errors without --json
//! ```
//! A reader that goes away is not an error: writing then ends the verb as [`Stop::BrokenPipe`], with status 0.

use crate::{
    failure::{Report, Result, Stop, host},
    progress::{self, Progress},
};
use serde::Serialize;
use std::{
    borrow::Cow,
    io::{self, IsTerminal, Write},
};
use tokio::io::AsyncWriteExt;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ColorChoice {
    /// On a terminal, unless `NO_COLOR` is set or `TERM` is `dumb`.
    Auto,
    Always,
    Never,
}

/// What standard output is to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Text,
    Json,
}

/// Which of the two streams a guest program wrote to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

#[derive(Debug, Clone)]
pub struct Printer {
    format: Format,
    color_out: bool,
    color_err: bool,
    progress: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    Bold,
    Red,
    Green,
    Yellow,
    Cyan,
}

impl Style {
    const fn code(self) -> &'static str {
        match self {
            Self::Bold => "1",
            Self::Red => "1;31",
            Self::Green => "32",
            Self::Yellow => "1;33",
            Self::Cyan => "1;36",
        }
    }
}

impl ColorChoice {
    fn resolve(self, terminal: bool) -> bool {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Auto => {
                terminal && !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
            }
        }
    }
}

impl Printer {
    pub fn new(format: Format, color: ColorChoice) -> Self {
        let (out, err) = (io::stdout().is_terminal(), io::stderr().is_terminal());
        Self {
            format,
            color_out: color.resolve(out),
            color_err: color.resolve(err),
            progress: err && format == Format::Text,
        }
    }

    pub fn format(&self) -> Format {
        self.format
    }

    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Something that may take a while; shown only to a person.
    pub fn progress(&self, message: impl Into<String>) -> Progress {
        Progress::new(self.progress, message)
    }

    /// One piece of text data, ending in a newline.
    pub fn data(&self, text: &str) -> Result {
        let newline = if text.ends_with('\n') || text.is_empty() { "" } else { "\n" };
        self.raw(format!("{text}{newline}").as_bytes())
    }

    /// The document that answers a verb with `--json`.
    pub fn document(&self, document: &impl Serialize) -> Result {
        let text = serde_json::to_string_pretty(document)
            .map_err(|error| host("cannot write the answer as JSON", &error))?;
        self.data(&text)
    }

    /// One document on one line, for verbs that follow something.
    pub fn document_line(&self, document: &impl Serialize) -> Result {
        let text = serde_json::to_string(document)
            .map_err(|error| host("cannot write the answer as JSON", &error))?;
        self.data(&text)
    }

    /// `document` with `--json`, else `text`.
    pub fn answer(&self, document: &impl Serialize, text: impl FnOnce() -> String) -> Result {
        match self.format {
            Format::Json => self.document(document),
            Format::Text => self.data(&text()),
        }
    }

    /// Bytes for standard output, as they are.
    pub fn raw(&self, bytes: &[u8]) -> Result {
        progress::aside(|| {
            let mut out = io::stdout().lock();
            out.write_all(bytes).and_then(|()| out.flush())
        })
        .map_err(broken)
    }

    /// Output of a guest program. Waits while the reader is slow, without keeping signals waiting.
    pub async fn stream(&self, stream: Stream, bytes: &[u8]) -> Result {
        async fn write(mut to: impl tokio::io::AsyncWrite + Unpin, bytes: &[u8]) -> io::Result<()> {
            to.write_all(bytes).await?;
            to.flush().await
        }
        match stream {
            Stream::Stdout => write(tokio::io::stdout(), bytes).await,
            Stream::Stderr => write(tokio::io::stderr(), bytes).await,
        }
        .map_err(broken)
    }

    /// Something worth knowing that is not data. A document says it itself.
    pub fn note(&self, text: &str) {
        if self.format == Format::Text {
            self.err(text);
        }
    }

    /// A question; the answer is typed behind it.
    pub fn prompt(&self, text: &str) {
        progress::aside(|| {
            let mut err = io::stderr().lock();
            drop(write!(err, "{text}").and_then(|()| err.flush()));
        });
    }

    /// Something that is not as it should be, though the verb goes on.
    pub fn warn(&self, text: &str) {
        let label = self.err_styled(Style::Yellow, "warning:");
        self.err(&format!("{label} {text}"));
    }

    /// How the program says that it failed: three lines on standard error, or one document.
    pub fn failure(&self, report: &Report) {
        match self.format {
            // The status tells already; a reader that is gone cannot be told more.
            Format::Json => drop(self.document(report)),
            Format::Text => self.err(&self.failure_text(report)),
        }
    }

    pub fn failure_text(&self, report: &Report) -> String {
        let failure = &report.failure;
        let mut text = format!("{} {}", self.err_styled(Style::Red, "error:"), visible(&failure.message));
        if let Some(cause) = &failure.cause {
            text += &format!("\n{} {}", self.err_styled(Style::Bold, "cause:"), visible(cause));
        }
        if let Some(hint) = &failure.hint {
            text += &format!("\n{} {}", self.err_styled(Style::Cyan, "hint:"), visible(hint));
        }
        text
    }

    pub fn out_styled(&self, style: Style, text: &str) -> String {
        paint(self.color_out, style, text)
    }

    pub fn err_styled(&self, style: Style, text: &str) -> String {
        paint(self.color_err, style, text)
    }

    pub fn colors_errors(&self) -> bool {
        self.color_err
    }

    fn err(&self, text: &str) {
        // Nowhere is left to report that standard error is gone.
        progress::aside(|| drop(writeln!(io::stderr().lock(), "{text}")));
    }
}

fn paint(color: bool, style: Style, text: &str) -> String {
    if color { format!("\x1b[{}m{text}\x1b[0m", style.code()) } else { text.into() }
}

fn broken(error: io::Error) -> Stop {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Stop::BrokenPipe,
        _ => crate::failure::file("write to", "standard output".as_ref(), error).into(),
    }
}

/// Guest data in our own sentences: control characters are shown, not obeyed. A program's own output is passed
/// on untouched, as any terminal does for the program it runs.
pub fn visible(text: &str) -> Cow<'_, str> {
    let harmless = |c: char| c == '\n' || c == '\t' || !c.is_control();
    if text.chars().all(harmless) {
        return text.into();
    }
    text.chars().map(|c| if harmless(c) { c.to_string() } else { c.escape_default().to_string() }).collect()
}

/// The same for bytes that come in pieces: control characters in caret notation, as `cat -v` shows them.
pub fn without_controls(bytes: &[u8]) -> Vec<u8> {
    let mut shown = Vec::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            b'\n' | b'\t' => shown.push(byte),
            // Consoles end their lines with CR LF.
            b'\r' => {}
            0..0x20 | 0x7f => shown.extend([b'^', byte ^ 0x40]),
            _ => shown.push(byte),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use offshoot_types::{ErrorCode, Failure};

    fn printer(color: bool) -> Printer {
        Printer { format: Format::Text, color_out: color, color_err: color, progress: false }
    }

    #[test]
    fn an_error_reads_as_error_cause_and_hint_with_and_without_colour() {
        let failure = Failure {
            code: ErrorCode::Backend,
            message: "VM `web` did not boot".into(),
            cause: Some("the VMM ended: exit status 1".into()),
            hint: Some("see `offshoot logs web --console`".into()),
        };
        let plain = printer(false).failure_text(&failure.clone().into());
        insta::assert_snapshot!(plain, @r"
        error: VM `web` did not boot
        cause: the VMM ended: exit status 1
        hint: see `offshoot logs web --console`
        ");
        let coloured = printer(true).failure_text(&failure.into());
        assert!(coloured.contains("\x1b[1;31merror:\x1b[0m VM `web`"), "{coloured:?}");
    }

    #[test]
    fn control_characters_of_a_guest_are_shown_and_not_obeyed() {
        assert_eq!(visible("plain\ttext\n"), "plain\ttext\n");
        assert_eq!(visible("6.1\x1b]0;owned\x07"), "6.1\\u{1b}]0;owned\\u{7}");
        assert_eq!(visible("a\rb\u{9b}c"), "a\\rb\\u{9b}c");
    }

    #[test]
    fn a_console_log_cannot_drive_the_terminal() {
        assert_eq!(without_controls(b"ok\r\n\x1b[2Jx\x7f"), b"ok\n^[[2Jx^?");
        assert_eq!(without_controls("é漢".as_bytes()), "é漢".as_bytes());
    }

    #[test]
    fn a_chosen_colour_does_not_depend_on_the_terminal() {
        assert!(ColorChoice::Always.resolve(false));
        assert!(!ColorChoice::Never.resolve(true));
        assert!(!ColorChoice::Auto.resolve(false));
    }
}
