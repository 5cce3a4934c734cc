//! A TCP port. Whoever connects is nobody until a key says otherwise; without TLS it stays on this host.

use super::Door;
use crate::http::Caller;
use offshoot_types::{ErrorCode, Failure};
use std::{io, net::SocketAddr};
use tokio::net::{TcpListener, TcpStream};

/// Where to listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listen(SocketAddr);

impl Listen {
    /// Port 0 is any that is free. Where other hosts can reach it, what goes over the wire, keys included, must be meant
    /// to be read by others: `allow_plaintext`.
    pub fn new(address: SocketAddr, allow_plaintext: bool) -> Result<Self, Failure> {
        match address.ip().is_loopback() || allow_plaintext {
            true => Ok(Self(address)),
            false => Err(Failure::new(
                ErrorCode::Unsupported,
                format!("{address} can be reached from other hosts, and nothing on the wire would be encrypted"),
            )
            .hint(
                "listen at 127.0.0.1 and forward the port (`ssh -L`), or put a proxy with TLS before it; with \
                 --allow-plaintext it listens there all the same",
            )),
        }
    }
}

/// A bound port.
#[derive(Debug)]
pub struct TcpDoor {
    listener: TcpListener,
    address: SocketAddr,
}

impl TcpDoor {
    pub async fn bind(Listen(address): Listen) -> Result<Self, Failure> {
        let failed = |error: io::Error| {
            Failure::new(ErrorCode::Unavailable, format!("cannot listen at {address}"))
                .caused_by(&error)
                .hint("is the port taken? port 0 is any that is free")
        };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address })
    }

    /// With the port that was free, if any was asked for.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Door for TcpDoor {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<TcpStream> {
        let (stream, _) = self.listener.accept().await?;
        // Head and body of an answer are often two writes; a caller would wait 40 ms for the second.
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    fn caller(&self, stream: &TcpStream) -> io::Result<Caller> {
        let local = stream.peer_addr()?.ip().is_loopback() && self.address.ip().is_loopback();
        Ok(Caller::Network { local })
    }

    fn close(&mut self) {
        // A port has no name that could go before its backlog does.
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listen(address: &str, allow_plaintext: bool) -> Result<Listen, Failure> {
        Listen::new(address.parse().unwrap(), allow_plaintext)
    }

    #[tokio::test]
    async fn without_tls_it_stays_on_this_host_unless_told() {
        for address in ["0.0.0.0:0", "[::]:0"] {
            assert_eq!(listen(address, false).unwrap_err().code, ErrorCode::Unsupported, "{address}");
        }
        let door = TcpDoor::bind(listen("0.0.0.0:0", true).unwrap()).await.unwrap();
        let stream = TcpStream::connect(("127.0.0.1", door.address().port())).await.unwrap();
        let accepted = door.accept().await.unwrap();
        assert_eq!(door.caller(&accepted).unwrap(), Caller::Network { local: false }, "anybody could be");
        drop(stream);
    }

    #[tokio::test]
    async fn answers_are_sent_at_once_and_the_port_is_the_one_that_was_free() {
        let door = TcpDoor::bind(listen("127.0.0.1:0", false).unwrap()).await.unwrap();
        assert_ne!(door.address().port(), 0);
        let (stream, accepted) = tokio::join!(TcpStream::connect(door.address()), door.accept());
        let (_stream, accepted) = (stream.unwrap(), accepted.unwrap());
        assert!(accepted.nodelay().unwrap());
        assert_eq!(door.caller(&accepted).unwrap(), Caller::Network { local: true });
        let taken = TcpDoor::bind(Listen::new(door.address(), false).unwrap()).await;
        assert_eq!(taken.unwrap_err().code, ErrorCode::Unavailable);
    }
}
