//! A stream made into files again.

use super::{
    pack::BLOCK,
    record::{Attributes, Tag, Take, bad},
};
use crate::files::remove;
use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{
        AtFlags, FileType, Gid, Mode, OFlags, RawMode, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags,
        chownat, fchmod, fchown, fsetxattr, ftruncate, futimens, linkat, mkdirat, mknodat, openat, statat,
        symlinkat, utimensat,
    },
    io::{Errno, pwrite},
};
use std::{
    ffi::{CStr, CString},
    io::{self, Read},
};

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const OWNER_ONLY: Mode = Mode::from_raw_mode(0o600);

/// A directory that is being filled: what it is to look like, once nothing in it changes any more.
struct Level {
    directory: OwnedFd,
    attributes: Attributes,
}

/// Makes `root`, which is as the image has it, what the stream says. Blocks. After a failure it is half of that.
pub fn unpack(root: OwnedFd, from: impl Read) -> io::Result<()> {
    let mut from = Take::begin(from)?;
    let top = openat(&root, ".", DIRECTORY, Mode::empty())?;
    let mut levels = vec![Level { directory: top, attributes: from.attributes()? }];
    let mut block = vec![0; BLOCK];
    while let Some(level) = levels.last() {
        let (parent, tag) = (&level.directory, from.tag()?);
        match tag {
            Tag::Directory => {
                let name = from.name()?;
                let attributes = from.attributes()?;
                let opaque = from.number()? != 0;
                let directory = directory(parent, &name, opaque).map_err(|error| of(&name, error))?;
                levels.push(Level { directory, attributes });
            }
            Tag::Leave => {
                finish(&level.directory, &level.attributes)?;
                levels.pop();
            }
            Tag::File => file(parent, &mut from, &mut block)?,
            Tag::Symlink => {
                let (name, attributes) = (from.name()?, from.attributes()?);
                let target = CString::new(from.bytes()?).map_err(|_| bad("what is no target"))?;
                clear(parent, &name)
                    .and_then(|()| Ok(symlinkat(target, parent, &name)?))
                    .and_then(|()| by_name(parent, &name, &attributes))
                    .map_err(|error| of(&name, error))?;
            }
            Tag::Node => {
                let (name, attributes) = (from.name()?, from.attributes()?);
                let kind = RawMode::try_from(from.number()?).map_err(|_| bad("an unknown type"))?;
                let (kind, device) = (FileType::from_raw_mode(kind), from.number()?);
                let mode = Mode::from_raw_mode(attributes.mode);
                clear(parent, &name)
                    .and_then(|()| Ok(mknodat(parent, &name, kind, mode, device)?))
                    .and_then(|()| by_name(parent, &name, &attributes))
                    .and_then(|()| Ok(rustix::fs::chmodat(parent, &name, mode, AtFlags::empty())?))
                    .map_err(|error| of(&name, error))?;
            }
            Tag::Link => {
                let (name, attributes, first) = (from.name()?, from.attributes()?, from.bytes()?);
                let first = CString::new(first).map_err(|_| bad("what is no path"))?;
                let mut parts = first.to_bytes().split(|byte| *byte == b'/');
                if parts.any(|part| matches!(part, b"" | b"..")) {
                    return Err(bad("a path that leads elsewhere"));
                }
                clear(parent, &name)
                    .and_then(|()| Ok(linkat(&root, first.as_c_str(), parent, &name, AtFlags::empty())?))
                    .and_then(|()| linked(parent, &name, &attributes))
                    .map_err(|error| of(&name, error))?;
            }
            Tag::Gone => {
                let name = from.name()?;
                clear(parent, &name).map_err(|error| of(&name, error))?;
            }
            Tag::End => return Err(bad("an end in the middle")),
        }
    }
    match from.tag()? {
        Tag::End => from.end(),
        _ => Err(bad("more behind its root")),
    }
}

fn of(name: &CStr, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", name.to_string_lossy()))
}

/// Removes what is there of that name.
fn clear(parent: &OwnedFd, name: &CStr) -> io::Result<()> {
    match remove::named_tree(parent, name.to_owned()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The image's, or a new one that hides it.
fn directory(parent: &OwnedFd, name: &CStr, opaque: bool) -> io::Result<OwnedFd> {
    let there = match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => FileType::from_raw_mode(stat.st_mode) == FileType::Directory,
        Err(Errno::NOENT) => false,
        Err(errno) => return Err(errno.into()),
    };
    if opaque || !there {
        clear(parent, name)?;
        mkdirat(parent, name, Mode::from_raw_mode(0o700))?;
    }
    Ok(openat(parent, name, DIRECTORY, Mode::empty())?)
}

fn file<R: Read>(parent: &OwnedFd, from: &mut Take<R>, block: &mut [u8]) -> io::Result<()> {
    let (name, attributes, size) = (from.name()?, from.attributes()?, from.number()?);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = clear(parent, &name).and_then(|()| Ok(openat(parent, &name, flags, OWNER_ONLY)?));
    let file = made.map_err(|error| of(&name, error))?;
    loop {
        let offset = from.number()?;
        let length = from.length(block.len())?;
        if length == 0 {
            break;
        }
        let block = &mut block[..length];
        from.block(block)?;
        write_all(file.as_fd(), block, offset).map_err(|error| of(&name, error))?;
    }
    ftruncate(&file, size)
        .map_err(io::Error::from)
        .and_then(|()| finish(&file, &attributes))
        .map_err(|error| of(&name, error))
}

fn write_all(file: BorrowedFd<'_>, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match pwrite(file, bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                bytes = &bytes[written..];
                offset += written as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn times(modified: Timespec) -> Timestamps {
    Timestamps { last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT }, last_modification: modified }
}

/// Owner first: a change of it takes rights away. The time last.
fn finish(file: &OwnedFd, attributes: &Attributes) -> io::Result<()> {
    let Attributes { mode, uid, gid, modified, extended } = attributes;
    fchown(file, Some(Uid::from_raw(*uid)), Some(Gid::from_raw(*gid)))?;
    for (name, value) in extended {
        fsetxattr(file, name.as_c_str(), value, XattrFlags::empty())?;
    }
    fchmod(file, Mode::from_raw_mode(*mode))?;
    Ok(futimens(file, &times(*modified))?)
}

fn by_name(parent: &OwnedFd, name: &CStr, attributes: &Attributes) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
    chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(utimensat(parent, name, &times(attributes.modified), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// In gVisor's overlay a file that gets another name becomes root's, and loses its set-user-id bit.
fn linked(parent: &OwnedFd, name: &CStr, attributes: &Attributes) -> io::Result<()> {
    match FileType::from_raw_mode(statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode) {
        FileType::RegularFile => {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            finish(&openat(parent, name, flags, Mode::empty())?, attributes)
        }
        FileType::Symlink => by_name(parent, name, attributes),
        _ => {
            by_name(parent, name, attributes)?;
            Ok(rustix::fs::chmodat(parent, name, Mode::from_raw_mode(attributes.mode), AtFlags::empty())?)
        }
    }
}
