//! Takes down what a program says while it says it: both ends in memory, all of what is longer in a file.
//!
//! Told by offsets: what comes again after a reconnect or for another reader is taken once, and what never came is counted
//! as lost. Nothing here waits: a file is written by a task of its own, and one that cannot keep up is cut.

use super::files::{Spill, path_of};
use crate::{OutputStream, core::Core};
use bytes::Bytes;
use offshoot_store::{HistoryOutput, HistoryStream, KEPT_END};
use offshoot_types::OperationId;
use std::{collections::VecDeque, path::PathBuf, sync::Arc};

/// What one program says. Dropped before its end, it leaves what is written of its files.
#[derive(Debug)]
pub(crate) struct Capture {
    core: Arc<Core>,
    stdout: Stream,
    stderr: Stream,
}

impl Capture {
    pub fn new(core: &Arc<Core>, operation: OperationId) -> Self {
        let kept = core.options.history.output.is_some();
        let stream = |stream| Stream::new(path_of(&core.layout.history(), operation, stream), kept);
        let (stdout, stderr) = (stream(OutputStream::Stdout), stream(OutputStream::Stderr));
        Self { core: core.clone(), stdout, stderr }
    }

    /// Bytes of a stream, of which so many came before.
    pub fn take(&mut self, stream: OutputStream, offset: u64, data: &Bytes) {
        let core = self.core.clone();
        self.of(stream).take(offset, data, |path| Spill::begin(&core, path));
    }

    /// The next bytes of a stream that never comes twice.
    pub fn append(&mut self, stream: OutputStream, data: &Bytes) {
        let offset = self.of(stream).end;
        self.take(stream, offset, data);
    }

    pub fn has_read(&self) -> bool {
        self.stdout.end + self.stderr.end > 0
    }

    /// Returns once the files are written. `truncated`: the guest dropped what was beyond the caller's own limit.
    pub async fn finish(self, truncated: bool) -> HistoryOutput {
        let (stdout, stderr) = tokio::join!(self.stdout.finish(), self.stderr.finish());
        HistoryOutput { truncated, stdout, stderr }
    }

    fn of(&mut self, stream: OutputStream) -> &mut Stream {
        match stream {
            OutputStream::Stdout => &mut self.stdout,
            OutputStream::Stderr => &mut self.stderr,
        }
    }
}

#[derive(Debug)]
struct Stream {
    /// Where the next new byte is.
    end: u64,
    lost: u64,
    /// `None` once something was lost, or where nothing is kept.
    hash: Option<Box<blake3::Hasher>>,
    kept: bool,
    head: Vec<u8>,
    tail: VecDeque<u8>,
    path: PathBuf,
    spill: Option<Spill>,
}

impl Stream {
    fn new(path: PathBuf, kept: bool) -> Self {
        let hash = kept.then(Box::default);
        Self { end: 0, lost: 0, hash, kept, head: Vec::new(), tail: VecDeque::new(), path, spill: None }
    }

    fn take(&mut self, offset: u64, data: &Bytes, begin: impl FnOnce(PathBuf) -> Spill) {
        if offset > self.end {
            self.lost += offset - self.end;
            self.end = offset;
            self.hash = None;
        }
        // A guest that counts beyond all bounds is not followed there.
        let Some(end) = offset.checked_add(data.len() as u64) else { return };
        let known = usize::try_from(self.end - offset).unwrap_or(usize::MAX);
        if known >= data.len() {
            return;
        }
        let new = data.slice(known..);
        self.end = end;
        if !self.kept {
            return;
        }
        if let Some(hash) = &mut self.hash {
            hash.update(&new);
        }
        if self.spill.is_none() && self.head.len() + self.tail.len() + new.len() > 2 * KEPT_END {
            let mut spill = begin(self.path.clone());
            // So far both ends together are all of it.
            let mut before = self.head.clone();
            before.extend(&self.tail);
            spill.write(before.into());
            self.spill = Some(spill);
        }
        if let Some(spill) = &mut self.spill {
            spill.write(new.clone());
        }
        let (first, rest) = new.split_at(new.len().min(KEPT_END - self.head.len()));
        self.head.extend_from_slice(first);
        let rest = &rest[rest.len().saturating_sub(KEPT_END)..];
        let over = (self.tail.len() + rest.len()).saturating_sub(KEPT_END);
        self.tail.drain(..over);
        self.tail.extend(rest);
    }

    async fn finish(self) -> HistoryStream {
        let file = match self.spill {
            Some(spill) => spill.finish().await,
            None => 0,
        };
        HistoryStream {
            bytes: self.end,
            lost: self.lost,
            file,
            hash: self.hash.map(|hash| *hash.finalize().as_bytes()),
            head: self.head,
            tail: self.tail.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stream() -> Stream {
        Stream::new(PathBuf::new(), true)
    }

    fn took(stream: &mut Stream, offset: u64, data: Vec<u8>) {
        stream.take(offset, &data.into(), |_| Spill::nowhere());
    }

    #[tokio::test]
    async fn what_comes_again_is_taken_once_and_what_never_came_is_lost() {
        let mut one = stream();
        took(&mut one, 0, b"hello".to_vec());
        took(&mut one, 0, b"hello".to_vec());
        took(&mut one, 3, b"lo, you".to_vec());
        let known = one.finish().await;
        assert_eq!((known.head.as_slice(), known.bytes, known.lost), (&b"hello, you"[..], 10, 0));
        assert_eq!(known.hash, Some(*blake3::hash(b"hello, you").as_bytes()));
        let mut other = stream();
        took(&mut other, 100, b"end".to_vec());
        took(&mut other, u64::MAX, b"beyond".to_vec());
        let known = other.finish().await;
        assert_eq!(known.head, b"end");
        assert_eq!(known.hash, None, "what it was is not known");
    }

    #[tokio::test]
    async fn where_nothing_is_kept_it_is_counted() {
        let mut one = Stream::new(PathBuf::new(), false);
        took(&mut one, 0, vec![7; 100_000]);
        let known = one.finish().await;
        assert_eq!((known.bytes, known.head.len(), known.tail.len(), known.hash), (100_000, 0, 0, None));
    }

    proptest! {
        /// However it is cut into pieces, and whatever of it comes twice.
        #[test]
        fn both_ends_and_the_hash_are_those_of_the_whole(
            pieces in proptest::collection::vec((1_usize..6_000, 0_usize..6_000), 0..12)
        ) {
            let mut one = stream();
            let mut all: Vec<u8> = Vec::new();
            for (new, again) in pieces {
                let from = all.len() - again.min(all.len());
                let next = all.len();
                all.extend((next..next + new).map(|at| (at * 31 % 251) as u8));
                took(&mut one, from as u64, all[from..].to_vec());
            }
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let known = runtime.block_on(one.finish());
            prop_assert_eq!(known.bytes, all.len() as u64);
            prop_assert_eq!(known.hash, Some(*blake3::hash(&all).as_bytes()));
            prop_assert_eq!(&known.head[..], &all[..all.len().min(KEPT_END)]);
            let rest = &all[known.head.len()..];
            prop_assert_eq!(&known.tail[..], &rest[rest.len().saturating_sub(KEPT_END)..]);
        }
    }
}
