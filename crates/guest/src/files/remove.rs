//! Removing, also whole trees, by open directories: a symlink put in the way is removed, never followed.

use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{AtFlags, FileType, Mode, OFlags, RawDir, openat, unlinkat},
    io::Errno,
};
use std::{ffi::CString, io, mem::MaybeUninit};

/// Open directories on the way down. A deeper tree is refused rather than walked by path.
const MAX_DEPTH: usize = 4096;

/// One file, symlink or empty directory.
pub fn one(parent: impl AsFd, name: &str) -> io::Result<()> {
    match unlinkat(&parent, name, AtFlags::empty()) {
        // POSIX lets unlink of a directory fail with EPERM; Linux says EISDIR.
        Err(Errno::ISDIR | Errno::PERM) => match unlinkat(&parent, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTDIR) => Err(Errno::PERM.into()),
            result => Ok(result?),
        },
        result => Ok(result?),
    }
}

struct Level {
    directory: OwnedFd,
    /// Of this directory in the one above.
    name: CString,
    /// Subdirectories still to be entered.
    pending: Vec<CString>,
}

impl Level {
    /// Enters a directory and removes everything in it but directories.
    fn enter(parent: impl AsFd, name: CString) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = openat(parent, &name, flags, Mode::empty())?;
        let mut pending = Vec::new();
        let mut buffer = vec![MaybeUninit::uninit(); 16 * 1024];
        let mut entries = RawDir::new(&directory, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            if entry.file_type() == FileType::Directory {
                pending.push(name.to_owned());
                continue;
            }
            match unlinkat(&directory, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                // A filesystem that does not tell types in its listing.
                Err(Errno::ISDIR) => pending.push(name.to_owned()),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(Self { directory, name, pending })
    }
}

/// `name` in `parent`, with everything below it if it is a directory.
pub fn tree(parent: OwnedFd, name: &str) -> io::Result<()> {
    named_tree(parent, CString::new(name).map_err(|_| Errno::INVAL)?)
}

/// As [`tree`], for any name.
pub fn named_tree(parent: impl AsFd, name: CString) -> io::Result<()> {
    let parent = parent.as_fd();
    match unlinkat(parent, &name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        result => return Ok(result?),
    }
    let mut levels = vec![Level::enter(parent, name)?];
    while let Some(mut level) = levels.pop() {
        match level.pending.pop() {
            Some(child) => {
                if levels.len() >= MAX_DEPTH {
                    return Err(Errno::NAMETOOLONG.into());
                }
                let entered = Level::enter(&level.directory, child);
                levels.push(level);
                levels.push(entered?);
            }
            None => {
                let above = levels.last().map_or(parent, |level| level.directory.as_fd());
                match unlinkat(above, &level.name, AtFlags::REMOVEDIR) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
        }
    }
    Ok(())
}
