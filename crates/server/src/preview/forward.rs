//! The one road of a request into a VM: a TCP connection of its own, HTTP/1.1 on it, and what follows an upgrade.
//!
//! ```text
//! request --dress--> TCP into the VM --HTTP/1.1--> the program
//!         <-------- its answer as it comes         101: bytes in both directions until either ends
//! ```
//! Bodies are carried as they come, each way as fast as the other end takes them. All of it ends with the state of the VM
//! that it was made to, with the daemon, and with what let the request in.

use super::Dress;
use crate::{
    http::{Call, KeyEnds},
    tasks::TaskKind,
};
use axum::{
    body::{Body, HttpBody},
    extract::Request,
    http::{Method, StatusCode},
    response::Response,
};
use hyper::{client::conn::http1, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use offshoot_engine::guest_failure;
use offshoot_types::{Command, ErrorCode, Failure, VmRef};
use std::{sync::Arc, time::Duration};
use tokio::{io::copy_bidirectional_with_sizes, time::timeout};

/// How long a program may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// Bytes of one direction after an upgrade that are here at once.
const BUFFER: usize = 64 * 1024;

/// Where to, and on whose behalf.
#[derive(Debug)]
pub struct Way<'a> {
    pub call: &'a Call,
    pub vm: VmRef,
    pub port: u16,
    pub dress: &'a Dress,
    /// What was let in ends with this, if it ends.
    pub ends: Option<KeyEnds>,
}

/// Why a program did not answer.
#[derive(Debug)]
pub enum NotForwarded {
    /// Policy denies it.
    Denied(Failure),
    /// The VM cannot be reached.
    Gone(Failure),
    /// The program cannot, or does not speak HTTP.
    Closed(Failure),
}

impl From<NotForwarded> for Failure {
    fn from(not: NotForwarded) -> Self {
        let (NotForwarded::Denied(failure) | NotForwarded::Gone(failure) | NotForwarded::Closed(failure)) =
            not;
        failure
    }
}

/// Hands a request to the program at a port, and its answer back.
pub async fn forward(way: Way<'_>, mut request: Request) -> Result<Response, NotForwarded> {
    let Way { call, vm, port, dress, ends } = way;
    if request.method() == Method::CONNECT {
        let failure = Failure::new(ErrorCode::MethodNotAllowed, "a program in a VM is no proxy to elsewhere");
        return Err(NotForwarded::Closed(failure));
    }
    let command = Command::Connect { vm, port };
    let name = call.named(&command);
    let broken = |error: hyper::Error| {
        let message = format!("in VM `{name}`: the program at port {port} did not answer as HTTP does");
        NotForwarded::Closed(Failure::new(ErrorCode::Guest, message).caused_by(&error))
    };
    let permit = call.permit(command).await.map_err(NotForwarded::Denied)?;
    // The VM is in use until the connection ends, and what it became by an upgrade. It is no operation that would have to
    // be completed: a connection changes nothing that is recorded.
    let guest = Arc::new(call.engine.guest(permit).await.map_err(NotForwarded::Gone)?);
    let tunnel = match timeout(CONNECT, guest.client().connect_tcp(port)).await {
        Ok(Ok(tunnel)) => tunnel,
        Ok(Err(error)) => return Err(NotForwarded::Closed(guest_failure(&name, &error))),
        Err(_elapsed) => {
            let message =
                format!("in VM `{name}`: the program at port {port} accepted nobody within {CONNECT:?}");
            return Err(NotForwarded::Closed(Failure::new(ErrorCode::Timeout, message)));
        }
    };
    let handshake = http1::Builder::new().preserve_header_case(true).handshake(TokioIo::new(tunnel));
    let (mut sender, connection) = handshake.await.map_err(broken)?;
    let (shutdown, tasks) = (call.app.shutdown.clone(), call.app.tasks.clone());
    let in_use = guest.clone();
    tasks.spawn(TaskKind::Port, async move {
        let _in_use = in_use;
        tokio::select! {
            ended = connection.with_upgrades() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection into a VM ended");
                }
            }
            () = shutdown.expired() => {}
        }
    });

    let theirs = request.extensions_mut().remove::<OnUpgrade>();
    dress.request(port, &mut request);
    let mut response = tokio::select! {
        answered = sender.send_request(request) => answered.map_err(broken)?,
        // What is still being sent to the program breaks off with it.
        () = reached(ends.clone()) => return Err(NotForwarded::Denied(KeyEnds::failure())),
    };
    if response.status() == StatusCode::SWITCHING_PROTOCOLS
        && let (Some(theirs), Some(ours)) = (theirs, response.extensions_mut().remove::<OnUpgrade>())
    {
        let present = call.app.activity.enter_session().map_err(NotForwarded::Closed)?;
        let shutdown = call.app.shutdown.clone();
        let ends = ends.clone();
        tasks.spawn(TaskKind::Port, async move {
            let (_present, _in_use) = (present, guest);
            let carried = async {
                let (theirs, ours) = tokio::try_join!(theirs, ours).ok()?;
                let (mut theirs, mut ours) = (TokioIo::new(theirs), TokioIo::new(ours));
                copy_bidirectional_with_sizes(&mut theirs, &mut ours, BUFFER, BUFFER).await.ok()
            };
            tokio::select! {
                _ended = carried => {}
                () = reached(ends) => {}
                () = shutdown.expired() => {}
            }
        });
    }
    let mut response = response.map(Body::new);
    dress.response(port, &mut response);
    Ok(match ends {
        // However long it says it is; one that is over already is left as it is.
        Some(ends) if !response.body().is_end_stream() => response.map(|body| ends.bound(body)),
        _ => response,
    })
}

async fn reached(ends: Option<KeyEnds>) {
    match ends {
        Some(ends) => ends.reached().await,
        None => std::future::pending().await,
    }
}
