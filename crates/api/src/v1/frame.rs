//! The exec protocol on a WebSocket.
//!
//! ```text
//! client                                         server
//!   text  request (ExecRequest | RunRequest)  ->            first frame; not on attach
//!                                             <-  text  {"event":"progress",..}*     /v1/run only
//!                                             <-  text  {"event":"started",..}
//!   binary 0 stdin.. | text ClientMessage     <-> binary 1 stdout.. | 2 stderr.. | text {"event":"lost",..}
//!                                             <-  text  {"event":"ended"|"detached"|"failed",..}, then close
//! ```
//! One byte in front of binary data names the stream, so bulk data is never wrapped in JSON.

use super::{ErrorBody, ExitStatus, InvalidField, PtySize, Stream, exec::check_signal, schema};
use bytes::{BufMut, Bytes, BytesMut};
use offshoot_types::{ExecId, IsolationClass, OperationId, ProviderKind, VmId, VmName};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;

/// A binary frame that names no stream, or the wrong one for its direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a binary frame starts with {found:?}, which names no stream of this direction")]
pub struct InvalidFrame {
    pub found: Option<u8>,
}

/// Text frames from the client, after the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ClientMessage {
    /// No more stdin.
    StdinEnd,
    /// New size of the pseudo-terminal.
    Resize { rows: u16, cols: u16 },
    /// To the foreground process group.
    Signal { signal: i32 },
    /// SIGKILL to the whole process tree.
    Kill,
    /// Let the process run on without us; otherwise it is killed when the socket closes. Not on `/v1/run`.
    Detach,
}

impl ClientMessage {
    /// Refuses sizes and signals that cannot exist.
    pub fn check(self) -> Result<Self, InvalidField> {
        match self {
            Self::Resize { rows, cols } => PtySize { rows, cols }.check().map(|_| self),
            Self::Signal { signal } => check_signal(signal).map(|()| self),
            Self::StdinEnd | Self::Kill | Self::Detach => Ok(self),
        }
    }
}

/// Text frames from the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum ServerMessage {
    Progress(StepProgress),
    Started(Started),
    Lost(Lost),
    /// The last message: this side gave the process up, or another caller attached to it; it runs on.
    Detached,
    /// The process and its tree are gone, all output was sent. On `/v1/run` the socket closes once the VM is
    /// gone too, or a `failed` follows; else it closes at once.
    Ended(Ended),
    /// The last message: it did not run, or can no longer be followed.
    Failed {
        error: ErrorBody,
    },
}

/// One step towards the process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StepProgress {
    /// `create`, `boot`, ...
    pub step: String,
    pub state: ProgressState,
    /// Once done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ProgressState {
    Begun,
    Done,
}

/// The process runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Started {
    #[schema(schema_with = schema::uuid)]
    pub vm: VmId,
    #[schema(value_type = String)]
    pub vm_name: VmName,
    #[schema(schema_with = schema::uuid)]
    pub exec: ExecId,
    #[schema(schema_with = schema::uuid)]
    pub operation: OperationId,
    /// Inside the guest.
    pub pid: u32,
    #[schema(schema_with = schema::provider)]
    pub provider: ProviderKind,
    #[schema(schema_with = schema::isolation)]
    pub isolation: IsolationClass,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_kernel: Option<String>,
}

/// Output that was overwritten before anyone read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Lost {
    pub stream: Stream,
    /// The next data of this stream begins here.
    pub bytes: u64,
}

/// The process has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Ended {
    pub status: ExitStatus,
    /// Output beyond the limit was dropped.
    pub truncated: bool,
    pub durations: Durations,
    #[schema(schema_with = schema::provider)]
    pub provider: ProviderKind,
    #[schema(schema_with = schema::isolation)]
    pub isolation: IsolationClass,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_kernel: Option<String>,
}

/// How long things took, as the daemon saw it; `guest_*` as measured inside the guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Durations {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub create_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_ms: Option<u64>,
    /// From asking the guest to the end of the process.
    pub exec_ms: u64,
    /// From before fork to the reaping of the process.
    pub guest_wall_us: u64,
    pub guest_user_us: u64,
    pub guest_system_us: u64,
}

pub fn encode_stdin(data: &[u8]) -> Bytes {
    prefixed(STDIN, data)
}

pub fn encode_output(stream: Stream, data: &[u8]) -> Bytes {
    prefixed(if stream == Stream::Stdout { STDOUT } else { STDERR }, data)
}

fn prefixed(first: u8, data: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(data.len() + 1);
    frame.put_u8(first);
    frame.put_slice(data);
    frame.freeze()
}

/// What a client's binary frame carries.
pub fn decode_stdin(frame: Bytes) -> Result<Bytes, InvalidFrame> {
    match frame.first() {
        Some(&STDIN) => Ok(frame.slice(1..)),
        found => Err(InvalidFrame { found: found.copied() }),
    }
}

/// What a server's binary frame carries.
pub fn decode_output(frame: Bytes) -> Result<(Stream, Bytes), InvalidFrame> {
    match frame.first() {
        Some(&STDOUT) => Ok((Stream::Stdout, frame.slice(1..))),
        Some(&STDERR) => Ok((Stream::Stderr, frame.slice(1..))),
        found => Err(InvalidFrame { found: found.copied() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_frames_have_the_documented_form() {
        let text = |message: &ClientMessage| serde_json::to_string(message).unwrap();
        assert_eq!(text(&ClientMessage::StdinEnd), r#"{"type":"stdin-end"}"#);
        assert_eq!(
            text(&ClientMessage::Resize { rows: 2, cols: 3 }),
            r#"{"type":"resize","rows":2,"cols":3}"#
        );
        assert_eq!(text(&ClientMessage::Signal { signal: 15 }), r#"{"type":"signal","signal":15}"#);
        assert!(ClientMessage::Signal { signal: 65 }.check().is_err());
        let lost = ServerMessage::Lost(Lost { stream: Stream::Stderr, bytes: 7 });
        assert_eq!(serde_json::to_string(&lost).unwrap(), r#"{"event":"lost","stream":"stderr","bytes":7}"#);
    }

    #[test]
    fn binary_frames_name_their_stream_and_the_wrong_direction_is_refused() {
        let (stream, data) = decode_output(encode_output(Stream::Stderr, b"x")).unwrap();
        assert_eq!((stream, &data[..]), (Stream::Stderr, &b"x"[..]));
        assert_eq!(&decode_stdin(encode_stdin(b"in")).unwrap()[..], b"in");
        assert_eq!(decode_output(encode_stdin(b"in")), Err(InvalidFrame { found: Some(0) }));
        assert_eq!(decode_stdin(Bytes::new()), Err(InvalidFrame { found: None }));
    }
}
