//! The pages in which a memory differs from its base, at their own offsets in a sparse memory file; behind the
//! memory's end the same file holds the list of runs, so that one descriptor is all a keeper has to pass.

use super::{
    MemoryError,
    pages::{PAGE, RUN, Run, Runs, is_zero},
    sealed,
};
use offshoot_types::{Bytes, SnapshotId};
use rustix::fs::{FallocateFlags, fallocate};
use std::{
    fs::File,
    io,
    os::{fd::OwnedFd, unix::fs::FileExt},
    sync::Arc,
};

/// Pages copied at once.
const COPIED: u64 = 256;

/// What of a run lies behind page `end`.
fn rest(run: Run, end: u64) -> Option<Run> {
    (end < run.end()).then(|| Run { first: end, pages: run.end() - end })
}

/// The pages in which a guest memory differs from its base. Complete and unchangeable.
#[derive(Debug, Clone)]
pub struct Delta {
    pub(super) file: Arc<File>,
    base: Option<SnapshotId>,
    runs: Runs,
}

/// Takes pages in ascending order.
#[derive(Debug)]
pub struct DeltaWriter {
    file: File,
    base: Option<SnapshotId>,
    runs: Runs,
}

impl DeltaWriter {
    /// For a memory of `size` against the complete memory of `base`, or against zeros.
    pub fn new(base: Option<SnapshotId>, size: Bytes) -> Result<Self, MemoryError> {
        let runs = Runs::new(size)?;
        let file = sealed::create("offshoot-delta").map_err(MemoryError::io("make a memory file"))?;
        file.set_len(size.0).map_err(MemoryError::io("size a memory file"))?;
        Ok(Self { file, base, runs })
    }

    /// Makes room for pages that will be added, so that adding them is quicker. Room that stays empty costs memory.
    pub fn reserve(&mut self, runs: &[Run]) -> Result<(), MemoryError> {
        runs.iter().try_for_each(|run| {
            let room = fallocate(&self.file, FallocateFlags::KEEP_SIZE, run.offset(), run.length());
            room.map_err(|error| MemoryError::io("reserve a memory file")(error.into()))
        })
    }

    /// Adds the pages from `first` on; `data` is whole pages. Against zeros, pages of zeros are left out.
    pub fn append(&mut self, first: u64, data: &[u8]) -> Result<(), MemoryError> {
        let size = self.runs.size();
        let pages = data.len() as u64 / PAGE;
        if !(data.len() as u64).is_multiple_of(PAGE) {
            return Err(MemoryError::Page { page: first + pages, size });
        }
        if self.base.is_some() {
            return self.add(Run { first, pages }, data);
        }
        // Stretches of pages that hold something are written as one.
        let mut begin = 0;
        for page in 0..=pages {
            let at = (page * PAGE) as usize;
            if page == pages || is_zero(&data[at..at + PAGE as usize]) {
                if begin < page {
                    let held = &data[(begin * PAGE) as usize..at];
                    self.add(Run { first: first + begin, pages: page - begin }, held)?;
                }
                begin = page + 1;
            }
        }
        Ok(())
    }

    fn add(&mut self, run: Run, data: &[u8]) -> Result<(), MemoryError> {
        self.runs.push(run)?;
        self.file.write_all_at(data, run.offset()).map_err(MemoryError::io("write to a memory file"))
    }

    pub fn finish(self) -> Result<Delta, MemoryError> {
        let Self { file, base, runs } = self;
        file.write_all_at(&runs.to_bytes(), runs.size().0)
            .and_then(|()| sealed::seal(&file))
            .map_err(MemoryError::io("seal a memory file"))?;
        Ok(Delta { file: Arc::new(file), base, runs })
    }
}

impl Delta {
    /// From whoever made it in another process. Bounded by `size`; what is no sealed delta is refused.
    pub(crate) fn received(
        file: OwnedFd,
        base: Option<SnapshotId>,
        size: Bytes,
        runs: u64,
    ) -> Result<Self, MemoryError> {
        let file = File::from(file);
        if !sealed::is_sealed(&file) {
            return Err(MemoryError::Passed("it is not sealed"));
        }
        let length = file.metadata().map_err(MemoryError::io("look at a memory file"))?.len();
        let table = runs.checked_mul(RUN as u64).filter(|table| size.0.checked_add(*table) == Some(length));
        let Some(table) = table.filter(|_| runs <= size.0 / PAGE) else {
            return Err(MemoryError::Passed("its length is another"));
        };
        let mut bytes = vec![0; table as usize];
        file.read_exact_at(&mut bytes, size.0).map_err(MemoryError::io("read a memory file"))?;
        let runs = Runs::from_bytes(&bytes, size)?;
        Ok(Self { file: Arc::new(file), base, runs })
    }

    /// `above` over `below`, which must be the delta of snapshot `between` that `above` is against: what the two change
    /// together, against what `below` is against. Blocks for as long as copying both takes.
    pub fn merge(below: &Self, between: SnapshotId, above: &Self) -> Result<Self, MemoryError> {
        above.check(Some(between), below.size())?;
        let mut writer = DeltaWriter::new(below.base, below.size())?;
        let mut buffer = Vec::new();
        let mut lower = below.runs().iter().copied();
        let mut next = lower.next();
        for upper in above.runs() {
            while let Some(run) = next.filter(|run| run.first < upper.first) {
                let end = run.end().min(upper.first);
                below.copy_pages(
                    Run { first: run.first, pages: end - run.first },
                    &mut writer,
                    &mut buffer,
                )?;
                next = rest(run, end).or_else(|| lower.next());
            }
            above.copy_pages(*upper, &mut writer, &mut buffer)?;
            while let Some(run) = next.filter(|run| run.first < upper.end()) {
                next = rest(run, upper.end()).or_else(|| lower.next());
            }
        }
        while let Some(run) = next {
            below.copy_pages(run, &mut writer, &mut buffer)?;
            next = lower.next();
        }
        writer.finish()
    }

    fn copy_pages(&self, run: Run, to: &mut DeltaWriter, buffer: &mut Vec<u8>) -> Result<(), MemoryError> {
        let mut first = run.first;
        while first < run.end() {
            let pages = (run.end() - first).min(COPIED);
            buffer.resize((pages * PAGE) as usize, 0);
            self.file.read_exact_at(buffer, first * PAGE).map_err(MemoryError::io("read a memory file"))?;
            to.append(first, buffer)?;
            first += pages;
        }
        Ok(())
    }

    /// Which only a reader opens anew.
    pub(crate) fn shared_file(&self) -> Arc<File> {
        self.file.clone()
    }

    /// The snapshot whose complete memory this is against; `None`: zeros.
    pub fn base(&self) -> Option<SnapshotId> {
        self.base
    }

    /// Of the whole memory.
    pub fn size(&self) -> Bytes {
        self.runs.size()
    }

    pub fn runs(&self) -> &[Run] {
        self.runs.as_slice()
    }

    pub fn pages(&self) -> u64 {
        self.runs.pages()
    }

    /// Of its pages together.
    pub fn bytes(&self) -> Bytes {
        Bytes(self.runs.pages() * PAGE)
    }

    /// That it is against `base` and of a memory of `size`.
    pub fn check(&self, base: Option<SnapshotId>, size: Bytes) -> Result<(), MemoryError> {
        if self.base != base {
            return Err(MemoryError::WrongBase { expected: base, found: self.base });
        }
        if self.size() != size {
            return Err(MemoryError::Size { expected: size, found: self.size() });
        }
        Ok(())
    }

    /// Puts those of its pages that fall into `offset..` over `buffer`.
    pub fn overlay(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = offset.saturating_add(buffer.len() as u64);
        for run in self.runs.within(offset / PAGE, end.div_ceil(PAGE)) {
            let (from, to) = (run.offset().max(offset), (run.offset() + run.length()).min(end));
            if from < to {
                self.file
                    .read_exact_at(&mut buffer[(from - offset) as usize..(to - offset) as usize], from)?;
            }
        }
        Ok(())
    }

    pub(super) fn table(&self) -> &Runs {
        &self.runs
    }

    /// For another process.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::memory::Memory;

    pub const SIZE: Bytes = Bytes(64 * PAGE);

    pub fn page(fill: u8) -> Vec<u8> {
        vec![fill; PAGE as usize]
    }

    pub fn delta(base: Option<SnapshotId>, pages: &[(u64, u8)]) -> Delta {
        let mut writer = DeltaWriter::new(base, SIZE).unwrap();
        for (number, fill) in pages {
            writer.append(*number, &page(*fill)).unwrap();
        }
        writer.finish().unwrap()
    }

    #[test]
    fn against_zeros_pages_of_zeros_are_left_out_and_against_a_snapshot_they_count() {
        let data = [page(1), page(0), page(2), page(3)].concat();
        let mut writer = DeltaWriter::new(None, SIZE).unwrap();
        writer.append(4, &data).unwrap();
        let delta = writer.finish().unwrap();
        assert_eq!(delta.runs(), [Run { first: 4, pages: 1 }, Run { first: 6, pages: 2 }]);

        let mut writer = DeltaWriter::new(Some(SnapshotId::new()), SIZE).unwrap();
        writer.append(4, &data).unwrap();
        assert_eq!(writer.finish().unwrap().runs(), [Run { first: 4, pages: 4 }]);
    }

    #[test]
    fn what_is_read_is_the_delta_over_zeros() {
        let delta = delta(None, &[(1, 7), (2, 8), (5, 9)]);
        assert_eq!((delta.pages(), delta.bytes()), (3, Bytes(3 * PAGE)));
        let memory = Memory { base: None, delta: Some(Arc::new(delta)) };
        let mut read = vec![0xff; 6 * PAGE as usize];
        memory.read_at(PAGE - 2, &mut read[..2 + 2 * PAGE as usize + 1]).unwrap();
        assert_eq!(read[..3], [0, 0, 7]);
        assert_eq!(read[PAGE as usize + 1..][..2], [7, 8]);
        assert_eq!(read[2 + 2 * PAGE as usize], 0, "page 3 is none of its pages");
    }

    #[test]
    fn merging_is_as_good_as_applying_one_after_the_other() {
        let between = SnapshotId::new();
        let read = |base: Option<std::sync::Arc<crate::memory::Base>>, delta: Delta| {
            let mut whole = vec![0; SIZE.0 as usize];
            Memory { base, delta: Some(Arc::new(delta)) }.read_at(0, &mut whole).unwrap();
            whole
        };
        // Apart, touching, within each other, a page that became zero, and one only above.
        let below = delta(None, &[(0, 1), (1, 1), (2, 1), (5, 2), (6, 2), (9, 3), (20, 4), (21, 4), (63, 5)]);
        let above = delta(Some(between), &[(1, 7), (6, 0), (7, 8), (8, 8), (9, 8), (10, 8), (22, 9)]);
        let merged = Delta::merge(&below, between, &above).unwrap();
        assert_eq!(merged.base(), None);
        let base = crate::memory::Base::build(between, None, &below).unwrap();
        assert_eq!(read(None, merged), read(Some(Arc::new(base)), above.clone()));
        let refused = Delta::merge(&below, SnapshotId::new(), &above).unwrap_err();
        assert!(matches!(refused, MemoryError::WrongBase { .. }), "{refused}");

        // Against a snapshot, pages of zeros stay: below them there may be others.
        let root = SnapshotId::new();
        let below = delta(Some(root), &[(0, 0), (3, 1)]);
        let merged = Delta::merge(&below, between, &delta(Some(between), &[(3, 0)])).unwrap();
        assert_eq!((merged.base(), merged.pages()), (Some(root), 2));
    }

    #[test]
    fn a_passed_file_is_judged_before_it_is_believed() {
        let made = delta(None, &[(1, 7), (5, 9)]);
        let pass = || OwnedFd::from(made.file.try_clone().unwrap());
        let received = Delta::received(pass(), None, SIZE, 2).unwrap();
        assert_eq!(received.runs(), made.runs());
        for (size, runs) in [(SIZE, 1), (SIZE, 3), (Bytes(PAGE), 2), (SIZE, u64::MAX), (Bytes(u64::MAX), 2)] {
            assert!(Delta::received(pass(), None, size, runs).is_err(), "{size} {runs}");
        }
        let open = sealed::create("open").unwrap();
        open.set_len(SIZE.0).unwrap();
        let refused = Delta::received(open.into(), None, SIZE, 0).unwrap_err();
        assert!(matches!(refused, MemoryError::Passed("it is not sealed")), "{refused}");
    }
}
