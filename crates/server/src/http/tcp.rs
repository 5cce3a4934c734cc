//! A TCP connection to a port inside a VM, on a WebSocket: bytes in binary frames, the text `end` ends one
//! direction.

use super::{
    error::{ApiError, GuestErrors},
    extract::{Query, Upgrade, Vm},
    request::Call,
};
use axum::{
    extract::ws::{Message, WebSocket},
    response::Response,
};
use bytes::Bytes;
use futures::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use offshoot_api::v1::{TCP_END, TcpQuery};
use offshoot_engine::guest_failure;
use offshoot_types::{Command, ErrorCode, Failure};
use std::time::Duration;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split},
    time::{MissedTickBehavior, interval},
};

const CHUNK: usize = 64 * 1024;
/// How often a silent caller's socket is tried.
const PING: Duration = Duration::from_secs(2);

/// Connect to a TCP port inside a VM: a WebSocket of binary frames.
#[utoipa::path(get, path = "/v1/vms/{vm}/tcp", tag = "vms", operation_id = "tcp",
    params(("vm" = String, Path, description = "Name or id"), TcpQuery),
    responses((status = 101, description = "Bytes in binary frames; the text `end` ends a direction"), GuestErrors))]
pub async fn tcp(
    call: Call,
    Vm(vm): Vm,
    Query(query): Query<TcpQuery>,
    upgrade: Upgrade,
) -> Result<Response, ApiError> {
    let port = query.port()?;
    let command = Command::Connect { vm, port };
    let name = call.named(&command);
    let guest = call.engine.guest(call.permit(command).await?).await?;
    let tunnel = guest.client().connect_tcp(port).await.map_err(|error| guest_failure(&name, &error))?;
    let present = call.app.activity.enter_session()?;
    Ok(upgrade.serve(move |socket| async move {
        let _present = present;
        let carried = tokio::select! {
            carried = carry(socket, tunnel) => carried,
            () = call.app.shutdown.expired() => Err(super::vms::stopping()),
        };
        guest.complete(carried).await;
    }))
}

/// Both directions until both have ended, or either breaks.
async fn carry(socket: WebSocket, tunnel: impl AsyncRead + AsyncWrite) -> Result<(), Failure> {
    let (mut sink, mut stream) = socket.split();
    let (from_guest, to_guest) = split(tunnel);
    let carried = tokio::try_join!(inward(&mut stream, to_guest), outward(&mut sink, from_guest));
    // If the caller left, there is nobody to say goodbye to.
    let _gone = sink.close().await;
    carried.map(|((), ())| ())
}

async fn inward(
    stream: &mut SplitStream<WebSocket>,
    mut guest: impl AsyncWrite + Unpin,
) -> Result<(), Failure> {
    let broken = |error: std::io::Error| {
        Failure::new(ErrorCode::Guest, "the connection inside the VM broke").caused_by(&error)
    };
    loop {
        match stream.next().await {
            Some(Ok(Message::Binary(data))) => guest.write_all(&data).await.map_err(broken)?,
            Some(Ok(Message::Text(text))) if text.as_str() == TCP_END => {
                return guest.shutdown().await.map_err(broken);
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(Message::Text(_) | Message::Close(_)) | Err(_)) | None => return Err(left()),
        }
    }
}

async fn outward(
    sink: &mut SplitSink<WebSocket, Message>,
    mut guest: impl AsyncRead + Unpin,
) -> Result<(), Failure> {
    let mut ping = interval(PING);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = tokio::select! {
            read = guest.read(&mut buffer) => read,
            _ = ping.tick() => {
                sink.send(Message::Ping(Bytes::new())).await.map_err(|_| left())?;
                continue;
            }
        };
        let count = read.map_err(|error| {
            Failure::new(ErrorCode::Guest, "the connection inside the VM broke").caused_by(&error)
        })?;
        let message = match count {
            0 => Message::text(TCP_END),
            count => Message::Binary(Bytes::copy_from_slice(&buffer[..count])),
        };
        sink.send(message).await.map_err(|_| left())?;
        if count == 0 {
            return Ok(());
        }
    }
}

fn left() -> Failure {
    Failure::new(ErrorCode::Interrupted, "the caller left the connection")
}
