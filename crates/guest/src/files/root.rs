//! The directory every path is resolved in. `RESOLVE_IN_ROOT` makes the kernel treat it as `/`: absolute symlinks
//! and `..` end there, and the magic links of /proc, which lead anywhere, are not followed. gVisor's kernel has no such
//! call; in it the agent's root is the only one, and a magic link leads a user nowhere that user may not go.

use super::path::GuestPath;
use rustix::{
    fd::{AsRawFd, OwnedFd},
    fs::{
        AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Uid, chmod, chownat, fchmod, mkdirat, openat, openat2,
        readlinkat,
    },
    io::Errno,
    path::Arg,
};
use std::{io, path::Path};

/// As many symlinks as the kernel follows in one path.
const MAX_SYMLINKS: usize = 40;

#[derive(Debug)]
pub struct Root {
    directory: OwnedFd,
    /// It is the root of this process.
    whole: bool,
}

impl Root {
    pub fn open_at(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { directory: openat(CWD, path, flags, Mode::empty())?, whole: path == Path::new("/") })
    }

    pub fn open(&self, path: impl Arg + Copy, flags: OFlags) -> Result<OwnedFd, Errno> {
        self.open_or_create(path, flags, Mode::empty())
    }

    /// `mode` is that of a file which is made, less the agent's umask.
    pub fn open_or_create(&self, path: impl Arg + Copy, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
        loop {
            // EAGAIN: a rename elsewhere raced with `..`; the kernel asks to try again.
            let flags = flags | OFlags::CLOEXEC;
            match openat2(&self.directory, path, flags, mode, ResolveFlags::IN_ROOT) {
                Err(Errno::AGAIN) if !flags.contains(OFlags::NONBLOCK) => {}
                Err(Errno::NOSYS) if self.whole => return openat(&self.directory, path, flags, mode),
                result => return result,
            }
        }
    }

    /// Where an open file lies below this root; `None` where nobody can tell any more.
    pub fn place_of(&self, file: impl AsRawFd) -> Option<String> {
        let whole =
            |fd: i32| readlinkat(CWD, format!("/proc/self/fd/{fd}"), Vec::new()).ok()?.into_string().ok();
        let (root, place) = (whole(self.directory.as_raw_fd())?, whole(file.as_raw_fd())?);
        let below = place.strip_prefix(root.trim_end_matches('/')).filter(|below| below.starts_with('/'));
        below.filter(|below| !below.ends_with(" (deleted)")).map(str::to_owned)
    }

    pub fn directory(&self, path: &str) -> Result<OwnedFd, Errno> {
        self.open(path, OFlags::PATH | OFlags::DIRECTORY)
    }

    /// The open directory that holds what `path` names, and the name there.
    pub fn parent<'p>(&self, path: &'p GuestPath) -> io::Result<(OwnedFd, &'p str)> {
        let (parent, name) = path.split().ok_or(Errno::INVAL)?;
        Ok((self.directory(parent)?, name))
    }

    /// Like [`Self::parent`], for the place a symlink at `path` leads to.
    pub fn parent_of_target(&self, path: &GuestPath) -> io::Result<(OwnedFd, String)> {
        let mut path = path.clone();
        for _ in 0..MAX_SYMLINKS {
            let (parent, name) = self.parent(&path)?;
            let target = match readlinkat(&parent, name, Vec::new()) {
                Ok(target) => target.into_string().map_err(|_| Errno::ILSEQ)?,
                // Not a symlink, or nothing there yet.
                Err(Errno::INVAL | Errno::NOENT) => return Ok((parent, name.to_owned())),
                Err(errno) => return Err(errno.into()),
            };
            let directory = path.split().map_or("/", |(parent, _)| parent);
            let next = if target.starts_with('/') { target } else { format!("{directory}/{target}") };
            path = GuestPath::parse(&next).map_err(|_| Errno::INVAL)?;
        }
        Err(Errno::LOOP.into())
    }

    /// Makes every directory of `path` that is missing. `mode` applies to the last one, if it was made.
    pub fn make_directories(&self, path: &GuestPath, mode: Option<Mode>) -> io::Result<()> {
        self.make_directories_as(path, mode, None)
    }

    /// The same, with those that were made given to somebody.
    pub fn make_directories_as(
        &self,
        path: &GuestPath,
        mode: Option<Mode>,
        owner: Option<(Uid, Gid)>,
    ) -> io::Result<()> {
        let mut parent = self.directory("/")?;
        for prefix in path.prefixes() {
            parent = match self.directory(prefix) {
                Ok(directory) => directory,
                Err(Errno::NOENT) => {
                    let name = prefix.rsplit_once('/').map_or(prefix, |(_, name)| name);
                    match mkdirat(&parent, name, Mode::from_raw_mode(0o777)) {
                        Ok(()) => {
                            if let Some((uid, gid)) = owner {
                                chownat(&parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
                            }
                            if let (Some(mode), true) = (mode, prefix == path.as_str().trim_end_matches('/'))
                            {
                                self.change_mode(prefix, mode)?;
                            }
                        }
                        // Someone else made it first.
                        Err(Errno::EXIST) => {}
                        Err(errno) => return Err(errno.into()),
                    }
                    self.directory(prefix)?
                }
                Err(errno) => return Err(errno.into()),
            };
        }
        Ok(())
    }

    pub fn change_mode(&self, path: &str, mode: Mode) -> io::Result<()> {
        let file = self.open(path, OFlags::PATH)?;
        // A file opened by O_PATH takes no fchmod before Linux 6.6; its link in /proc does.
        match chmod(format!("/proc/self/fd/{}", file.as_raw_fd()), mode) {
            Ok(()) => Ok(()),
            Err(Errno::NOENT) => Ok(fchmod(&file, mode)?),
            Err(errno) => Err(errno.into()),
        }
    }
}
