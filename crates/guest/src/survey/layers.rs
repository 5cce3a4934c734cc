//! The VM's disk from three sides: what it wrote, what programs see of it, and its image.

use crate::fault::Context;
use offshoot_guest_proto::message::GuestError;
use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{CWD, Mode, OFlags, fgetxattr, openat},
    io::Errno,
    mount::{OpenTreeFlags, open_tree},
};
use std::io;

/// Set on a directory that hides the image's of that name, or shows another one of the image below it.
const MARKS: [&str; 2] = ["trusted.overlay.opaque", "trusted.overlay.redirect"];

/// How a directory that the VM has is read.
pub(super) const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

#[derive(Debug)]
pub struct Layers {
    pub(super) upper: OwnedFd,
    pub(super) now: OwnedFd,
    pub(super) image: OwnedFd,
    /// Whether what such a directory of `upper` does not name is as in the image's directory of that name.
    pub(super) plain: fn(&OwnedFd) -> io::Result<bool>,
}

impl Layers {
    /// Of the running VM. `data` is the data disk's root.
    pub fn open(data: impl AsFd, image: impl AsFd) -> Result<Self, GuestError> {
        let upper = openat(data, "upper", DIRECTORY, Mode::empty()).context("open", "the upper layer")?;
        let image = openat(image, ".", DIRECTORY, Mode::empty()).context("open", "the image")?;
        // The root by itself: nothing that is mounted somewhere in it hides the disk, or is taken for it.
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(CWD, "/", flags).context("open", "the root filesystem")?;
        let now = openat(&tree, ".", DIRECTORY, Mode::empty()).context("open", "the root filesystem")?;
        Ok(Self { upper, now, image, plain: is_plain })
    }
}

fn is_plain(directory: &OwnedFd) -> io::Result<bool> {
    for mark in MARKS {
        match fgetxattr(directory, mark, &mut [0_u8; 0]) {
            Ok(_) => return Ok(false),
            Err(Errno::NODATA) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(true)
}
