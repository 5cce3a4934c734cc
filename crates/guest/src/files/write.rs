//! Writing a file so that others see the old one or all of the new one.
//!
//! ```text
//! begin --> .offshoot-<n>.tmp beside the target --append*--> commit: mode, owner, rename
//!                                                `--dropped--> the temporary file is removed
//! ```

use super::{Files, blocking, path::GuestPath, stat};
use crate::fault::Context;
use offshoot_guest_proto::message::{FileStat, GuestError};
use rustix::{
    fd::OwnedFd,
    fs::{
        AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, Uid, fchmod, fchown, openat, renameat_with,
        statat, unlinkat,
    },
    io::{Errno, write},
};
use std::{
    io,
    sync::Arc,
    sync::atomic::{AtomicU64, Ordering},
};

#[derive(Debug)]
pub struct Writing {
    files: Files,
    path: String,
    temporary: Arc<Temporary>,
    exclusive: bool,
    attributes: Attributes,
}

/// What the new file is to look like.
#[derive(Debug, Clone, Copy)]
struct Attributes {
    mode: Option<Mode>,
    /// Of the file that is replaced.
    owner: Option<(Uid, Gid)>,
}

/// A file nobody knows yet; removed unless it was renamed.
#[derive(Debug)]
struct Temporary {
    directory: OwnedFd,
    name: String,
    /// What it will be called.
    target: String,
    file: OwnedFd,
}

impl Temporary {
    fn create(directory: OwnedFd, target: String) -> Result<Self, Errno> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        loop {
            let name = format!(".offshoot-{:x}.tmp", NEXT.fetch_add(1, Ordering::Relaxed));
            match openat(&directory, &name, flags, Mode::from_raw_mode(0o600)) {
                Ok(file) => return Ok(Self { directory, name, target, file }),
                // Left behind by a VM that lost power.
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Renamed: there is nothing of this name any more. One call, without waiting for the disk.
        let _renamed = unlinkat(&self.directory, &self.name, AtFlags::empty());
    }
}

impl Files {
    /// Prepares writing to `path`, following a symlink there. Fails early where the rename would fail late.
    pub async fn write(
        &self,
        path: String,
        mode: Option<u32>,
        make_parents: bool,
        exclusive: bool,
    ) -> Result<Writing, GuestError> {
        let resolved = GuestPath::parse(&path)?;
        let mode = super::permission_bits("write", &path, mode)?;
        let what = path.clone();
        let prepared = self
            .as_user("write", path.clone(), move |root| {
                if make_parents && let Some((parent, _)) = resolved.split() {
                    let parent = GuestPath::parse(parent).map_err(|_| Errno::INVAL)?;
                    root.make_directories(&parent, None)?;
                }
                let (directory, name) = if exclusive {
                    root.parent(&resolved).map(|(directory, name)| (directory, name.to_owned()))?
                } else {
                    root.parent_of_target(&resolved)?
                };
                let replaced = match statat(&directory, &name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(_) if exclusive => return Err(Errno::EXIST.into()),
                    Ok(stat) => match FileType::from_raw_mode(stat.st_mode) {
                        FileType::RegularFile => Some(stat),
                        FileType::Directory => return Err(Errno::ISDIR.into()),
                        _ => return Ok(None),
                    },
                    Err(Errno::NOENT) => None,
                    Err(errno) => return Err(errno.into()),
                };
                let attributes = Attributes {
                    mode: mode.or(replaced.map(|stat| Mode::from_raw_mode(stat.st_mode & 0o7777))),
                    owner: replaced.map(|stat| (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid))),
                };
                Ok(Some((Temporary::create(directory, name)?, attributes)))
            })
            .await?;
        let Some((temporary, attributes)) = prepared else {
            return Err(crate::fault::invalid(format!("write {what}: not a regular file")));
        };
        Ok(Writing { files: self.clone(), path, temporary: Arc::new(temporary), exclusive, attributes })
    }
}

impl Writing {
    /// Whose the file is to be, whoever's was there.
    pub fn give_to(&mut self, uid: Uid, gid: Gid) {
        self.attributes.owner = Some((uid, gid));
    }

    pub async fn append(&mut self, data: Vec<u8>) -> Result<(), GuestError> {
        let (temporary, path) = (Arc::clone(&self.temporary), self.path.clone());
        blocking(move || write_all(&temporary.file, &data).context("write", path)).await
    }

    /// Puts the file in its place.
    pub async fn commit(self) -> Result<FileStat, GuestError> {
        let Self { files, path, temporary, exclusive, attributes } = self;
        files
            .as_user("write", path, move |_| {
                if let Some((uid, gid)) = attributes.owner {
                    keep_owner(&temporary.file, uid, gid)?;
                }
                // After the owner: changing that clears set-id bits.
                fchmod(&temporary.file, attributes.mode.unwrap_or(Mode::from_raw_mode(0o644)))?;
                let flags = if exclusive { RenameFlags::NOREPLACE } else { RenameFlags::empty() };
                let Temporary { directory, name, target, file } = &*temporary;
                renameat_with(directory, name, directory, target, flags)?;
                stat::of(file)
            })
            .await
    }
}

pub fn write_all(file: &OwnedFd, data: &[u8]) -> io::Result<()> {
    let mut rest = data;
    while !rest.is_empty() {
        match write(file, rest) {
            Ok(count) => rest = &rest[count..],
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// A file replaced by root stays its owner's; a user may only replace it by a file of their own.
fn keep_owner(file: &OwnedFd, uid: Uid, gid: Gid) -> io::Result<()> {
    match fchown(file, Some(uid), Some(gid)) {
        Ok(()) | Err(Errno::PERM) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
