//! `run_code`: a cell for a live interpreter.

use super::{Arguments, Effect, exec::USER, limits, output::Output};
use crate::{
    call::{Call, cancelled, grace_over},
    gathered::beginning,
    reply::Reply,
};
use offshoot_api::{ClientError, client::CodeEvent, v1::CodeRequest};
use offshoot_types::{ErrorCode, Failure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{collections::BTreeMap, time::Duration};
use tokio::time::Instant;

/// How long an interrupted interpreter may take to say that it was.
const GRACE: Duration = Duration::from_secs(5);
/// Longest text of a value or traceback that is told.
const MAX_TEXT: usize = 32 * 1024;
/// Displays of which the text is kept.
const MAX_DISPLAYED: usize = 256;
/// Pictures in one answer, and base64 of all of them.
const MAX_IMAGES: usize = 8;
const MAX_IMAGE_BYTES: usize = 4 * 1024 * 1024;
/// What clients can show.
const IMAGES: [&str; 2] = ["image/png", "image/jpeg"];

#[derive(Debug, Clone, Copy, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
enum Language {
    #[default]
    Python,
    Javascript,
    Bash,
}

impl Language {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::Javascript => "javascript",
            Self::Bash => "bash",
        }
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RunCode {
    /// Source text. The value of its last expression is returned, as in a notebook.
    code: String,
    /// Language of the code.
    #[serde(default)]
    language: Language,
    /// Name or id of a VM; the session's own if absent.
    vm: Option<String>,
    /// Name of the interpreter to use, made on first use; one for each language if absent. Interpreters share the VM's
    /// files and nothing else.
    context: Option<String>,
    /// The code is interrupted after so many seconds; 120 if absent. Variables survive that.
    timeout_seconds: Option<u64>,
}

impl Arguments for RunCode {
    const NAME: &'static str = "run_code";
    const TITLE: &'static str = "Run code";
    const DESCRIPTION: &'static str = "Runs Python, JavaScript or bash code in a VM, in an interpreter that keeps its \
        variables and imports from call to call (also through `snapshot`, `fork` and `rollback`). Returns what it \
        prints, the value of the last expression, figures as pictures, and the traceback of an error. Cancelling the \
        call interrupts the code; the interpreter stays.";
    const EFFECT: Effect = Effect::Changes;

    async fn perform(self, call: &Call) -> Result<Reply, Failure> {
        let vm = call.vm(self.vm.as_deref()).await?;
        let timeout_ms = limits::milliseconds(self.timeout_seconds)?;
        let language = self.language.as_str();
        let request = CodeRequest {
            context: self.context.unwrap_or_else(|| language.into()),
            language: Some(language.into()),
            code: self.code,
            timeout_ms: Some(timeout_ms),
            user: Some(USER.into()),
            ..CodeRequest::default()
        };
        let opening = call.client().run_code(&vm, &request);
        let mut connection = call.unless_cancelled("starting the code", opening).await?;
        let mut cell = Cell { vm: vm.to_string(), context: request.context, ..Cell::default() };
        let mut deadline = None;
        loop {
            let event = tokio::select! {
                biased;
                () = call.cancelled(), if deadline.is_none() => {
                    deadline = Some(Instant::now() + GRACE);
                    connection.input.interrupt().await.map_err(ClientError::into_failure)?;
                    continue;
                }
                // Its connection goes with us, and that interrupts it again.
                () = grace_over(deadline) => {
                    return Err(cancelled(format!("the code in VM {vm} did not react to its interruption yet")));
                }
                event = connection.events.next() => event,
            };
            match event.map_err(ClientError::into_failure)? {
                Some(event) => {
                    if let CodeEvent::Output(_, data) = &event {
                        call.progress.output(data).await;
                    }
                    if cell.take(event) {
                        break;
                    }
                }
                None => return Err(Failure::new(ErrorCode::Internal, "the code ended without an end")),
            }
        }
        if call.is_cancelled() {
            return Err(cancelled(format!(
                "the code in VM {vm} was interrupted; its interpreter keeps its variables"
            )));
        }
        Ok(cell.reply(timeout_ms))
    }
}

/// What became of the code.
#[derive(Debug, Default)]
struct Cell {
    vm: String,
    context: String,
    fresh: bool,
    output: Output,
    /// Texts of what was displayed that is no picture.
    displayed: Vec<String>,
    displayed_left_out: usize,
    value: Option<String>,
    error: Option<(String, String, String)>,
    images: Vec<(String, String)>,
    images_left_out: usize,
    interrupted: bool,
    milliseconds: u64,
}

impl Cell {
    /// Whether that was the last event.
    fn take(&mut self, event: CodeEvent) -> bool {
        match event {
            CodeEvent::Started { created, .. } => self.fresh = created,
            CodeEvent::Output(stream, data) => self.output.push(stream, &data),
            CodeEvent::Display { mime, .. } => {
                let taken: usize = self.displayed.iter().map(String::len).sum();
                match self.show(mime) {
                    Some(text) if self.displayed.len() < MAX_DISPLAYED && taken < MAX_TEXT => {
                        self.displayed.push(bounded(&text));
                    }
                    Some(_) => self.displayed_left_out += 1,
                    None => {}
                }
            }
            CodeEvent::Value { mime } => self.value = self.show(mime).map(|text| bounded(&text)),
            CodeEvent::Error { name, message, traceback } => {
                self.error = Some((name, bounded(&message), bounded(&traceback)));
            }
            CodeEvent::Ended { interrupted, wall_us } => {
                (self.interrupted, self.milliseconds) = (interrupted, wall_us / 1000);
                return true;
            }
        }
        false
    }

    /// Keeps the picture, or returns the text of what has none.
    fn show(&mut self, mut mime: BTreeMap<String, String>) -> Option<String> {
        let picture = IMAGES.iter().find_map(|kind| Some(((*kind).to_owned(), mime.remove(*kind)?)));
        let Some((kind, base64)) = picture else { return mime.remove("text/plain") };
        let taken: usize = self.images.iter().map(|(_, base64)| base64.len()).sum();
        if self.images.len() < MAX_IMAGES && taken + base64.len() <= MAX_IMAGE_BYTES {
            // Some interpreters break lines in it.
            let base64 = base64.split_ascii_whitespace().collect();
            self.images.push((kind, base64));
        } else {
            self.images_left_out += 1;
        }
        None
    }

    fn reply(self, timeout_ms: u64) -> Reply {
        let Self { vm, context, milliseconds, .. } = &self;
        let how = match (&self.error, self.interrupted) {
            (_, true) => "interrupted",
            (Some(_), false) => "ended with an error",
            (None, false) => "done",
        };
        let fresh = if self.fresh { ", a new interpreter" } else { "" };
        let mut text = format!("{how} (context {context}{fresh}, VM {vm}, {milliseconds} ms)");
        if let Some(value) = &self.value {
            text.push_str(&format!("\n--- value\n{value}"));
        }
        let shows = self.value.is_some() || self.error.is_some() || !self.images.is_empty();
        let mut streams = String::new();
        self.output.tell(&mut streams);
        if !(shows && streams.ends_with("(no output)")) {
            text.push_str(&streams);
        }
        for displayed in &self.displayed {
            text.push_str(&format!("\n--- displayed\n{displayed}"));
        }
        if let Some((name, message, traceback)) = &self.error {
            text.push_str(&format!("\n--- error\n{name}: {message}\n{traceback}"));
        }
        if !self.images.is_empty() {
            text.push_str(&format!("\n--- {} pictures follow", self.images.len()));
        }
        if self.images_left_out > 0 {
            text.push_str(&format!(
                "\n--- {} more pictures are left out: save them to files, and get them with `read_file`",
                self.images_left_out
            ));
        }
        if self.displayed_left_out > 0 {
            text.push_str(&format!(
                "\n--- {} more displays are left out: show less at once, or write it to a file",
                self.displayed_left_out
            ));
        }
        if self.interrupted {
            let seconds = timeout_ms / 1000;
            text.push_str(&format!(
                "\nhint: it was interrupted after at most {seconds} s; the interpreter keeps its variables. Give it a \
                 longer `timeout_seconds`, or do less at once."
            ));
        }
        let error = self.error.as_ref().map(|(name, message, _)| json!({ "name": name, "message": message }));
        let data = json!({
            "vm": vm,
            "context": context,
            "value": self.value,
            "error": error,
            "interrupted": self.interrupted,
            "milliseconds": milliseconds,
            "output": self.output.data(),
            "displayed_left_out": self.displayed_left_out,
            "displayed": self.displayed.iter().map(|text| Value::from(text.as_str())).collect::<Vec<_>>(),
        });
        let reply = Reply::new(text, data).with_images(self.images);
        if self.interrupted { reply.failed() } else { reply }
    }
}

fn bounded(text: &str) -> String {
    match beginning(text, MAX_TEXT) {
        (text, true) => text.into(),
        (cut, false) => format!("{cut}\n[... {} more bytes left out here ...]", text.len() - cut.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use offshoot_api::v1::Stream;
    use rmcp::model::CallToolResult;

    fn told(events: impl IntoIterator<Item = CodeEvent>) -> (String, serde_json::Value) {
        let mut cell = Cell { vm: "v".into(), context: "python".into(), ..Cell::default() };
        events.into_iter().for_each(|event| assert!(!cell.take(event)));
        assert!(cell.take(CodeEvent::Ended { interrupted: false, wall_us: 3000 }));
        let result = serde_json::to_value(CallToolResult::from(cell.reply(1000))).unwrap();
        (result["content"][0]["text"].as_str().unwrap().into(), result)
    }

    fn mime(kind: &str, data: &str) -> BTreeMap<String, String> {
        [("text/plain".to_owned(), "<Figure>".to_owned()), (kind.to_owned(), data.to_owned())].into()
    }

    #[test]
    fn displays_without_end_are_counted_and_not_kept() {
        let shown = || CodeEvent::Display {
            id: None,
            update: false,
            mime: [("text/plain".into(), String::new())].into(),
        };
        let (text, result) = told((0..MAX_DISPLAYED + 3).map(|_| shown()));
        assert!(text.contains("3 more displays are left out"), "{text}");
        assert_eq!(result["structuredContent"]["displayed"].as_array().unwrap().len(), MAX_DISPLAYED);
    }

    #[test]
    fn a_value_alone_is_told_without_a_word_on_output() {
        let (text, result) = told([CodeEvent::Value { mime: [("text/plain".into(), "2".into())].into() }]);
        assert_eq!(text, "done (context python, VM v, 3 ms)\n--- value\n2");
        assert_eq!(result["structuredContent"]["value"], "2");
        assert_eq!(result["isError"], false);
    }

    #[test]
    fn an_error_of_the_code_is_an_answer_with_its_traceback() {
        let output = CodeEvent::Output(Stream::Stdout, Bytes::from_static(b"before\n"));
        let error =
            CodeEvent::Error { name: "NameError".into(), message: "x".into(), traceback: "line 1".into() };
        let (text, result) = told([output, error]);
        assert!(text.ends_with("--- stdout\nbefore\n--- error\nNameError: x\nline 1"), "{text}");
        assert_eq!(result["isError"], false, "the tool did what it was asked to");
    }

    #[test]
    fn pictures_are_pictures_until_they_are_too_many() {
        let figure = || CodeEvent::Display { mime: mime("image/png", "aG\nk="), id: None, update: false };
        let (text, result) = told((0..MAX_IMAGES + 2).map(|_| figure()));
        let content = result["content"].as_array().unwrap();
        assert_eq!(content.len(), 1 + MAX_IMAGES);
        assert_eq!(content[1]["data"], "aGk=");
        assert!(
            text.contains("8 pictures follow") && text.contains("2 more pictures are left out"),
            "{text}"
        );
    }

    #[test]
    fn a_long_value_says_how_much_is_missing() {
        let long = "y".repeat(MAX_TEXT + 10);
        let (text, _) = told([CodeEvent::Value { mime: [("text/plain".into(), long)].into() }]);
        assert!(text.contains("10 more bytes left out"), "{}", &text[text.len() - 100..]);
    }
}
