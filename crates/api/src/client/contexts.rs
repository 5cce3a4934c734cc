//! Live contexts: run code, list, restart, remove.

use super::{
    Client, ClientError,
    conversation::{Frame, Hearing, Speaking},
};
use crate::v1::{CodeInput, CodeMessage, CodeRequest, ContextList, Stream, decode_output};
use bytes::Bytes;
use http::Method;
use offshoot_types::{ContextName, Language, VmRef};
use std::collections::BTreeMap;

/// What happens to a piece of code. A failure is an `Err` of [`CodeEvents::next`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CodeEvent {
    Started {
        language: Language,
        pid: u32,
        created: bool,
        count: u32,
    },
    /// Shown on its way.
    Display {
        mime: BTreeMap<String, String>,
        id: Option<String>,
        update: bool,
    },
    Output(Stream, Bytes),
    Value {
        mime: BTreeMap<String, String>,
    },
    Error {
        name: String,
        message: String,
        traceback: String,
    },
    /// The last event.
    Ended {
        interrupted: bool,
        wall_us: u64,
    },
}

/// Both directions of one piece of code; dropping it interrupts the code.
#[derive(Debug)]
pub struct CodeConnection {
    pub input: CodeControl,
    pub events: CodeEvents,
}

#[derive(Debug)]
pub struct CodeControl(Speaking);

impl CodeControl {
    /// As Ctrl-C would; the interpreter keeps its variables.
    pub async fn interrupt(&mut self) -> Result<(), ClientError> {
        self.0.say(&CodeInput::Interrupt).await
    }
}

#[derive(Debug)]
pub struct CodeEvents(Hearing);

impl CodeEvents {
    /// The next event; `None` once all is over. Cancel-safe. An error is final.
    pub async fn next(&mut self) -> Result<Option<CodeEvent>, ClientError> {
        let message = match self.0.next().await? {
            None => return Ok(None),
            Some(Frame::Bytes(frame)) => {
                let (stream, data) = self.0.decode(decode_output(frame))?;
                return Ok(Some(CodeEvent::Output(stream, data)));
            }
            Some(Frame::Message(message)) => message,
        };
        Ok(Some(match message {
            CodeMessage::Started { language, pid, created, count } => {
                CodeEvent::Started { language, pid, created, count }
            }
            CodeMessage::Display { mime, id, update } => CodeEvent::Display { mime, id, update },
            CodeMessage::Value { mime } => CodeEvent::Value { mime },
            CodeMessage::Error { name, message, traceback } => CodeEvent::Error { name, message, traceback },
            CodeMessage::Ended { interrupted, wall_us } => {
                self.0.told();
                CodeEvent::Ended { interrupted, wall_us }
            }
            CodeMessage::Failed { error } => return Err(self.0.failed(error)),
        }))
    }
}

impl Client {
    /// Runs code in a live context, which is made on first use.
    pub async fn run_code(&self, vm: &VmRef, request: &CodeRequest) -> Result<CodeConnection, ClientError> {
        let path = format!("/v1/vms/{vm}/code");
        let (input, events) = self.converse("context", &path, Some(request)).await?;
        Ok(CodeConnection { input: CodeControl(input), events: CodeEvents(events) })
    }

    pub async fn contexts(&self, vm: &VmRef) -> Result<ContextList, ClientError> {
        self.get(&format!("/v1/vms/{vm}/contexts")).await
    }

    pub async fn remove_context(&self, vm: &VmRef, context: &ContextName) -> Result<(), ClientError> {
        let path = format!("/v1/vms/{vm}/contexts/{context}");
        self.empty(Method::DELETE, &path, None::<&()>).await
    }

    /// Ends the interpreter and begins it anew, without its variables.
    pub async fn restart_context(&self, vm: &VmRef, context: &ContextName) -> Result<(), ClientError> {
        let path = format!("/v1/vms/{vm}/contexts/{context}/restart");
        self.empty(Method::POST, &path, None::<&()>).await
    }
}
