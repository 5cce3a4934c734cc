//! The line editor: history, several lines, Tab. It waits on the terminal, so it is a thread of its own.

use super::complete;
use crate::{
    failure::{Result, host},
    terminal,
};
use offshoot_types::{ErrorCode, Failure, Language};
use rustyline::{
    Config, Context, Helper,
    completion::Completer,
    error::ReadlineError,
    highlight::Highlighter,
    hint::Hinter,
    history::FileHistory,
    validate::{ValidationContext, ValidationResult, Validator},
};
use std::{
    fs,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::mpsc as blocking,
    thread,
};
use tokio::sync::mpsc;

/// Lines that are remembered from one conversation to the next.
const REMEMBERED: usize = 10_000;

/// What comes from the terminal.
#[derive(Debug)]
pub enum Heard {
    /// Whole code, of one or more lines.
    Line(String),
    /// Ctrl-C: it is not to be run.
    GivenUp,
    /// Ctrl-D, or the end of the input.
    End,
    Failed(Failure),
    /// The editor waits for the answer.
    Tab {
        word: String,
        reply: blocking::Sender<Vec<String>>,
    },
}

#[derive(Debug)]
pub struct Editor {
    prompts: blocking::Sender<String>,
    heard: mpsc::UnboundedReceiver<Heard>,
}

impl Editor {
    pub fn start(language: Language, history: PathBuf) -> Result<Self> {
        let (prompts, asked) = blocking::channel::<String>();
        let (tell, heard) = mpsc::unbounded_channel();
        let assistant = Assistant { language, tell: tell.clone() };
        keep_to_ourselves(&history);
        let config = Config::builder()
            .max_history_size(REMEMBERED)
            .map_err(|error| host("the history cannot be kept", &error))?
            .auto_add_history(true)
            .build();
        let mut lines = rustyline::Editor::<Assistant, FileHistory>::with_config(config)
            .map_err(|error| host("the terminal cannot be used", &error))?;
        lines.set_helper(Some(assistant));
        // One that cannot be read, as before the first, is empty.
        let _empty = lines.load_history(&history);
        terminal::remember();
        let edit = move || {
            // The conversation ends when nobody asks any more.
            while let Ok(prompt) = asked.recv() {
                let read = match lines.readline(&prompt) {
                    Ok(line) => Heard::Line(line),
                    Err(ReadlineError::Interrupted) => Heard::GivenUp,
                    Err(ReadlineError::Eof) => Heard::End,
                    Err(error) => Heard::Failed(
                        Failure::new(ErrorCode::Internal, "read from the terminal").caused_by(&error),
                    ),
                };
                // What was typed is remembered, even if we are ended in the middle of what it does.
                let _forgotten = lines.append_history(&history);
                if tell.send(read).is_err() {
                    break;
                }
            }
        };
        thread::Builder::new()
            .name("editor".into())
            .spawn(edit)
            .map_err(|error| host("cannot start a thread for the terminal", &error))?;
        Ok(Self { prompts, heard })
    }

    /// Asks for the next line; it comes by [`Self::heard`].
    pub fn ask(&self, prompt: String) {
        // A thread that is gone is heard of as the end.
        let _gone = self.prompts.send(prompt);
    }

    /// Cancel-safe.
    pub async fn heard(&mut self) -> Heard {
        self.heard.recv().await.unwrap_or(Heard::End)
    }
}

impl Drop for Editor {
    fn drop(&mut self) {
        // It may be in the middle of a line, with the terminal in its own mode.
        terminal::restore();
    }
}

/// What is typed may be a secret.
fn keep_to_ourselves(history: &Path) {
    // One that cannot be made is not kept, as the editor finds out itself.
    let _not_kept = fs::OpenOptions::new().create(true).append(true).mode(0o600).open(history);
}

/// Knows when code is whole, and what a word can become.
struct Assistant {
    language: Language,
    tell: mpsc::UnboundedSender<Heard>,
}

impl Helper for Assistant {}
impl Highlighter for Assistant {}
impl Hinter for Assistant {
    type Hint = String;
}

impl Completer for Assistant {
    type Candidate = String;
    fn complete(&self, line: &str, end: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        let start = complete::word_at(self.language, line, end);
        let (reply, answer) = blocking::channel();
        let word = line[start..end].to_owned();
        let asked = self.tell.send(Heard::Tab { word, reply });
        // Nobody answers where the conversation ends.
        let found = asked.ok().and_then(|()| answer.recv().ok()).unwrap_or_default();
        Ok((start, found))
    }
}

impl Validator for Assistant {
    fn validate(&self, line: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        Ok(match is_whole(self.language, line.input()) {
            true => ValidationResult::Valid(None),
            false => ValidationResult::Incomplete,
        })
    }
}

/// Whether code can be run, or goes on in the next line: brackets are open, a line ends so that another must follow, or
/// it is a block of Python. An empty line ends a block, and no brackets.
fn is_whole(language: Language, code: &str) -> bool {
    let last = code.lines().next_back().unwrap_or_default();
    if open_brackets(language, code) > 0 {
        return false;
    }
    if last.trim().is_empty() && code.contains('\n') || code.ends_with('\n') {
        return true;
    }
    if last.ends_with('\\') {
        return false;
    }
    match language {
        Language::Python => {
            let first = code.lines().next().unwrap_or_default();
            let decorated = first.starts_with('@');
            let block = |line: &str| line.trim_end().ends_with(':') || line.starts_with([' ', '\t']);
            !(decorated || code.lines().any(block))
        }
        Language::Bash => {
            let words = |word: &str| code.split([' ', '\n', ';', '\t']).filter(|&one| one == word).count();
            let ends = |line: &str| line.ends_with("&&") || line.ends_with("||") || line.ends_with('|');
            words("do") <= words("done")
                && words("if") <= words("fi")
                && words("case") <= words("esac")
                && !ends(last.trim_end())
        }
        Language::Javascript => true,
    }
}

/// How many are open at the end, those in texts and comments left out.
fn open_brackets(language: Language, code: &str) -> i32 {
    let (mut open, mut quote) = (0, None);
    let mut characters = code.chars().peekable();
    while let Some(c) = characters.next() {
        match (quote, c) {
            (_, '\\') => drop(characters.next()),
            (Some(end), c) if c == end => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'' | '`') => quote = Some(c),
            (None, '#') if language != Language::Javascript => {
                while characters.next_if(|&c| c != '\n').is_some() {}
            }
            (None, '(' | '[' | '{') => open += 1,
            (None, ')' | ']' | '}') => open -= 1,
            _ => {}
        }
    }
    // A text that goes on: three quotes in Python, any in the others.
    let goes_on = match language {
        Language::Python => [r#"""""#, "'''"].iter().any(|quotes| code.matches(quotes).count() % 2 == 1),
        Language::Javascript => quote == Some('`'),
        Language::Bash => quote.is_some(),
    };
    open.max(i32::from(goes_on))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_whole_where_an_interpreter_would_run_it() {
        for (language, code, whole) in [
            (Language::Python, "x = 1", true),
            (Language::Python, "f(1,", false),
            (Language::Python, "f(1,\n2)", true),
            (Language::Python, "f(1,\n", false),
            (Language::Python, "f(1,\n\n2)", true),
            (Language::Python, "s = \'\'\'a\n\n", false),
            (Language::Javascript, "function f() {\n\n", false),
            (Language::Python, "for i in x:", false),
            (Language::Python, "for i in x:\n  print(i)", false),
            (Language::Python, "for i in x:\n  print(i)\n", true),
            (Language::Python, "s = '''a", false),
            (Language::Python, "s = '(' # [", true),
            (Language::Javascript, "function f() {", false),
            (Language::Javascript, "function f() {\n}", true),
            (Language::Javascript, "`a", false),
            (Language::Bash, "for i in 1; do", false),
            (Language::Bash, "for i in 1; do\necho $i\ndone", true),
            (Language::Bash, "ls |", false),
            (Language::Bash, "echo \"a", false),
        ] {
            assert_eq!(is_whole(language, code), whole, "{language}: {code:?}");
        }
    }
}
