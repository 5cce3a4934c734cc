//! A VM behind a keeper, as the engine sees it.

use super::{
    client::Client,
    figures::{Figures, Measured},
    files::{ExitRecord, Files, read_json},
    wire::{Call, Checkpoint as CheckpointCall, Checkpointed, RESTACK, Reply, Started},
};
use crate::{
    Checkpoint, CheckpointPlan, Diagnostics, Exit, GuestIo, Instance, InstanceError, InstanceRecord,
    StopReport, Usage, memory::Delta,
};
use async_trait::async_trait;
use offshoot_types::{Bytes, ProviderKind};
use std::{
    io,
    os::{fd::OwnedFd, unix::net::UnixStream as StdUnixStream},
    path::PathBuf,
    time::Duration,
};
use tokio::{net::UnixStream, sync::watch};

/// The keeper's own deadlines are shorter; this one is for a keeper that hangs.
const CALL: Duration = Duration::from_secs(15);
/// A copy of the largest memory, and every answer of the VMM late.
const CHECKPOINT: Duration = Duration::from_secs(120);
/// All rungs below the grace period, and a margin.
const LADDER: Duration = Duration::from_secs(25);

#[derive(Debug)]
pub(crate) struct KeptInstance {
    record: InstanceRecord,
    files: Files,
    client: Client,
    figures: Figures,
}

impl KeptInstance {
    pub fn new(record: InstanceRecord, client: Client) -> Self {
        Self { files: Files::of(&record), record, client, figures: Figures::default() }
    }

    async fn call(
        &self,
        operation: &'static str,
        call: Call,
        limit: Duration,
    ) -> Result<(Reply, Option<OwnedFd>), InstanceError> {
        let answer = tokio::time::timeout(limit, self.client.call(call)).await;
        let (reply, file) = match answer {
            Ok(Some(answer)) => answer,
            Ok(None) => {
                let lost =
                    io::Error::new(io::ErrorKind::ConnectionReset, "the keeper was lost in the middle");
                return Err(InstanceError::Io { operation, source: lost });
            }
            Err(_elapsed) => return Err(InstanceError::Timeout { operation, after: limit }),
        };
        match reply {
            Reply::Ended { exit } => Err(InstanceError::Ended { exit }),
            Reply::Timeout { after_ms } => {
                Err(InstanceError::Timeout { operation, after: Duration::from_millis(after_ms) })
            }
            Reply::Refused { message } => Err(InstanceError::Refused { operation, message }),
            Reply::Failed { message } => {
                Err(InstanceError::Io { operation, source: io::Error::other(message) })
            }
            reply => Ok((reply, file)),
        }
    }
}

fn unexpected(operation: &'static str, reply: &Reply) -> InstanceError {
    let message = format!("the keeper answered {reply:?}");
    InstanceError::Io { operation, source: io::Error::new(io::ErrorKind::InvalidData, message) }
}

#[async_trait]
impl Instance for KeptInstance {
    fn record(&self) -> &InstanceRecord {
        &self.record
    }

    async fn channel(&self) -> Result<Box<dyn GuestIo>, InstanceError> {
        let operation = "opening the channel";
        let stream = |fd: OwnedFd| {
            let stream = StdUnixStream::from(fd);
            stream.set_nonblocking(true)?;
            UnixStream::from_std(stream)
        };
        match self.call(operation, Call::Channel, CALL).await? {
            (Reply::Channel, Some(fd)) => match stream(fd) {
                Ok(stream) => Ok(Box::new(stream)),
                Err(source) => Err(InstanceError::Io { operation, source }),
            },
            (reply, _) => Err(unexpected(operation, &reply)),
        }
    }

    async fn pause(&self) -> Result<(), InstanceError> {
        self.call("pausing", Call::Pause, CALL).await.map(drop)
    }

    async fn resume(&self) -> Result<(), InstanceError> {
        self.call("resuming", Call::Resume, CALL).await.map(drop)
    }

    async fn is_paused(&self) -> Result<bool, InstanceError> {
        match self.call("asking the state", Call::IsPaused, CALL).await? {
            (Reply::Paused { paused }, _) => Ok(paused),
            (reply, _) => Err(unexpected("asking the state", &reply)),
        }
    }

    async fn checkpoint(&self, plan: &CheckpointPlan) -> Result<Checkpoint, InstanceError> {
        let operation = "taking a checkpoint";
        if !plan.memory && self.record.provider == ProviderKind::Gvisor {
            let operation = "taking a snapshot of the disk alone";
            return Err(InstanceError::Unsupported { operation, provider: self.record.provider });
        }
        let call = Call::Checkpoint(CheckpointCall {
            dir: plan.dir.clone(),
            memory: plan.memory,
            next_layer: plan.next_layer.clone(),
            then: plan.then,
        });
        let (Checkpointed { paused_us, device_state, delta }, file) =
            match self.call(operation, call, CHECKPOINT).await? {
                (Reply::Checkpointed(said), file) => (said, file),
                (reply, _) => return Err(unexpected(operation, &reply)),
            };
        let memory = match (delta, file) {
            (None, _) => None,
            (Some(delta), Some(file)) => {
                let base = self.record.memory_base;
                let delta = Delta::received(file, base, Bytes(delta.memory), delta.runs);
                let source = |error| InstanceError::Io { operation, source: io::Error::other(error) };
                Some(delta.map_err(source)?)
            }
            (Some(_), None) => {
                let source = io::Error::new(io::ErrorKind::InvalidData, "the keeper sent no memory");
                return Err(InstanceError::Io { operation, source });
            }
        };
        let paused = Duration::from_micros(paused_us);
        Ok(Checkpoint { memory, paused, device_state: Bytes(device_state) })
    }

    async fn restack(&self, layers: &[PathBuf]) -> Result<(), InstanceError> {
        let operation = "reading the disk from other layers";
        if self.client.version < RESTACK {
            return Err(InstanceError::Unsupported { operation, provider: self.record.provider });
        }
        self.call(operation, Call::Restack { layers: layers.to_vec() }, CALL).await.map(drop)
    }

    async fn stop(&self, grace: Duration) -> Result<StopReport, InstanceError> {
        let call = Call::Stop { grace_ms: u64::try_from(grace.as_millis()).unwrap_or(u64::MAX) };
        match self.call("stopping", call, grace.saturating_add(LADDER)).await {
            Ok((Reply::Stopped(report), _)) => Ok(report),
            Ok((reply, _)) => Err(unexpected("stopping", &reply)),
            // It was gone before anyone had to climb.
            Err(InstanceError::Ended { exit }) => Ok(StopReport { steps: Vec::new(), exit }),
            Err(error) => Err(error),
        }
    }

    fn exit(&self) -> watch::Receiver<Option<Exit>> {
        self.client.exit()
    }

    async fn usage(&self) -> Result<Usage, InstanceError> {
        if let Some(exit) = self.client.exit().borrow().clone() {
            return Err(InstanceError::Ended { exit });
        }
        let operation = "measuring";
        let measured = || {
            let Started { vmm, companions, .. } = &self.client.started;
            let others = std::iter::once(&self.client.keeper).chain(companions).cloned().collect();
            let copies_pages = self.record.provider == ProviderKind::Qemu;
            Measured { vmm: vmm.clone(), others, copies_pages }
        };
        self.figures.of(measured).await.map_err(|source| InstanceError::Io { operation, source })
    }

    async fn diagnostics(&self) -> Diagnostics {
        let console_tail = super::console_tail(&self.files.console_log());
        let limits = self.client.started.limits.clone();
        let vmm_stderr = match self.call("diagnosing", Call::Diagnose, CALL).await {
            Ok((Reply::Diagnosis { vmm_stderr, .. }, _)) => vmm_stderr,
            // The keeper wrote it down before it left.
            _ => match read_json::<ExitRecord>(&self.files.exit()) {
                Ok(Some(record)) => record.vmm_stderr,
                _ => Vec::new(),
            },
        };
        Diagnostics { console_tail, vmm_stderr, limits }
    }
}
