//! One name in a directory, as it is there.

use offshoot_guest_proto::message::{DiskEntry, DiskKind, Stamp};
use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{AtFlags, FileType, Mode, OFlags, RawDir, Stat, openat, readlinkat, statat},
    io::Errno,
};
use serde_bytes::ByteBuf;
use std::{
    ffi::{CStr, CString},
    fs::File,
    io,
    mem::MaybeUninit,
};

/// What one system call fills: a few hundred names.
const BATCH: usize = 16 * 1024;
/// Of one directory, which is held in memory to be told in order.
const MOST_NAMES: usize = 1_000_000;

/// `None`: there is nothing of that name.
pub fn look(directory: Option<&OwnedFd>, name: &CStr) -> io::Result<Option<DiskEntry>> {
    let Some(directory) = directory else { return Ok(None) };
    let stat = match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    let kind = kind(&stat);
    let target = match kind {
        DiskKind::Symlink => match readlinkat(directory, name, Vec::new()) {
            Ok(target) => Some(ByteBuf::from(target.into_bytes())),
            // Replaced while we looked: look again.
            Err(Errno::INVAL | Errno::NOENT) => return look(Some(directory), name),
            Err(errno) => return Err(errno.into()),
        },
        _ => None,
    };
    Ok(Some(describe(&stat, kind, target)))
}

fn kind(stat: &Stat) -> DiskKind {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => DiskKind::Directory,
        FileType::Symlink => DiskKind::Symlink,
        FileType::Fifo => DiskKind::Fifo,
        FileType::Socket => DiskKind::Socket,
        FileType::CharacterDevice => DiskKind::CharDevice,
        FileType::BlockDevice => DiskKind::BlockDevice,
        _ => DiskKind::File,
    }
}

fn describe(stat: &Stat, kind: DiskKind, target: Option<ByteBuf>) -> DiskEntry {
    let nanoseconds = |seconds: i64, rest: u64| {
        seconds.saturating_mul(1_000_000_000).saturating_add(i64::try_from(rest).unwrap_or(0))
    };
    DiskEntry {
        kind,
        // Links have none of their own.
        mode: if kind == DiskKind::Symlink { 0o777 } else { stat.st_mode & 0o7777 },
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: if kind == DiskKind::File { u64::try_from(stat.st_size).unwrap_or(0) } else { 0 },
        stamp: Stamp {
            inode: stat.st_ino,
            modified_ns: nanoseconds(stat.st_mtime, stat.st_mtime_nsec),
            changed_ns: nanoseconds(stat.st_ctime, stat.st_ctime_nsec),
        },
        target,
        device: matches!(kind, DiskKind::CharDevice | DiskKind::BlockDevice).then_some(stat.st_rdev),
    }
}

/// Names in a directory, without `.` and `..`.
pub fn names(directory: impl AsFd) -> io::Result<Vec<CString>> {
    // Read from its beginning, whoever has read it before.
    rustix::fs::seek(&directory, rustix::fs::SeekFrom::Start(0))?;
    let mut buffer = vec![MaybeUninit::uninit(); BATCH];
    let mut entries = RawDir::new(&directory, &mut buffer);
    let mut names = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
        if names.len() > MOST_NAMES {
            return Err(io::Error::other(format!("a directory has more than {MOST_NAMES} names")));
        }
    }
    Ok(names)
}

/// The open file, if there is a regular one of that name. Never waits for whoever is at the other end of a pipe.
pub fn file(directory: impl AsFd, name: &CStr) -> io::Result<Option<File>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    match openat(&directory, name, flags, Mode::empty()) {
        Ok(fd) => regular(fd),
        Err(Errno::NOENT | Errno::LOOP | Errno::NXIO | Errno::NODEV | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

pub fn regular(fd: OwnedFd) -> io::Result<Option<File>> {
    let stat = rustix::fs::fstat(&fd)?;
    Ok((kind(&stat) == DiskKind::File).then(|| File::from(fd)))
}
