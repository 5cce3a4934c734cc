//! Where a client's connections come from.

use super::ClientError;
use futures::future::BoxFuture;
use std::{fmt, io, path::Path, sync::Arc};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::UnixStream,
};

/// Bytes both ways.
pub trait Wire: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Wire for T {}

/// Makes connections to a daemon that is reached by another way than its socket, such as one in the same process. Who
/// the daemon takes us for is decided by whoever made it.
pub trait Dial: Send + Sync + 'static {
    /// A new connection, on which HTTP/1.1 is spoken.
    fn dial(&self) -> BoxFuture<'_, Result<Box<dyn Wire>, ClientError>>;
}

/// Connects to a daemon's socket, if the daemon is one of this user.
pub async fn connect(socket: &Path) -> Result<Box<dyn Wire>, ClientError> {
    let stream = UnixStream::connect(socket).await.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            ClientError::NotRunning { socket: socket.to_path_buf(), source }
        }
        _ => ClientError::Io { operation: "connect", source },
    })?;
    check_owner(socket, &stream)?;
    Ok(Box::new(stream))
}

#[derive(Clone)]
pub(super) enum Way {
    Socket(Arc<Path>),
    Dialled(Arc<dyn Dial>),
}

impl fmt::Debug for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => f.debug_tuple("Socket").field(path).finish(),
            Self::Dialled(_) => f.debug_tuple("Dialled").finish(),
        }
    }
}

impl Way {
    pub async fn connect(&self) -> Result<Box<dyn Wire>, ClientError> {
        match self {
            Self::Socket(socket) => connect(socket).await,
            Self::Dialled(dial) => dial.dial().await,
        }
    }
}

/// A daemon acts for the user who runs it. One of somebody else has no business with our requests, and a
/// socket in a shared directory may have been put there to hear them.
fn check_owner(socket: &Path, stream: &UnixStream) -> Result<(), ClientError> {
    let peer = stream.peer_cred().map_err(|source| ClientError::Io { operation: "connect", source })?;
    match (peer.uid(), rustix::process::geteuid().as_raw()) {
        (owner, uid) if owner == uid => Ok(()),
        (owner, uid) => Err(ClientError::Foreign { socket: socket.to_path_buf(), owner, uid }),
    }
}
