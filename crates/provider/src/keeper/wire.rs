//! What a daemon and a keeper say to each other: one JSON document per packet of a Unix `SOCK_SEQPACKET`
//! socket, so that a packet arrives whole, in order, together with the file it carries, or not at all.
//!
//! ```text
//! daemon                         keeper
//!   Hello{version}  ----------->
//!                   <-----------  Welcome{version, who}      the daemon speaks the keeper's version or leaves
//!                   <-----------  Started | StartFailed      now or later, once
//!   Call{id, ..}    ----------->
//!                   <-----------  Reply{id, ..} (+ file)     in any order
//!                   <-----------  Exited                     once, the last event
//! ```
//! The keeper outlives upgrades of the daemon: a daemon keeps speaking every version ever released, a keeper
//! only its own. Fields are only added, with a default; anything else needs a new [`VERSION`].

use crate::{AfterCheckpoint, BootStep, Exit, StopReport, os, process::ProcessId};
use offshoot_types::{Generation, VmId};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
};
use tokio::io::unix::AsyncFd;

pub const VERSION: u32 = 2;
/// The first version that knows [`Call::Restack`].
pub const RESTACK: u32 = 2;
/// Larger packets are refused by both sides; the largest sent is a start failure with its console lines.
pub const MAX_PACKET: usize = 64 * 1024;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum ToKeeper {
    Hello { version: u32 },
    Call { id: u64, call: Call },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "call", rename_all = "kebab-case")]
pub enum Call {
    /// Close the channel to the guest and open it again. The reply carries it.
    Channel,
    Pause,
    Resume,
    IsPaused,
    /// Climb the stop ladder; the reply comes once the VMM is gone.
    Stop {
        grace_ms: u64,
    },
    Diagnose,
    /// Take the VM's state while its CPUs stand still. The reply carries the memory, if that was asked for.
    Checkpoint(Checkpoint),
    /// Read what lies below the top layer from these files: see [`crate::Instance::restack`].
    Restack {
        layers: Vec<PathBuf>,
    },
}

/// See [`crate::CheckpointPlan`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    pub dir: PathBuf,
    pub memory: bool,
    pub next_layer: PathBuf,
    pub then: AfterCheckpoint,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum FromKeeper {
    Welcome { version: u32, vm: VmId, generation: Generation, keeper: ProcessId },
    Started(Started),
    StartFailed(StartFailed),
    Exited { exit: Exit },
    Reply { id: u64, reply: Reply },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    pub vmm: ProcessId,
    /// The VMM's other processes.
    #[serde(default)]
    pub companions: Vec<ProcessId>,
    /// One sentence per limit in force, or not and why.
    pub limits: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartFailed {
    pub step: BootStep,
    pub message: String,
    pub hint: Option<String>,
    /// How the VMM ended, if it had been started.
    pub exit: Option<Exit>,
    pub console_tail: Vec<String>,
    pub vmm_stderr: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    Done,
    Paused {
        paused: bool,
    },
    /// Comes with the file.
    Channel,
    Stopped(StopReport),
    /// Comes with the file if it has `delta`.
    Checkpointed(Checkpointed),
    Diagnosis {
        vmm_stderr: Vec<String>,
        limits: Vec<String>,
    },
    /// The VMM has ended.
    Ended {
        exit: Exit,
    },
    Timeout {
        after_ms: u64,
    },
    Refused {
        message: String,
    },
    Failed {
        message: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpointed {
    /// How long the CPUs stood still for it, in microseconds.
    pub paused_us: u64,
    /// Size of the device state in bytes.
    pub device_state: u64,
    pub delta: Option<DeltaFile>,
}

/// What the file that comes along holds: the pages at their own offsets, behind them the runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeltaFile {
    /// Of the guest's memory in bytes.
    pub memory: u64,
    pub runs: u64,
}

/// One end of a connection. Sending and receiving may go on at the same time; each call is cancel-safe, for a
/// packet is moved by one system call.
#[derive(Debug)]
pub struct Socket {
    fd: AsyncFd<OwnedFd>,
}

impl Socket {
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self { fd: os::register(fd)? })
    }

    pub async fn send<T: Serialize>(&self, message: &T, file: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let packet = serde_json::to_vec(message)?;
        if packet.len() > MAX_PACKET {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the packet is too large"));
        }
        let files = file.as_slice();
        loop {
            let mut guard = self.fd.writable().await?;
            let sent = guard.try_io(|fd| {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut ancillary = SendAncillaryBuffer::new(&mut space);
                if !files.is_empty() {
                    ancillary.push(SendAncillaryMessage::ScmRights(files));
                }
                let flags = SendFlags::NOSIGNAL;
                Ok(rustix::net::sendmsg(fd, &[IoSlice::new(&packet)], &mut ancillary, flags)?)
            });
            match sent {
                Ok(result) => return result.map(drop),
                Err(_would_block) => {}
            }
        }
    }

    /// The next message with its file, or `None` at the end.
    pub async fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Option<OwnedFd>)>> {
        let mut packet = vec![0; MAX_PACKET];
        loop {
            let mut guard = self.fd.readable().await?;
            let received = guard.try_io(|fd| {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut ancillary = RecvAncillaryBuffer::new(&mut space);
                let mut parts = [IoSliceMut::new(&mut packet)];
                let flags = RecvFlags::CMSG_CLOEXEC;
                let message = rustix::net::recvmsg(fd, &mut parts, &mut ancillary, flags)?;
                let mut file = None;
                for part in ancillary.drain() {
                    if let RecvAncillaryMessage::ScmRights(files) = part {
                        // All are taken, so that none leaks; only one is ever expected.
                        file = files.last();
                    }
                }
                Ok((message.bytes, message.flags, file))
            });
            let Ok(received) = received else { continue };
            let (length, flags, file) = match received {
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                other => other?,
            };
            if length == 0 {
                return Ok(None);
            }
            if flags.contains(ReturnFlags::TRUNC) {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the packet is too large"));
            }
            return Ok(Some((serde_json::from_slice(&packet[..length])?, file)));
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType};
    use std::io::Read;

    pub fn pair() -> (Socket, Socket) {
        let (a, b) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .unwrap();
        (Socket::new(a).unwrap(), Socket::new(b).unwrap())
    }

    #[tokio::test]
    async fn messages_arrive_whole_with_their_file_and_the_end_is_seen() {
        let (daemon, keeper) = pair();
        let (mut reader, writer) = io::pipe().unwrap();
        keeper.send(&FromKeeper::Reply { id: 7, reply: Reply::Channel }, Some(writer.as_fd())).await.unwrap();
        keeper.send(&FromKeeper::Reply { id: 8, reply: Reply::Done }, None).await.unwrap();
        drop((keeper, writer));
        let (message, file) = daemon.receive::<FromKeeper>().await.unwrap().unwrap();
        assert_eq!(message, FromKeeper::Reply { id: 7, reply: Reply::Channel });
        io::Write::write_all(&mut std::fs::File::from(file.unwrap()), b"through").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
        let (message, file) = daemon.receive::<FromKeeper>().await.unwrap().unwrap();
        assert_eq!(message, FromKeeper::Reply { id: 8, reply: Reply::Done });
        assert!(file.is_none());
        assert!(daemon.receive::<FromKeeper>().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn an_oversized_or_malformed_packet_is_an_error_not_a_growing_buffer() {
        let (daemon, keeper) = pair();
        let huge = "x".repeat(MAX_PACKET);
        assert!(keeper.send(&huge, None).await.is_err(), "not sent");
        rustix::net::send(&keeper, &vec![b' '; MAX_PACKET + 1], SendFlags::empty()).unwrap();
        assert!(daemon.receive::<FromKeeper>().await.is_err(), "not received");
        rustix::net::send(&keeper, b"{\"type\":\"no-such\"}", SendFlags::empty()).unwrap();
        assert!(daemon.receive::<FromKeeper>().await.is_err());
    }

    /// Old daemons and old keepers are out there: what any version wrote must be read for ever.
    #[test]
    fn packets_of_every_version_read_as_they_were_written() {
        let cases = [
            (r#"{"type":"hello","version":1}"#, ToKeeper::Hello { version: 1 }),
            (
                r#"{"type":"call","id":3,"call":{"call":"stop","grace_ms":100}}"#,
                ToKeeper::Call { id: 3, call: Call::Stop { grace_ms: 100 } },
            ),
            (
                r#"{"type":"call","id":4,"call":{"call":"restack","layers":["/a","/b"]}}"#,
                ToKeeper::Call { id: 4, call: Call::Restack { layers: vec!["/a".into(), "/b".into()] } },
            ),
        ];
        for (text, message) in cases {
            assert_eq!(serde_json::from_str::<ToKeeper>(text).unwrap(), message);
            assert_eq!(serde_json::to_string(&message).unwrap(), text);
        }
        let exited = r#"{"type":"exited","exit":"powered-off"}"#;
        assert_eq!(
            serde_json::from_str::<FromKeeper>(exited).unwrap(),
            FromKeeper::Exited { exit: Exit::PoweredOff }
        );
    }
}
