//! Writing a file in place.

use super::{Entries, describe::Describer};
use crate::{
    fault::{Context, invalid},
    files::{GuestPath, blocking, write_all},
};
use offshoot_guest_proto::message::{ATTRIBUTE_PREFIX, Entry, FileKind, GuestError, MAX_ATTRIBUTES};
use rustix::{
    fd::OwnedFd,
    fs::{Mode, OFlags, XattrFlags, fchown, flistxattr, fremovexattr, fsetxattr},
    io::Errno,
};
use std::{collections::BTreeMap, io, sync::Arc};

#[derive(Debug)]
pub struct Writing {
    file: Arc<OwnedFd>,
    path: GuestPath,
    describer: Describer,
}

impl Entries {
    /// Empties the file, or makes it and its parents.
    pub async fn write(
        &self,
        path: &str,
        attributes: BTreeMap<String, String>,
    ) -> Result<Writing, GuestError> {
        let path = self.path(path)?;
        check(path.as_str(), &attributes)?;
        let file = self
            .run("write", &path, move |own, path| {
                own.make_parents(path)?;
                // NONBLOCK: opening a FIFO nobody reads from must not wait. TRUNC: who watches is told that a file was
                // emptied if it was there before, and of a new one only that it was made.
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NONBLOCK | OFlags::NOCTTY;
                let file = own.root.open_or_create(path.as_str(), flags, Mode::from_raw_mode(0o644))?;
                let stat = crate::files::stat::of(&file)?;
                if stat.kind != FileKind::File {
                    return Err(Errno::INVAL.into());
                }
                // Also if it has this owner already: it is a change that is watched for.
                if let Some((uid, gid)) = own.owner() {
                    fchown(&file, Some(uid), Some(gid))?;
                }
                replace_attributes(&file, &attributes)?;
                Ok(file)
            })
            .await?;
        Ok(Writing { file: Arc::new(file), path, describer: self.describer.clone() })
    }
}

impl Writing {
    pub async fn append(&mut self, data: Vec<u8>) -> Result<(), GuestError> {
        let (file, path) = (Arc::clone(&self.file), self.path.clone());
        blocking(move || write_all(&file, &data).context("write", path.as_str())).await
    }

    pub async fn finish(self) -> Result<Entry, GuestError> {
        let Self { file, path, describer } = self;
        blocking(move || describer.open(path.as_str(), &*file).context("write", path.as_str())).await
    }
}

fn check(path: &str, attributes: &BTreeMap<String, String>) -> Result<(), GuestError> {
    let total: usize = attributes.iter().map(|(name, value)| name.len() + value.len()).sum();
    if total > MAX_ATTRIBUTES {
        return Err(invalid(format!("write {path}: {total} bytes of attributes, at most {MAX_ATTRIBUTES}")));
    }
    match attributes.keys().find(|name| name.is_empty() || name.contains('\0')) {
        Some(name) => Err(invalid(format!("write {path}: {name:?} is no attribute's name"))),
        None => Ok(()),
    }
}

/// A file system without attributes takes a file without any.
fn replace_attributes(file: &OwnedFd, attributes: &BTreeMap<String, String>) -> io::Result<()> {
    let mut names = [0; MAX_ATTRIBUTES];
    match flistxattr(file, &mut names[..]) {
        Ok(length) => {
            let known = names[..length].split(|&byte| byte == 0);
            for name in known.filter(|name| name.starts_with(ATTRIBUTE_PREFIX.as_bytes())) {
                match fremovexattr(file, name) {
                    Ok(()) | Err(Errno::NODATA) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
        }
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
        Err(errno) => return Err(errno.into()),
    }
    for (name, value) in attributes {
        fsetxattr(file, format!("{ATTRIBUTE_PREFIX}{name}"), value.as_bytes(), XattrFlags::empty())?;
    }
    Ok(())
}
