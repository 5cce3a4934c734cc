//! Files as a user at a shell names and sees them; see [`offshoot_guest_proto::message::EntryOperation`].
//!
//! ```text
//! "data/x" --at_home--> /home/user/data/x --Root--> done with the agent's rights, given to the user --> Entry
//! ```

mod describe;
mod list;
mod path;
mod watch;
mod write;

pub use list::Listing;
pub use path::at_home;
pub use watch::Watching;
pub use write::Writing;

use crate::{
    fault::{Context, fault, invalid},
    files::{Files, GuestPath, Reading, Root, blocking, remove},
    sys::FileIdentity,
    users::{User, Users},
};
use describe::Describer;
use offshoot_guest_proto::message::{Entry, FileKind, GuestError, GuestErrorKind};
use rustix::{
    fs::{Gid, OFlags, Uid, renameat},
    io::Errno,
};
use std::{io, sync::Arc};

/// Operations for one user.
#[derive(Debug, Clone)]
pub struct Entries {
    root: Arc<Root>,
    describer: Describer,
    user: Arc<User>,
}

impl Entries {
    pub fn new(root: Arc<Root>, users: Arc<Users>, user: User) -> Self {
        Self { describer: Describer::new(Arc::clone(&root), users), root, user: Arc::new(user) }
    }

    fn path(&self, text: &str) -> Result<GuestPath, GuestError> {
        GuestPath::parse(&at_home(text, &self.user.home)?)
    }

    /// Who owns what is made. An agent that is not root makes everything its own.
    fn owner(&self) -> Option<(Uid, Gid)> {
        let identity = &self.user.identity;
        rustix::process::geteuid()
            .is_root()
            .then(|| (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid)))
    }

    /// The other file operations, with the agent's own rights.
    fn files(&self) -> Files {
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        Files::new(Arc::clone(&self.root), FileIdentity { uid, gid, groups: Vec::new() })
    }

    async fn run<T: Send + 'static>(
        &self,
        operation: &'static str,
        path: &GuestPath,
        work: impl FnOnce(&Self, &GuestPath) -> io::Result<T> + Send + 'static,
    ) -> Result<T, GuestError> {
        let (own, path) = (self.clone(), path.clone());
        blocking(move || work(&own, &path).context(operation, path.as_str())).await
    }

    pub async fn stat(&self, path: &str) -> Result<Entry, GuestError> {
        let path = self.path(path)?;
        self.run("stat", &path, |own, path| own.describer.path(path.as_str())).await
    }

    pub async fn make_directory(&self, path: &str) -> Result<Entry, GuestError> {
        let path = self.path(path)?;
        self.run("make directory", &path, |own, path| {
            match own.root.open(path.as_str(), OFlags::PATH) {
                Ok(found) => match crate::files::stat::of(found)?.kind {
                    FileKind::Directory => return Err(Errno::EXIST.into()),
                    _ => return Err(Errno::NOTDIR.into()),
                },
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno.into()),
            }
            own.root.make_directories_as(path, None, own.owner())?;
            own.describer.path(path.as_str())
        })
        .await
    }

    fn make_parents(&self, path: &GuestPath) -> io::Result<()> {
        let Some((parent, _)) = path.split() else { return Ok(()) };
        let parent = GuestPath::parse(parent).map_err(|_| Errno::INVAL)?;
        self.root.make_directories_as(&parent, None, self.owner())
    }

    pub async fn rename(&self, from: &str, to: &str) -> Result<Entry, GuestError> {
        let (from, to) = (self.path(from)?, self.path(to)?);
        // First, so that a name in the failure is that of what is missing.
        let (place, name) = self
            .run("move", &from, |own, from| {
                let (parent, name) = own.root.parent(from)?;
                Ok((parent, name.to_owned()))
            })
            .await?;
        let what = format!("{} to {}", from.as_str(), to.as_str());
        let own = self.clone();
        blocking(move || {
            let moved = || {
                own.make_parents(&to)?;
                let (to_parent, to_name) = own.root.parent(&to)?;
                renameat(place, name.as_str(), to_parent, to_name)?;
                own.describer.path(to.as_str())
            };
            moved().context("move", what)
        })
        .await
    }

    pub async fn remove(&self, path: &str) -> Result<(), GuestError> {
        let path = self.path(path)?;
        self.run("remove", &path, |own, path| {
            let removed = own.root.parent(path).and_then(|(parent, name)| remove::tree(parent, name));
            match removed {
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
                removed => removed,
            }
        })
        .await
    }

    pub async fn read(
        &self,
        path: &str,
        offset: u64,
        length: Option<u64>,
    ) -> Result<(Entry, Reading), GuestError> {
        let path = self.path(path)?;
        let (_, reading) = self.files().read(path.as_str().to_owned(), offset, length).await?;
        let file = reading.file();
        let entry =
            self.run("read", &path, move |own, path| own.describer.open(path.as_str(), &file)).await?;
        Ok((entry, reading))
    }

    /// One after the other becomes a file beside `to`, which takes its place.
    pub async fn compose(&self, sources: &[String], to: &str) -> Result<Entry, GuestError> {
        let to = self.path(to)?;
        let sources = sources.iter().map(|source| self.path(source)).collect::<Result<Vec<_>, _>>()?;
        if sources.is_empty() {
            return Err(invalid("compose: no files are named"));
        }
        if let Some(source) = sources.iter().find(|source| **source == to) {
            return Err(invalid(format!(
                "compose {}: it is one of the files it is made of",
                source.as_str()
            )));
        }
        let files = self.files();
        self.run("compose", &to, |own, to| own.make_parents(to)).await?;
        let mut writing = files.write(to.as_str().to_owned(), None, false, false).await?;
        if let Some((uid, gid)) = self.owner() {
            writing.give_to(uid, gid);
        }
        for source in &sources {
            let (_, mut reading) = files.read(source.as_str().to_owned(), 0, None).await?;
            while let Some(data) = reading.next().await? {
                writing.append(data).await?;
            }
        }
        writing.commit().await?;
        self.run("compose", &to, move |own, to| {
            for source in &sources {
                let (parent, name) = own.root.parent(source)?;
                remove::one(parent, name)?;
            }
            own.describer.path(to.as_str())
        })
        .await
    }
}

fn too_many(path: &str, most: usize) -> GuestError {
    fault(GuestErrorKind::Exhausted, format!("list {path}: a directory with more than {most} names"))
}

#[cfg(test)]
mod tests;
