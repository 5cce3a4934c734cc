//! `try` and `race`, as typed events.

use super::{
    Client, ClientError, ExecInput,
    conversation::{Frame, Hearing},
};
use crate::v1::{
    ExitStatus, Problem, RaceMessage, RaceOutcome, RaceRequest, Stream, TryMessage, TryOutcome, TryPart,
    TryRequest, decode_race_output, decode_try_output,
};
use bytes::Bytes;
use offshoot_types::{SnapshotId, TransactionId, VmName, VmRef};

/// What happens in a transaction of one command. A failure is an `Err` of [`TryEvents::next`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TryEvent {
    /// The snapshot is there: whatever happens now can be undone.
    Begun {
        transaction: TransactionId,
        snapshot: SnapshotId,
    },
    Started {
        part: TryPart,
        pid: u32,
    },
    Output {
        part: TryPart,
        stream: Stream,
        data: Bytes,
    },
    Lost {
        part: TryPart,
        stream: Stream,
        bytes: u64,
    },
    PartEnded {
        part: TryPart,
        status: ExitStatus,
        truncated: bool,
    },
    PartFailed {
        part: TryPart,
        problem: Problem,
    },
    /// The last event: kept, or undone and why.
    Ended(TryOutcome),
}

/// Both directions of one `try`; dropping it rolls back. Its input is the command's, without terminal or detaching.
#[derive(Debug)]
pub struct TryConnection {
    pub input: ExecInput,
    pub events: TryEvents,
}

#[derive(Debug)]
pub struct TryEvents(Hearing);

impl TryEvents {
    /// The next event; `None` once all is over. Cancel-safe. An error is final.
    pub async fn next(&mut self) -> Result<Option<TryEvent>, ClientError> {
        let message = match self.0.next().await? {
            None => return Ok(None),
            Some(Frame::Bytes(frame)) => {
                let (part, stream, data) = self.0.decode(decode_try_output(frame))?;
                return Ok(Some(TryEvent::Output { part, stream, data }));
            }
            Some(Frame::Message(message)) => message,
        };
        Ok(Some(match message {
            TryMessage::Begun { transaction, snapshot } => TryEvent::Begun { transaction, snapshot },
            TryMessage::Started { part, pid } => TryEvent::Started { part, pid },
            TryMessage::Lost { part, stream, bytes } => TryEvent::Lost { part, stream, bytes },
            TryMessage::PartEnded { part, status, truncated } => {
                TryEvent::PartEnded { part, status, truncated }
            }
            TryMessage::PartFailed { part, problem } => TryEvent::PartFailed { part, problem },
            TryMessage::Ended(outcome) => {
                self.0.told();
                TryEvent::Ended(outcome)
            }
            TryMessage::Failed { error } => return Err(self.0.failed(error)),
        }))
    }
}

/// What happens in a race. A failure is an `Err` of [`RaceEvents::next`].
#[derive(Debug, Clone, PartialEq)]
pub enum RaceEvent {
    Started {
        racer: u32,
        name: VmName,
    },
    Output {
        racer: u32,
        stream: Stream,
        data: Bytes,
    },
    Lost {
        racer: u32,
        stream: Stream,
        bytes: u64,
    },
    Finished {
        racer: u32,
        status: ExitStatus,
        truncated: bool,
    },
    GaveUp {
        racer: u32,
        problem: Problem,
    },
    Scored {
        racer: u32,
        score: f64,
    },
    /// The last event.
    Ended(RaceOutcome),
}

/// One race; dropping it ends the race and leaves the VM as it was.
#[derive(Debug)]
pub struct RaceEvents(Hearing);

impl RaceEvents {
    /// The next event; `None` once all is over. Cancel-safe. An error is final.
    pub async fn next(&mut self) -> Result<Option<RaceEvent>, ClientError> {
        let message = match self.0.next().await? {
            None => return Ok(None),
            Some(Frame::Bytes(frame)) => {
                let (racer, stream, data) = self.0.decode(decode_race_output(frame))?;
                return Ok(Some(RaceEvent::Output { racer, stream, data }));
            }
            Some(Frame::Message(message)) => message,
        };
        Ok(Some(match message {
            RaceMessage::Started { racer, name } => RaceEvent::Started { racer, name },
            RaceMessage::Lost { racer, stream, bytes } => RaceEvent::Lost { racer, stream, bytes },
            RaceMessage::Finished { racer, status, truncated } => {
                RaceEvent::Finished { racer, status, truncated }
            }
            RaceMessage::GaveUp { racer, problem } => RaceEvent::GaveUp { racer, problem },
            RaceMessage::Scored { racer, score } => RaceEvent::Scored { racer, score },
            RaceMessage::Ended(outcome) => {
                self.0.told();
                RaceEvent::Ended(outcome)
            }
            RaceMessage::Failed { error } => return Err(self.0.failed(error)),
        }))
    }
}

impl Client {
    /// Runs a command as a transaction: kept if it and its check succeed, undone otherwise.
    pub async fn try_exec(&self, vm: &VmRef, request: &TryRequest) -> Result<TryConnection, ClientError> {
        let (input, events) = self.converse("try", &format!("/v1/vms/{vm}/try"), Some(request)).await?;
        Ok(TryConnection { input: ExecInput(input), events: TryEvents(events) })
    }

    /// Runs a command in several forks; the VM continues as the winner.
    pub async fn race(&self, vm: &VmRef, request: &RaceRequest) -> Result<RaceEvents, ClientError> {
        let (speaking, events) = self.converse("race", &format!("/v1/vms/{vm}/race"), Some(request)).await?;
        // Nothing more is said in a race; the socket stays open with the other half.
        drop(speaking);
        Ok(RaceEvents(events))
    }
}
