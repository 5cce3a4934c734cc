//! Where the daemon of a state directory listens: a pure function, computed alike by daemon and caller.
//!
//! ```text
//! $XDG_RUNTIME_DIR/offshoot/<8 hex>/offshoot.sock     if set and short enough
//! /run/offshoot/<8 hex>/offshoot.sock                 for root
//! /tmp/offshoot-<uid>/<8 hex>/offshoot.sock           otherwise
//! ```
//! The eight digits come from the canonical path of the state directory, so two state directories never share
//! a daemon. A socket address holds 108 bytes; the sockets of VMs live deeper, so the base must stay short.

use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// File name of the API socket in the runtime directory.
pub const SOCKET_NAME: &str = "offshoot.sock";

/// Longest runtime directory: leaves 43 bytes for `/<vm>/g<generation>/<socket>` below it.
pub const MAX_RUNTIME_DIR: usize = 64;

/// Makes the state directory (0700) if it is not there, and says where it really is. Daemon and caller both
/// begin with this: two names of one directory lead to one daemon.
pub fn canonical_state_dir(dir: &Path) -> std::io::Result<PathBuf> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    dir.canonicalize()
}

/// What the place of the sockets depends on, besides the state directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeBase {
    pub xdg_runtime_dir: Option<PathBuf>,
    pub uid: u32,
}

impl RuntimeBase {
    /// Reads `XDG_RUNTIME_DIR` and the process's user id: the one place where this crate looks around.
    pub fn from_environment() -> Self {
        let xdg_runtime_dir = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        Self { xdg_runtime_dir, uid: rustix::process::getuid().as_raw() }
    }

    /// Directory for the sockets that belong to `state_dir`, which must be canonical.
    pub fn runtime_dir(&self, state_dir: &Path) -> PathBuf {
        use std::os::unix::ffi::OsStrExt;
        let digest = Sha256::digest(state_dir.as_os_str().as_bytes());
        let leaf: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        let short = |dir: &PathBuf| dir.as_os_str().len() <= MAX_RUNTIME_DIR;
        self.xdg_runtime_dir
            .as_ref()
            .filter(|dir| dir.is_absolute())
            .map(|dir| dir.join("offshoot").join(&leaf))
            .filter(short)
            .unwrap_or_else(|| match self.uid {
                0 => Path::new("/run/offshoot").join(&leaf),
                uid => PathBuf::from(format!("/tmp/offshoot-{uid}")).join(&leaf),
            })
    }

    /// The API socket of the daemon that serves `state_dir`, which must be canonical.
    pub fn socket_path(&self, state_dir: &Path) -> PathBuf {
        self.runtime_dir(state_dir).join(SOCKET_NAME)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(xdg: Option<&str>, uid: u32) -> RuntimeBase {
        RuntimeBase { xdg_runtime_dir: xdg.map(PathBuf::from), uid }
    }

    #[test]
    fn the_xdg_directory_is_preferred_and_each_state_directory_has_its_own_socket() {
        let base = base(Some("/run/user/1000"), 1000);
        let one = base.socket_path(Path::new("/home/a/.local/share/offshoot"));
        let other = base.socket_path(Path::new("/srv/offshoot"));
        assert!(one.starts_with("/run/user/1000/offshoot"), "{one:?}");
        assert_ne!(one, other);
        assert_eq!(one, base.socket_path(Path::new("/home/a/.local/share/offshoot")));
    }

    #[test]
    fn without_it_root_gets_run_and_others_a_private_directory_in_tmp() {
        assert!(base(None, 0).runtime_dir(Path::new("/s")).starts_with("/run/offshoot"));
        assert!(base(None, 7).runtime_dir(Path::new("/s")).starts_with("/tmp/offshoot-7"));
        assert!(base(Some("relative"), 7).runtime_dir(Path::new("/s")).starts_with("/tmp/offshoot-7"));
    }

    #[test]
    fn a_runtime_directory_too_long_for_a_socket_address_is_not_used() {
        let long = format!("/{}", "x".repeat(80));
        let path = base(Some(&long), 7).socket_path(Path::new("/s"));
        assert!(path.starts_with("/tmp/offshoot-7"), "{path:?}");
        assert!(path.as_os_str().len() < 108);
    }
}
