//! One exec as a transaction, on a WebSocket.
//!
//! ```text
//! client                                         server
//!   text  TryRequest                          ->            first frame
//!                                             <-  text  {"event":"begun",..}
//!                                             <-  text  {"event":"started","part":"command",..}
//!   binary 0 stdin.. | text TryInput          <-> binary 1 stdout.. | 2 stderr.. | text {"event":"lost",..}
//!                                             <-  text  {"event":"part-ended","part":"command",..}
//!                                             <-  the same for part "check": binary 3 stdout.. | 4 stderr..
//!                                             <-  text  {"event":"ended"|"failed",..}, then close
//! ```
//! A socket that closes before `ended` rolls the transaction back.

use super::{
    ErrorBody, ExecRequest, ExitStatus, InvalidField, InvalidFrame, Problem, Stream, TransactionEnd,
    exec::{CommandLine, check_signal},
    schema,
};
use bytes::{BufMut, Bytes, BytesMut};
use offshoot_types::{ExecSpec, SnapshotId, TransactionId, TrySpec};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use utoipa::ToSchema;

/// First text frame: what to run, and when it counts as having worked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TryRequest {
    /// The command. `pty` and `limits.timeout_ms` are refused: a terminal cannot be undone, and the time limit is
    /// that of command and check together.
    pub exec: ExecRequest,
    /// Run after a command that exited with 0, as the same user in the same place; must exit with 0 too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<CommandLine>,
    /// Of command and check together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

impl TryFrom<TryRequest> for TrySpec {
    type Error = InvalidField;
    fn try_from(wire: TryRequest) -> Result<Self, InvalidField> {
        if wire.exec.pty.is_some() {
            return Err(InvalidField::new("exec.pty", "a transaction has no terminal"));
        }
        if wire.exec.limits.timeout_ms.is_some() {
            return Err(InvalidField::new("exec.limits.timeout_ms", "use `timeout_ms` of the request"));
        }
        if wire.timeout_ms == Some(0) {
            return Err(InvalidField::new("timeout_ms", "0 allows nothing at all; leave it out"));
        }
        Ok(Self {
            exec: ExecSpec::try_from(wire.exec).map_err(|error| error.within("exec"))?,
            check: wire
                .check
                .map(|check| check.try_into().map_err(|error: InvalidField| error.within("check")))
                .transpose()?,
            timeout: wire.timeout_ms.map(Duration::from_millis),
        })
    }
}

/// Text frames from the client, after the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
pub enum TryInput {
    /// No more stdin.
    StdinEnd,
    /// To the command's foreground process group.
    Signal { signal: i32 },
    /// SIGKILL to the command's whole process tree.
    Kill,
    /// Give up: roll back, then say so with `ended`.
    RollBack,
}

impl TryInput {
    /// Refuses signals that cannot exist.
    pub fn check(self) -> Result<Self, InvalidField> {
        match self {
            Self::Signal { signal } => check_signal(signal).map(|()| self),
            Self::StdinEnd | Self::Kill | Self::RollBack => Ok(self),
        }
    }
}

/// Which of the two processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TryPart {
    Command,
    Check,
}

/// Text frames from the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum TryMessage {
    /// The snapshot is there: whatever happens now can be undone.
    Begun {
        #[schema(schema_with = schema::uuid)]
        transaction: TransactionId,
        #[schema(schema_with = schema::uuid)]
        snapshot: SnapshotId,
    },
    Started {
        part: TryPart,
        /// Inside the guest.
        pid: u32,
    },
    /// Output that was overwritten before anyone read it.
    Lost { part: TryPart, stream: Stream, bytes: u64 },
    /// The process and its tree are gone, all output was sent.
    PartEnded {
        part: TryPart,
        status: ExitStatus,
        /// Output beyond the limit was dropped.
        truncated: bool,
    },
    /// The process did not run, or how it ended cannot be known.
    PartFailed { part: TryPart, problem: Problem },
    /// The last message: kept, or undone and why.
    Ended(TryOutcome),
    /// The last message: it did not begin, or what became of it can no longer be told.
    Failed { error: ErrorBody },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TryOutcome {
    #[schema(schema_with = schema::uuid)]
    pub transaction: TransactionId,
    pub end: TransactionEnd,
    /// How the command ended; absent if it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<ExitStatus>,
}

const BYTES: [(u8, TryPart, Stream); 4] = [
    (1, TryPart::Command, Stream::Stdout),
    (2, TryPart::Command, Stream::Stderr),
    (3, TryPart::Check, Stream::Stdout),
    (4, TryPart::Check, Stream::Stderr),
];

pub fn encode_try_output(part: TryPart, stream: Stream, data: &[u8]) -> Bytes {
    let first = BYTES.iter().find(|(_, p, s)| (*p, *s) == (part, stream)).map_or(1, |(byte, ..)| *byte);
    let mut frame = BytesMut::with_capacity(data.len() + 1);
    frame.put_u8(first);
    frame.put_slice(data);
    frame.freeze()
}

/// What a server's binary frame carries.
pub fn decode_try_output(frame: Bytes) -> Result<(TryPart, Stream, Bytes), InvalidFrame> {
    let found = frame.first().copied();
    let (_, part, stream) =
        BYTES.iter().find(|(byte, ..)| Some(*byte) == found).ok_or(InvalidFrame { found })?;
    Ok((*part, *stream, frame.slice(1..)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::{ExecLimits, PtySize};
    use offshoot_types::ExecArgv;

    fn shell(script: &str) -> ExecRequest {
        ExecRequest { shell: Some(script.into()), ..ExecRequest::default() }
    }

    #[test]
    fn every_bad_field_is_named_with_its_path() {
        let good = TryRequest { exec: shell("true"), ..TryRequest::default() };
        let check = Some(CommandLine { shell: Some("exit 3".into()), argv: None });
        let spec = TrySpec::try_from(TryRequest { check, ..good.clone() }).unwrap();
        assert_eq!(spec.check, Some(ExecArgv::Shell("exit 3".into())));
        let refused = |wire: TryRequest| TrySpec::try_from(wire).unwrap_err().field;
        assert_eq!(refused(TryRequest::default()), "exec.argv");
        let check = Some(CommandLine::default());
        assert_eq!(refused(TryRequest { check, ..good.clone() }), "check.argv");
        assert_eq!(refused(TryRequest { timeout_ms: Some(0), ..good }), "timeout_ms");
        let exec = ExecRequest { pty: Some(PtySize { rows: 1, cols: 1 }), ..shell("true") };
        assert_eq!(refused(TryRequest { exec, ..TryRequest::default() }), "exec.pty");
        let limits = ExecLimits { timeout_ms: Some(1), ..ExecLimits::default() };
        let exec = ExecRequest { limits, ..shell("true") };
        assert_eq!(refused(TryRequest { exec, ..TryRequest::default() }), "exec.limits.timeout_ms");
    }

    #[test]
    fn output_of_command_and_check_are_told_apart() {
        for (_, part, stream) in BYTES {
            let (p, s, data) = decode_try_output(encode_try_output(part, stream, b"x")).unwrap();
            assert_eq!((p, s, &data[..]), (part, stream, &b"x"[..]));
        }
        assert_eq!(decode_try_output(Bytes::from_static(&[0, 1])), Err(InvalidFrame { found: Some(0) }));
        assert_eq!(decode_try_output(Bytes::new()), Err(InvalidFrame { found: None }));
    }

    #[test]
    fn text_frames_have_the_documented_form() {
        assert_eq!(serde_json::to_string(&TryInput::RollBack).unwrap(), r#"{"type":"roll-back"}"#);
        let status = ExitStatus::Exited { code: 0 };
        let ended = TryMessage::PartEnded { part: TryPart::Check, status, truncated: false };
        assert_eq!(
            serde_json::to_value(&ended).unwrap(),
            serde_json::json!({
                "event": "part-ended", "part": "check",
                "status": {"kind": "exited", "code": 0}, "truncated": false
            })
        );
        assert!(TryInput::Signal { signal: 0 }.check().is_err());
    }
}
