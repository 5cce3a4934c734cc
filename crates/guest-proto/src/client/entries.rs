//! Files as a user at a shell names them, as the host sees them.

use super::{
    ClientError,
    call::{self, Call, Context},
    files::{Incoming, MAX_PATH, Outgoing, check_stat},
};
use crate::message::{Entry, EntryEvent, EntryItem, EntryOperation, EntryRequest, HostOpen, MAX_ATTRIBUTES};
use bytes::Bytes;
use std::collections::BTreeMap;

/// Characters of a user's or group's name.
const MAX_NAME: usize = 64;

/// Operations in the guest for one user.
#[derive(Debug, Clone)]
pub struct Entries {
    context: Context,
    user: String,
}

impl Entries {
    pub(super) fn new(context: Context, user: String) -> Self {
        Self { context, user }
    }

    /// Does not follow a final symlink.
    pub async fn stat(&self, path: impl Into<String>) -> Result<Entry, ClientError> {
        self.one("stat", EntryOperation::Stat { path: path.into() }).await
    }

    /// A directory and `depth` levels of what is in it.
    pub async fn list(&self, path: impl Into<String>, depth: u32) -> Result<EntryListing, ClientError> {
        let mut call = self.call("list", EntryOperation::List { path: path.into(), depth }).await?;
        call.reply::<()>().await?;
        Ok(EntryListing { call, over: false })
    }

    /// Makes its parents too; refuses one that exists.
    pub async fn make_directory(&self, path: impl Into<String>) -> Result<Entry, ClientError> {
        self.one("make-directory", EntryOperation::MakeDirectory { path: path.into() }).await
    }

    /// Replaces what is there.
    pub async fn rename(&self, from: impl Into<String>, to: impl Into<String>) -> Result<Entry, ClientError> {
        self.one("move", EntryOperation::Move { from: from.into(), to: to.into() }).await
    }

    /// With everything below it; nothing there is fine.
    pub async fn remove(&self, path: impl Into<String>) -> Result<(), ClientError> {
        self.call("remove", EntryOperation::Remove { path: path.into() }).await?.reply().await
    }

    /// From `offset` on, at most `length` bytes.
    pub async fn read(
        &self,
        path: impl Into<String>,
        offset: u64,
        length: Option<u64>,
    ) -> Result<EntryReader, ClientError> {
        let mut call = self.call("read", EntryOperation::Read { path: path.into(), offset, length }).await?;
        let entry = check("read", call.reply().await?)?;
        Ok(EntryReader { entry, incoming: Incoming::new(call, length) })
    }

    /// Empties the file, with the attributes that it is to have, and its parents if they are missing.
    pub async fn write(
        &self,
        path: impl Into<String>,
        attributes: BTreeMap<String, String>,
    ) -> Result<EntryWriter, ClientError> {
        let mut call = self.call("write", EntryOperation::Write { path: path.into(), attributes }).await?;
        call.reply::<()>().await?;
        Ok(EntryWriter(Outgoing { call }))
    }

    /// One file after the other becomes `to`; they are gone then.
    pub async fn compose(&self, sources: Vec<String>, to: impl Into<String>) -> Result<Entry, ClientError> {
        self.one("compose", EntryOperation::Compose { sources, to: to.into() }).await
    }

    /// Returns once the guest is watching the directory: a change made afterwards is seen.
    pub async fn watch(
        &self,
        path: impl Into<String>,
        recursive: bool,
        entries: bool,
    ) -> Result<EntryWatch, ClientError> {
        let operation = EntryOperation::Watch { path: path.into(), recursive, entries };
        let mut call = self.call("watch", operation).await?;
        let directory: String = call.reply().await?;
        check_path("watch", &directory)?;
        Ok(EntryWatch { call, directory })
    }

    async fn one(&self, name: &'static str, operation: EntryOperation) -> Result<Entry, ClientError> {
        check(name, self.call(name, operation).await?.reply().await?)
    }

    async fn call(&self, name: &'static str, operation: EntryOperation) -> Result<Call, ClientError> {
        let context = Context { operation: name, ..self.context.clone() };
        let request = EntryRequest { user: self.user.clone(), operation };
        Call::open(context, &HostOpen::Entry(request)).await
    }
}

/// The bytes of a file. Dropping it ends the transfer.
#[derive(Debug)]
pub struct EntryReader {
    entry: Entry,
    incoming: Incoming,
}

impl EntryReader {
    /// As the file was when it was opened.
    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    /// The next bytes; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        self.incoming.next().await
    }
}

/// A file being written. Dropping it before `finish` leaves what came so far.
#[derive(Debug)]
pub struct EntryWriter(Outgoing);

impl EntryWriter {
    /// Not cancel-safe: after a cancelled call every further one fails.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        self.0.send(bytes).await
    }

    pub async fn finish(self) -> Result<Entry, ClientError> {
        check("write", self.0.finish().await?)
    }
}

#[derive(Debug)]
pub struct EntryListing {
    call: Call,
    over: bool,
}

impl EntryListing {
    /// The next entry; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Entry>, ClientError> {
        if self.over {
            return Ok(None);
        }
        match self.call.soon::<EntryItem>().await? {
            EntryItem::Entry(entry) => check("list", *entry).map(Some),
            EntryItem::End => {
                self.over = true;
                Ok(None)
            }
            EntryItem::Failed(error) => {
                self.over = true;
                Err(ClientError::Guest(error))
            }
        }
    }
}

/// Changes below a directory, until it is dropped.
#[derive(Debug)]
pub struct EntryWatch {
    call: Call,
    directory: String,
}

impl EntryWatch {
    /// Absolute; the paths of all events are below it.
    pub fn directory(&self) -> &str {
        &self.directory
    }

    /// The next change. Cancel-safe.
    pub async fn next(&mut self) -> Result<EntryEvent, ClientError> {
        let mut event: EntryEvent = call::next(&self.call.context, &mut self.call.reader).await?;
        check_path("watch", &event.path)?;
        event.entry = match event.entry {
            Some(entry) => Some(Box::new(check("watch", *entry)?)),
            None => None,
        };
        Ok(event)
    }
}

fn check_path(operation: &'static str, path: &str) -> Result<(), ClientError> {
    match path.starts_with('/') && path.len() <= MAX_PATH && !path.contains('\0') {
        true => Ok(()),
        false => {
            Err(ClientError::protocol(operation, format!("a path of {} bytes that is none", path.len())))
        }
    }
}

fn check(operation: &'static str, entry: Entry) -> Result<Entry, ClientError> {
    check_path(operation, &entry.path)?;
    for name in [&entry.owner, &entry.group] {
        if name.len() > MAX_NAME || name.chars().any(char::is_control) {
            return Err(ClientError::protocol(operation, "a user's name that is none"));
        }
    }
    let attributes: usize = entry.attributes.iter().map(|(name, value)| name.len() + value.len()).sum();
    if attributes > MAX_ATTRIBUTES {
        return Err(ClientError::protocol(operation, format!("{attributes} bytes of attributes")));
    }
    let stat = check_stat(operation, entry.stat)?;
    Ok(Entry { stat, ..entry })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{FileKind, FileStat};

    fn entry() -> Entry {
        let stat = FileStat {
            kind: FileKind::File,
            size: 1,
            mode: 0o644,
            uid: 0,
            gid: 0,
            modified_ns: 0,
            symlink_target: None,
        };
        let (owner, group) = ("user".into(), "user".into());
        Entry { path: "/a".into(), stat, target: None, owner, group, attributes: BTreeMap::new() }
    }

    #[test]
    fn what_no_guest_has_is_refused() {
        assert!(check("stat", entry()).is_ok());
        let spoilt: [fn(&mut Entry); 6] = [
            |entry| entry.path = "a".into(),
            |entry| entry.path = format!("/{}", "x".repeat(MAX_PATH)),
            |entry| entry.owner = "a\nb".into(),
            |entry| entry.group = "x".repeat(MAX_NAME + 1),
            |entry| entry.stat.mode = 0o10_000,
            |entry| drop(entry.attributes.insert("k".into(), "v".repeat(MAX_ATTRIBUTES))),
        ];
        for spoil in spoilt {
            let mut bad = entry();
            spoil(&mut bad);
            assert!(check("stat", bad.clone()).is_err(), "{bad:?}");
        }
    }
}
