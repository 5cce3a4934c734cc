//! What a VM is made of, to be compared with another: paths of its disk, contents of files, processes.

use super::GuestError;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// Longest path, as `PATH_MAX`; what lies deeper is counted and left out.
pub const MAX_SURVEY_PATH: usize = 4096;
/// Bytes of one process's command line; the rest is cut off.
pub const MAX_SURVEY_COMMAND: usize = 4096;
/// Most items of one page, and most paths of one request for contents.
pub const MAX_PAGE: usize = 512;

/// Answer to each: `Reply<()>`, then [`Paged`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum SurveyRequest {
    /// Every path of the VM's disk that is not as in its image, in [path order](path_order). Then pages of
    /// [`ChangedPath`].
    Changes,
    /// What files hold now. Then pages of [`Contents`], one for each path and in the same order.
    Contents {
        /// Absolute, at most [`MAX_PAGE`].
        paths: Vec<ByteBuf>,
    },
    /// Processes, without the kernel's own and the agent. Then pages of [`ProcessInfo`].
    Processes,
}

/// A long answer. Its last frame is `End` or `Failed`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Paged<T> {
    /// At least one item, at most [`MAX_PAGE`].
    Page(Vec<T>),
    /// Nothing to tell yet: about once a second, so that silence means that the guest is gone.
    Working,
    End {
        /// How many were left out because they are too long to be told.
        left_out: u64,
    },
    Failed(GuestError),
}

/// A path that is not as in the image: at least one of the two is there, and they differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangedPath {
    /// Absolute; any bytes but NUL.
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
    pub now: Option<DiskEntry>,
    pub image: Option<DiskEntry>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskEntry {
    pub kind: DiskKind,
    /// Permission bits, `0o7777`.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Of files; 0 for everything else.
    pub size: u64,
    /// What tells, without reading it, that a file is the very same in a copy of the disk.
    pub stamp: Stamp,
    /// Of symbolic links.
    pub target: Option<ByteBuf>,
    /// Of devices.
    pub device: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stamp {
    pub inode: u64,
    /// Nanoseconds since 1970.
    pub modified_ns: i64,
    /// Nanoseconds since 1970 at which content or attributes last changed; programs cannot set it.
    pub changed_ns: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum DiskKind {
    File,
    Directory,
    Symlink,
    Fifo,
    Socket,
    CharDevice,
    BlockDevice,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Contents {
    /// BLAKE3 of the file's bytes.
    Hash([u8; 32]),
    /// There is no file of that name any more.
    Gone,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessInfo {
    pub pid: u32,
    pub parent: u32,
    /// Name of the effective user, or its number where it has no name.
    pub user: String,
    /// The command line, its words separated by spaces; `[name]` for a process that has none.
    #[serde(with = "serde_bytes")]
    pub command: Vec<u8>,
}

/// The order of a walk: a directory comes right before what it holds, names in the order of their bytes.
pub fn path_order(a: &[u8], b: &[u8]) -> std::cmp::Ordering {
    // The separator sorts before every byte a name may have.
    let key = |&byte: &u8| if byte == b'/' { 0 } else { byte };
    a.iter().map(key).cmp(b.iter().map(key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cmp::Ordering;

    #[test]
    fn a_directory_comes_right_before_what_it_holds() {
        let mut paths: Vec<&[u8]> = vec![b"/a-b", b"/a/z", b"/b", b"/a", b"/a/\x01", b"/a.d/x"];
        paths.sort_by(|a, b| path_order(a, b));
        assert_eq!(paths, [b"/a".as_slice(), b"/a/\x01", b"/a/z", b"/a-b", b"/a.d/x", b"/b"]);
        assert_eq!(path_order(b"/a", b"/a"), Ordering::Equal);
    }
}
