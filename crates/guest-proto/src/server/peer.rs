//! What the handlers of [`super::Services`] hold: the host at the other end of one stream.

use crate::{
    codec::{CodecError, MessageReader, MessageWriter},
    message::{
        CodeEvent, CodeFrame, CodeInput, ExecEnd, ExecEvent, ExecInput, FileChunk, GuestError, MAX_PART,
        OutputStream, Paged, Reply,
    },
    session::MuxStream,
    tunnel::Tunnel,
};
use serde::Serialize;
use tokio::io::{ReadHalf, WriteHalf};

pub(super) type Reader = MessageReader<ReadHalf<MuxStream>>;
pub(super) type Writer = MessageWriter<WriteHalf<MuxStream>>;

/// The host left, or said something that is no message: the stream is over.
#[derive(Debug, thiserror::Error)]
#[error("the host left the stream")]
pub struct Detached {
    #[source]
    source: Option<CodecError>,
}

impl From<CodecError> for Detached {
    fn from(source: CodecError) -> Self {
        Self { source: Some(source) }
    }
}

/// The host at the streams of a process.
#[derive(Debug)]
pub struct ExecPeer {
    inputs: ExecInputs,
    outputs: ExecOutputs,
}

impl ExecPeer {
    pub(super) fn new(reader: Reader, writer: Writer) -> Self {
        Self { inputs: ExecInputs { reader }, outputs: ExecOutputs { writer } }
    }

    pub fn split(self) -> (ExecInputs, ExecOutputs) {
        (self.inputs, self.outputs)
    }

    /// It never ran.
    pub async fn fail(mut self, error: GuestError) {
        // A host that left has no use for the error.
        let _left = self.outputs.send(&ExecEvent::Failed(error)).await;
    }
}

#[derive(Debug)]
pub struct ExecInputs {
    reader: Reader,
}

impl ExecInputs {
    /// What the host sends; an error once it has left. Cancel-safe.
    pub async fn next(&mut self) -> Result<ExecInput, Detached> {
        self.reader.recv().await?.ok_or(Detached { source: None })
    }
}

/// Each call waits while the host reads more slowly. Not cancel-safe: a call once begun is to be completed.
#[derive(Debug)]
pub struct ExecOutputs {
    writer: Writer,
}

impl ExecOutputs {
    pub async fn started(&mut self, pid: u32) -> Result<(), Detached> {
        self.send(&ExecEvent::Started { pid }).await
    }

    /// At most [`crate::message::CHUNK`] bytes, not empty; `offset` counts the bytes of this stream before them.
    pub async fn output(&mut self, stream: OutputStream, offset: u64, data: Vec<u8>) -> Result<(), Detached> {
        self.send(&ExecEvent::Output { stream, offset, data }).await
    }

    /// Bytes up to `next_offset` are gone.
    pub async fn lost(&mut self, stream: OutputStream, next_offset: u64) -> Result<(), Detached> {
        self.send(&ExecEvent::Lost { stream, next_offset }).await
    }

    pub async fn ended(mut self, end: ExecEnd) -> Result<(), Detached> {
        self.send(&ExecEvent::Ended(end)).await
    }

    pub async fn send(&mut self, event: &ExecEvent) -> Result<(), Detached> {
        Ok(self.writer.send(event).await?)
    }
}

/// The host that has handed over code.
#[derive(Debug)]
pub struct CodePeer {
    inputs: CodeInputs,
    outputs: CodeOutputs,
}

impl CodePeer {
    pub(super) fn new(reader: Reader, writer: Writer) -> Self {
        Self { inputs: CodeInputs { reader }, outputs: CodeOutputs { writer } }
    }

    pub fn split(self) -> (CodeInputs, CodeOutputs) {
        (self.inputs, self.outputs)
    }

    /// It never ran.
    pub async fn fail(mut self, error: GuestError) {
        // A host that left has no use for the error.
        let _left = self.outputs.send(CodeEvent::Failed(error)).await;
    }
}

#[derive(Debug)]
pub struct CodeInputs {
    reader: Reader,
}

impl CodeInputs {
    /// What the host sends; an error once it has left. Cancel-safe.
    pub async fn next(&mut self) -> Result<CodeInput, Detached> {
        self.reader.recv().await?.ok_or(Detached { source: None })
    }
}

#[derive(Debug)]
pub struct CodeOutputs {
    writer: Writer,
}

impl CodeOutputs {
    /// Waits while the host reads more slowly. Not cancel-safe: a call once begun is to be completed.
    pub async fn send(&mut self, event: CodeEvent) -> Result<(), Detached> {
        let mut event = event;
        if let CodeEvent::Display { mime, .. } | CodeEvent::Value { mime } = &mut event
            && mime.values().map(String::len).sum::<usize>() > MAX_PART
        {
            for (kind, text) in mime {
                let whole = std::mem::take(text);
                for part in parts(&whole) {
                    let (mime, text) = (kind.clone(), part.to_owned());
                    self.writer.send(&CodeFrame::Part { mime, text }).await?;
                }
            }
        }
        Ok(self.writer.send(&CodeFrame::Event(event)).await?)
    }
}

/// A text in pieces that fit a message.
fn parts(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let end = (0..=MAX_PART.min(rest.len())).rev().find(|&at| rest.is_char_boundary(at));
        let (part, after) = rest.split_at(end.unwrap_or_default());
        rest = after;
        (!part.is_empty()).then_some(part)
    })
}

/// The host at a file operation.
#[derive(Debug)]
pub struct FilePeer {
    reader: Reader,
    writer: Writer,
}

impl FilePeer {
    pub(super) fn new(reader: Reader, writer: Writer) -> Self {
        Self { reader, writer }
    }

    pub async fn refuse(mut self, error: GuestError) {
        // A host that left has no use for the error.
        let _left = self.reply::<()>(Err(error)).await;
    }

    /// `Reply<()>` or `Reply<FileStat>`, as the operation asks for.
    pub async fn reply<T: Serialize>(&mut self, result: Result<T, GuestError>) -> Result<(), Detached> {
        let reply = match result {
            Ok(value) => Reply::Ok(value),
            Err(error) => Reply::Err(error),
        };
        Ok(self.writer.send(&reply).await?)
    }

    /// [`FileChunk`]s, [`crate::message::ListItem`]s or [`crate::message::WatchEvent`]s. Not cancel-safe.
    pub async fn send<T: Serialize>(&mut self, item: &T) -> Result<(), Detached> {
        Ok(self.writer.send(item).await?)
    }

    /// The next chunk of a file being written; an error once the host has left: discard what came. Cancel-safe.
    pub async fn chunk(&mut self) -> Result<FileChunk, Detached> {
        self.reader.recv().await?.ok_or(Detached { source: None })
    }

    /// Returns once the host has left: the end of a watch. Cancel-safe.
    pub async fn left(&mut self) {
        // Anything the host says here it should not say; it is treated as having left.
        let _gone = self.reader.recv::<FileChunk>().await;
    }
}

/// The host that asks what the VM is made of.
#[derive(Debug)]
pub struct SurveyPeer {
    writer: Writer,
}

impl SurveyPeer {
    pub(super) fn new(writer: Writer) -> Self {
        Self { writer }
    }

    /// Pages follow.
    pub async fn accept(&mut self) -> Result<(), Detached> {
        Ok(self.writer.send(&Reply::Ok(())).await?)
    }

    pub async fn refuse(mut self, error: GuestError) {
        // A host that left has no use for the error.
        let _left = self.writer.send(&Reply::<()>::Err(error)).await;
    }

    /// Waits while the host reads more slowly. Not cancel-safe.
    pub async fn send<T: Serialize>(&mut self, page: &Paged<T>) -> Result<(), Detached> {
        Ok(self.writer.send(page).await?)
    }
}

/// The host at a TCP connection not yet made.
#[derive(Debug)]
pub struct TcpPeer {
    reader: Reader,
    writer: Writer,
}

impl TcpPeer {
    pub(super) fn new(reader: Reader, writer: Writer) -> Self {
        Self { reader, writer }
    }

    /// The connection stands: bytes flow.
    pub async fn accept(mut self) -> Result<Tunnel, Detached> {
        self.writer.send(&Reply::Ok(())).await?;
        let (read, ahead) = self.reader.into_parts();
        Ok(Tunnel::new(read.unsplit(self.writer.into_inner()), ahead))
    }

    pub async fn refuse(mut self, error: GuestError) {
        // A host that left has no use for the error.
        let _left = self.writer.send(&Reply::<()>::Err(error)).await;
    }
}
