//! The loop over epochs, and one session of it.

use super::{
    HostHandle, Services,
    peer::{CodePeer, ExecPeer, FilePeer, Reader, SurveyPeer, TcpPeer, Writer},
};
use crate::{
    codec::{self, CodecError},
    message::{
        FromGuest, GuestError, GuestErrorKind, HostHello, HostOpen, PROTOCOL_VERSION, Reply, ShutdownKind,
        ToGuest, other_version,
    },
    resync::{Epoch, EpochEnd, Pipe, Resync},
    session::{CloseReason, Incoming, MuxStream, Session, Side},
};
use serde::Serialize;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

/// From the beginning of a session to a hello that was accepted.
const HANDSHAKE: Duration = Duration::from_secs(30);
/// For the answer to a shutdown to leave; then it happens anyway.
const FAREWELL: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Server {
    resync: Resync,
    session: watch::Sender<Option<Session>>,
    host: HostHandle,
}

impl Server {
    pub fn new(pipe: impl Pipe + 'static) -> Self {
        let (session, host) = HostHandle::new();
        Self { resync: Resync::guest(pipe), session, host }
    }

    /// For streams to services of the host; valid across sessions.
    pub fn host(&self) -> HostHandle {
        self.host.clone()
    }

    /// Serves one session after the other; returns once the pipe itself has ended.
    pub async fn serve<S: Services>(self, services: Arc<S>) -> EpochEnd {
        loop {
            let stream = match self.resync.accept().await {
                Ok(stream) => stream,
                Err(end) => return end,
            };
            let epoch = stream.epoch();
            let (session, incoming, driver) = Session::new(stream, Side::Guest);
            let reason = tokio::select! {
                // The driver first: it feeds everything else, and it always sees the end.
                biased;
                reason = driver => reason,
                reason = self.session(epoch, &session, incoming, &services) => reason,
            };
            self.session.send_replace(None);
            services.session_ended(&reason);
        }
    }

    /// Until the control stream ends. Dropping this drops all handlers.
    async fn session<S: Services>(
        &self,
        epoch: Epoch,
        session: &Session,
        mut incoming: Incoming,
        services: &Arc<S>,
    ) -> CloseReason {
        let control = match tokio::time::timeout(HANDSHAKE, handshake(epoch, &mut incoming, services)).await {
            Ok(Ok(control)) => control,
            Ok(Err(reason)) => {
                // The host is to read why it was refused before the stream is gone.
                let _told = tokio::time::timeout(FAREWELL, session.flush()).await;
                return reason;
            }
            Err(_elapsed) => {
                return CloseReason::Protocol { problem: format!("no hello within {HANDSHAKE:?}") };
            }
        };
        self.session.send_replace(Some(session.clone()));
        let (shutdown, mut shutdowns) = mpsc::channel(1);
        let mut handlers = JoinSet::new();
        let mut heartbeats = std::pin::pin!(heartbeats(control, services));
        loop {
            tokio::select! {
                // New streams last: however many come, the others have their turn.
                biased;
                reason = &mut heartbeats => return reason,
                Some(kind) = shutdowns.recv() => {
                    let _told = tokio::time::timeout(FAREWELL, session.flush()).await;
                    services.shutdown(kind).await;
                }
                Some(_ended) = handlers.join_next() => {}
                stream = incoming.next() => match stream {
                    Some(stream) => {
                        handlers.spawn(handle(stream, services.clone(), shutdown.clone()));
                    }
                    None => return session.closed().await,
                },
            }
        }
    }
}

/// The first stream must be the control stream.
async fn handshake<S: Services>(
    epoch: Epoch,
    incoming: &mut Incoming,
    services: &Arc<S>,
) -> Result<(Reader, Writer), CloseReason> {
    let protocol = |problem: String| CloseReason::Protocol { problem };
    let stream = incoming.next().await.ok_or(CloseReason::PeerClosed)?;
    let (mut reader, mut writer) = codec::messages(stream);
    let hello = match reader.recv::<HostOpen>().await {
        Ok(Some(HostOpen::Control(hello))) => hello,
        Ok(Some(_)) => return Err(protocol("a stream before the control stream".into())),
        Ok(None) => return Err(CloseReason::PeerClosed),
        Err(error) => return Err(protocol(error.to_string())),
    };
    let judged = match judge(&hello, epoch) {
        Ok(()) => services.hello(&hello).await,
        Err(refusal) => Err(refusal),
    };
    let (answer, refused) = match judged {
        Ok(mut guest) => {
            guest.version = PROTOCOL_VERSION;
            guest.epoch = epoch.0;
            (FromGuest::Hello(guest), None)
        }
        Err(error) => {
            let problem = format!("handshake refused: {}", error.message);
            (FromGuest::Refused(error), Some(protocol(problem)))
        }
    };
    writer.send(&answer).await.map_err(|_| CloseReason::PeerClosed)?;
    match refused {
        None => Ok((reader, writer)),
        Some(reason) => Err(reason),
    }
}

fn judge(hello: &HostHello, epoch: Epoch) -> Result<(), GuestError> {
    let refuse = |message: String| Err(GuestError { kind: GuestErrorKind::InvalidArgument, message });
    if hello.version != PROTOCOL_VERSION {
        return refuse(other_version(hello.version));
    }
    if hello.epoch != epoch.0 {
        return refuse("the hello names another epoch than the channel".into());
    }
    Ok(())
}

/// Answers heartbeats until the host ends the control stream.
async fn heartbeats<S: Services>(
    (mut reader, mut writer): (Reader, Writer),
    services: &Arc<S>,
) -> CloseReason {
    loop {
        match reader.recv::<ToGuest>().await {
            Ok(Some(ToGuest::Heartbeat { sequence, time })) => {
                let clock_offset_ns = services.heartbeat(time);
                if writer.send(&FromGuest::Heartbeat { sequence, clock_offset_ns }).await.is_err() {
                    return CloseReason::PeerClosed;
                }
            }
            Ok(None) | Err(CodecError::Io(_)) => return CloseReason::PeerClosed,
            Err(error) => return CloseReason::Protocol { problem: error.to_string() },
        }
    }
}

async fn handle<S: Services>(stream: MuxStream, services: Arc<S>, shutdown: mpsc::Sender<ShutdownKind>) {
    let (mut reader, mut writer) = codec::messages(stream);
    // A host that leaves, or sends what is no message, is answered by the end of the stream.
    let Ok(Some(open)) = reader.recv::<HostOpen>().await else { return };
    match open {
        HostOpen::Exec(start) => services.exec(start, ExecPeer::new(reader, writer)).await,
        HostOpen::Attach(attach) => services.attach(attach, ExecPeer::new(reader, writer)).await,
        HostOpen::File(request) => services.file(request, FilePeer::new(reader, writer)).await,
        HostOpen::Tcp { port } => services.tcp(port, TcpPeer::new(reader, writer)).await,
        HostOpen::ListExecs => {
            let execs = services.list_execs().await;
            answer(&mut writer, Ok(execs)).await;
        }
        HostOpen::Info => {
            let info = services.info().await;
            answer(&mut writer, info).await;
        }
        HostOpen::Shutdown(kind) => {
            let allowed = services.may_shutdown(kind);
            let go = allowed.is_ok();
            answer(&mut writer, allowed).await;
            if go {
                // Full: a shutdown is under way already.
                let _under_way = shutdown.try_send(kind);
            }
        }
        HostOpen::Flush => {
            let done = services.flush().await;
            answer(&mut writer, done).await;
        }
        HostOpen::Freeze { deadline_ms } => {
            let frozen = services.freeze(Duration::from_millis(deadline_ms.into())).await;
            answer(&mut writer, frozen).await;
        }
        HostOpen::Unfreeze => {
            let done = services.unfreeze().await;
            answer(&mut writer, done).await;
        }
        HostOpen::GoOn { time } => {
            let done = services.go_on(time).await;
            answer(&mut writer, done).await;
        }
        HostOpen::Thaw(thaw) => {
            let thawed = services.thaw(thaw).await;
            answer(&mut writer, thawed).await;
        }
        HostOpen::RunCode(run) => services.run_code(run, CodePeer::new(reader, writer)).await,
        HostOpen::ListContexts => {
            let contexts = services.contexts().await;
            answer(&mut writer, contexts).await;
        }
        HostOpen::RemoveContext { context } => {
            let done = services.remove_context(context).await;
            answer(&mut writer, done).await;
        }
        HostOpen::RestartContext { context } => {
            let done = services.restart_context(context).await;
            answer(&mut writer, done).await;
        }
        HostOpen::PrepareInterpreter { language, user } => {
            let done = services.prepare_interpreter(language, user).await;
            answer(&mut writer, done).await;
        }
        HostOpen::Survey(request) => services.survey(request, SurveyPeer::new(writer)).await,
        HostOpen::Entry(request) => services.entry(request, FilePeer::new(reader, writer)).await,
        HostOpen::Disk(request) => services.disk(request, FilePeer::new(reader, writer)).await,
        HostOpen::Usage => {
            let usage = services.usage().await;
            answer(&mut writer, usage).await;
        }
        HostOpen::Control(_) => {
            let message = "the session has its control stream already".to_owned();
            let refusal = GuestError { kind: GuestErrorKind::AlreadyExists, message };
            let _left = writer.send(&FromGuest::Refused(refusal)).await;
        }
    }
}

async fn answer<T: Serialize>(writer: &mut Writer, result: Result<T, GuestError>) {
    let reply = match result {
        Ok(value) => Reply::Ok(value),
        Err(error) => Reply::Err(error),
    };
    // A host that left has no use for an answer; one that is too large is said to be so.
    if let Err(CodecError::TooLarge { length }) = writer.send(&reply).await {
        let message = format!("an answer of {length} bytes is too large to send");
        let _left =
            writer.send(&Reply::<T>::Err(GuestError { kind: GuestErrorKind::Exhausted, message })).await;
    }
}
