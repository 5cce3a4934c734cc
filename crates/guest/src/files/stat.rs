//! What the host is told of a file.

use offshoot_guest_proto::message::{FileKind, FileStat};
use rustix::{
    fd::AsFd,
    fs::{AtFlags, FileType, Stat, fstat, readlinkat, statat},
    io::Errno,
};
use std::{ffi::CStr, io};

/// Of an open file; also by O_PATH, also of a symlink itself.
pub fn of(file: impl AsFd) -> io::Result<FileStat> {
    let stat = fstat(&file)?;
    // An empty name reads the link that was itself opened.
    let target = || readlinkat(&file, c"", Vec::new());
    describe(&stat, target)
}

/// Of a directory's entry, not following it.
pub fn of_entry(directory: impl AsFd, name: &CStr) -> io::Result<FileStat> {
    let stat = statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
    describe(&stat, || readlinkat(&directory, name, Vec::new()))
}

fn describe(stat: &Stat, target: impl FnOnce() -> Result<std::ffi::CString, Errno>) -> io::Result<FileStat> {
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => FileKind::File,
        FileType::Directory => FileKind::Directory,
        FileType::Symlink => FileKind::Symlink,
        _ => FileKind::Other,
    };
    let symlink_target = match kind {
        FileKind::Symlink => Some(target()?.to_string_lossy().into_owned()),
        _ => None,
    };
    let nanoseconds = i64::try_from(stat.st_mtime_nsec).unwrap_or(0);
    Ok(FileStat {
        kind,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        modified_ns: stat.st_mtime.saturating_mul(1_000_000_000).saturating_add(nanoseconds),
        symlink_target,
    })
}
