//! The caller's end of one piece of code in a live interpreter.

use crate::{OutputStream, SessionClosed};
use bytes::Bytes;
use offshoot_types::{ContextName, Failure, Language, OperationId, VmId};
use std::{collections::BTreeMap, time::Duration};
use tokio::sync::mpsc;

#[derive(Debug, Clone, PartialEq)]
pub enum CodeEvent {
    Started {
        language: Language,
        pid: u32,
        /// The interpreter was made for this.
        created: bool,
        /// Pieces of code the interpreter was given, this one included.
        count: u32,
    },
    Output {
        stream: OutputStream,
        data: Bytes,
    },
    /// Shown by the code on its way, by media type; `text/plain` is always there.
    Display {
        mime: BTreeMap<String, String>,
        /// Names it, so that it can be shown anew.
        id: Option<String>,
        /// It takes the place of what was shown by that name.
        update: bool,
    },
    /// Of the last expression, by media type; `text/plain` is always there.
    Value {
        mime: BTreeMap<String, String>,
    },
    /// The code raised this; the interpreter lives on.
    Error {
        name: String,
        message: String,
        traceback: String,
    },
    /// The last event.
    Ended {
        interrupted: bool,
        wall: Duration,
    },
    /// The last event: the code did not run, or how it ended cannot be known.
    Failed(Failure),
}

/// Dropping it interrupts the code.
#[derive(Debug)]
pub struct CodeSession {
    pub vm: VmId,
    pub operation: OperationId,
    pub context: ContextName,
    pub(crate) interrupts: mpsc::Sender<()>,
    pub(crate) events: mpsc::Receiver<CodeEvent>,
}

impl CodeSession {
    /// `None` after the last event. Cancel-safe.
    pub async fn next(&mut self) -> Option<CodeEvent> {
        self.events.recv().await
    }
    /// As Ctrl-C would: the interpreter keeps its variables.
    pub async fn interrupt(&self) -> Result<(), SessionClosed> {
        self.interrupts.send(()).await.map_err(|_| SessionClosed)
    }
}
