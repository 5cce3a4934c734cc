//! One listener, and the connections that came through it.

use super::{Mapping, Watch};
use crate::{failure::Result, printer::Printer};
use offshoot_api::{Client, ClientError};
use offshoot_types::{ErrorCode, Failure, VmName, VmRef};
use std::{cell::RefCell, io, net::SocketAddr};
use tokio::{
    io::copy_bidirectional_with_sizes,
    net::{TcpListener, TcpStream},
};

/// Bytes of one direction of a connection that are here at once, besides what the kernel and the WebSocket hold.
const BUFFER: usize = 64 * 1024;

/// Nobody is to take what breaks off for what came to its end: a connection that did not is reset.
#[derive(Debug)]
struct Unended {
    stream: TcpStream,
    ended: bool,
}

impl Drop for Unended {
    fn drop(&mut self) {
        if !self.ended {
            // A socket that is gone needs no telling.
            let _gone = self.stream.set_zero_linger();
        }
    }
}

#[derive(Debug)]
pub struct Door {
    listener: TcpListener,
    address: SocketAddr,
    port: u16,
    /// What was said of connections that could not be made, until one can.
    said: RefCell<Option<String>>,
}

impl Door {
    /// Listens; from here on connections wait to be served.
    pub async fn open(mapping: Mapping, vm: &VmName) -> Result<Self> {
        let Mapping { port, host } = mapping;
        let failed = |error: io::Error| not_bound(&error, mapping, vm);
        let listener = TcpListener::bind(host).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address, port, said: RefCell::default() })
    }

    /// In the VM.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// With the port that was free, if any was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Cancel-safe.
    pub async fn accept(&self) -> io::Result<TcpStream> {
        let (stream, _) = self.listener.accept().await?;
        // What belongs together was written together by the program at the other end.
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Carries a connection to its end. Dropped, it resets it.
    pub async fn carry(&self, client: &Client, printer: &Printer, watch: &Watch, here: TcpStream) {
        let mut here = Unended { stream: here, ended: false };
        match client.tcp(&VmRef::Id(watch.vm()), self.port).await {
            Ok(mut there) => {
                self.said.take();
                let carried =
                    copy_bidirectional_with_sizes(&mut here.stream, &mut there, BUFFER, BUFFER).await;
                here.ended = carried.is_ok();
            }
            Err(error) => self.say(printer, self.refusal(watch.name(), &error)),
        }
    }

    fn refusal(&self, vm: &VmName, error: &ClientError) -> String {
        let port = self.port;
        match error.code() {
            ErrorCode::Unavailable => {
                format!("nothing listens at port {port} in `{vm}`: the connection was closed")
            }
            _ => format!("a connection to port {port} in `{vm}` could not be made: {error}"),
        }
    }

    /// Once, until it is something else or has passed.
    pub fn say(&self, printer: &Printer, text: String) {
        let mut said = self.said.borrow_mut();
        if said.as_ref() != Some(&text) {
            printer.warn(&text);
            *said = Some(text);
        }
    }
}

fn not_bound(error: &io::Error, mapping: Mapping, vm: &VmName) -> Failure {
    let Mapping { port, host } = mapping;
    let failure = |code, why: &str| Failure::new(code, format!("cannot listen at {host}: {why}"));
    match error.kind() {
        io::ErrorKind::AddrInUse => failure(ErrorCode::InUse, "another program of this host does").hint(format!(
            "`offshoot port {vm} {port}:0` takes any port that is free; `ss -ltnp 'sport = :{}'` shows whose it is",
            host.port()
        )),
        io::ErrorKind::PermissionDenied => failure(ErrorCode::Denied, "the system keeps this port for root")
            .hint(format!("`offshoot port {vm} {port}:0` takes any port that is free")),
        io::ErrorKind::AddrNotAvailable => {
            failure(ErrorCode::InvalidArgument, "this host does not have that address")
                .hint("leave the address out to listen at 127.0.0.1")
        }
        _ => failure(ErrorCode::Unavailable, "the system refused").caused_by(error),
    }
}
