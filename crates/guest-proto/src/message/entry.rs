//! Files as somebody at a shell names and sees them: paths may be relative, owners have names.
//!
//! These are done with the agent's own rights; what they make belongs to the user they are done for. Who may ask for
//! them may ask for any user's, and `sudo` needs no password: permissions inside a VM keep nobody out.

use super::{FileKind, FileStat, GuestError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Extended attributes of this prefix are told, and written, without it.
pub const ATTRIBUTE_PREFIX: &str = "user.e2b.";
/// Names and values of one file's attributes together, as much as ext4 keeps beside an inode.
pub const MAX_ATTRIBUTES: usize = 4096;
/// Levels of directories one listing goes down.
pub const MAX_DEPTH: u32 = 64;
/// Bytes that the paths of one request may have together.
pub const MAX_ENTRY_PATHS: usize = 256 * 1024;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EntryRequest {
    /// Whose home relative paths and `~` begin in, and who owns what is made.
    pub user: String,
    pub operation: EntryOperation,
}

/// Paths are absolute, relative to the user's home, or begin with `~`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum EntryOperation {
    /// Answer: [`Reply<Entry>`](super::Reply), of a symlink itself.
    Stat { path: String },
    /// Answer: `Reply<()>`, then [`EntryItem`]s, the last being `End`. A directory comes before what it holds; a symlink
    /// at `path` is followed, others are not.
    List { path: String, depth: u32 },
    /// Answer: `Reply<Entry>`. Parents are made; a directory that exists is refused.
    MakeDirectory { path: String },
    /// Answer: `Reply<Entry>`, of `to`, whose parents are made and which is replaced.
    Move { from: String, to: String },
    /// Answer: `Reply<()>`. With everything below it; nothing there is fine.
    Remove { path: String },
    /// Answer: `Reply<Entry>`, of what a symlink leads to, then [`FileChunk`](super::FileChunk)s, the last being `End`.
    Read { path: String, offset: u64, length: Option<u64> },
    /// Answer: `Reply<()>` (ready); then the host sends `FileChunk`s; answer: `Reply<Entry>`. Parents are made. The file
    /// is emptied and written in place, so that whoever watches or has opened it sees it: aborting leaves what came.
    /// `attributes` take the place of all it had.
    Write { path: String, attributes: BTreeMap<String, String> },
    /// Answer: `Reply<Entry>`. One file after the other becomes `to`, which appears whole; then they are removed.
    Compose { sources: Vec<String>, to: String },
    /// Answer: `Reply<String>`, the directory's absolute path (watching), then [`EntryEvent`]s until the stream is
    /// closed.
    Watch { path: String, recursive: bool, entries: bool },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Absolute, as it was asked for or below that; U+FFFD stands for what is not UTF-8.
    pub path: String,
    /// `symlink_target` is where the link leads in the end, if it leads anywhere.
    pub stat: FileStat,
    /// What a symlink leads to.
    pub target: Option<FileKind>,
    /// Names; the number of who has none.
    pub owner: String,
    pub group: String,
    /// By name without [`ATTRIBUTE_PREFIX`].
    pub attributes: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum EntryItem {
    Entry(Box<Entry>),
    End,
    Failed(GuestError),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EntryEvent {
    pub change: EntryChange,
    pub path: String,
    /// If it was asked for and the path is there.
    pub entry: Option<Box<Entry>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum EntryChange {
    /// Made, or moved here.
    Created,
    Written,
    Removed,
    /// Moved from here.
    Renamed,
    AttributesChanged,
    /// The kernel dropped events: look again.
    Overflow,
}

/// What the VM has and uses of everything.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Usage {
    pub cpus: u32,
    /// Of the time of all its processors since this was last asked, or since it started; 0 to 100.
    pub cpu_used_percent: f64,
    pub memory_total: u64,
    /// Without what the kernel would give back at once.
    pub memory_used: u64,
    /// Of files, given back when needed.
    pub memory_cached: u64,
    pub disk_total: u64,
    pub disk_used: u64,
}
