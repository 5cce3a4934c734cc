//! What a process has changed since a snapshot of it was taken.

use super::{Base, Delta, DeltaWriter, MemoryError, pages::PAGE};

/// Pages compared at once.
const WINDOW: u64 = 256;

impl Delta {
    /// The pages in which this memory differs from `whole`, the complete memory of a snapshot whose own pages are
    /// `before`. Both deltas are of one process, `before` the older one: what is a process's own once stays so. Blocks for
    /// as long as reading both takes.
    pub fn since(&self, before: &Self, whole: &Base) -> Result<Self, MemoryError> {
        self.check(before.base(), before.size())?;
        if whole.size() != self.size() {
            return Err(MemoryError::Size { expected: self.size(), found: whole.size() });
        }
        let mut writer = DeltaWriter::new(Some(whole.id()), self.size())?;
        let (mut now, mut then) = (Vec::new(), Vec::new());
        let pages = self.size().0 / PAGE;
        for first in (0..pages).step_by(WINDOW as usize) {
            let end = (first + WINDOW).min(pages);
            let (own, earlier) = (self.own(first, end), before.own(first, end));
            if !own.contains(&true) && !earlier.contains(&true) {
                continue;
            }
            // Against zeros a page of zeros is left out, so one that was not and is now is in neither.
            if self.base().is_some() && own.iter().zip(&earlier).any(|(own, earlier)| *earlier && !*own) {
                return Err(MemoryError::Passed("a page that was the process's own is so no more"));
            }
            let length = ((end - first) * PAGE) as usize;
            now.clear();
            now.resize(length, 0);
            then.resize(length, 0);
            let read =
                self.overlay(first * PAGE, &mut now).and_then(|()| whole.read_at(first * PAGE, &mut then));
            read.map_err(MemoryError::io("read a memory file"))?;
            let changed = |page: usize| {
                let at = page * PAGE as usize..(page + 1) * PAGE as usize;
                (self.base().is_none() || own[page]) && now[at.clone()] != then[at]
            };
            let mut begin = 0;
            for page in 0..=own.len() {
                if page == own.len() || !changed(page) {
                    if begin < page {
                        let held = &now[begin * PAGE as usize..page * PAGE as usize];
                        writer.append(first + begin as u64, held)?;
                    }
                    begin = page + 1;
                }
            }
        }
        writer.finish()
    }

    /// Which pages of `first..end` are among its own.
    fn own(&self, first: u64, end: u64) -> Vec<bool> {
        let mut own = vec![false; (end - first) as usize];
        for run in self.table().within(first, end) {
            let (from, to) = (run.first.max(first), run.end().min(end));
            if from < to {
                own[(from - first) as usize..(to - first) as usize].fill(true);
            }
        }
        own
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{
        Memory,
        delta::tests::{SIZE, delta},
    };
    use offshoot_types::SnapshotId;
    use proptest::prelude::*;
    use std::{collections::BTreeMap, sync::Arc};

    fn read(memory: &Memory) -> Vec<u8> {
        let mut whole = vec![0; SIZE.0 as usize];
        memory.read_at(0, &mut whole).unwrap();
        whole
    }

    fn pages(of: &BTreeMap<u64, u8>) -> Vec<(u64, u8)> {
        of.iter().map(|(page, fill)| (*page, *fill)).collect()
    }

    /// The later one of the same process, which has all its own pages and more.
    fn check(below: Option<&Arc<Base>>, before: &BTreeMap<u64, u8>, wrote: &BTreeMap<u64, u8>) -> u64 {
        let mut after = before.clone();
        after.extend(wrote);
        let base = below.map(|below| below.id());
        let (before, after) = (delta(base, &pages(before)), delta(base, &pages(&after)));
        let between = SnapshotId::new();
        let whole = Arc::new(Base::build(between, below.map(AsRef::as_ref), &before).unwrap());
        let since = after.since(&before, &whole).unwrap();
        assert_eq!(since.base(), Some(between));
        let moved = Memory { base: Some(whole), delta: Some(Arc::new(since.clone())) };
        moved.check(SIZE).unwrap();
        let stayed = Memory { base: below.cloned(), delta: Some(Arc::new(after)) };
        assert_eq!(read(&moved), read(&stayed), "the guest cannot tell");
        since.pages()
    }

    #[test]
    fn only_what_changed_is_left_and_a_page_that_became_zero_is_among_it() {
        let before = BTreeMap::from([(0, 1), (1, 1), (5, 2), (63, 9)]);
        let wrote = BTreeMap::from([(1, 1), (5, 0), (6, 7)]);
        assert_eq!(check(None, &before, &wrote), 2, "page 1 was written and is what it was");
        let below = Arc::new(Base::build(SnapshotId::new(), None, &delta(None, &[(5, 4), (7, 4)])).unwrap());
        assert_eq!(check(Some(&below), &before, &wrote), 2);
        assert_eq!(check(Some(&below), &before, &BTreeMap::new()), 0);
    }

    #[test]
    fn what_is_not_of_one_process_is_refused() {
        let root = SnapshotId::new();
        let below = Base::build(root, None, &delta(None, &[(7, 4)])).unwrap();
        let before = delta(Some(root), &[(1, 1)]);
        let whole = Base::build(SnapshotId::new(), Some(&below), &before).unwrap();
        let other = delta(None, &[(1, 2)]).since(&before, &whole).unwrap_err();
        assert!(matches!(other, MemoryError::WrongBase { .. }), "{other}");
        let fewer = delta(Some(root), &[(2, 2)]).since(&before, &whole).unwrap_err();
        assert!(matches!(fewer, MemoryError::Passed(_)), "{fewer}");
    }

    proptest! {
        #[test]
        fn whatever_was_written_the_moved_memory_is_that_of_the_process(
            below in proptest::option::of(proptest::collection::btree_map(0_u64..64, 0_u8..4, 0..20)),
            before in proptest::collection::btree_map(0_u64..64, 0_u8..4, 0..40),
            wrote in proptest::collection::btree_map(0_u64..64, 0_u8..4, 0..40),
        ) {
            let below = below.map(|below| {
                Arc::new(Base::build(SnapshotId::new(), None, &delta(None, &pages(&below))).unwrap())
            });
            check(below.as_ref(), &before, &wrote);
        }
    }
}
