//! What a comparison came to. All of it is as guests told it: bounded, and never trusted.

use super::DiffOptions;
use offshoot_types::{SnapshotId, VmId, VmName};

/// Bytes of paths, commands and names that are told of one kind; the others are counted.
const MOST_BYTES: usize = 8 << 20;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiffReport {
    pub from: Subject,
    pub to: Subject,
    /// `None`: not asked for.
    pub files: Option<Differences<FileChange>>,
    pub packages: Option<Differences<PackageChange>>,
    pub processes: Option<Differences<ProcessChange>>,
}

/// One of the two states.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Whose state it is; a snapshot's VM may have been destroyed since.
    pub vm: VmId,
    pub name: VmName,
    /// Of a running VM there is none.
    pub snapshot: Option<SnapshotId>,
    /// `None`: it was not necessary.
    pub looked_at: Option<LookedAt>,
}

/// How a state was looked into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LookedAt {
    /// The VM itself, while it ran.
    Running,
    /// A copy that continued from its memory.
    Memory,
    /// A copy that booted from its disk: nothing runs in it that ran before.
    Disk,
}

/// Differences of one kind, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Differences<T> {
    /// The first ones.
    pub changes: Vec<T>,
    /// How many there are in all.
    pub added: u64,
    pub modified: u64,
    pub removed: u64,
    /// What could not be told because it is too long, in either state.
    pub left_out: u64,
    /// Why it is not known what differs; then nothing is told.
    pub unknown: Option<String>,
}

/// A path that differs; `None`: it is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileChange {
    /// Absolute; any bytes but NUL.
    pub path: Vec<u8>,
    pub from: Option<Entry>,
    pub to: Option<Entry>,
}

/// Where two of these are equal, the contents differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub kind: EntryKind,
    /// Permission bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Of files; else 0.
    pub size: u64,
    /// Of symbolic links.
    pub target: Option<Vec<u8>>,
    /// Of devices.
    pub device: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    File,
    Directory,
    Symlink,
    Fifo,
    Socket,
    CharDevice,
    BlockDevice,
}

/// A package that differs, with its version; `None`: it is not installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackageChange {
    pub manager: PackageManager,
    pub name: String,
    pub from: Option<String>,
    pub to: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PackageManager {
    Dpkg,
    Pip,
}

/// How many processes run the same command as the same user; at least one of the two is not 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessChange {
    pub user: String,
    /// The command line; any bytes.
    pub command: Vec<u8>,
    pub from: u64,
    pub to: u64,
}

/// What is counted and bounded.
pub(super) trait Change {
    /// Whether it is there, before and after.
    fn there(&self) -> (bool, bool);
    /// About what it takes.
    fn bytes(&self) -> usize;
}

impl Change for FileChange {
    fn there(&self) -> (bool, bool) {
        (self.from.is_some(), self.to.is_some())
    }
    fn bytes(&self) -> usize {
        let links = [&self.from, &self.to].into_iter().flatten().filter_map(|entry| entry.target.as_ref());
        self.path.len() + links.map(Vec::len).sum::<usize>()
    }
}
impl Change for PackageChange {
    fn there(&self) -> (bool, bool) {
        (self.from.is_some(), self.to.is_some())
    }
    fn bytes(&self) -> usize {
        let versions = [&self.from, &self.to].into_iter().flatten();
        self.name.len() + versions.map(String::len).sum::<usize>()
    }
}
impl Change for ProcessChange {
    fn there(&self) -> (bool, bool) {
        (self.from > 0, self.to > 0)
    }
    fn bytes(&self) -> usize {
        self.user.len() + self.command.len()
    }
}

impl<T> Default for Differences<T> {
    fn default() -> Self {
        Self { changes: Vec::new(), added: 0, modified: 0, removed: 0, left_out: 0, unknown: None }
    }
}

impl<T> Differences<T> {
    pub(super) fn unknown(why: impl Into<String>) -> Self {
        Self { unknown: Some(why.into()), ..Self::default() }
    }

    /// How many there are.
    pub fn total(&self) -> u64 {
        self.added + self.modified + self.removed
    }

    /// How many are counted only.
    pub fn more(&self) -> u64 {
        self.total() - self.changes.len() as u64
    }
}

/// Gathers differences within bounds.
pub(super) struct Gathered<T> {
    found: Differences<T>,
    limit: usize,
    bytes: usize,
}

impl<T: Change> Gathered<T> {
    pub fn new(limit: usize) -> Self {
        Self { found: Differences::default(), limit, bytes: 0 }
    }

    pub fn push(&mut self, change: T) {
        let counter = match change.there() {
            (false, _) => &mut self.found.added,
            (_, false) => &mut self.found.removed,
            (true, true) => &mut self.found.modified,
        };
        *counter += 1;
        // The first that is counted only ends the list: what is told has no gaps.
        let whole = self.found.total() == self.found.changes.len() as u64 + 1;
        self.bytes = self.bytes.saturating_add(change.bytes());
        if whole && self.found.changes.len() < self.limit && self.bytes <= MOST_BYTES {
            self.found.changes.push(change);
        }
    }

    pub fn done(self, left_out: u64) -> Differences<T> {
        Differences { left_out, ..self.found }
    }
}

impl DiffReport {
    /// Of a state with itself.
    pub(super) fn same(from: Subject, to: Subject, options: DiffOptions) -> Self {
        Self {
            from,
            to,
            files: options.files.then(Differences::default),
            packages: options.packages.then(Differences::default),
            processes: options.processes.then(Differences::default),
        }
    }

    /// Whether anything that was asked for differs, or may differ.
    pub fn differs(&self) -> bool {
        let differ = [
            self.files.as_ref().map(Differences::total),
            self.packages.as_ref().map(Differences::total),
            self.processes.as_ref().map(Differences::total),
        ];
        differ.into_iter().flatten().any(|total| total > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(command: &[u8], from: u64, to: u64) -> ProcessChange {
        ProcessChange { user: "u".into(), command: command.to_vec(), from, to }
    }

    #[test]
    fn all_are_counted_and_the_first_are_told() {
        let mut gathered = Gathered::new(2);
        for change in [process(b"a", 0, 1), process(b"b", 1, 0), process(b"c", 1, 2), process(b"d", 0, 3)] {
            gathered.push(change);
        }
        let found = gathered.done(5);
        assert_eq!((found.added, found.removed, found.modified, found.left_out), (2, 1, 1, 5));
        assert_eq!((found.changes.len(), found.more()), (2, 2));
    }

    #[test]
    fn what_takes_too_much_is_counted_and_nothing_after_it_is_told() {
        let mut gathered = Gathered::new(10);
        gathered.push(process(b"small", 0, 1));
        gathered.push(process(&vec![b'x'; MOST_BYTES], 0, 1));
        gathered.push(process(b"small too", 0, 1));
        let found = gathered.done(0);
        assert_eq!((found.changes.len(), found.more()), (1, 2));
    }
}
