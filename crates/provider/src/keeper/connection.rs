//! The keeper's side of its connections: at most a handful, each with a bounded number of requests in flight.

use super::{
    machine::{CallError, Taken},
    run::{Keeper, Phase, Running},
    wire::{Call, FromKeeper, Reply, Socket, ToKeeper, VERSION},
};
use crate::task::{Task, spawn};
use futures::stream::{FuturesUnordered, StreamExt};
use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};
use tokio::{io::unix::AsyncFd, sync::Semaphore, task::JoinHandle};

/// A daemon, its successor, and room for a curious human.
const CONNECTIONS: usize = 8;
const CALLS_IN_FLIGHT: usize = 16;
/// A peer that says nothing at first is not a daemon.
const HELLO: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Server {
    accepting: JoinHandle<()>,
    places: Arc<Semaphore>,
}

impl Server {
    /// Serves `daemon`, who is connected already, and whoever comes to the socket.
    pub fn start(
        keeper: Arc<Keeper>,
        daemon: OwnedFd,
        listener: io::Result<AsyncFd<OwnedFd>>,
    ) -> io::Result<Self> {
        let listener = listener?;
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        admit(&keeper, &places, daemon);
        let accepting = spawn(Task::KeeperConnection, {
            let places = places.clone();
            async move {
                while let Ok(mut guard) = listener.readable().await {
                    match guard.try_io(|socket| {
                        Ok(rustix::net::accept_with(socket, rustix::net::SocketFlags::CLOEXEC)?)
                    }) {
                        Ok(Ok(socket)) if may_command(&keeper, &socket) => admit(&keeper, &places, socket),
                        Ok(Ok(_stranger)) => keeper.log.line("a stranger was turned away"),
                        Ok(Err(error)) => keeper.log.line(format_args!("accept: {error}")),
                        Err(_would_block) => {}
                    }
                }
            }
        });
        Ok(Self { accepting, places })
    }

    /// Waits until every client has hung up; `false` if some have not within `limit`.
    pub async fn finish(self, limit: Duration) -> bool {
        let all = self.places.acquire_many(CONNECTIONS as u32);
        let hung_up = tokio::time::timeout(limit, all).await.is_ok();
        self.accepting.abort();
        hung_up
    }
}

/// The directory's mode keeps other users out already. The VMM runs as the same user and must not command its
/// own keeper should a guest ever break into it.
fn may_command(keeper: &Keeper, socket: &OwnedFd) -> bool {
    let Ok(peer) = rustix::net::sockopt::socket_peercred(socket) else { return false };
    let vmm = match &*keeper.phase.borrow() {
        Phase::Running(running) | Phase::Ended(running, _) => Some(running.machine.id().pid),
        Phase::Starting | Phase::Failed(_) => None,
    };
    peer.uid == rustix::process::getuid() && Some(peer.pid.as_raw_nonzero().get()) != vmm
}

fn admit(keeper: &Arc<Keeper>, places: &Arc<Semaphore>, socket: OwnedFd) {
    let Ok(place) = places.clone().try_acquire_owned() else {
        keeper.log.line("too many connections: one was turned away");
        return;
    };
    let keeper = keeper.clone();
    spawn(Task::KeeperConnection, async move {
        let served = async { serve(&keeper, Socket::new(socket)?).await };
        if let Err(error) = served.await {
            keeper.log.line(format_args!("connection: {error}"));
        }
        drop(place);
    });
}

async fn serve(keeper: &Keeper, socket: Socket) -> io::Result<()> {
    match tokio::time::timeout(HELLO, socket.receive::<ToKeeper>()).await {
        // Any version: it is the daemon that speaks ours.
        Ok(Ok(Some((ToKeeper::Hello { .. }, _)))) => {}
        Ok(Ok(None)) => return Ok(()),
        Ok(Err(error)) => return Err(error),
        Ok(Ok(Some((ToKeeper::Call { .. }, _)))) | Err(_) => {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a peer did not say hello"));
        }
    }
    let welcome = FromKeeper::Welcome {
        version: VERSION,
        vm: keeper.spec.vm,
        generation: keeper.spec.generation,
        keeper: keeper.id.clone(),
    };
    socket.send(&welcome, None).await?;

    let mut phase = keeper.phase.clone();
    let mut said_started = false;
    let mut said_end = false;
    let mut calls = FuturesUnordered::new();
    phase.mark_changed();
    loop {
        tokio::select! {
            // Events first, so that a client hears of the end before its calls fail because of it.
            biased;
            changed = phase.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                let now = phase.borrow_and_update().clone();
                if let Phase::Running(running) | Phase::Ended(running, _) = &now && !said_started {
                    said_started = true;
                    socket.send(&FromKeeper::Started(running.started.clone()), None).await?;
                }
                match now {
                    Phase::Failed(failure) if !said_end => {
                        said_end = true;
                        socket.send(&FromKeeper::StartFailed(failure), None).await?;
                    }
                    Phase::Ended(_, exit) if !said_end => {
                        said_end = true;
                        socket.send(&FromKeeper::Exited { exit }, None).await?;
                    }
                    _ => {}
                }
            }
            Some((id, (reply, file))) = calls.next() => {
                let file: Option<OwnedFd> = file;
                socket.send(&FromKeeper::Reply { id, reply }, file.as_ref().map(AsFd::as_fd)).await?;
            }
            message = socket.receive::<ToKeeper>(), if calls.len() < CALLS_IN_FLIGHT => {
                match message? {
                    None => return Ok(()),
                    Some((ToKeeper::Hello { .. }, _)) => {
                        return Err(io::Error::new(io::ErrorKind::InvalidData, "a peer said hello twice"));
                    }
                    Some((ToKeeper::Call { id, call }, _)) => {
                        keeper.log.line(format_args!("call {call:?}"));
                        let phase = keeper.phase.borrow().clone();
                        calls.push(async move { (id, answer(phase, call).await) });
                    }
                }
            }
        }
    }
}

async fn answer(phase: Phase, call: Call) -> (Reply, Option<OwnedFd>) {
    match phase {
        Phase::Starting => (Reply::Refused { message: "the VMM has not started yet".into() }, None),
        Phase::Failed(failure) => (Reply::Refused { message: failure.message }, None),
        Phase::Ended(running, exit) => match call {
            Call::Diagnose => (diagnosis(&running), None),
            Call::Stop { .. } => (Reply::Stopped(crate::StopReport { steps: Vec::new(), exit }), None),
            _ => (Reply::Ended { exit }, None),
        },
        Phase::Running(running) => ask(running, call).await,
    }
}

async fn ask(running: Arc<Running>, call: Call) -> (Reply, Option<OwnedFd>) {
    let machine = running.machine.as_ref();
    let done = |result: Result<(), CallError>| result.map_or_else(refusal, |()| Reply::Done);
    let reply = match call {
        Call::Channel => {
            if let Some(exit) = machine.exit().borrow().clone() {
                return (Reply::Ended { exit }, None);
            }
            match machine.reopen_channel().await {
                Ok(file) => return (Reply::Channel, Some(file)),
                Err(error) => Reply::Failed { message: error.to_string() },
            }
        }
        Call::Pause => done(machine.pause().await),
        Call::Resume => done(machine.resume().await),
        Call::IsPaused => machine.is_paused().await.map_or_else(refusal, |paused| Reply::Paused { paused }),
        Call::Stop { grace_ms } => match running.clone().stop(Duration::from_millis(grace_ms)).await {
            Ok(Some(report)) => Reply::Stopped(report),
            Ok(None) => {
                Reply::Failed { message: "the VMM survived SIGKILL: it hangs in the host's kernel".into() }
            }
            Err(error) => Reply::Failed { message: error.to_string() },
        },
        Call::Diagnose => diagnosis(&running),
        Call::Restack { layers } => done(machine.restack(&layers).await),
        Call::Checkpoint(plan) => match running.checkpoint(plan).await {
            Some(Ok(Taken { said, delta, .. })) => return (Reply::Checkpointed(said), delta),
            Some(Err(error)) => refusal(error),
            None => Reply::Failed { message: "the keeper broke off".into() },
        },
    };
    (reply, None)
}

fn diagnosis(running: &Running) -> Reply {
    Reply::Diagnosis { vmm_stderr: running.machine.stderr_lines(), limits: running.started.limits.clone() }
}

fn refusal(error: CallError) -> Reply {
    match error {
        CallError::Ended(exit) => Reply::Ended { exit },
        CallError::Late { after } => Reply::Timeout { after_ms: after.as_millis() as u64 },
        CallError::Refused(message) => Reply::Refused { message },
        CallError::Failed(message) => Reply::Failed { message },
    }
}
