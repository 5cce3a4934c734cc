//! Programs that listen inside a sandbox, over HTTP: one connection into the VM for each request, upgrades included.
//!
//! ```text
//! request --> TCP into the VM --HTTP/1.1--> the program
//!         <-- its answer as it comes     101: bytes in both directions until either ends
//! ```

use super::{refusal::Refusal, sandbox::Sandbox};
use crate::tasks::TaskKind;
use axum::{
    body::Body,
    extract::Request,
    http::{HeaderMap, HeaderValue, StatusCode, Uri, Version, header},
    response::Response,
};
use hyper::{client::conn::http1, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use offshoot_types::{Command, VmRef};
use std::time::Duration;
use tokio::{io::copy_bidirectional, time::timeout};

/// How long a program may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(10);

/// What is said to us and not to the program.
const OURS: [&str; 4] = ["e2b-sandbox-id", "e2b-sandbox-port", "e2b-traffic-access-token", "x-access-token"];

/// Hands a request to the program at this port, and its answer back.
pub async fn forward(sandbox: Sandbox, port: u16, mut request: Request) -> Result<Response, Refusal> {
    let Sandbox { call, vm, name, .. } = sandbox;
    let closed = || Refusal::PortClosed { sandbox: name.to_string(), port };
    let gone = || Refusal::Gone { sandbox: name.to_string() };
    let permit = call.permit(Command::Connect { vm: VmRef::Id(vm), port }).await;
    let permit = permit.map_err(|_denied| Refusal::Unauthorized)?;
    let guest = call.engine.guest(permit).await.map_err(|failure| {
        tracing::info!(code = %failure.code, message = failure.message, "the sandbox could not be reached");
        gone()
    })?;
    let tunnel = match timeout(CONNECT, guest.client().connect_tcp(port)).await {
        Ok(Ok(tunnel)) => tunnel,
        Ok(Err(_)) | Err(_) => return Err(closed()),
    };
    let handshake = http1::Builder::new().preserve_header_case(true).handshake(TokioIo::new(tunnel));
    let (mut sender, connection) = handshake.await.map_err(|_| closed())?;
    let (shutdown, tasks) = (call.app.shutdown.clone(), call.app.tasks.clone());
    tasks.spawn(TaskKind::Port, async move {
        // The VM is in use until the connection ends. It is no operation that would have to be completed: a connection
        // changes nothing that is recorded.
        let _guest = guest;
        tokio::select! {
            ended = connection.with_upgrades() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection into a sandbox ended");
                }
            }
            () = shutdown.expired() => {}
        }
    });

    let theirs = request.extensions_mut().remove::<OnUpgrade>();
    prepare(&mut request);
    let mut response = sender.send_request(request).await.map_err(|_| closed())?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS
        && let (Some(theirs), Some(ours)) = (theirs, response.extensions_mut().remove::<OnUpgrade>())
    {
        let shutdown = call.app.shutdown.clone();
        let present = call.app.activity.enter_session().map_err(|_full| closed())?;
        tasks.spawn(TaskKind::Port, async move {
            let _present = present;
            let carried = async {
                let (theirs, ours) = tokio::try_join!(theirs, ours).ok()?;
                copy_bidirectional(&mut TokioIo::new(theirs), &mut TokioIo::new(ours)).await.ok()
            };
            tokio::select! {
                _ended = carried => {}
                () = shutdown.expired() => {}
            }
        });
    }
    Ok(response.map(Body::new))
}

/// As a program of HTTP/1.1 expects it, without what was for us.
fn prepare(request: &mut Request) {
    let host = request.uri().authority().map(|authority| authority.as_str().to_owned());
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
    *request.uri_mut() = path.parse::<Uri>().unwrap_or_default();
    *request.version_mut() = Version::HTTP_11;
    let headers: &mut HeaderMap = request.headers_mut();
    for name in OURS {
        headers.remove(name);
    }
    if let (false, Some(host)) = (headers.contains_key(header::HOST), host)
        && let Ok(host) = HeaderValue::from_str(&host)
    {
        headers.insert(header::HOST, host);
    }
}
