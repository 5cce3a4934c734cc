//! Connections from the host to servers inside the VM.

use crate::{
    fault::Context,
    sys::{Registered, notes_stay},
};
use offshoot_guest_proto::message::GuestError;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::net::TcpStream;

/// For a server on the loopback interface whose backlog is full.
const DIAL: Duration = Duration::from_secs(10);

/// Counts connections that did not end by themselves: the session they belonged to is gone.
#[derive(Debug, Default)]
pub struct Tunnels {
    cut: AtomicU32,
}

impl Tunnels {
    pub fn open(&self) -> OpenTunnel<'_> {
        OpenTunnel { tunnels: self, closed: false }
    }

    /// Connections cut since the last [`Tunnels::forget_cut`].
    pub fn cut(&self) -> u32 {
        self.cut.load(Ordering::Relaxed)
    }

    pub fn forget_cut(&self) {
        self.cut.store(0, Ordering::Relaxed);
    }
}

/// A connection; dropped without [`OpenTunnel::close`] it was cut.
#[derive(Debug)]
pub struct OpenTunnel<'a> {
    tunnels: &'a Tunnels,
    closed: bool,
}

impl OpenTunnel<'_> {
    pub fn close(mut self) {
        self.closed = true;
    }
}

impl Drop for OpenTunnel<'_> {
    fn drop(&mut self) {
        if !self.closed {
            self.tunnels.cut.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Connects to whoever listens on the loopback interface, by IPv4 or else by IPv6.
pub async fn connect(port: u16) -> Result<Registered<TcpStream>, GuestError> {
    let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let stream = match dial(v4).await {
        Ok(stream) => Ok(stream),
        // What the first address says is what the caller is told.
        Err(error) => dial(SocketAddr::from((Ipv6Addr::LOCALHOST, port))).await.map_err(|_| error),
    };
    let stream = Registered::new(stream.context("connect to", v4)?);
    // The host's side has its own batching; a keystroke must not wait for it.
    stream.set_nodelay(true).context("connect to", v4)?;
    Ok(stream)
}

async fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    if !notes_stay() {
        return TcpStream::connect(address).await;
    }
    // One that fails must not have been known to the runtime.
    let dialled = move || std::net::TcpStream::connect_timeout(&address, DIAL);
    let stream = tokio::task::spawn_blocking(dialled).await.map_err(io::Error::other)??;
    stream.set_nonblocking(true)?;
    TcpStream::from_std(stream)
}

#[cfg(test)]
mod tests {
    use super::*;
    use offshoot_guest_proto::message::GuestErrorKind;
    use tokio::net::TcpListener;

    #[test]
    fn a_connection_that_its_session_took_with_it_is_counted() {
        let tunnels = Tunnels::default();
        tunnels.open().close();
        drop(tunnels.open());
        assert_eq!(tunnels.cut(), 1);
        tunnels.forget_cut();
        assert_eq!(tunnels.cut(), 0);
    }

    #[tokio::test]
    async fn a_server_on_either_loopback_address_is_reached() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        connect(listener.local_addr().unwrap().port()).await.unwrap();
        if let Ok(listener) = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await {
            connect(listener.local_addr().unwrap().port()).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_port_nobody_listens_on_is_refused_by_name() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let error = connect(port).await.unwrap_err();
        assert_eq!(error.kind, GuestErrorKind::ConnectionRefused);
        assert!(error.message.contains(&port.to_string()), "{error}");
    }
}
