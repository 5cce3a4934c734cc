//! Files of the VM, for the host, with the permissions of a user.
//!
//! ```text
//! path (text) --GuestPath--> absolute, no NUL --Root--> directory + name, by openat2(RESOLVE_IN_ROOT)
//! ```
//! Every system call runs on a blocking thread, one short piece of work at a time: a slow disk stalls one
//! operation, never the agent, and no operation holds a thread while it waits for the host.

mod list;
mod path;
mod read;
pub mod remove;
mod root;
pub mod stat;
mod watch;
mod write;

pub use path::GuestPath;
pub use read::Reading;
pub use root::Root;
pub use watch::{Seen, Watching, What};
pub use write::{Writing, write_all};

use crate::{
    fault::{Context, fault},
    sys::FileIdentity,
};
use offshoot_guest_proto::message::{FileStat, GuestError, GuestErrorKind};
use rustix::fs::{Mode, OFlags, chmodat, mkdirat, renameat, symlinkat};
use std::{io, sync::Arc};

/// File operations as one user.
#[derive(Debug, Clone)]
pub struct Files {
    root: Arc<Root>,
    identity: FileIdentity,
}

/// Runs `work` on a blocking thread.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, GuestError> + Send + 'static,
) -> Result<T, GuestError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(fault(GuestErrorKind::Other, format!("file operation: {error}"))),
    }
}

impl Files {
    pub fn new(root: Arc<Root>, identity: FileIdentity) -> Self {
        Self { root, identity }
    }

    /// Runs `work` on a blocking thread that has the user's identity.
    async fn as_user<T: Send + 'static>(
        &self,
        operation: &'static str,
        operand: String,
        work: impl FnOnce(&Root) -> io::Result<T> + Send + 'static,
    ) -> Result<T, GuestError> {
        let (root, identity) = (Arc::clone(&self.root), self.identity.clone());
        blocking(move || identity.run(|| work(&root)).context(operation, operand)).await
    }

    pub async fn stat(&self, path: String, follow: bool) -> Result<FileStat, GuestError> {
        let resolved = GuestPath::parse(&path)?;
        self.as_user("stat", path, move |root| {
            let follow_flag = if follow { OFlags::empty() } else { OFlags::NOFOLLOW };
            stat::of(root.open(resolved.as_str(), OFlags::PATH | follow_flag)?)
        })
        .await
    }

    pub async fn make_directory(
        &self,
        path: String,
        parents: bool,
        mode: Option<u32>,
    ) -> Result<(), GuestError> {
        let resolved = GuestPath::parse(&path)?;
        let mode = permission_bits("make directory", &path, mode)?;
        self.as_user("make directory", path, move |root| {
            if parents {
                return root.make_directories(&resolved, mode);
            }
            let (parent, name) = root.parent(&resolved)?;
            mkdirat(&parent, name, Mode::from_raw_mode(0o777))?;
            match mode {
                Some(mode) => Ok(chmodat(&parent, name, mode, rustix::fs::AtFlags::empty())?),
                None => Ok(()),
            }
        })
        .await
    }

    pub async fn rename(&self, from: String, to: String) -> Result<(), GuestError> {
        let (old, new) = (GuestPath::parse(&from)?, GuestPath::parse(&to)?);
        self.as_user("rename", format!("{from} to {to}"), move |root| {
            let (old_parent, old_name) = root.parent(&old)?;
            let (new_parent, new_name) = root.parent(&new)?;
            Ok(renameat(old_parent, old_name, new_parent, new_name)?)
        })
        .await
    }

    pub async fn remove(&self, path: String, recursive: bool) -> Result<(), GuestError> {
        let resolved = GuestPath::parse(&path)?;
        self.as_user("remove", path, move |root| {
            let (parent, name) = root.parent(&resolved)?;
            if recursive { remove::tree(parent, name) } else { remove::one(&parent, name) }
        })
        .await
    }

    pub async fn symlink(&self, target: String, path: String) -> Result<(), GuestError> {
        let resolved = GuestPath::parse(&path)?;
        self.as_user("make symlink", path, move |root| {
            let (parent, name) = root.parent(&resolved)?;
            Ok(symlinkat(target, parent, name)?)
        })
        .await
    }

    pub async fn set_mode(&self, path: String, mode: u32) -> Result<(), GuestError> {
        let resolved = GuestPath::parse(&path)?;
        let mode = permission_bits("set mode of", &path, Some(mode))?.unwrap_or(Mode::empty());
        self.as_user("set mode of", path, move |root| root.change_mode(resolved.as_str(), mode)).await
    }
}

/// Permission bits as the host sent them; anything else in there is refused.
fn permission_bits(operation: &str, path: &str, mode: Option<u32>) -> Result<Option<Mode>, GuestError> {
    match mode {
        Some(mode) if mode & !0o7777 != 0 => Err(crate::fault::invalid(format!(
            "{operation} {path}: mode {mode:o} has more than permission bits"
        ))),
        mode => Ok(mode.map(Mode::from_raw_mode)),
    }
}

#[cfg(test)]
mod tests;
