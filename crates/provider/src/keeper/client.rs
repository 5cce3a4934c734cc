//! The daemon's side of one keeper.
//!
//! ```text
//! Attached --packet lost? never; connection lost--> is there an exit.json? --> that exit
//!    |                                              is the keeper gone?    --> KeeperLost
//!    | Exited                                       else                   --> connect again
//!    v
//! exit published, hung up
//! ```
//! One task owns the connection; handles send it calls and watch the exit it publishes.

use super::{
    files::{ExitRecord, Files, read_json},
    wire::{Call, FromKeeper, Reply, Socket, StartFailed, Started, ToKeeper, VERSION},
};
use crate::{
    Exit,
    process::ProcessId,
    task::{Task, spawn},
};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::{collections::HashMap, io, os::fd::OwnedFd, path::Path, time::Duration};
use tokio::sync::{mpsc, oneshot, watch};

/// Calls waiting to be sent; the engine has one driver and one link per VM.
const QUEUE: usize = 16;
/// After the exit a keeper owes only the replies it has begun.
const LAST_REPLIES: Duration = Duration::from_secs(2);
const RECONNECT: Duration = Duration::from_millis(50);

/// A keeper's first words.
#[derive(Debug)]
pub(crate) enum Greeting {
    Started(Client),
    StartFailed(StartFailed),
    /// It ended before we came.
    Ended(Exit),
}

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(
        "the keeper speaks version {theirs} of its protocol, which this program (up to {VERSION}) does not know"
    )]
    Version { theirs: u32 },
    #[error("the keeper closed the connection")]
    Closed,
    #[error("the keeper said {0} where something else was due")]
    Unexpected(&'static str),
    #[error("cannot talk to the keeper")]
    Io(#[from] io::Error),
}

#[derive(Debug)]
struct Outgoing {
    call: Call,
    reply: oneshot::Sender<(Reply, Option<OwnedFd>)>,
}

#[derive(Debug, Clone)]
pub(crate) struct Client {
    calls: mpsc::Sender<Outgoing>,
    exit: watch::Receiver<Option<Exit>>,
    pub keeper: ProcessId,
    /// Of its protocol: no other is spoken with it.
    pub version: u32,
    pub started: Started,
}

/// Connects to a keeper's socket; it fails at once when nobody listens.
pub(crate) fn connect(path: &Path) -> io::Result<Socket> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    rustix::net::connect(&fd, &SocketAddrUnix::new(path)?)?;
    // The directory is ours alone; still, who answers there must be us.
    if rustix::net::sockopt::socket_peercred(&fd)?.uid != rustix::process::getuid() {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "the keeper's socket belongs to another user",
        ));
    }
    Socket::new(fd)
}

/// Says hello and waits for the VMM to have started, or not.
pub(crate) async fn attach(socket: Socket, files: Files) -> Result<Greeting, ClientError> {
    let (keeper, version) = hello(&socket).await?;
    let started = match socket.receive::<FromKeeper>().await?.ok_or(ClientError::Closed)?.0 {
        FromKeeper::Started(started) => started,
        FromKeeper::StartFailed(failure) => return Ok(Greeting::StartFailed(failure)),
        FromKeeper::Exited { exit } => return Ok(Greeting::Ended(exit)),
        FromKeeper::Welcome { .. } => return Err(ClientError::Unexpected("welcome")),
        FromKeeper::Reply { .. } => return Err(ClientError::Unexpected("a reply")),
    };
    let (calls, queue) = mpsc::channel(QUEUE);
    let (publish, exit) = watch::channel(None);
    let link = Link { queue, publish, files, keeper: keeper.clone() };
    spawn(Task::KeeperClient, link.run(socket));
    Ok(Greeting::Started(Client { calls, exit, keeper, version, started }))
}

/// Who it is, and the version it speaks.
async fn hello(socket: &Socket) -> Result<(ProcessId, u32), ClientError> {
    socket.send(&ToKeeper::Hello { version: VERSION }, None).await?;
    match socket.receive::<FromKeeper>().await?.ok_or(ClientError::Closed)?.0 {
        FromKeeper::Welcome { version, .. } if version == 0 || version > VERSION => {
            Err(ClientError::Version { theirs: version })
        }
        FromKeeper::Welcome { keeper, version, .. } => Ok((keeper, version)),
        _ => Err(ClientError::Unexpected("an event")),
    }
}

impl Client {
    pub fn exit(&self) -> watch::Receiver<Option<Exit>> {
        self.exit.clone()
    }

    /// `None` if the connection was lost before the answer came.
    pub async fn call(&self, call: Call) -> Option<(Reply, Option<OwnedFd>)> {
        if let Some(ended) = self.ended() {
            return Some(ended);
        }
        let (reply, answer) = oneshot::channel();
        let answered = match self.calls.send(Outgoing { call, reply }).await {
            Ok(()) => answer.await.ok(),
            Err(_closed) => None,
        };
        // The keeper may have told of the end while the call was on its way, and answers nothing after it.
        answered.or_else(|| self.ended())
    }

    fn ended(&self) -> Option<(Reply, Option<OwnedFd>)> {
        self.exit.borrow().clone().map(|exit| (Reply::Ended { exit }, None))
    }
}

/// The task's state.
struct Link {
    queue: mpsc::Receiver<Outgoing>,
    publish: watch::Sender<Option<Exit>>,
    files: Files,
    keeper: ProcessId,
}

/// How one connection ended.
enum Parting {
    /// Every handle and every watcher of the exit is gone: nobody wants to know any more.
    Unwatched,
    Exited(Exit),
    Lost,
}

impl Link {
    async fn run(mut self, mut socket: Socket) {
        loop {
            match self.converse(socket).await {
                Parting::Unwatched => return,
                Parting::Exited(exit) => return drop(self.publish.send_replace(Some(exit))),
                Parting::Lost => match self.recover().await {
                    Ok(again) => socket = again,
                    Err(exit) => return drop(self.publish.send_replace(Some(exit))),
                },
            }
        }
    }

    async fn converse(&mut self, socket: Socket) -> Parting {
        let mut waiting: HashMap<u64, oneshot::Sender<(Reply, Option<OwnedFd>)>> = HashMap::new();
        let mut next = 0;
        let mut listening = true;
        let watchers = self.publish.clone();
        loop {
            tokio::select! {
                () = watchers.closed() => return Parting::Unwatched,
                message = socket.receive::<FromKeeper>() => match message {
                    Ok(Some((FromKeeper::Reply { id, reply }, file))) => {
                        if let Some(caller) = waiting.remove(&id) {
                            let _ = caller.send((reply, file));
                        }
                    }
                    Ok(Some((FromKeeper::Exited { exit }, _))) => {
                        self.publish.send_replace(Some(exit.clone()));
                        let _ = tokio::time::timeout(LAST_REPLIES, last_replies(&socket, waiting)).await;
                        return Parting::Exited(exit);
                    }
                    // Said again after a reconnection.
                    Ok(Some((FromKeeper::Welcome { .. } | FromKeeper::Started(_), _))) => {}
                    Ok(Some((FromKeeper::StartFailed(_), _))) | Ok(None) | Err(_) => return Parting::Lost,
                },
                Some(Outgoing { call, reply }) = self.queue.recv(), if listening => {
                    next += 1;
                    waiting.retain(|_, caller| !caller.is_closed());
                    waiting.insert(next, reply);
                    match socket.send(&ToKeeper::Call { id: next, call }, None).await {
                        Ok(()) => {}
                        // It has hung up: its last words are still to be read.
                        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => listening = false,
                        Err(_) => return Parting::Lost,
                    }
                }
            }
        }
    }

    /// A new connection, or how the VM ended.
    async fn recover(&self) -> Result<Socket, Exit> {
        loop {
            if let Ok(Some(ExitRecord { exit: Some(exit), .. })) = read_json(&self.files.exit()) {
                return Err(exit);
            }
            // Its lock, not its pid, says whether the keeper lives; the VMM dies with it.
            if let Ok(Some(_lock)) = self.files.try_lock() {
                // It may have written its last word between the two looks.
                return Err(match read_json(&self.files.exit()) {
                    Ok(Some(ExitRecord { exit: Some(exit), .. })) => exit,
                    _ => Exit::KeeperLost,
                });
            }
            if let Ok(socket) = connect(&self.files.keeper_socket())
                && let Ok((keeper, _)) = hello(&socket).await
                && keeper == self.keeper
            {
                return Ok(socket);
            }
            tokio::time::sleep(RECONNECT).await;
        }
    }
}

/// The keeper answers what it was asked before the end, then hangs up when we do.
async fn last_replies(socket: &Socket, mut waiting: HashMap<u64, oneshot::Sender<(Reply, Option<OwnedFd>)>>) {
    while !waiting.is_empty() {
        match socket.receive::<FromKeeper>().await {
            Ok(Some((FromKeeper::Reply { id, reply }, file))) => {
                if let Some(caller) = waiting.remove(&id) {
                    let _ = caller.send((reply, file));
                }
            }
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keeper::wire::tests::pair;
    use offshoot_types::{Generation, VmId};

    /// The keeper tells of the end before the call reached it, or while it waits there, and hangs up.
    #[tokio::test]
    async fn a_call_that_crosses_the_end_is_answered_by_it() {
        for read_the_call in [false, true] {
            let (daemon, theirs) = pair();
            let keeper = ProcessId::of_self().unwrap();
            let id = keeper.clone();
            let serve = async move {
                theirs.receive::<ToKeeper>().await.unwrap();
                let (version, vm, generation) = (VERSION, VmId::new(), Generation(1));
                theirs
                    .send(&FromKeeper::Welcome { version, vm, generation, keeper: id.clone() }, None)
                    .await
                    .unwrap();
                let started = Started { vmm: id, companions: Vec::new(), limits: Vec::new() };
                theirs.send(&FromKeeper::Started(started), None).await.unwrap();
                if read_the_call {
                    theirs.receive::<ToKeeper>().await.unwrap();
                }
                theirs.send(&FromKeeper::Exited { exit: Exit::PoweredOff }, None).await.unwrap();
            };
            let ask = async {
                let files = Files::new(Path::new("/nowhere"), Path::new("/nowhere"));
                let Greeting::Started(client) = attach(daemon, files).await.unwrap() else { panic!() };
                let (reply, _) = client.call(Call::Channel).await.expect("an answer");
                assert_eq!(reply, Reply::Ended { exit: Exit::PoweredOff });
            };
            tokio::join!(serve, ask);
        }
    }
}
