//! A TCP port. Whoever connects is nobody until a key says otherwise; without TLS it stays on this host.

use super::{Door, Tls};
use crate::http::Caller;
use offshoot_types::{ErrorCode, Failure};
use std::{io, net::SocketAddr};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

/// Where to listen, and whether what is said there is encrypted.
#[derive(Debug, Clone)]
pub struct Listen {
    address: SocketAddr,
    tls: Option<Tls>,
}

impl Listen {
    /// With TLS, at any address. Port 0 is any that is free.
    pub const fn encrypted(address: SocketAddr, tls: Tls) -> Self {
        Self { address, tls: Some(tls) }
    }

    /// Where other hosts can reach it, what goes over the wire, keys included, must be meant to be read by others:
    /// `allow_plaintext`.
    pub fn plain(address: SocketAddr, allow_plaintext: bool) -> Result<Self, Failure> {
        match address.ip().is_loopback() || allow_plaintext {
            true => Ok(Self { address, tls: None }),
            false => Err(Failure::new(
                ErrorCode::Unsupported,
                format!("{address} can be reached from other hosts, and nothing on the wire would be encrypted"),
            )
            .hint(
                "give it a certificate (`--tls-cert FILE --tls-key FILE`), or listen at 127.0.0.1 and forward the port \
                 (`ssh -L`); with --allow-plaintext it listens there all the same",
            )),
        }
    }

    /// What URLs of it begin with.
    pub const fn scheme(&self) -> &'static str {
        match self.tls {
            Some(_) => "https",
            None => "http",
        }
    }
}

/// A bound port.
#[derive(Debug)]
pub struct TcpDoor {
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<Tls>,
}

impl TcpDoor {
    pub async fn bind(Listen { address, tls }: Listen) -> Result<Self, Failure> {
        let failed = |error: io::Error| {
            Failure::new(ErrorCode::Unavailable, format!("cannot listen at {address}"))
                .caused_by(&error)
                .hint("is the port taken? port 0 is any that is free")
        };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address, tls })
    }

    /// With the port that was free, if any was asked for.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Door for TcpDoor {
    type Socket = TcpStream;
    type Stream = Either<TcpStream, TlsStream<TcpStream>>;

    async fn accept(&self) -> io::Result<TcpStream> {
        let (stream, _) = self.listener.accept().await?;
        // Head and body of an answer are often two writes; a caller would wait 40 ms for the second.
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    fn caller(&self, stream: &TcpStream) -> io::Result<Caller> {
        let local = stream.peer_addr()?.ip().is_loopback() && self.address.ip().is_loopback();
        Ok(Caller::Network { local, tls: self.tls.is_some() })
    }

    fn open(&self, stream: TcpStream) -> impl Future<Output = io::Result<Self::Stream>> + Send + 'static {
        let tls = self.tls.clone();
        async move {
            match tls {
                None => Ok(Either::Left(stream)),
                Some(tls) => tls.accept(stream).await.map(Either::Right),
            }
        }
    }

    fn close(&mut self) {
        // A port has no name that could go before its backlog does.
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listen(address: &str, allow_plaintext: bool) -> Result<Listen, Failure> {
        Listen::plain(address.parse().unwrap(), allow_plaintext)
    }

    #[tokio::test]
    async fn without_tls_it_stays_on_this_host_unless_told() {
        for address in ["0.0.0.0:0", "[::]:0"] {
            assert_eq!(listen(address, false).unwrap_err().code, ErrorCode::Unsupported, "{address}");
        }
        let door = TcpDoor::bind(listen("0.0.0.0:0", true).unwrap()).await.unwrap();
        let stream = TcpStream::connect(("127.0.0.1", door.address().port())).await.unwrap();
        let accepted = door.accept().await.unwrap();
        assert_eq!(
            door.caller(&accepted).unwrap(),
            Caller::Network { local: false, tls: false },
            "anybody could be"
        );
        drop(stream);
    }

    #[tokio::test]
    async fn answers_are_sent_at_once_and_the_port_is_the_one_that_was_free() {
        let door = TcpDoor::bind(listen("127.0.0.1:0", false).unwrap()).await.unwrap();
        assert_ne!(door.address().port(), 0);
        let (stream, accepted) = tokio::join!(TcpStream::connect(door.address()), door.accept());
        let (_stream, accepted) = (stream.unwrap(), accepted.unwrap());
        assert!(accepted.nodelay().unwrap());
        assert_eq!(door.caller(&accepted).unwrap(), Caller::Network { local: true, tls: false });
        let taken = TcpDoor::bind(Listen::plain(door.address(), false).unwrap()).await;
        assert_eq!(taken.unwrap_err().code, ErrorCode::Unavailable);
    }
}
