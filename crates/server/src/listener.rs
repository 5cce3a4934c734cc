//! The Unix socket: who may connect, how many at once, and how connections end.
//!
//! ```text
//! bind (0700 directory, 0600 socket) -> accept -> SO_PEERCRED -> HTTP/1.1 -> router
//! shutdown requested: unlink, serve what is in the backlog, finish what is under way, close
//! ```

use crate::{
    activity::Activity,
    http::Peer,
    shutdown::Shutdown,
    tasks::{TaskKind, Tasks},
};
use axum::{Router, body::Body};
use futures::FutureExt;
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::Semaphore,
};
use tower_service::Service;

/// Connections served at once; further ones wait in the backlog.
const MAX_CONNECTIONS: usize = 512;
/// How long a caller may take to send the head of a request.
const HEAD_DEADLINE: Duration = Duration::from_secs(30);
/// Bytes of one request's head, and of what is buffered of an answer that its reader does not take.
const MAX_BUFFER: usize = 256 * 1024;
/// Pause after an accept that failed for lack of descriptors: they are freed by others, not announced.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("cannot prepare the socket directory {}", dir.display())]
    Directory {
        dir: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is not safe for a socket of user {uid}: user {owner} or others may change it", dir.display())]
    ForeignDirectory { dir: PathBuf, owner: u32, uid: u32 },
    #[error("cannot listen at {}", socket.display())]
    Bind {
        socket: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// How the user at the other end of a connection is found out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Identify {
    /// `SO_PEERCRED`: the kernel's word as of the connect.
    #[default]
    Kernel,
    /// Everybody is this user.
    #[cfg(test)]
    Fixed(u32),
}

impl Identify {
    fn peer(self, stream: &UnixStream) -> io::Result<Peer> {
        match self {
            Self::Kernel => Ok(Peer { uid: stream.peer_cred()?.uid() }),
            #[cfg(test)]
            Self::Fixed(uid) => Ok(Peer { uid }),
        }
    }
}

/// A bound socket, which is removed when it is dropped or its serving ends.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    path: SocketFile,
    identify: Identify,
}

impl Listener {
    /// Makes the directory (0700) and the socket (0600). The caller holds the lock of the state directory, so a
    /// socket that is there already is a dead daemon's.
    pub fn bind(path: &Path, identify: Identify) -> Result<Self, BindError> {
        let dir = path.parent().unwrap_or(Path::new("/"));
        make_private_dir(dir)?;
        let failed = |source| BindError::Bind { socket: path.into(), source };
        // Bound beside and renamed into place: whoever sees the socket may connect to it, and nobody else ever
        // could.
        let beside = path.with_extension("new");
        for stale in [&beside, &path.to_path_buf()] {
            match fs::remove_file(stale) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            }
        }
        let listener = UnixListener::bind(&beside).map_err(failed)?;
        fs::set_permissions(&beside, fs::Permissions::from_mode(0o600)).map_err(failed)?;
        fs::rename(&beside, path).map_err(failed)?;
        Ok(Self { listener, path: SocketFile(path.into()), identify })
    }

    /// Serves until a shutdown is requested. Connections go on, tracked by `activity`.
    pub async fn serve(self, router: Router, activity: Activity, shutdown: Shutdown, tasks: Tasks) {
        let Self { listener, path, identify } = self;
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let serve = |stream: UnixStream, permit| {
            let peer = match identify.peer(&stream) {
                Ok(peer) => peer,
                Err(error) => {
                    tracing::warn!(%error, "a connection whose user is unknown was closed");
                    return;
                }
            };
            let connection = Connection { peer, router: router.clone(), shutdown: shutdown.clone() };
            let present = activity.enter();
            tasks.spawn(TaskKind::Connection, async move {
                connection.serve(stream).await;
                drop((present, permit));
            });
        };
        loop {
            let accepted = tokio::select! {
                biased;
                () = shutdown.requested() => break,
                accepted = accept(&listener, &permits) => accepted,
            };
            match accepted {
                Ok((stream, permit)) => serve(stream, permit),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        // From here on nobody finds the socket; who had connected already is still served.
        drop(path);
        while let Some(Ok((stream, permit))) = accept(&listener, &permits).now_or_never() {
            serve(stream, permit);
        }
    }
}

async fn accept(
    listener: &UnixListener,
    permits: &Arc<Semaphore>,
) -> io::Result<(UnixStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = permits.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, permit))
}

#[derive(Debug)]
struct Connection {
    peer: Peer,
    router: Router,
    shutdown: Shutdown,
}

impl Connection {
    async fn serve(self, stream: UnixStream) {
        let Self { peer, router, shutdown } = self;
        let service = service_fn(move |request: Request<Incoming>| {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(peer);
            // A router is always ready.
            router.clone().call(request)
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_DEADLINE)
            .max_buf_size(MAX_BUFFER)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            biased;
            ended = connection.as_mut() => ended,
            () = shutdown.requested() => {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    ended = connection.as_mut() => ended,
                    () = shutdown.expired() => Ok(()),
                }
            }
        };
        if let Err(error) = ended {
            // Callers that leave in the middle are everyday life.
            tracing::debug!(%error, "connection ended");
        }
    }
}

/// Makes the directory and its parents; refuses one that somebody else could have prepared for us, be it by
/// its parent: `/tmp/offshoot-<uid>` is anybody's to make.
fn make_private_dir(dir: &Path) -> Result<(), BindError> {
    let failed = |source| BindError::Directory { dir: dir.into(), source };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
    if let Some(parent) = dir.parent() {
        let found = fs::symlink_metadata(parent)
            .map_err(|source| BindError::Directory { dir: parent.into(), source })?;
        check_parent(parent, found.uid(), found.permissions().mode(), rustix::process::geteuid().as_raw())?;
    }
    let found = fs::symlink_metadata(dir).map_err(failed)?;
    let uid = rustix::process::geteuid().as_raw();
    if found.uid() != uid || !found.is_dir() {
        return Err(BindError::ForeignDirectory { dir: dir.into(), owner: found.uid(), uid });
    }
    if found.permissions().mode() & 0o077 != 0 {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(failed)?;
    }
    Ok(())
}

/// Whether nobody but us and root can replace what is in `dir`.
fn check_parent(dir: &Path, owner: u32, mode: u32, uid: u32) -> Result<(), BindError> {
    const STICKY: u32 = 0o1000;
    let shared = mode & 0o022 != 0 && mode & STICKY == 0;
    match (owner == uid || owner == 0) && !shared {
        true => Ok(()),
        false => Err(BindError::ForeignDirectory { dir: dir.into(), owner, uid }),
    }
}

/// The name of our socket.
#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(socket = %self.0.display(), %error, "the socket could not be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_is_private_and_gone_with_its_listener() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/offshoot.sock");
        let listener = Listener::bind(&path, Identify::Kernel).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_parent_directory_that_others_may_change_is_refused() {
        let check = |owner, mode| check_parent(Path::new("/tmp/offshoot-7"), owner, mode, 7);
        assert!(check(7, 0o755).is_ok() && check(0, 0o755).is_ok());
        assert!(check(0, 0o1777).is_ok(), "/tmp itself");
        assert!(check(8, 0o700).is_err(), "made by another user before us");
        assert!(check(7, 0o777).is_err() && check(0, 0o775).is_err());
    }

    #[tokio::test]
    async fn a_dead_daemons_socket_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("offshoot.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "a std listener leaves its socket behind, as a crash does");
        let _listener = Listener::bind(&path, Identify::Kernel).unwrap();
        UnixStream::connect(&path).await.unwrap();
    }

    #[tokio::test]
    async fn the_kernel_says_who_connects() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let uid = rustix::process::geteuid().as_raw();
        assert_eq!(Identify::Kernel.peer(&ours).unwrap(), Peer { uid });
    }
}
