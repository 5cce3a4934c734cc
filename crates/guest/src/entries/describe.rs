//! What a file looks like to somebody at a shell: names of owners, where links lead, attributes.

use crate::{
    files::{Root, stat},
    users::Users,
};
use offshoot_guest_proto::message::{ATTRIBUTE_PREFIX, Entry, FileKind, FileStat, MAX_ATTRIBUTES};
use rustix::{
    fd::{AsFd, AsRawFd},
    fs::{OFlags, getxattr, listxattr},
};
use std::{collections::BTreeMap, io, sync::Arc};

#[derive(Debug, Clone)]
pub struct Describer {
    root: Arc<Root>,
    users: Arc<Users>,
}

impl Describer {
    pub fn new(root: Arc<Root>, users: Arc<Users>) -> Self {
        Self { root, users }
    }

    /// Of a symlink, itself. The path may have names that are not UTF-8.
    pub fn path(&self, path: &(impl AsRef<[u8]> + ?Sized)) -> io::Result<Entry> {
        let path = path.as_ref();
        let file = self.root.open(path, OFlags::PATH | OFlags::NOFOLLOW)?;
        self.open(path, &file)
    }

    /// Of an open file; `path` is its name.
    pub fn open(
        &self,
        path: &(impl AsRef<[u8]> + ?Sized),
        file: &(impl AsFd + AsRawFd),
    ) -> io::Result<Entry> {
        let path = path.as_ref();
        let stat = stat::of(file)?;
        let (target, leads_to) = match stat.kind {
            FileKind::Symlink => self.target(path),
            _ => (None, None),
        };
        let attributes = match stat.kind {
            FileKind::File | FileKind::Directory => attributes(file),
            FileKind::Symlink | FileKind::Other => BTreeMap::new(),
        };
        Ok(Entry {
            path: String::from_utf8_lossy(path).into_owned(),
            target,
            owner: self.users.name_of(stat.uid),
            group: self.users.group_name_of(stat.gid),
            attributes,
            stat: FileStat { symlink_target: leads_to.or(stat.symlink_target), ..stat },
        })
    }

    /// What is at the end of a link, and where that is.
    fn target(&self, path: &[u8]) -> (Option<FileKind>, Option<String>) {
        // One that leads nowhere has no target.
        let Ok(target) = self.root.open(path, OFlags::PATH) else { return (None, None) };
        (stat::of(&target).ok().map(|stat| stat.kind), self.root.place_of(target.as_raw_fd()))
    }
}

/// Those of ours; none where the file system has no such thing.
fn attributes(file: &impl AsRawFd) -> BTreeMap<String, String> {
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    let mut names = [0; MAX_ATTRIBUTES];
    let Ok(length) = listxattr(&link, &mut names[..]) else { return BTreeMap::new() };
    let (mut found, mut total) = (BTreeMap::new(), 0);
    for name in names[..length].split(|&byte| byte == 0).filter_map(|name| std::str::from_utf8(name).ok()) {
        let Some(short) = name.strip_prefix(ATTRIBUTE_PREFIX) else { continue };
        let mut value = [0; MAX_ATTRIBUTES];
        let Ok(length) = getxattr(&link, name, &mut value[..]) else { continue };
        let value = String::from_utf8_lossy(&value[..length]).into_owned();
        total += short.len() + value.len();
        if total <= MAX_ATTRIBUTES {
            found.insert(short.to_owned(), value);
        }
    }
    found
}
