//! Two disks over one image: what each changed is merged path by path, as it comes.

use super::{Differences, Entry, EntryKind, FileChange, report::Gathered, side::Side};
use offshoot_guest_proto::{
    client::{ClientError, Pages},
    message::{ChangedPath, Contents, DiskEntry, DiskKind, GuestErrorKind, MAX_PAGE, path_order},
};
use offshoot_types::Failure;
use std::{cmp::Ordering, collections::VecDeque};

/// Paths that wait for a hash, or behind one that does.
const MOST_WAITING: usize = 1024;
/// Bytes of paths in one question for hashes; a message holds twice that.
const MOST_ASKED: usize = 256 * 1024;
/// Names the machine itself: a copy under another name has another line there.
const HOSTS: &[u8] = b"/etc/hosts";
const MOST_HOSTS: u64 = 64 * 1024;

pub(super) async fn compare(
    from: &Side,
    to: &Side,
    limit: usize,
) -> Result<Differences<FileChange>, Failure> {
    let (mut before, mut after) = tokio::try_join!(Ahead::open(from), Ahead::open(to))?;
    let mut merged =
        Merged { from, to, waiting: Vec::new(), asked: 0, bytes: 0, gathered: Gathered::new(limit) };
    loop {
        let (one, other) = tokio::try_join!(before.peek(), after.peek())?;
        let order = match (one, other) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(one), Some(other)) => path_order(&one.path, &other.path),
        };
        let pair = match order {
            // Who did not change it has it as the image does, and the other one not.
            Ordering::Less => before.take().map(|it| Pair::differs(it.path, it.now, it.image)),
            Ordering::Greater => after.take().map(|it| Pair::differs(it.path, it.image, it.now)),
            Ordering::Equal => match (before.take(), after.take()) {
                (Some(one), Some(other)) => Pair::judge(one.path, one.now, other.now),
                _ => None,
            },
        };
        if let Some(pair) = pair {
            merged.push(pair).await?;
        }
    }
    merged.settle().await?;
    Ok(merged.gathered.done(before.pages.left_out().saturating_add(after.pages.left_out())))
}

/// What one guest tells, one path at a time.
struct Ahead<'a> {
    side: &'a Side,
    pages: Pages<ChangedPath>,
    page: VecDeque<ChangedPath>,
}

impl<'a> Ahead<'a> {
    async fn open(side: &'a Side) -> Result<Self, Failure> {
        let pages = side.client.changes().await.map_err(|error| side.refused(&error))?;
        Ok(Self { side, pages, page: VecDeque::new() })
    }

    async fn peek(&mut self) -> Result<Option<&ChangedPath>, Failure> {
        if self.page.is_empty() {
            let next = self.pages.next().await.map_err(|error| self.side.failure(&error))?;
            self.page.extend(next.into_iter().flatten());
        }
        Ok(self.page.front())
    }

    fn take(&mut self) -> Option<ChangedPath> {
        self.page.pop_front()
    }
}

/// One path in both states, which differs or may differ.
struct Pair {
    change: FileChange,
    /// Files that look alike: only their contents can differ.
    alike: bool,
}

impl Pair {
    fn differs(path: Vec<u8>, from: Option<DiskEntry>, to: Option<DiskEntry>) -> Self {
        let change = FileChange { path, from: from.map(entry), to: to.map(entry) };
        Self { change, alike: false }
    }

    /// `None`: it is the same in both.
    fn judge(path: Vec<u8>, from: Option<DiskEntry>, to: Option<DiskEntry>) -> Option<Self> {
        let same_stamp = match (&from, &to) {
            // Nothing but a copy of the disk has the inode, and the time at which it last changed, which no program sets.
            (Some(from), Some(to)) => from.stamp == to.stamp,
            _ => false,
        };
        let pair = Self::differs(path, from, to);
        let change = &pair.change;
        match change.from == change.to {
            false => Some(pair),
            true => {
                let file = change.from.as_ref().is_some_and(|entry| entry.kind == EntryKind::File);
                (file && !same_stamp).then_some(Self { alike: true, ..pair })
            }
        }
    }
}

fn entry(entry: DiskEntry) -> Entry {
    let kind = match entry.kind {
        DiskKind::File => EntryKind::File,
        DiskKind::Directory => EntryKind::Directory,
        DiskKind::Symlink => EntryKind::Symlink,
        DiskKind::Fifo => EntryKind::Fifo,
        DiskKind::Socket => EntryKind::Socket,
        DiskKind::CharDevice => EntryKind::CharDevice,
        DiskKind::BlockDevice => EntryKind::BlockDevice,
    };
    let DiskEntry { mode, uid, gid, size, target, device, .. } = entry;
    Entry { kind, mode, uid, gid, size, target: target.map(|target| target.into_vec()), device }
}

/// Pairs on their way into the answer, in order.
struct Merged<'a> {
    from: &'a Side,
    to: &'a Side,
    waiting: Vec<Pair>,
    /// How many of them look alike, and the bytes of their paths.
    asked: usize,
    bytes: usize,
    gathered: Gathered<FileChange>,
}

impl Merged<'_> {
    async fn push(&mut self, pair: Pair) -> Result<(), Failure> {
        if pair.alike {
            self.asked += 1;
            self.bytes += pair.change.path.len();
        }
        self.waiting.push(pair);
        match self.asked >= MAX_PAGE || self.bytes >= MOST_ASKED || self.waiting.len() >= MOST_WAITING {
            true => self.settle().await,
            false => Ok(()),
        }
    }

    /// Has both guests hash what looks alike.
    async fn settle(&mut self) -> Result<(), Failure> {
        let waiting = std::mem::take(&mut self.waiting);
        (self.asked, self.bytes) = (0, 0);
        let alike = waiting.iter().filter(|pair| pair.alike);
        let paths: Vec<Vec<u8>> = alike.map(|pair| pair.change.path.clone()).collect();
        let (from, to) = tokio::try_join!(hashes(self.from, &paths), hashes(self.to, &paths))?;
        let mut differ = from.into_iter().zip(to).map(|(from, to)| from != to);
        for Pair { change, alike } in waiting {
            let same = alike && !differ.next().unwrap_or(true);
            if !same && !self.is_own_name(&change).await? {
                self.gathered.push(change);
            }
        }
        Ok(())
    }

    /// Whether two files of host names differ only in what a copy calls itself.
    async fn is_own_name(&self, change: &FileChange) -> Result<bool, Failure> {
        let both = change.from.is_some() && change.to.is_some();
        if change.path != HOSTS || !both || !(self.from.is_copy() || self.to.is_copy()) {
            return Ok(false);
        }
        let (from, to) = tokio::try_join!(hosts(self.from), hosts(self.to))?;
        Ok(from.is_some() && from == to)
    }
}

async fn hashes(side: &Side, paths: &[Vec<u8>]) -> Result<Vec<Contents>, Failure> {
    match paths {
        [] => Ok(Vec::new()),
        paths => side.client.contents(paths.to_vec()).await.map_err(|error| side.failure(&error)),
    }
}

/// The file of host names without the machine's own; `None` if there is none of a plausible size.
async fn hosts(side: &Side) -> Result<Option<Vec<u8>>, Failure> {
    let read = async {
        let mut file = side.client.files("root").read("/etc/hosts", 0, Some(MOST_HOSTS)).await?;
        let mut text = Vec::new();
        while let Some(data) = file.next().await? {
            text.extend_from_slice(&data);
        }
        Ok(text)
    };
    match read.await {
        Ok(text) if (text.len() as u64) < MOST_HOSTS => Ok(Some(without_own_name(&text))),
        Ok(_) => Ok(None),
        Err(ClientError::Guest(error)) if error.kind != GuestErrorKind::Other => Ok(None),
        Err(error) => Err(side.failure(&error)),
    }
}

/// Without the line of 127.0.1.1, the address of a machine's own name.
fn without_own_name(hosts: &[u8]) -> Vec<u8> {
    let own = |line: &&[u8]| {
        let line = line.trim_ascii_start();
        line.strip_prefix(b"127.0.1.1").is_some_and(|rest| rest.first().is_none_or(u8::is_ascii_whitespace))
    };
    hosts.split_inclusive(|&byte| byte == b'\n').filter(|line| !own(line)).flatten().copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use offshoot_guest_proto::message::Stamp;

    fn file(size: u64, inode: u64) -> Option<DiskEntry> {
        let stamp = Stamp { inode, modified_ns: 0, changed_ns: 0 };
        let kind = DiskKind::File;
        Some(DiskEntry { kind, mode: 0o644, uid: 0, gid: 0, size, stamp, target: None, device: None })
    }

    fn judged(from: Option<DiskEntry>, to: Option<DiskEntry>) -> Option<bool> {
        Pair::judge(b"/f".to_vec(), from, to).map(|pair| pair.alike)
    }

    #[test]
    fn only_files_that_look_alike_and_are_not_known_to_be_the_same_are_hashed() {
        assert_eq!(judged(file(1, 1), file(1, 1)), None, "the very same");
        assert_eq!(judged(file(1, 1), file(1, 2)), Some(true));
        assert_eq!(judged(file(1, 1), file(2, 1)), Some(false));
        assert_eq!(judged(file(1, 1), None), Some(false));
        assert_eq!(judged(None, None), None, "both removed it");
        let directory = |inode| file(0, inode).map(|entry| DiskEntry { kind: DiskKind::Directory, ..entry });
        assert_eq!(judged(directory(1), directory(2)), None);
        let chmod = file(1, 1).map(|entry| DiskEntry { mode: 0o600, ..entry });
        assert_eq!(judged(file(1, 1), chmod), Some(false));
    }

    #[test]
    fn what_a_machine_calls_itself_is_no_difference_and_other_names_are() {
        let hosts = b"127.0.0.1 localhost\n 127.0.1.1\ta\n10.0.0.1 db\n";
        assert_eq!(without_own_name(hosts), b"127.0.0.1 localhost\n10.0.0.1 db\n");
        assert_eq!(without_own_name(b"127.0.1.10 x"), b"127.0.1.10 x");
    }
}
