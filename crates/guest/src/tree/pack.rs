//! The upper layer as a stream.

use super::{
    OVERLAY,
    record::{Attributes, Put, Tag},
};
use crate::survey::names;
use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{
        AtFlags, FileType, Mode, OFlags, Stat, Timespec, fgetxattr, flistxattr, fstat, openat, readlinkat,
        statat,
    },
    io::{Errno, pread},
};
use std::{
    collections::HashMap,
    ffi::{CStr, CString},
    io::{self, Write},
};

/// Read at once; a block of zeros is left out.
pub const BLOCK: usize = 64 * 1024;
const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const FILE: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);
/// The longest path that a link can be made by.
const MAX_PATH: usize = 4000;

/// One directory on the way down.
struct Level {
    directory: OwnedFd,
    /// Still to be told, the next one last.
    ahead: Vec<CString>,
    /// Of `path`, before this directory's name was added.
    path: usize,
}

struct Packer<'a, W> {
    to: Put<W>,
    opaque: &'a str,
    /// Of the directory that is being told.
    path: Vec<u8>,
    /// The first name of each file with several.
    first: HashMap<(u64, u64), Vec<u8>>,
    block: Vec<u8>,
}

/// Writes all of `upper`, a directory in which nothing changes meanwhile. `opaque` marks directories that hide what is below.
/// Blocks.
pub fn pack(upper: OwnedFd, opaque: &str, to: impl Write) -> io::Result<()> {
    let to = Put::begin(to)?;
    let mut packer = Packer { to, opaque, path: Vec::new(), first: HashMap::new(), block: vec![0; BLOCK] };
    packer.to.attributes(&attributes(&fstat(&upper)?, extended(&upper)?))?;
    let mut levels = vec![packer.level(upper, 0)?];
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.ahead.pop() else {
            packer.path.truncate(level.path);
            levels.pop();
            packer.to.tag(Tag::Leave)?;
            continue;
        };
        let told = packer.entry(&level.directory, &name);
        if let Some(below) = told.map_err(|error| packer.at(&name, &error))? {
            levels.push(below);
        }
    }
    packer.to.end()
}

impl<W: Write> Packer<'_, W> {
    fn level(&self, directory: OwnedFd, path: usize) -> io::Result<Level> {
        let mut ahead = names(&directory)?;
        ahead.sort_unstable_by(|a, b| b.cmp(a));
        Ok(Level { directory, ahead, path })
    }

    fn at(&self, name: &CStr, error: &io::Error) -> io::Error {
        let path = [self.path.as_slice(), b"/", name.to_bytes()].concat();
        io::Error::new(error.kind(), format!("{}: {error}", String::from_utf8_lossy(&path)))
    }

    /// One name; the directory that is to be told next, if it is one.
    fn entry(&mut self, parent: &OwnedFd, name: &CStr) -> io::Result<Option<Level>> {
        let stat = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::CharacterDevice && stat.st_rdev == 0 {
            self.begin(Tag::Gone, name)?;
            return Ok(None);
        }
        if kind != FileType::Directory && stat.st_nlink > 1 {
            let path = [self.path.as_slice(), b"/", name.to_bytes()].concat();
            if let Some(first) = self.first.get(&(stat.st_dev, stat.st_ino)) {
                let first = first.clone();
                let extended = match kind {
                    FileType::RegularFile => extended(openat(parent, name, FILE, Mode::empty())?)?,
                    _ => Vec::new(),
                };
                self.begin(Tag::Link, name)?;
                self.to.attributes(&attributes(&stat, extended))?;
                self.to.bytes(&first)?;
                return Ok(None);
            }
            if path.len() > MAX_PATH {
                return Err(io::Error::other("it has several names, and this one lies too deep"));
            }
            self.first.insert((stat.st_dev, stat.st_ino), path[1..].to_vec());
        }
        match kind {
            FileType::Directory => {
                let directory = openat(parent, name, DIRECTORY, Mode::empty())?;
                let marked = match fgetxattr(&directory, self.opaque, &mut [0_u8; 0]) {
                    Ok(_) => true,
                    Err(Errno::NODATA | Errno::OPNOTSUPP) => false,
                    Err(errno) => return Err(errno.into()),
                };
                self.begin(Tag::Directory, name)?;
                let mut found = attributes(&stat, extended(&directory)?);
                found.extended.retain(|(name, _)| name.to_bytes() != self.opaque.as_bytes());
                self.to.attributes(&found)?;
                self.to.number(u64::from(marked))?;
                let above = self.path.len();
                self.path.push(b'/');
                self.path.extend_from_slice(name.to_bytes());
                return Ok(Some(self.level(directory, above)?));
            }
            FileType::RegularFile => self.file(parent, name, &stat)?,
            FileType::Symlink => {
                let target = readlinkat(parent, name, Vec::new())?;
                self.begin(Tag::Symlink, name)?;
                self.to.attributes(&attributes(&stat, Vec::new()))?;
                self.to.bytes(target.as_bytes())?;
            }
            FileType::Fifo | FileType::Socket | FileType::CharacterDevice | FileType::BlockDevice => {
                self.begin(Tag::Node, name)?;
                self.to.attributes(&attributes(&stat, Vec::new()))?;
                self.to.number(u64::from(kind.as_raw_mode()))?;
                self.to.number(stat.st_rdev)?;
            }
            FileType::Unknown => return Err(io::Error::other("it is nothing that is known here")),
        }
        Ok(None)
    }

    fn begin(&mut self, tag: Tag, name: &CStr) -> io::Result<()> {
        self.to.tag(tag)?;
        self.to.bytes(name.to_bytes())
    }

    fn file(&mut self, parent: &OwnedFd, name: &CStr, stat: &Stat) -> io::Result<()> {
        let file = openat(parent, name, FILE, Mode::empty())?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        self.begin(Tag::File, name)?;
        self.to.attributes(&attributes(stat, extended(&file)?))?;
        self.to.number(size)?;
        let mut offset = 0;
        while offset < size {
            let wanted = usize::try_from(size - offset).unwrap_or(BLOCK).min(BLOCK);
            let mut filled = 0;
            while filled < wanted {
                match pread(&file, &mut self.block[filled..wanted], offset + filled as u64) {
                    Ok(0) => return Err(io::Error::other("it became shorter while it was read")),
                    Ok(read) => filled += read,
                    Err(Errno::INTR) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            let block = &self.block[..filled];
            if block.iter().any(|byte| *byte != 0) {
                self.to.number(offset)?;
                self.to.bytes(block)?;
            }
            offset += filled as u64;
        }
        self.to.number(size)?;
        self.to.bytes(&[])
    }
}

fn attributes(stat: &Stat, extended: Vec<(CString, Vec<u8>)>) -> Attributes {
    let tv_nsec = i64::try_from(stat.st_mtime_nsec).unwrap_or(0);
    let modified = Timespec { tv_sec: stat.st_mtime, tv_nsec };
    Attributes { mode: stat.st_mode & 0o7777, uid: stat.st_uid, gid: stat.st_gid, modified, extended }
}

/// The attributes that programs have set.
fn extended(file: impl AsFd) -> io::Result<Vec<(CString, Vec<u8>)>> {
    let mut list = vec![0_u8; 64 * 1024];
    let length = match flistxattr(&file, list.as_mut_slice()) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => 0,
        Err(errno) => return Err(errno.into()),
    };
    let mut found = Vec::new();
    for name in list[..length].split(|byte| *byte == 0) {
        if name.is_empty() || name.starts_with(OVERLAY) {
            continue;
        }
        let name = CString::new(name).map_err(io::Error::other)?;
        let mut value = vec![0_u8; 64 * 1024];
        match fgetxattr(&file, name.as_c_str(), value.as_mut_slice()) {
            Ok(length) => value.truncate(length),
            Err(Errno::NODATA) => continue,
            Err(errno) => return Err(errno.into()),
        }
        found.push((name, value));
    }
    Ok(found)
}
