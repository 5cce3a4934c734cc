//! Where connections come from, how many at once, and how they end.
//!
//! ```text
//! unix (peer uid)  --.
//! tcp (address)    --'--> accept, within bounds --> (TLS) --> HTTP --> router
//! shutdown requested: the door closes, what is in the backlog is served, what is under way finishes
//! ```

mod connection;
mod opening;
mod tcp;
mod tls;
mod unix;

pub use tcp::{Listen, TcpDoor};
pub use tls::Tls;
#[cfg(test)]
pub use tls::tests::Identity;
pub use unix::{Identify, UnixDoor};

use crate::{
    activity::Activity,
    http::Caller,
    shutdown::Shutdown,
    tasks::{TaskKind, Tasks},
};
use axum::Router;
pub use connection::Connection;
use futures::FutureExt;
use opening::Opening;
use std::{io, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{OwnedSemaphorePermit, Semaphore},
};

/// Connections of one door served at once; further ones wait in its backlog.
const MAX_CONNECTIONS: usize = 512;
/// Pause after an accept that failed for lack of descriptors: they are freed by others, not announced.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What listens. Nobody can connect any more once it is dropped.
pub trait Door: Send + 'static {
    type Socket: Send + 'static;
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    fn accept(&self) -> impl Future<Output = io::Result<Self::Socket>> + Send;
    /// Who is at the other end.
    fn caller(&self, socket: &Self::Socket) -> io::Result<Caller>;
    /// What the two have to agree on before the first request. It waits for the other end, so nobody else waits for it.
    fn open(&self, socket: Self::Socket) -> impl Future<Output = io::Result<Self::Stream>> + Send + 'static;
    /// Takes away what it is found by, if that is not itself; its backlog is served still.
    fn close(&mut self);
}

/// What a door needs to serve.
#[derive(Debug, Clone)]
pub struct Service {
    pub router: Router,
    pub activity: Activity,
    pub shutdown: Shutdown,
    pub tasks: Tasks,
}

impl Service {
    /// Serves who comes through the door until a shutdown is requested. Connections go on, tracked by `activity`.
    pub async fn serve(self, mut door: impl Door) {
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.shutdown.requested() => break,
                accepted = accept(&door, &permits) => accepted,
            };
            match accepted {
                Ok((socket, permit)) => self.welcome(&door, socket, permit),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        // Who had connected already is still served.
        door.close();
        while let Some(Ok((socket, permit))) = accept(&door, &permits).now_or_never() {
            self.welcome(&door, socket, permit);
        }
    }

    fn welcome<D: Door>(&self, door: &D, socket: D::Socket, permit: OwnedSemaphorePermit) {
        let caller = match door.caller(&socket) {
            Ok(caller) => caller,
            Err(error) => {
                tracing::warn!(%error, "a connection whose caller is unknown was closed");
                return;
            }
        };
        let connection = Connection {
            caller,
            router: self.router.clone(),
            shutdown: self.shutdown.clone(),
            tasks: self.tasks.clone(),
        };
        let present = self.activity.enter();
        let (opening, shutdown) = (door.open(socket), self.shutdown.clone());
        self.tasks.spawn(TaskKind::Connection, async move {
            let opened = tokio::select! {
                opened = opening => opened,
                () = shutdown.expired() => return,
            };
            match opened {
                Ok(stream) => connection.serve(Opening::new(stream)).await,
                // Anybody can connect and say nonsense.
                Err(error) => tracing::debug!(%error, "a connection was not opened"),
            }
            drop((present, permit));
        });
    }
}

async fn accept<D: Door>(
    door: &D,
    permits: &Arc<Semaphore>,
) -> io::Result<(D::Socket, OwnedSemaphorePermit)> {
    let permit = permits.clone().acquire_owned().await.map_err(io::Error::other)?;
    Ok((door.accept().await?, permit))
}
