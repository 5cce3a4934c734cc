//! Running one piece of code in a VM.
//!
//! ```text
//! python, javascript, bash --> live.rs: the agent's interpreter of that language, which keeps its variables
//!      '-- fresh ----------.
//! go, rust ----------------+-> process.rs: into a file of a new directory --> (compiled) --> a process of its own
//! ```
//! Code is never part of a command line. Nothing here is tried twice: what has begun has begun.

mod live;
mod output;
mod process;
mod requirements;

use super::{
    Asker,
    settings::{TIMEOUT, scaled},
};
use jiff::Timestamp;
use offshoot_api::v1::Vm;
use offshoot_code::Language;
use offshoot_types::Failure;
pub use output::Outputs;
pub use requirements::check as check_requirements;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// The status of what was ended for its time, as a shell has it.
const TIMED_OUT: i32 = 124;
/// Of what was cancelled: as if by Ctrl-C.
const CANCELLED: i32 = 130;

/// What is to run.
#[derive(Debug, Clone)]
pub struct Piece {
    /// Whose interpreter it runs in.
    pub agent: String,
    pub language: Language,
    pub code: String,
    pub working_dir: Option<String>,
    /// `None`: as long as code of its language has in its VM.
    pub timeout: Option<Duration>,
    pub fresh: bool,
}

/// What became of it.
#[derive(Debug)]
pub struct Ran {
    /// The operation that it was, by which it is found in the VM's history.
    pub execution: String,
    pub exit_code: i32,
    pub outputs: Outputs,
    /// Of the last expression.
    pub value: Option<String>,
    /// Why it ended, if not by itself.
    pub error: Option<String>,
    pub started: Timestamp,
    pub took: Duration,
}

impl Ran {
    pub fn success(&self) -> bool {
        self.exit_code == 0 && self.error.is_none()
    }
}

/// Where a piece of code runs, who hears of it, and what ends it.
#[derive(Debug, Clone, Copy)]
pub struct Site<'a> {
    pub asker: &'a Asker,
    pub vm: &'a Vm,
    pub listener: &'a Listener,
    pub cancel: &'a CancellationToken,
}

/// Whoever follows what is done, if anybody does.
#[derive(Debug, Clone, Default)]
pub struct Listener {
    pub sender: Option<mpsc::Sender<Said>>,
    /// Which of several blocks it is about.
    pub block: Option<usize>,
}

/// One thing that happened.
#[derive(Debug)]
pub struct Said {
    pub kind: &'static str,
    pub data: Value,
}

impl Listener {
    /// Waits while whoever listens is slower; one that is gone is not waited for.
    pub async fn say(&self, kind: &'static str, mut data: Value) {
        let Some(sender) = &self.sender else { return };
        if let (Some(block), Some(fields)) = (self.block, data.as_object_mut()) {
            fields.insert("block_index".into(), json!(block));
        }
        let _gone = sender.send(Said { kind, data }).await;
    }

    async fn output(&self, stream: &'static str, text: String) {
        if self.sender.is_some() && !text.is_empty() {
            self.say("execution_output", json!({ "stream": stream, "output": text })).await;
        }
    }
}

impl Piece {
    /// How long it may run.
    pub fn limit(&self, vm: &Vm) -> Duration {
        self.timeout.unwrap_or_else(|| scaled(TIMEOUT, self.language, vm))
    }

    /// How long all of it may take, its compilation too.
    pub fn at_most(&self, vm: &Vm) -> Duration {
        let compile = match self.language.interpreted() {
            Some(_) => Duration::ZERO,
            None => scaled(TIMEOUT, self.language, vm),
        };
        compile + self.limit(vm)
    }

    /// Runs it. An error says that it did not run, or that what became of it cannot be told.
    pub async fn run(&self, site: Site<'_>) -> Result<Ran, Failure> {
        match self.language.interpreted() {
            Some(language) if !self.fresh => live::run(self, language, site).await,
            _ => process::run(self, site).await,
        }
    }
}

/// Why something ended that did not end by itself.
fn overtime(limit: Duration) -> (i32, String) {
    (TIMED_OUT, format!("timed out after {} ms", limit.as_millis()))
}

fn cancelled() -> (i32, String) {
    (CANCELLED, "it was cancelled".to_owned())
}
