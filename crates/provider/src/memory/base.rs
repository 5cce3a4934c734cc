//! Complete memories.

use super::{Delta, MemoryError, pages::PAGE, sealed};
use offshoot_types::{Bytes, SnapshotId};
use rustix::{fs::SeekFrom, io::Errno};
use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt, MetadataExt},
    sync::Arc,
};

/// Copied at once.
const BLOCK: usize = 1 << 20;

/// The complete memory of a snapshot: a sealed memory file that any number of VMs map privately. Behind its end
/// the file may hold other things.
#[derive(Debug)]
pub struct Base {
    id: SnapshotId,
    size: Bytes,
    file: Arc<File>,
}

impl Base {
    /// The complete memory of snapshot `id`: `delta` over the complete memory of the snapshot it is against. Over zeros
    /// nothing is copied: the delta's own file is the memory then. Blocks for up to seconds for large memories.
    pub fn build(id: SnapshotId, below: Option<&Self>, delta: &Delta) -> Result<Self, MemoryError> {
        let size = below.map_or(delta.size(), |below| below.size);
        delta.check(below.map(|below| below.id), size)?;
        let Some(below) = below else {
            return Ok(Self { id, size, file: delta.file.clone() });
        };
        let file = sealed::create("offshoot-base").map_err(MemoryError::io("make a memory file"))?;
        file.set_len(size.0)
            .and_then(|()| copy_held(&below.file, &file, size.0))
            .and_then(|()| {
                delta.runs().iter().try_for_each(|run| copy(&delta.file, &file, run.offset(), run.length()))
            })
            .and_then(|()| sealed::seal(&file))
            .map_err(MemoryError::io("fill a memory file"))?;
        Ok(Self { id, size, file: Arc::new(file) })
    }

    pub fn id(&self) -> SnapshotId {
        self.id
    }

    /// Of the memory.
    pub fn size(&self) -> Bytes {
        self.size
    }

    /// What of it takes up the host's memory (or swap) now.
    pub fn held(&self) -> io::Result<Bytes> {
        Ok(Bytes(self.file.metadata()?.blocks() * 512))
    }

    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    /// For another process, which can only map it.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }
}

/// Copies what is no hole.
fn copy_held(from: &File, to: &File, size: u64) -> io::Result<()> {
    let mut at = 0;
    while at < size {
        let begin = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(begin) => begin.min(size),
            Err(Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(from, SeekFrom::Hole(begin))?.min(size);
        copy(from, to, begin, end - begin)?;
        at = end;
    }
    Ok(())
}

fn copy(from: &File, to: &File, offset: u64, length: u64) -> io::Result<()> {
    let mut buffer = vec![0; BLOCK.min(length as usize)];
    let end = offset + length;
    let mut at = offset;
    while at < end {
        let block = &mut buffer[..BLOCK.min((end - at) as usize)];
        from.read_exact_at(block, at)?;
        to.write_all_at(block, at)?;
        at += block.len() as u64;
    }
    debug_assert!(length.is_multiple_of(PAGE), "whole pages");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{
        DeltaWriter, Memory,
        delta::tests::{SIZE, delta, page},
    };

    fn first_bytes(memory: &Memory) -> Vec<u8> {
        let mut whole = vec![0; SIZE.0 as usize];
        memory.read_at(0, &mut whole).unwrap();
        whole.as_chunks::<{ PAGE as usize }>().0.iter().map(|page| page[17]).collect()
    }

    #[test]
    fn a_delta_over_zeros_is_a_base_without_a_copy() {
        let delta = delta(None, &[(0, 1), (63, 2)]);
        let base = Base::build(SnapshotId::new(), None, &delta).unwrap();
        assert!(Arc::ptr_eq(&base.file, &delta.file));
        assert!(base.held().unwrap() < SIZE, "holes stay holes");
        let pages = first_bytes(&Memory { base: Some(Arc::new(base)), delta: None });
        assert_eq!((pages[0], pages[1], pages[63]), (1, 0, 2));
    }

    #[test]
    fn a_page_that_became_zero_is_zero_in_the_complete_memory() {
        let below = SnapshotId::new();
        let base = Arc::new(Base::build(below, None, &delta(None, &[(0, 1), (1, 2), (9, 3)])).unwrap());
        let change = Arc::new(delta(Some(below), &[(1, 0), (2, 7)]));
        let injected = first_bytes(&Memory { base: Some(base.clone()), delta: Some(change.clone()) });
        assert_eq!(injected[..4], [1, 0, 7, 0]);
        let built = Base::build(SnapshotId::new(), Some(&base), &change).unwrap();
        assert_eq!(first_bytes(&Memory { base: Some(Arc::new(built)), delta: None }), injected);
        assert_eq!(
            first_bytes(&Memory { base: Some(base), delta: None })[1],
            2,
            "the one below is as it was"
        );
    }

    #[test]
    fn apply_to_wrong_base_refused() {
        let (below, other) = (SnapshotId::new(), SnapshotId::new());
        let base = Arc::new(Base::build(below, None, &delta(None, &[(0, 1)])).unwrap());
        for (against, base) in [(Some(other), Some(&base)), (None, Some(&base)), (Some(below), None)] {
            let change = delta(against, &[(1, 1)]);
            let refused = Base::build(SnapshotId::new(), base.map(AsRef::as_ref), &change).unwrap_err();
            assert!(matches!(refused, MemoryError::WrongBase { found, .. } if found == against), "{refused}");
            let memory = Memory { base: base.cloned(), delta: Some(Arc::new(change)) };
            assert!(matches!(memory.check(SIZE), Err(MemoryError::WrongBase { .. })));
        }
    }

    /// A memory that grew or shrank is another machine: clearly refused, in both directions.
    #[test]
    fn growth_and_shrink_supported() {
        let below = SnapshotId::new();
        let base = Arc::new(Base::build(below, None, &delta(None, &[(0, 1)])).unwrap());
        for size in [Bytes(SIZE.0 * 2), Bytes(SIZE.0 / 2)] {
            let mut writer = DeltaWriter::new(Some(below), size).unwrap();
            writer.append(3, &page(3)).unwrap();
            let change = writer.finish().unwrap();
            let refused = Base::build(SnapshotId::new(), Some(&base), &change).unwrap_err();
            assert!(
                matches!(refused, MemoryError::Size { expected: SIZE, found } if found == size),
                "{refused}"
            );
            let memory = Memory { base: Some(base.clone()), delta: None };
            assert!(matches!(memory.check(size), Err(MemoryError::Size { .. })));
        }
    }
}
