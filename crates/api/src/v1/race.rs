//! One exec in several forks at once, on a WebSocket: the VM continues as the winner.
//!
//! ```text
//! client                                         server
//!   text  RaceRequest                         ->            first frame
//!                                             <-  text  {"event":"started","racer":1,"name":..}*
//!                                             <-  binary 1 stdout | 2 stderr, racer (2 bytes, big-endian), data
//!                                             <-  text  {"event":"lost"|"finished"|"gave-up"|"scored",..}
//!                                             <-  text  {"event":"ended"|"failed",..}, then close
//! ```
//! A socket that closes before `ended` ends the race: the racers go, the VM stays as it was.

use super::{
    ErrorBody, ExecRequest, ExitStatus, InvalidField, InvalidFrame, Problem, Stream, exec::CommandLine,
    schema,
};
use bytes::{BufMut, Bytes, BytesMut};
use offshoot_types::{ExecArgv, ExecSpec, Generation, SnapshotId, VmName};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Most racers of one race.
pub const MAX_RACERS: u32 = 64;

/// First text frame.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RaceRequest {
    /// How many forks run it, 1 to 64.
    pub count: u32,
    /// What each runs. `stdin` and `pty` are refused: there is one caller and many processes.
    pub exec: ExecRequest,
    /// Run in each fork whose command exited with 0; prints a number, and the highest wins. Without it the first
    /// success wins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<CommandLine>,
}

/// A checked [`RaceRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRace {
    pub count: u32,
    pub exec: ExecSpec,
    pub score: Option<ExecArgv>,
}

impl TryFrom<RaceRequest> for NewRace {
    type Error = InvalidField;
    fn try_from(wire: RaceRequest) -> Result<Self, InvalidField> {
        if !(1..=MAX_RACERS).contains(&wire.count) {
            let problem = format!("{} is not between 1 and {MAX_RACERS}", wire.count);
            return Err(InvalidField::new("count", problem));
        }
        for (field, set) in [("exec.stdin", wire.exec.stdin), ("exec.pty", wire.exec.pty.is_some())] {
            if set {
                return Err(InvalidField::new(field, "racers have neither input nor terminal"));
            }
        }
        Ok(Self {
            count: wire.count,
            exec: ExecSpec::try_from(wire.exec).map_err(|error| error.within("exec"))?,
            score: wire
                .score
                .map(|score| score.try_into().map_err(|error: InvalidField| error.within("score")))
                .transpose()?,
        })
    }
}

/// Text frames from the server. Racers are counted from 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum RaceMessage {
    /// The fork runs.
    Started {
        racer: u32,
        #[schema(value_type = String)]
        name: VmName,
    },
    /// Output that was overwritten before anyone read it.
    Lost {
        racer: u32,
        stream: Stream,
        bytes: u64,
    },
    /// Its command is over, all output was sent.
    Finished {
        racer: u32,
        status: ExitStatus,
        /// Output beyond the limit was dropped.
        truncated: bool,
    },
    /// Its command did not run, or how it ended cannot be known; the others go on.
    GaveUp {
        racer: u32,
        problem: Problem,
    },
    Scored {
        racer: u32,
        score: f64,
    },
    /// The last message.
    Ended(RaceOutcome),
    /// The last message: there was no race, and the VM is as it was.
    Failed {
        error: ErrorBody,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RaceOutcome {
    /// Absent if no racer succeeded: the VM is then as it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub winner: Option<u32>,
    /// Of those that were scored.
    pub scores: Vec<RacerScore>,
    /// What the VM was before: `undo` goes back to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schema::uuid)]
    pub undo: Option<SnapshotId>,
    /// Of the VM now.
    #[schema(value_type = u64)]
    pub generation: Generation,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RacerScore {
    pub racer: u32,
    pub score: f64,
}

const STDOUT: u8 = 1;
const STDERR: u8 = 2;

/// `racer` is at most [`MAX_RACERS`], so that it fits its two bytes.
pub fn encode_race_output(racer: u32, stream: Stream, data: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(data.len() + 3);
    frame.put_u8(if stream == Stream::Stdout { STDOUT } else { STDERR });
    frame.put_u16(u16::try_from(racer).unwrap_or(u16::MAX));
    frame.put_slice(data);
    frame.freeze()
}

/// What a server's binary frame carries.
pub fn decode_race_output(frame: Bytes) -> Result<(u32, Stream, Bytes), InvalidFrame> {
    match *frame {
        [first @ (STDOUT | STDERR), high, low, ..] => {
            let stream = if first == STDOUT { Stream::Stdout } else { Stream::Stderr };
            Ok((u16::from_be_bytes([high, low]).into(), stream, frame.slice(3..)))
        }
        _ => Err(InvalidFrame { found: frame.first().copied() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(count: u32) -> RaceRequest {
        let exec = ExecRequest { shell: Some("true".into()), ..ExecRequest::default() };
        RaceRequest { count, exec, score: None }
    }

    #[test]
    fn every_bad_field_is_named_with_its_path() {
        assert_eq!(NewRace::try_from(request(4)).unwrap().count, 4);
        let refused = |wire: RaceRequest| NewRace::try_from(wire).unwrap_err().field;
        assert_eq!(refused(request(0)), "count");
        assert_eq!(refused(request(MAX_RACERS + 1)), "count");
        let exec = ExecRequest { stdin: true, ..request(1).exec };
        assert_eq!(refused(RaceRequest { exec, ..request(1) }), "exec.stdin");
        let score = Some(CommandLine::default());
        assert_eq!(refused(RaceRequest { score, ..request(1) }), "score.argv");
    }

    #[test]
    fn output_names_its_racer_and_short_frames_are_refused() {
        let (racer, stream, data) = decode_race_output(encode_race_output(64, Stream::Stderr, b"x")).unwrap();
        assert_eq!((racer, stream, &data[..]), (64, Stream::Stderr, &b"x"[..]));
        for wrong in [&b""[..], b"\x01", b"\x01\x00", b"\x03\x00\x01x"] {
            assert!(decode_race_output(Bytes::copy_from_slice(wrong)).is_err(), "{wrong:?}");
        }
    }
}
