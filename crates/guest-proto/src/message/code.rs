//! Live contexts: interpreters that keep their variables from one piece of code to the next.

use super::{GuestError, OutputStream};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Contexts of one VM at the same time.
pub const MAX_CONTEXTS: usize = 64;
/// Bytes of all representations of a value together: room for a picture of 3 MiB, whose base64 is 4. A longer text is
/// cut with a note; of other representations a note in the text says that they are left out.
pub const MAX_VALUE: usize = 4 * 1024 * 1024 + 256 * 1024;
/// Bytes of the texts of an error together. Longer ones are cut with a note.
pub const MAX_ERROR: usize = 384 * 1024;
/// Bytes of the representations in one message: see [`CodeFrame::Part`].
pub const MAX_PART: usize = 256 * 1024;
/// Bytes of the name under which something is shown and can be shown anew.
pub const MAX_DISPLAY_ID: usize = 128;
/// Media types a value may be represented in.
pub const MAX_REPRESENTATIONS: usize = 16;
/// Bytes of a [`RunCode`]'s environments together, names and values.
pub const MAX_ENVIRONMENT: usize = 64 * 1024;
/// The representation every value has.
pub const TEXT_PLAIN: &str = "text/plain";

/// [`CodeEvent::Error`] of bash code whose last command failed.
pub const EXIT_STATUS: &str = "ExitStatus";
/// [`CodeEvent::Error`] where the interpreter ended by itself: its variables are gone.
pub const INTERPRETER_DIED: &str = "InterpreterDied";
/// [`CodeEvent::Error`] where the interpreter did not yield to an interrupt and was killed: its variables are gone.
pub const INTERPRETER_KILLED: &str = "InterpreterKilled";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Language {
    Python,
    Javascript,
    Bash,
}

impl From<offshoot_types::Language> for Language {
    fn from(language: offshoot_types::Language) -> Self {
        match language {
            offshoot_types::Language::Python => Self::Python,
            offshoot_types::Language::Javascript => Self::Javascript,
            offshoot_types::Language::Bash => Self::Bash,
        }
    }
}

impl From<Language> for offshoot_types::Language {
    fn from(language: Language) -> Self {
        match language {
            Language::Python => Self::Python,
            Language::Javascript => Self::Javascript,
            Language::Bash => Self::Bash,
        }
    }
}

/// Whether a context may be called that; see [`offshoot_types::ContextName`].
pub fn is_context_name(name: &str) -> bool {
    name.parse::<offshoot_types::ContextName>().is_ok()
}

/// One piece of code. Code for a context that is busy waits its turn; none waits behind more than 16 others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunCode {
    /// Made on first use.
    pub context: String,
    /// `None`: that of the context, python for a new one. Another than the context's own is refused.
    pub language: Option<Language>,
    pub code: String,
    /// From when the code runs; then it is interrupted.
    pub timeout_ms: Option<u64>,
    /// Who a new context runs as. Another than the context's own is refused.
    pub user: String,
    /// Where a new context starts; the user's home by default.
    pub cwd: Option<String>,
    /// What a new context's interpreter finds in its environment, besides the user's own.
    pub context_env: BTreeMap<String, String>,
    /// What this code alone finds in its environment.
    pub env: BTreeMap<String, String>,
    /// The context must be there already.
    pub existing: bool,
}

/// What a message holds of the events of a piece of code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum CodeFrame {
    Event(CodeEvent),
    /// The next piece of a representation of the `Display` or `Value` that follows, which ends it. One that is larger
    /// than [`MAX_PART`] does not fit one message.
    Part {
        mime: String,
        text: String,
    },
}

/// ```text
/// Started --> (Output | Display)* --> (Value | Error)? --> Ended
///    '-- Failed: it never ran
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum CodeEvent {
    /// It is this code's turn.
    Started {
        language: Language,
        /// Of the interpreter.
        pid: u32,
        /// The interpreter was made for this code: there are no variables of earlier code.
        created: bool,
        /// How many pieces of code the interpreter was given, this one included.
        count: u32,
    },
    /// Not empty. All that was written before the code's end comes before `Value`, `Error` and `Ended`; what other
    /// threads and children write after it comes with the next code.
    Output {
        stream: OutputStream,
        #[serde(with = "serde_bytes")]
        data: Vec<u8>,
    },
    /// What the code shows on its way: figures, and what it says to display. As for `Value`.
    Display {
        mime: BTreeMap<String, String>,
        /// Names it, so that it can be shown anew.
        id: Option<String>,
        /// It takes the place of what was shown by that name.
        update: bool,
    },
    /// Of the last expression, unless that was nothing (`None`, `undefined`). By media type: `text/plain` always,
    /// others as the value offers them; what is binary in base64.
    Value { mime: BTreeMap<String, String> },
    /// It ended by an error.
    Error {
        name: String,
        message: String,
        /// As the interpreter shows it, without frames that are not the code's; may be empty.
        traceback: String,
    },
    /// The last event.
    Ended {
        /// By the timeout, by [`CodeInput::Interrupt`] or because the host left.
        interrupted: bool,
        /// Since `Started`, as measured in the guest.
        wall_us: u64,
    },
    /// The last event: it never ran.
    Failed(GuestError),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum CodeInput {
    /// As Ctrl-C would. An interpreter that does not yield within 2 s is killed. So is done when the stream closes.
    Interrupt,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContextInfo {
    pub context: String,
    pub language: Language,
    /// Of the interpreter; `None` where it has ended and none was made anew yet.
    pub pid: Option<u32>,
    pub busy: bool,
    pub user: String,
    /// Where it started.
    pub cwd: String,
    /// When the context was made, in milliseconds since 1970 by the guest's clock.
    pub created_ms: u64,
}
