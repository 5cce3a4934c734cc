//! The history: what was run in VMs, what it said, and which state it can be run again in.
//!
//! ```text
//!  exec, code --Capture--> both ends of each stream: in the record, written with the outcome
//!       |          '-----> all of a stream that is longer: <state>/history/<id>.stdout, .stderr    (Spiller)
//!       '--------> row, written with the operation's beginning and completed with its end
//! ```
//! The record comes first: whatever becomes of the output, a full disk included, the row says that it was run, how it ended
//! and how much it said. Files are bounded, each and in all, and the oldest go first; a file goes with its row.

mod capture;
mod files;
mod replay;
mod view;

pub(crate) use capture::Capture;
pub use replay::{Rerun, RerunKind};
pub use view::{HistoryBytes, HistoryEntry};

use offshoot_store::{Keep, Retention};
use offshoot_types::{Bytes, ExecArgv};
use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};
use tokio::sync::Notify;

/// What the history keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryOptions {
    /// Most that the files with what programs said take, all together; `None`: of what they say nothing is kept, neither in
    /// files nor in the record, only how much it was.
    pub output: Option<Bytes>,
    /// Most of one stream that is kept in a file; the rest of it is cut.
    pub per_stream: Bytes,
    /// For how long, and how many, runs are told of.
    pub keep: Keep,
}

impl Default for HistoryOptions {
    fn default() -> Self {
        Self { output: Some(Bytes(1 << 30)), per_stream: Bytes(16 << 20), keep: Retention::default().history }
    }
}

/// How much is kept now.
#[derive(Debug)]
pub(crate) struct History {
    options: HistoryOptions,
    /// Bytes in files.
    kept: AtomicU64,
    /// Bytes that wait to be written.
    waiting: AtomicU64,
    full: Notify,
}

impl History {
    pub fn new(options: HistoryOptions) -> Self {
        Self { options, kept: AtomicU64::new(0), waiting: AtomicU64::new(0), full: Notify::new() }
    }

    /// Returns when files should go. Cancel-safe.
    pub async fn full(&self) {
        self.full.notified().await;
    }

    fn wrote(&self, bytes: u64) {
        let kept = self.kept.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if self.options.output.is_some_and(|most| kept > most.0) {
            self.full.notify_one();
        }
    }
}

/// A command as one line of a shell, to be read by people: what is run again is taken from the journal.
pub(crate) fn command_line(argv: &ExecArgv) -> String {
    let quoted = |word: &String| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_@%+=:,./-".contains(&byte);
        match !word.is_empty() && word.bytes().all(plain) {
            true => word.clone(),
            false => format!("'{}'", word.replace('\'', r"'\''")),
        }
    };
    match argv {
        ExecArgv::Argv(words) => words.iter().map(quoted).collect::<Vec<_>>().join(" "),
        ExecArgv::Shell(script) => script.clone(),
    }
}

/// What a value is as text, of the forms that an interpreter gives it in.
pub(crate) fn plain_text(mime: &BTreeMap<String, String>) -> Option<String> {
    mime.get("text/plain").cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_can_be_pasted_into_a_shell() {
        let line =
            |words: &[&str]| command_line(&ExecArgv::Argv(words.iter().map(ToString::to_string).collect()));
        assert_eq!(line(&["make", "-j2", "A=b"]), "make -j2 A=b");
        assert_eq!(line(&["sh", "-c", "it's; \"x\"", ""]), r#"sh -c 'it'\''s; "x"' ''"#);
        assert_eq!(command_line(&ExecArgv::Shell("a | b".into())), "a | b");
    }
}
