//! Which pages: runs in ascending order, as they are kept beside the pages and in files.

use super::MemoryError;
use offshoot_types::Bytes;

/// Size of a page in bytes.
pub const PAGE: u64 = 4096;
/// Length of one run in its stored form.
pub(super) const RUN: usize = 8;
/// Page numbers are stored in 32 bits.
const MAX_PAGES: u64 = 1 << 32;

/// Neighbouring pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    pub first: u64,
    /// At least one.
    pub pages: u64,
}

impl Run {
    pub const fn end(&self) -> u64 {
        self.first + self.pages
    }
    /// Of its first byte.
    pub const fn offset(&self) -> u64 {
        self.first * PAGE
    }
    /// In bytes.
    pub const fn length(&self) -> u64 {
        self.pages * PAGE
    }
}

/// The number of pages of a memory of `size` bytes, if it can be one.
pub(super) fn pages_of(size: Bytes) -> Result<u64, MemoryError> {
    let pages = size.0 / PAGE;
    if size.0 == 0 || !size.0.is_multiple_of(PAGE) || pages > MAX_PAGES {
        return Err(MemoryError::NoMemory(size.0));
    }
    Ok(pages)
}

/// Runs of one memory: ascending, apart from each other, none beyond its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Runs {
    runs: Vec<Run>,
    size: Bytes,
}

impl Runs {
    pub fn new(size: Bytes) -> Result<Self, MemoryError> {
        pages_of(size)?;
        Ok(Self { runs: Vec::new(), size })
    }

    /// Adds pages behind the last one.
    pub fn push(&mut self, run: Run) -> Result<(), MemoryError> {
        let end = run.first.checked_add(run.pages).filter(|end| *end <= self.size.0 / PAGE);
        let behind = self.runs.last().is_none_or(|last| last.end() <= run.first);
        if run.pages == 0 || end.is_none() || !behind {
            return Err(MemoryError::Page { page: run.first, size: self.size });
        }
        match self.runs.last_mut() {
            // A run is stored with 32 bits of length.
            Some(last) if last.end() == run.first && last.pages + run.pages < MAX_PAGES => {
                last.pages += run.pages;
            }
            _ if run.pages < MAX_PAGES => self.runs.push(run),
            _ => {
                self.runs.push(Run { first: run.first, pages: MAX_PAGES - 1 });
                self.runs.push(Run { first: run.first + MAX_PAGES - 1, pages: run.pages - (MAX_PAGES - 1) });
            }
        }
        Ok(())
    }

    pub fn as_slice(&self) -> &[Run] {
        &self.runs
    }

    pub fn size(&self) -> Bytes {
        self.size
    }

    pub fn pages(&self) -> u64 {
        self.runs.iter().map(|run| run.pages).sum()
    }

    /// The runs that have pages in `first..end`.
    pub fn within(&self, first: u64, end: u64) -> impl Iterator<Item = Run> + '_ {
        let begin = self.runs.partition_point(|run| run.end() <= first);
        self.runs[begin..].iter().copied().take_while(move |run| run.first < end)
    }

    /// Each run as two little-endian 32-bit numbers: its first page and how many there are.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.runs.len() * RUN);
        for run in &self.runs {
            bytes.extend((run.first as u32).to_le_bytes());
            bytes.extend((run.pages as u32).to_le_bytes());
        }
        bytes
    }

    /// From whomever: what is no set of runs of a memory of `size` is refused.
    pub fn from_bytes(bytes: &[u8], size: Bytes) -> Result<Self, MemoryError> {
        let mut runs = Self::new(size)?;
        for run in bytes.as_chunks::<RUN>().0 {
            let number =
                |at: usize| u64::from(u32::from_le_bytes([run[at], run[at + 1], run[at + 2], run[at + 3]]));
            runs.push(Run { first: number(0), pages: number(4) })?;
        }
        Ok(runs)
    }
}

/// Whether a page, or several, hold nothing.
pub(super) fn is_zero(page: &[u8]) -> bool {
    let (words, rest) = page.as_chunks::<32>();
    words.iter().all(|word| *word == [0; 32]) && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZE: Bytes = Bytes(64 * PAGE);

    #[test]
    fn neighbours_are_one_run_and_the_rest_stays_apart() {
        let mut runs = Runs::new(SIZE).unwrap();
        for (first, pages) in [(0, 1), (1, 2), (8, 1), (63, 1)] {
            runs.push(Run { first, pages }).unwrap();
        }
        let expected = [(0, 3), (8, 1), (63, 1)].map(|(first, pages)| Run { first, pages });
        assert_eq!(runs.as_slice(), expected);
        assert_eq!(runs.pages(), 5);
        assert_eq!(runs.within(1, 8).collect::<Vec<_>>(), [Run { first: 0, pages: 3 }]);
        assert_eq!(runs.within(3, 64).count(), 2);
        assert_eq!(Runs::from_bytes(&runs.to_bytes(), SIZE).unwrap(), runs);
    }

    #[test]
    fn page_index_beyond_end_no_panic() {
        for (first, pages) in [(64, 1), (63, 2), (0, 65), (u64::MAX, 1), (1, u64::MAX), (3, 0)] {
            let refused = Runs::new(SIZE).unwrap().push(Run { first, pages });
            assert!(matches!(refused, Err(MemoryError::Page { .. })), "{first}+{pages}");
        }
        let stored = [u32::MAX.to_le_bytes(), u32::MAX.to_le_bytes()].concat();
        assert!(Runs::from_bytes(&stored, SIZE).is_err());
        assert!(Runs::new(Bytes(PAGE + 1)).is_err() && Runs::new(Bytes(0)).is_err());
        assert!(Runs::new(Bytes(u64::MAX / PAGE * PAGE)).is_err());
    }

    #[test]
    fn a_page_before_the_last_one_is_refused() {
        let mut runs = Runs::new(SIZE).unwrap();
        runs.push(Run { first: 5, pages: 2 }).unwrap();
        for first in [0, 5, 6] {
            assert!(runs.push(Run { first, pages: 1 }).is_err(), "{first}");
        }
    }

    #[test]
    fn the_largest_memory_is_stored_and_read_back() {
        let size = Bytes(MAX_PAGES * PAGE);
        let mut runs = Runs::new(size).unwrap();
        runs.push(Run { first: 0, pages: MAX_PAGES }).unwrap();
        assert_eq!(runs.pages(), MAX_PAGES);
        assert_eq!(Runs::from_bytes(&runs.to_bytes(), size).unwrap(), runs);
    }

    proptest! {
        #[test]
        fn stored_runs_of_any_bytes_are_valid_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(runs) = Runs::from_bytes(&bytes, SIZE) {
                prop_assert!(runs.pages() <= 64);
                prop_assert_eq!(Runs::from_bytes(&runs.to_bytes(), SIZE).unwrap(), runs);
            }
        }
    }
}
