//! Listing a directory and what is below it, some entries at a time.

use super::{Entries, describe::Describer, too_many};
use crate::{
    fault::Context,
    files::{Root, blocking},
};
use offshoot_guest_proto::message::{Entry, FileKind, GuestError, MAX_DEPTH};
use rustix::{
    fs::{Dir, OFlags},
    io::Errno,
};
use std::{io, sync::Arc, vec::IntoIter};

/// Names of one directory, which are held to be told in order.
const MAX_NAMES: usize = 100_000;
/// Entries of one piece of work.
const BATCH: usize = 64;

#[derive(Debug)]
pub struct Listing {
    root: Arc<Root>,
    describer: Describer,
    /// Directories that are being listed, each in the one before.
    open: Vec<Level>,
    depth: usize,
}

#[derive(Debug)]
struct Level {
    path: Vec<u8>,
    names: IntoIter<Vec<u8>>,
}

enum Opened {
    /// They need not be UTF-8.
    Names(Vec<Vec<u8>>),
    TooMany,
}

impl Entries {
    pub async fn list(&self, path: &str, depth: u32) -> Result<Listing, GuestError> {
        let path = self.path(path)?;
        let shown = path.as_str().trim_end_matches('/').as_bytes().to_owned();
        let opened = self
            .run("list", &path, |own, path| names(&own.root, path.as_str().as_bytes(), OFlags::empty()))
            .await?;
        let Opened::Names(names) = opened else { return Err(too_many(path.as_str(), MAX_NAMES)) };
        Ok(Listing {
            root: Arc::clone(&self.root),
            describer: self.describer.clone(),
            open: vec![Level { path: shown, names: names.into_iter() }],
            depth: depth.clamp(1, MAX_DEPTH) as usize,
        })
    }
}

impl Listing {
    /// The next entries; none at the end.
    pub async fn next(&mut self) -> Result<Vec<Entry>, GuestError> {
        let (root, describer, depth) = (Arc::clone(&self.root), self.describer.clone(), self.depth);
        let mut open = std::mem::take(&mut self.open);
        let (open, batch) = blocking(move || {
            let mut batch = Vec::new();
            while batch.len() < BATCH {
                let Some(level) = open.last_mut() else { break };
                let Some(name) = level.names.next() else {
                    open.pop();
                    continue;
                };
                let path = [&level.path, &b"/"[..], &name].concat();
                let shown = || String::from_utf8_lossy(&path).into_owned();
                let entry = match describer.path(&path) {
                    Ok(entry) => entry,
                    // Removed while we looked.
                    Err(error) if is_gone(&error) => continue,
                    Err(error) => return Err(error).context("list", shown()),
                };
                if entry.stat.kind == FileKind::Directory && open.len() < depth {
                    match names(&root, &path, OFlags::NOFOLLOW) {
                        Ok(Opened::Names(names)) => open.push(Level { path, names: names.into_iter() }),
                        Ok(Opened::TooMany) => return Err(too_many(&shown(), MAX_NAMES)),
                        Err(error) if is_gone(&error) => {}
                        Err(error) => return Err(error).context("list", shown()),
                    }
                }
                batch.push(entry);
            }
            Ok((open, batch))
        })
        .await?;
        self.open = open;
        Ok(batch)
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP))
}

/// What is in a directory, in order.
fn names(root: &Root, path: &[u8], flags: OFlags) -> io::Result<Opened> {
    let directory = root.open(path, OFlags::RDONLY | OFlags::DIRECTORY | flags)?;
    let mut names = Vec::new();
    for entry in Dir::new(directory)? {
        match entry {
            Ok(entry) if matches!(entry.file_name().to_bytes(), b"." | b"..") => {}
            Ok(_) if names.len() == MAX_NAMES => return Ok(Opened::TooMany),
            Ok(entry) => names.push(entry.file_name().to_bytes().to_owned()),
            Err(Errno::NOENT) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    names.sort_unstable();
    Ok(Opened::Names(names))
}
