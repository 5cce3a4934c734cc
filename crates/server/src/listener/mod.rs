//! Where connections come from, how many at once, and how they end.
//!
//! ```text
//! unix (peer uid)  --.
//! tcp (address)    --'--> accept, within bounds --> HTTP --> router
//! shutdown requested: the door closes, what is in the backlog is served, what is under way finishes
//! ```

mod connection;
mod tcp;
mod unix;

pub use tcp::{Listen, TcpDoor};
pub use unix::{Identify, UnixDoor};

use crate::{
    activity::Activity,
    http::Caller,
    shutdown::Shutdown,
    tasks::{TaskKind, Tasks},
};
use axum::Router;
use connection::Connection;
use futures::FutureExt;
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
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    fn accept(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
    /// Who is at the other end.
    fn caller(&self, stream: &Self::Stream) -> io::Result<Caller>;
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
                Ok((stream, permit)) => self.welcome(&door, stream, permit),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        // Who had connected already is still served.
        door.close();
        while let Some(Ok((stream, permit))) = accept(&door, &permits).now_or_never() {
            self.welcome(&door, stream, permit);
        }
    }

    fn welcome<D: Door>(&self, door: &D, stream: D::Stream, permit: OwnedSemaphorePermit) {
        let caller = match door.caller(&stream) {
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
        self.tasks.spawn(TaskKind::Connection, async move {
            connection.serve(stream).await;
            drop((present, permit));
        });
    }
}

async fn accept<D: Door>(
    door: &D,
    permits: &Arc<Semaphore>,
) -> io::Result<(D::Stream, OwnedSemaphorePermit)> {
    let permit = permits.clone().acquire_owned().await.map_err(io::Error::other)?;
    Ok((door.accept().await?, permit))
}
