//! The fake guest's file tree: real enough for every file operation but watching.

use offshoot_guest_proto::{
    message::{
        CHUNK, EntryChange, FileChunk, FileKind, FileOperation, FileRequest, FileStat, GuestError,
        GuestErrorKind, ListItem,
    },
    server::{Detached, FilePeer},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};
use tokio::sync::broadcast;

/// A file of the fake guest may not grow past this: the tests' memory is not a disk.
const MAX_FILE: usize = 64 * 1024 * 1024;
const MAX_LINKS: usize = 16;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum Node {
    Directory {
        mode: u32,
    },
    File {
        #[serde(with = "super::bytes")]
        data: Vec<u8>,
        mode: u32,
    },
    Symlink {
        target: String,
    },
}

/// Changes that a watcher may be behind.
const CHANGES: usize = 256;

/// Paths without trailing slash; the root is `/`.
#[derive(Debug)]
pub(super) struct Files {
    nodes: Mutex<BTreeMap<String, Node>>,
    changes: broadcast::Sender<Changed>,
    /// Of what was made with an owner. A stored state knows nothing of them.
    marks: Mutex<BTreeMap<String, Mark>>,
}

/// What happened to a path.
pub(super) type Changed = (EntryChange, String);

#[derive(Debug, Clone, Default)]
pub(super) struct Mark {
    pub owner: String,
    pub attributes: BTreeMap<String, String>,
}

pub(super) type Tree = BTreeMap<String, Node>;

impl Default for Files {
    fn default() -> Self {
        let directories = ["/", "/etc", "/home", "/home/user", "/root", "/tmp", "/workspace"];
        let nodes = directories.map(|path| (path.to_owned(), Node::Directory { mode: 0o755 }));
        Self::of(nodes.into())
    }
}

pub(super) fn error(kind: GuestErrorKind, path: &str, what: &str) -> GuestError {
    GuestError { kind, message: format!("{path}: {what}") }
}

fn not_found(path: &str) -> GuestError {
    error(GuestErrorKind::NotFound, path, "no such file or directory")
}

/// Absolute, without `.`, `..` and empty parts; `..` at the root stays there.
pub(super) fn normal(path: &str) -> Result<String, GuestError> {
    if !path.starts_with('/') || path.contains('\0') {
        return Err(error(GuestErrorKind::InvalidArgument, path, "not an absolute path"));
    }
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    Ok(format!("/{}", parts.join("/")))
}

pub(super) fn parent(path: &str) -> &str {
    match path.rfind('/') {
        Some(0) | None => "/",
        Some(at) => &path[..at],
    }
}

fn name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

fn below(path: &str) -> String {
    if path == "/" { "/".into() } else { format!("{path}/") }
}

/// The path with every symlink but the last followed.
fn real(tree: &Tree, path: &str, follow_last: bool) -> Result<String, GuestError> {
    let mut path = normal(path)?;
    for _ in 0..MAX_LINKS {
        let mut walked = String::new();
        let mut replaced = None;
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        for (index, part) in parts.iter().enumerate() {
            let base = walked.clone();
            walked = format!("{walked}/{part}");
            let last = index + 1 == parts.len();
            if let Some(Node::Symlink { target }) = tree.get(&walked)
                && (follow_last || !last)
            {
                let rest = parts[index + 1..].join("/");
                let start = if target.starts_with('/') { target.clone() } else { format!("{base}/{target}") };
                replaced = Some(normal(&format!("{start}/{rest}"))?);
                break;
            }
        }
        match replaced {
            Some(next) => path = next,
            None => return Ok(path),
        }
    }
    Err(error(GuestErrorKind::InvalidArgument, &path, "too many symlinks"))
}

fn directory(tree: &Tree, path: &str) -> Result<(), GuestError> {
    match tree.get(path) {
        Some(Node::Directory { .. }) => Ok(()),
        Some(_) => Err(error(GuestErrorKind::NotADirectory, path, "not a directory")),
        None => Err(not_found(path)),
    }
}

fn children<'a>(tree: &'a Tree, path: &str) -> impl Iterator<Item = (&'a String, &'a Node)> {
    let prefix = below(path);
    let own = path.to_owned();
    tree.range(prefix.clone()..)
        .take_while(move |(path, _)| path.starts_with(&prefix))
        .filter(move |(path, _)| **path != own && parent(path) == own)
}

fn stat(node: &Node) -> FileStat {
    let (kind, size, mode, symlink_target) = match node {
        Node::Directory { mode } => (FileKind::Directory, 0, *mode, None),
        Node::File { data, mode } => (FileKind::File, data.len() as u64, *mode, None),
        Node::Symlink { target } => (FileKind::Symlink, target.len() as u64, 0o777, Some(target.clone())),
    };
    FileStat { kind, size, mode, uid: 0, gid: 0, modified_ns: 0, symlink_target }
}

impl Files {
    pub fn of(tree: Tree) -> Self {
        Self { nodes: Mutex::new(tree), changes: broadcast::Sender::new(CHANGES), marks: Mutex::default() }
    }

    pub fn changes(&self) -> broadcast::Receiver<Changed> {
        self.changes.subscribe()
    }

    fn changed(&self, change: EntryChange, path: &str) {
        // Nobody may be watching.
        let _ = self.changes.send((change, path.to_owned()));
    }

    pub fn mark(&self, path: &str, mark: Mark) {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_owned(), mark);
    }

    pub fn mark_of(&self, path: &str) -> Option<Mark> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner).get(path).cloned()
    }

    /// All of it, as it is now.
    pub fn all(&self) -> Tree {
        self.tree().clone()
    }

    pub fn exists(&self, path: &str) -> bool {
        self.stat(path, true).is_ok()
    }

    pub fn read_whole(&self, path: &str) -> Result<Vec<u8>, GuestError> {
        let tree = self.tree();
        let real = real(&tree, path, true)?;
        match tree.get(&real) {
            Some(Node::File { data, .. }) => Ok(data.clone()),
            Some(_) => Err(error(GuestErrorKind::IsADirectory, path, "is a directory")),
            None => Err(not_found(path)),
        }
    }

    pub fn write_whole(&self, path: &str, added: &[u8], append: bool) -> Result<(), GuestError> {
        let real = self.target(path, false)?;
        let mut tree = self.tree();
        let (mut data, mode) = match tree.get_mut(&real) {
            Some(Node::File { data, mode }) if append => (std::mem::take(data), *mode),
            Some(Node::File { mode, .. }) => (Vec::new(), *mode),
            _ => (Vec::new(), 0o644),
        };
        let fits = data.len() + added.len() <= MAX_FILE;
        if fits {
            data.extend_from_slice(added);
        }
        self.put(&mut tree, real, Node::File { data, mode });
        if !fits {
            return Err(error(GuestErrorKind::NoSpace, path, "no space left"));
        }
        Ok(())
    }

    fn put(&self, tree: &mut Tree, path: String, node: Node) {
        if !tree.contains_key(&path) {
            self.changed(EntryChange::Created, &path);
        }
        if matches!(node, Node::File { .. }) {
            self.changed(EntryChange::Written, &path);
        }
        tree.insert(path, node);
    }

    fn tree(&self) -> MutexGuard<'_, Tree> {
        // A panic in one test must not look like a fault of the guest in another.
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub async fn serve(&self, request: FileRequest, mut peer: FilePeer) -> Result<(), Detached> {
        match request.operation {
            FileOperation::Stat { path, follow } => peer.reply(self.stat(&path, follow)).await,
            FileOperation::List { path } => {
                let entries = self.list(&path);
                let items = entries.clone().unwrap_or_default();
                peer.reply(entries.map(drop)).await?;
                for item in items {
                    peer.send(&item).await?;
                }
                Ok(())
            }
            FileOperation::Read { path, offset, length } => self.read(&path, offset, length, peer).await,
            FileOperation::Write { path, mode, make_parents, exclusive } => {
                self.write(&path, mode, make_parents, exclusive, peer).await
            }
            FileOperation::MakeDirectory { path, parents, mode } => {
                peer.reply(self.make_directory(&path, parents, mode.unwrap_or(0o755))).await
            }
            FileOperation::Rename { from, to } => peer.reply(self.rename(&from, &to)).await,
            FileOperation::Remove { path, recursive } => peer.reply(self.remove(&path, recursive)).await,
            FileOperation::Symlink { target, path } => peer.reply(self.symlink(target, &path)).await,
            FileOperation::SetMode { path, mode } => peer.reply(self.set_mode(&path, mode)).await,
            FileOperation::Watch { path, .. } => {
                let refusal =
                    error(GuestErrorKind::Unsupported, &path, "the fake guest does not watch files");
                peer.reply::<()>(Err(refusal)).await
            }
        }
    }

    pub fn stat(&self, path: &str, follow: bool) -> Result<FileStat, GuestError> {
        let tree = self.tree();
        let real = real(&tree, path, follow)?;
        tree.get(&real).map(stat).ok_or_else(|| not_found(path))
    }

    pub fn list(&self, path: &str) -> Result<Vec<ListItem>, GuestError> {
        let tree = self.tree();
        let real = real(&tree, path, true)?;
        directory(&tree, &real)?;
        let entries = children(&tree, &real).map(|(path, node)| ListItem::Entry {
            name: name(path).into(),
            lossy: false,
            stat: stat(node),
        });
        Ok(entries.chain([ListItem::End]).collect())
    }

    async fn read(
        &self,
        path: &str,
        offset: u64,
        length: Option<u64>,
        mut peer: FilePeer,
    ) -> Result<(), Detached> {
        let found = {
            let tree = self.tree();
            real(&tree, path, true).and_then(|real| match tree.get(&real) {
                Some(node @ Node::File { data, .. }) => Ok((stat(node), data.clone())),
                Some(_) => Err(error(GuestErrorKind::IsADirectory, path, "is a directory")),
                None => Err(not_found(path)),
            })
        };
        let data = match found {
            Ok((stat, data)) => {
                peer.reply(Ok(stat)).await?;
                data
            }
            Err(error) => return peer.reply::<FileStat>(Err(error)).await,
        };
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(data.len());
        let length = usize::try_from(length.unwrap_or(u64::MAX)).unwrap_or(usize::MAX);
        let end = start.saturating_add(length).min(data.len());
        for part in data[start..end].chunks(CHUNK) {
            peer.send(&FileChunk::Data(part.to_vec())).await?;
        }
        peer.send(&FileChunk::End).await
    }

    async fn write(
        &self,
        path: &str,
        mode: Option<u32>,
        make_parents: bool,
        exclusive: bool,
        mut peer: FilePeer,
    ) -> Result<(), Detached> {
        if make_parents && let Ok(path) = normal(path) {
            // Its failure shows in the check below.
            let _ = self.make_directory(parent(&path), true, 0o755);
        }
        if let Err(error) = self.target(path, exclusive) {
            return peer.reply::<()>(Err(error)).await;
        }
        peer.reply(Ok(())).await?;
        let mut data = Vec::new();
        loop {
            match peer.chunk().await? {
                FileChunk::Data(part) if data.len() + part.len() <= MAX_FILE => data.extend(part),
                FileChunk::Data(_) => {
                    return peer
                        .reply::<FileStat>(Err(error(GuestErrorKind::NoSpace, path, "no space left")))
                        .await;
                }
                FileChunk::End => break,
                FileChunk::Failed(_) => return Ok(()),
            }
        }
        let written = self.target(path, exclusive).map(|real| {
            let node = Node::File { data, mode: mode.unwrap_or(0o644) };
            let stat = stat(&node);
            self.put(&mut self.tree(), real, node);
            stat
        });
        peer.reply(written).await
    }

    /// Where a write goes.
    fn target(&self, path: &str, exclusive: bool) -> Result<String, GuestError> {
        let tree = self.tree();
        let real = real(&tree, path, true)?;
        directory(&tree, parent(&real))?;
        match tree.get(&real) {
            Some(Node::Directory { .. }) => Err(error(GuestErrorKind::IsADirectory, path, "is a directory")),
            Some(_) if exclusive => Err(error(GuestErrorKind::AlreadyExists, path, "exists")),
            _ => Ok(real),
        }
    }

    pub fn make_directory(&self, path: &str, parents: bool, mode: u32) -> Result<(), GuestError> {
        let mut tree = self.tree();
        let real = real(&tree, path, true)?;
        let mut missing = Vec::new();
        let mut at = real.as_str();
        while !tree.contains_key(at) {
            missing.push(at.to_owned());
            at = parent(at);
        }
        directory(&tree, at)?;
        match missing.len() {
            0 if parents => Ok(()),
            0 => Err(error(GuestErrorKind::AlreadyExists, path, "exists")),
            1 => Ok(()),
            _ if parents => Ok(()),
            _ => Err(not_found(path)),
        }?;
        for path in missing.into_iter().rev() {
            self.put(&mut tree, path, Node::Directory { mode });
        }
        Ok(())
    }

    pub fn rename(&self, from: &str, to: &str) -> Result<(), GuestError> {
        let mut tree = self.tree();
        let (from, to) = (real(&tree, from, false)?, real(&tree, to, false)?);
        directory(&tree, parent(&to))?;
        let node = tree.get(&from).ok_or_else(|| not_found(&from))?.clone();
        if to.starts_with(&below(&from)) {
            return Err(error(GuestErrorKind::InvalidArgument, &to, "is inside what is to be moved"));
        }
        match (&node, tree.get(&to)) {
            (Node::Directory { .. }, Some(Node::Directory { .. }))
                if children(&tree, &to).next().is_some() =>
            {
                return Err(error(GuestErrorKind::NotEmpty, &to, "directory not empty"));
            }
            (Node::Directory { .. }, Some(Node::Directory { .. })) | (_, None) => {}
            (Node::Directory { .. }, Some(_)) => {
                return Err(error(GuestErrorKind::NotADirectory, &to, "not a directory"));
            }
            (_, Some(Node::Directory { .. })) => {
                return Err(error(GuestErrorKind::IsADirectory, &to, "is a directory"));
            }
            (_, Some(_)) => {}
        }
        let prefix = below(&from);
        let moved: Vec<String> = tree.keys().filter(|path| path.starts_with(&prefix)).cloned().collect();
        for path in moved {
            if let Some(node) = tree.remove(&path) {
                tree.insert(format!("{to}/{}", &path[prefix.len()..]), node);
            }
        }
        tree.remove(&from);
        self.changed(EntryChange::Renamed, &from);
        self.changed(EntryChange::Created, &to);
        tree.insert(to, node);
        Ok(())
    }

    pub fn remove(&self, path: &str, recursive: bool) -> Result<(), GuestError> {
        let mut tree = self.tree();
        let real = real(&tree, path, false)?;
        if real == "/" {
            return Err(error(GuestErrorKind::PermissionDenied, "/", "the root stays"));
        }
        if !tree.contains_key(&real) {
            return Err(not_found(path));
        }
        if !recursive && children(&tree, &real).next().is_some() {
            return Err(error(GuestErrorKind::NotEmpty, path, "directory not empty"));
        }
        let prefix = below(&real);
        tree.retain(|path, _| *path != real && !path.starts_with(&prefix));
        self.changed(EntryChange::Removed, &real);
        Ok(())
    }

    fn symlink(&self, target: String, path: &str) -> Result<(), GuestError> {
        let mut tree = self.tree();
        let real = real(&tree, path, false)?;
        directory(&tree, parent(&real))?;
        if tree.contains_key(&real) {
            return Err(error(GuestErrorKind::AlreadyExists, path, "exists"));
        }
        tree.insert(real, Node::Symlink { target });
        Ok(())
    }

    fn set_mode(&self, path: &str, new: u32) -> Result<(), GuestError> {
        let mut tree = self.tree();
        let real = real(&tree, path, true)?;
        match tree.get_mut(&real) {
            Some(Node::Directory { mode } | Node::File { mode, .. }) => {
                *mode = new & 0o7777;
                Ok(())
            }
            _ => Err(not_found(path)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_normal_and_links_are_followed_but_not_for_ever() {
        assert_eq!(normal("/a/./b//../c/").unwrap(), "/a/c");
        assert_eq!(normal("/../..").unwrap(), "/");
        assert!(normal("relative").is_err());
        let files = Files::default();
        files.symlink("/tmp".into(), "/workspace/link").unwrap();
        files.make_directory("/workspace/link/inside", false, 0o700).unwrap();
        assert_eq!(files.stat("/tmp/inside", false).unwrap().mode, 0o700);
        files.symlink("loop".into(), "/tmp/loop").unwrap();
        assert!(files.stat("/tmp/loop", true).is_err());
        assert_eq!(files.stat("/tmp/loop", false).unwrap().kind, FileKind::Symlink);
    }

    #[test]
    fn moving_and_removing_take_the_whole_tree_and_nothing_else() {
        let files = Files::default();
        files.make_directory("/tmp/a/b/c", true, 0o755).unwrap();
        files.make_directory("/tmp/ab", false, 0o755).unwrap();
        assert!(files.rename("/tmp/a", "/tmp/a/b/d").is_err(), "into itself");
        files.rename("/tmp/a", "/tmp/z").unwrap();
        assert!(files.stat("/tmp/z/b/c", false).is_ok());
        assert!(files.stat("/tmp/a", false).is_err());
        assert!(files.stat("/tmp/ab", false).is_ok());
        assert_eq!(files.remove("/tmp/z", false).unwrap_err().kind, GuestErrorKind::NotEmpty);
        files.remove("/tmp/z", true).unwrap();
        assert!(files.stat("/tmp/z/b", false).is_err());
    }
}
