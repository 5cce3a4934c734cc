//! The fake guest's files as a user at a shell names them. Its users are `root` and `user`.

use super::files::{Changed, Files, Mark, error, normal, parent};
use offshoot_guest_proto::{
    message::{
        CHUNK, Entry, EntryChange, EntryEvent, EntryItem, EntryOperation, EntryRequest, FileChunk, FileKind,
        GuestError, GuestErrorKind, ListItem, MAX_DEPTH,
    },
    server::{Detached, FilePeer},
};
use std::collections::BTreeMap;
use tokio::sync::broadcast::{Receiver, error::RecvError};

struct Shell<'a> {
    files: &'a Files,
    user: String,
}

pub(super) async fn serve(files: &Files, request: EntryRequest, mut peer: FilePeer) -> Result<(), Detached> {
    let EntryRequest { user, operation } = request;
    if !matches!(user.as_str(), "root" | "user") {
        let unknown = error(GuestErrorKind::UnknownUser, &format!("user `{user}`"), "no such user");
        return peer.reply::<()>(Err(unknown)).await;
    }
    let shell = Shell { files, user };
    match operation {
        EntryOperation::Stat { path } => {
            peer.reply(shell.path(&path).and_then(|path| shell.entry(&path))).await
        }
        EntryOperation::List { path, depth } => shell.list(&path, depth, peer).await,
        EntryOperation::MakeDirectory { path } => peer.reply(shell.make_directory(&path)).await,
        EntryOperation::Move { from, to } => peer.reply(shell.rename(&from, &to)).await,
        EntryOperation::Remove { path } => peer.reply(shell.remove(&path)).await,
        EntryOperation::Read { path, offset, length } => shell.read(&path, offset, length, peer).await,
        EntryOperation::Write { path, attributes } => shell.write(&path, attributes, peer).await,
        EntryOperation::Compose { sources, to } => peer.reply(shell.compose(&sources, &to)).await,
        EntryOperation::Watch { path, recursive, entries } => {
            shell.watch(&path, recursive, entries, peer).await
        }
    }
}

impl Shell<'_> {
    fn path(&self, path: &str) -> Result<String, GuestError> {
        let home = if self.user == "root" { "/root" } else { "/home/user" };
        match path.strip_prefix('~') {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => normal(&format!("{home}{rest}")),
            Some(_) => Err(error(GuestErrorKind::InvalidArgument, path, "another user's home is not known")),
            None if path.starts_with('/') => normal(path),
            None => normal(&format!("{home}/{path}")),
        }
    }

    fn entry(&self, path: &str) -> Result<Entry, GuestError> {
        let stat = self.files.stat(path, false)?;
        let target = match stat.kind {
            FileKind::Symlink => self.files.stat(path, true).ok().map(|target| target.kind),
            _ => None,
        };
        let Mark { owner, attributes } = self.files.mark_of(path).unwrap_or_default();
        let owner = if owner.is_empty() { "root".to_owned() } else { owner };
        Ok(Entry { path: path.into(), stat, target, group: owner.clone(), owner, attributes })
    }

    fn mark(&self, path: &str, attributes: BTreeMap<String, String>) {
        self.files.mark(path, Mark { owner: self.user.clone(), attributes });
    }

    fn make_parents(&self, path: &str) -> Result<(), GuestError> {
        let mut missing = Vec::new();
        let mut at = parent(path);
        while !self.files.exists(at) {
            missing.push(at);
            at = parent(at);
        }
        self.files.make_directory(parent(path), true, 0o755)?;
        missing.into_iter().for_each(|path| self.mark(path, BTreeMap::new()));
        Ok(())
    }

    fn make_directory(&self, path: &str) -> Result<Entry, GuestError> {
        let path = self.path(path)?;
        if let Ok(found) = self.files.stat(&path, true) {
            let kind = match found.kind {
                FileKind::Directory => GuestErrorKind::AlreadyExists,
                _ => GuestErrorKind::NotADirectory,
            };
            return Err(error(kind, &path, "exists"));
        }
        self.make_parents(&path)?;
        self.files.make_directory(&path, false, 0o755)?;
        self.mark(&path, BTreeMap::new());
        self.entry(&path)
    }

    fn rename(&self, from: &str, to: &str) -> Result<Entry, GuestError> {
        let (from, to) = (self.path(from)?, self.path(to)?);
        self.files.stat(&from, false)?;
        self.make_parents(&to)?;
        self.files.rename(&from, &to)?;
        self.files.mark(&to, self.files.mark_of(&from).unwrap_or_default());
        self.entry(&to)
    }

    fn remove(&self, path: &str) -> Result<(), GuestError> {
        match self.files.remove(&self.path(path)?, true) {
            Err(error) if error.kind == GuestErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    fn compose(&self, sources: &[String], to: &str) -> Result<Entry, GuestError> {
        let to = self.path(to)?;
        let sources = sources.iter().map(|source| self.path(source)).collect::<Result<Vec<_>, _>>()?;
        if sources.is_empty() || sources.contains(&to) {
            return Err(error(GuestErrorKind::InvalidArgument, &to, "it is made of nothing, or of itself"));
        }
        let mut whole = Vec::new();
        for source in &sources {
            whole.extend(self.files.read_whole(source)?);
        }
        self.make_parents(&to)?;
        self.files.write_whole(&to, &whole, false)?;
        self.mark(&to, BTreeMap::new());
        sources.iter().try_for_each(|source| self.files.remove(source, false))?;
        self.entry(&to)
    }

    fn walk(&self, path: &str, depth: u32, found: &mut Vec<Entry>) -> Result<(), GuestError> {
        for item in self.files.list(path)? {
            let ListItem::Entry { name, .. } = item else { continue };
            let path = format!("{}/{name}", path.trim_end_matches('/'));
            let entry = self.entry(&path)?;
            let inside = entry.stat.kind == FileKind::Directory && depth > 1;
            found.push(entry);
            if inside {
                self.walk(&path, depth - 1, found)?;
            }
        }
        Ok(())
    }

    async fn list(&self, path: &str, depth: u32, mut peer: FilePeer) -> Result<(), Detached> {
        let mut found = Vec::new();
        let listed = self.path(path).and_then(|path| self.walk(&path, depth.clamp(1, MAX_DEPTH), &mut found));
        let over = listed.is_err();
        peer.reply(listed).await?;
        if over {
            return Ok(());
        }
        for entry in found {
            peer.send(&EntryItem::Entry(Box::new(entry))).await?;
        }
        peer.send(&EntryItem::End).await
    }

    async fn read(
        &self,
        path: &str,
        offset: u64,
        length: Option<u64>,
        mut peer: FilePeer,
    ) -> Result<(), Detached> {
        let read = self.path(path).and_then(|path| {
            let stat = self.files.stat(&path, true)?;
            let data = self.files.read_whole(&path)?;
            Ok((Entry { stat, target: None, ..self.entry(&path)? }, data))
        });
        let (entry, data) = match read {
            Ok(read) => read,
            Err(error) => return peer.reply::<()>(Err(error)).await,
        };
        peer.reply(Ok(entry)).await?;
        let all = usize::try_from(length.unwrap_or(u64::MAX)).unwrap_or(usize::MAX);
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(data.len());
        let to = from.saturating_add(all).min(data.len());
        for chunk in data[from..to].chunks(CHUNK) {
            peer.send(&FileChunk::Data(chunk.to_vec())).await?;
        }
        peer.send(&FileChunk::End).await
    }

    async fn write(
        &self,
        path: &str,
        attributes: BTreeMap<String, String>,
        mut peer: FilePeer,
    ) -> Result<(), Detached> {
        let begun = self.path(path).and_then(|path| {
            self.make_parents(&path)?;
            self.files.write_whole(&path, b"", false)?;
            Ok(path)
        });
        let path = match begun {
            Ok(path) => path,
            Err(error) => return peer.reply::<()>(Err(error)).await,
        };
        self.mark(&path, attributes);
        peer.reply(Ok(())).await?;
        loop {
            let outcome = match peer.chunk().await? {
                FileChunk::Data(data) => match self.files.write_whole(&path, &data, true) {
                    Ok(()) => continue,
                    Err(error) => Err(error),
                },
                FileChunk::End => self.entry(&path),
                FileChunk::Failed(_) => return Ok(()),
            };
            return peer.reply(outcome).await;
        }
    }

    async fn watch(
        &self,
        path: &str,
        recursive: bool,
        described: bool,
        mut peer: FilePeer,
    ) -> Result<(), Detached> {
        let mut changes = self.files.changes();
        let watched = self.path(path).and_then(|path| match self.files.stat(&path, true)?.kind {
            FileKind::Directory => Ok(path),
            _ => Err(error(GuestErrorKind::NotADirectory, &path, "not a directory")),
        });
        let directory = match watched.clone() {
            Ok(directory) => directory,
            Err(_) => return peer.reply(watched).await,
        };
        peer.reply(watched).await?;
        loop {
            let (change, path) = tokio::select! {
                change = next(&mut changes) => change,
                () = peer.left() => return Ok(()),
            };
            let inside = path.strip_prefix(&format!("{}/", directory.trim_end_matches('/')));
            let seen = inside.is_some_and(|rest| recursive || !rest.contains('/'));
            if seen || change == EntryChange::Overflow {
                let entry = described.then(|| self.entry(&path).ok().map(Box::new)).flatten();
                peer.send(&EntryEvent { change, path, entry }).await?;
            }
        }
    }
}

async fn next(changes: &mut Receiver<Changed>) -> Changed {
    match changes.recv().await {
        Ok(change) => change,
        Err(RecvError::Lagged(_)) => (EntryChange::Overflow, "/".into()),
        Err(RecvError::Closed) => std::future::pending().await,
    }
}
