//! A TCP connection to a port inside a VM, as a byte stream, and links to what speaks HTTP there.

use super::{Client, ClientError, connection::Socket, connection::query};
use crate::v1::{CreatePreview, Preview, TCP_END, TcpQuery};
use bytes::{Buf, Bytes};
use futures::{Sink, Stream, ready};
use http::Method;
use offshoot_types::VmRef;
use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::tungstenite::{Error as SocketError, Message};

/// Bytes in one frame.
const CHUNK: usize = 128 * 1024;

/// Bytes both ways; shutting down the write side ends that direction only.
#[derive(Debug)]
pub struct TcpConnection {
    socket: Socket,
    arrived: Bytes,
    /// The peer has ended its direction.
    end_seen: bool,
    /// We have ended ours.
    end_sent: bool,
}

impl Client {
    pub async fn tcp(&self, vm: &VmRef, port: u16) -> Result<TcpConnection, ClientError> {
        let path = query(&format!("/v1/vms/{vm}/tcp"), &TcpQuery { port: port.into() });
        let socket = self.websocket(&path).await?;
        Ok(TcpConnection { socket, arrived: Bytes::new(), end_seen: false, end_sent: false })
    }

    /// Makes a link by which a browser sees a program in a VM.
    pub async fn preview(&self, vm: &VmRef, request: &CreatePreview) -> Result<Preview, ClientError> {
        self.json(Method::POST, &format!("/v1/vms/{vm}/previews"), Some(request)).await
    }
}

fn io_error(error: SocketError) -> io::Error {
    match error {
        SocketError::Io(error) => error,
        other => io::Error::other(other),
    }
}

impl AsyncRead for TcpConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.arrived.is_empty() {
            if self.end_seen {
                return Poll::Ready(Ok(()));
            }
            match ready!(Pin::new(&mut self.socket).poll_next(context)) {
                Some(Ok(Message::Binary(data))) => self.arrived = data,
                Some(Ok(Message::Text(text))) if text.as_str() == TCP_END => self.end_seen = true,
                Some(Ok(Message::Text(_))) => {
                    return Poll::Ready(Err(io::Error::other("unexpected text on a TCP stream")));
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                // Without an end first, the guest's side or the daemon broke off.
                Some(Ok(Message::Close(_))) | None => {
                    return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                }
                Some(Err(error)) => return Poll::Ready(Err(io_error(error))),
            }
        }
        let count = self.arrived.len().min(buffer.remaining());
        buffer.put_slice(&self.arrived[..count]);
        self.arrived.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TcpConnection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.end_sent {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let mut socket = Pin::new(&mut self.socket);
        ready!(socket.as_mut().poll_ready(context)).map_err(io_error)?;
        let count = data.len().min(CHUNK);
        socket.start_send(Message::Binary(Bytes::copy_from_slice(&data[..count]))).map_err(io_error)?;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context).map_err(io_error)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.end_sent {
            let mut socket = Pin::new(&mut self.socket);
            ready!(socket.as_mut().poll_ready(context)).map_err(io_error)?;
            socket.start_send(Message::text(TCP_END)).map_err(io_error)?;
            self.end_sent = true;
        }
        Pin::new(&mut self.socket).poll_flush(context).map_err(io_error)
    }
}
