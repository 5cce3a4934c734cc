//! The Unix socket: who may connect.
//!
//! ```text
//! bind (0700 directory, 0600 socket) -> accept -> SO_PEERCRED
//! ```

use super::Door;
use crate::http::Caller;
use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};
use tokio::net::{UnixListener, UnixStream};

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
    fn caller(self, stream: &UnixStream) -> io::Result<Caller> {
        match self {
            Self::Kernel => Ok(Caller::User { uid: stream.peer_cred()?.uid() }),
            #[cfg(test)]
            Self::Fixed(uid) => Ok(Caller::User { uid }),
        }
    }
}

/// A bound socket, which is removed when it is dropped or its serving ends.
#[derive(Debug)]
pub struct UnixDoor {
    listener: UnixListener,
    path: Option<SocketFile>,
    identify: Identify,
}

impl UnixDoor {
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
        Ok(Self { listener, path: Some(SocketFile(path.into())), identify })
    }
}

impl Door for UnixDoor {
    type Socket = UnixStream;
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<UnixStream> {
        let (stream, _) = self.listener.accept().await?;
        Ok(stream)
    }

    fn caller(&self, stream: &UnixStream) -> io::Result<Caller> {
        self.identify.caller(stream)
    }

    fn open(&self, stream: UnixStream) -> impl Future<Output = io::Result<UnixStream>> + Send + 'static {
        std::future::ready(Ok(stream))
    }

    fn close(&mut self) {
        self.path = None;
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
        let listener = UnixDoor::bind(&path, Identify::Kernel).unwrap();
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
        let _listener = UnixDoor::bind(&path, Identify::Kernel).unwrap();
        UnixStream::connect(&path).await.unwrap();
    }

    #[tokio::test]
    async fn the_kernel_says_who_connects() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let uid = rustix::process::geteuid().as_raw();
        assert_eq!(Identify::Kernel.caller(&ours).unwrap(), Caller::User { uid });
    }
}
