//! Watching a directory, with what became of each path.

use super::Entries;
use crate::{
    fault::fault,
    files::{self, What, blocking},
};
use offshoot_guest_proto::message::{Entry, EntryChange, EntryEvent, FileKind, GuestError, GuestErrorKind};

#[derive(Debug)]
pub struct Watching {
    watching: files::Watching,
    directory: String,
    entries: Entries,
    described: bool,
}

impl Entries {
    /// `described`: events tell what is there.
    pub async fn watch(&self, path: &str, recursive: bool, described: bool) -> Result<Watching, GuestError> {
        let path = self.path(path)?;
        let found = self.stat(path.as_str()).await?;
        if found.target.unwrap_or(found.stat.kind) != FileKind::Directory {
            let message = format!("watch {}: not a directory", path.as_str());
            return Err(fault(GuestErrorKind::NotADirectory, message));
        }
        let watching = self.files().watch(path.as_str().to_owned(), recursive).await?;
        Ok(Watching { watching, directory: path.as_str().to_owned(), entries: self.clone(), described })
    }
}

impl Watching {
    /// Absolute; the paths of events are below it.
    pub fn directory(&self) -> &str {
        &self.directory
    }

    /// The next change. Cancel-safe, but for one whose description is being made.
    pub async fn next(&mut self) -> Result<EntryEvent, GuestError> {
        let seen = self.watching.next().await?;
        let change = match seen.what {
            What::Created | What::MovedIn => EntryChange::Created,
            What::Modified => EntryChange::Written,
            What::Removed => EntryChange::Removed,
            What::MovedOut => EntryChange::Renamed,
            What::AttributesChanged => EntryChange::AttributesChanged,
            What::Overflow => EntryChange::Overflow,
        };
        let entry = match self.described && change != EntryChange::Overflow {
            true => self.describe(seen.path.clone()).await?.map(Box::new),
            false => None,
        };
        Ok(EntryEvent { change, path: seen.path, entry })
    }

    /// What is there now, if anything is.
    async fn describe(&self, path: String) -> Result<Option<Entry>, GuestError> {
        let describer = self.entries.describer.clone();
        blocking(move || Ok(describer.path(&path).ok())).await
    }
}
