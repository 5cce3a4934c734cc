//! Watching files and directories by inotify.

use super::{Files, path::GuestPath, root::Root};
use crate::{
    fault::{Context, fault},
    sys,
};
use offshoot_guest_proto::message::{GuestError, GuestErrorKind};
use rustix::{
    fd::{AsFd, AsRawFd},
    fs::{
        Dir, FileType, OFlags,
        inotify::{self, CreateFlags, ReadFlags, WatchFlags},
    },
    io::Errno,
};
use std::{
    collections::{HashMap, VecDeque},
    io,
    mem::MaybeUninit,
};
use tokio::io::Interest;

/// Directories one watch may cover. The kernel's own memory is behind each.
const MAX_DIRECTORIES: usize = 4096;

const CHANGES: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::MODIFY)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::EXCL_UNLINK);

/// A stream of changes. What is in a directory that appears in a recursive watch is reported as `Created`, some of it
/// perhaps twice: it may have come before or after the watch on that directory.
#[derive(Debug)]
pub struct Watching {
    inotify: sys::AsyncFd,
    covered: Covered,
    files: Files,
    recursive: bool,
    ready: VecDeque<Seen>,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub what: What,
    pub path: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    Created,
    MovedIn,
    Modified,
    Removed,
    MovedOut,
    AttributesChanged,
    /// The kernel dropped events.
    Overflow,
}

/// Which directory each watch descriptor stands for.
#[derive(Debug, Clone, Default)]
struct Covered(HashMap<i32, String>);

impl Files {
    pub async fn watch(&self, path: String, recursive: bool) -> Result<Watching, GuestError> {
        let resolved = GuestPath::parse(&path)?;
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).context("watch", &path)?;
        let start = match resolved.as_str().trim_end_matches('/') {
            "" => "/".to_owned(),
            trimmed => trimmed.to_owned(),
        };
        let (inotify, covered) = self
            .as_user("watch", path.clone(), move |root| {
                let mut covered = Covered::default();
                covered.add(&inotify, root, Start { path: start, flags: OFlags::empty() }, recursive)?;
                Ok((inotify, covered))
            })
            .await
            .map_err(too_many)?;
        let inotify = sys::async_fd(inotify, Interest::READABLE).context("watch", &path)?;
        Ok(Watching { inotify, covered, files: self.clone(), recursive, ready: VecDeque::new() })
    }
}

fn too_many(error: GuestError) -> GuestError {
    if error.kind != GuestErrorKind::NoSpace {
        return error;
    }
    // inotify says ENOSPC when the user's watches are used up.
    fault(
        GuestErrorKind::Exhausted,
        format!("{}; one watch covers at most {MAX_DIRECTORIES} directories", error.message),
    )
}

impl Covered {
    /// Watches `path` and, if asked, every directory below it, following no symlink there. Answers what it found.
    fn add(
        &mut self,
        inotify: impl AsFd,
        root: &Root,
        start: Start,
        recursive: bool,
    ) -> io::Result<Vec<String>> {
        let mut found = Vec::new();
        let mut pending = vec![start];
        while let Some(Start { path, flags }) = pending.pop() {
            if self.0.len() >= MAX_DIRECTORIES {
                return Err(Errno::NOSPC.into());
            }
            let place = match root.open(&path, OFlags::PATH | flags) {
                Ok(place) => place,
                // Gone again, or something else by now; only what was asked for must exist.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) if !flags.is_empty() => continue,
                Err(errno) => return Err(errno.into()),
            };
            let link = format!("/proc/self/fd/{}", place.as_raw_fd());
            let descriptor = inotify::add_watch(&inotify, link, CHANGES)?;
            // Read after it is watched: what comes later is an event.
            let contents = if recursive { entries(root, &path, flags) } else { Vec::new() };
            for (entry, kind) in contents {
                let path = join(&path, &entry);
                if kind == FileType::Directory {
                    pending.push(Start { path: path.clone(), flags: FOUND_DIRECTORY });
                }
                found.push(path);
            }
            self.0.insert(descriptor, path);
        }
        Ok(found)
    }
}

/// Where to begin, and how it must be opened.
struct Start {
    path: String,
    flags: OFlags,
}

/// A directory we came across: nothing else may have taken its place.
const FOUND_DIRECTORY: OFlags = OFlags::NOFOLLOW.union(OFlags::DIRECTORY);

/// What is in a directory; nothing if it is none, or is gone.
fn entries(root: &Root, path: &str, flags: OFlags) -> Vec<(String, FileType)> {
    let directory = root.open(path, OFlags::RDONLY | OFlags::DIRECTORY | flags).and_then(Dir::new);
    let entries = directory.into_iter().flatten().flatten();
    let named = entries.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.file_type()));
    named.filter(|(name, _)| !matches!(name.as_str(), "." | "..")).collect()
}

fn join(directory: &str, name: &str) -> String {
    format!("{}/{name}", directory.trim_end_matches('/'))
}

impl Watching {
    /// The next change. Cancel-safe, but for new directories of a recursive watch being covered late.
    pub async fn next(&mut self) -> Result<Seen, GuestError> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            let new_directories = self.read().await.context("watch", "events")?;
            for path in new_directories {
                self.cover(path).await?;
            }
        }
    }

    async fn cover(&mut self, path: String) -> Result<(), GuestError> {
        let inotify = self.inotify.get_ref().as_fd().try_clone_to_owned().context("watch", &path)?;
        let mut covered = self.covered.clone();
        let start = Start { path: path.clone(), flags: FOUND_DIRECTORY };
        let (covered, found) = self
            .files
            .as_user("watch", path, move |root| {
                let found = covered.add(&inotify, root, start, true)?;
                Ok((covered, found))
            })
            .await
            .map_err(too_many)?;
        self.covered = covered;
        self.ready.extend(found.into_iter().map(|path| Seen { what: What::Created, path }));
        Ok(())
    }

    /// Reads what is there; answers directories that are new in a recursive watch.
    async fn read(&mut self) -> io::Result<Vec<String>> {
        let mut new_directories = Vec::new();
        let mut ready = self.inotify.readable().await?;
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(self.inotify.get_ref(), &mut buffer);
        loop {
            match reader.next() {
                Ok(event) => {
                    let flags = event.events();
                    if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
                        self.ready.push_back(Seen { what: What::Overflow, path: "/".to_owned() });
                        continue;
                    }
                    let Some(directory) = self.covered.0.get(&event.wd()) else { continue };
                    let path = match event.file_name() {
                        Some(name) => join(directory, &name.to_string_lossy()),
                        None => directory.clone(),
                    };
                    if flags.contains(ReadFlags::IGNORED) {
                        self.covered.0.remove(&event.wd());
                        continue;
                    }
                    let appeared = flags.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO);
                    if self.recursive && appeared && flags.contains(ReadFlags::ISDIR) {
                        new_directories.push(path.clone());
                    }
                    if let Some(what) = what(flags) {
                        self.ready.push_back(Seen { what, path });
                    }
                    if reader.is_buffer_empty() {
                        return Ok(new_directories);
                    }
                }
                Err(Errno::AGAIN) => {
                    ready.clear_ready();
                    return Ok(new_directories);
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

fn what(flags: ReadFlags) -> Option<What> {
    [
        (ReadFlags::CREATE, What::Created),
        (ReadFlags::MOVED_TO, What::MovedIn),
        (ReadFlags::DELETE | ReadFlags::DELETE_SELF, What::Removed),
        (ReadFlags::MOVED_FROM | ReadFlags::MOVE_SELF, What::MovedOut),
        (ReadFlags::MODIFY, What::Modified),
        (ReadFlags::ATTRIB, What::AttributesChanged),
    ]
    .into_iter()
    .find_map(|(flag, what)| flags.intersects(flag).then_some(what))
}
