//! A delta as a file. All numbers are little endian.
//!
//! ```text
//!     0  magic "offshoot-delta\0\0"
//!    16  u32 format version (1)
//!    20  u32 page size (4096)
//!    24  u64 size of the memory in bytes
//!    32  16 bytes: id of the snapshot this is against, zeros if none
//!    48  u64 number of runs
//!    56  u64 number of pages
//!    64  runs: u32 first page, u32 pages; ascending, apart from each other, within the memory
//!        zeros up to the next multiple of 4096
//!        the pages, in the order of the runs
//! ```
//! The length follows from the header, and a file of another length is refused, so that nothing is ever reserved for
//! more than the file holds. Nothing is compressed.

use super::{
    Delta, DeltaWriter, MemoryError,
    pages::{PAGE, RUN, Runs},
};
use crate::parts::{Identity, Part, PartError, PartFile, PartHasher, trusting};
use offshoot_types::{Bytes, SnapshotId};
use std::{
    fs::File,
    io::{self, Read, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

const MAGIC: &[u8; 16] = b"offshoot-delta\0\0";
const VERSION: u32 = 1;
const HEADER: usize = 64;
/// Written at once.
const BLOCK: u64 = 1 << 20;

impl Delta {
    /// Writes it to `path`, which must not exist, and flushes it. On failure nothing is left there.
    pub fn write(&self, path: &Path) -> Result<Part, MemoryError> {
        let mut file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(part_io("create", path))?;
        let written = self.write_to(&mut file).and_then(|part| file.sync_all().map(|()| part));
        written.map_err(|source| {
            // What cannot be removed is refused when it is read.
            let _ = std::fs::remove_file(path);
            part_io("write", path)(source)
        })
    }

    fn write_to(&self, file: &mut File) -> io::Result<Part> {
        let mut hasher = PartHasher::default();
        let (mut reader, mut block) = (self.reader(), vec![0; BLOCK as usize]);
        loop {
            match reader.read(&mut block)? {
                0 => return Ok(hasher.finish()),
                length => {
                    hasher.update(&block[..length]);
                    file.write_all(&block[..length])?;
                }
            }
        }
    }

    /// The file's bytes, for whoever does not want a file.
    pub fn reader(&self) -> impl Read + use<> {
        Bytewise { delta: self.clone(), header: self.header(), at: 0, run: 0, page: 0 }
    }

    /// Everything before the first page.
    fn header(&self) -> Vec<u8> {
        let mut header = MAGIC.to_vec();
        header.extend(VERSION.to_le_bytes());
        header.extend((PAGE as u32).to_le_bytes());
        header.extend(self.size().0.to_le_bytes());
        header.extend(self.base().map_or([0; 16], |id| *id.as_uuid().as_bytes()));
        header.extend((self.runs().len() as u64).to_le_bytes());
        header.extend(self.pages().to_le_bytes());
        header.extend(self.table().to_bytes());
        header.resize(header.len().next_multiple_of(PAGE as usize), 0);
        header
    }

    /// Reads a file written by [`write`](Self::write), each chunk verified before it is used; `known` is the file's
    /// identity when it was verified before. Returns the file's identity with it.
    pub fn read(path: &Path, part: &Part, known: Option<&Identity>) -> Result<(Self, Identity), MemoryError> {
        trusting(known, |known| {
            let mut source = Source { file: PartFile::open(path, part, known)?, chunk: Vec::new(), at: 0 };
            let delta = parse(&mut source, part.length, path)?;
            Ok((delta, source.file.finish()?))
        })
    }
}

/// A delta as its file: the header, then the pages of run after run.
struct Bytewise {
    delta: Delta,
    header: Vec<u8>,
    /// In the header.
    at: usize,
    run: usize,
    /// In the run, in bytes.
    page: u64,
}

impl Read for Bytewise {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at < self.header.len() {
            let length = (&self.header[self.at..]).read(buffer)?;
            self.at += length;
            return Ok(length);
        }
        let Some(run) = self.delta.runs().get(self.run) else { return Ok(0) };
        let length = (run.length() - self.page).min(buffer.len() as u64);
        self.delta.file().read_exact_at(&mut buffer[..length as usize], run.offset() + self.page)?;
        self.page += length;
        if self.page == run.length() {
            (self.run, self.page) = (self.run + 1, 0);
        }
        Ok(length as usize)
    }
}

fn part_io(operation: &'static str, path: &Path) -> impl Fn(io::Error) -> MemoryError {
    move |source| PartError::Io { operation, path: path.to_owned(), source }.into()
}

/// Verified bytes in order.
struct Source<'a> {
    file: PartFile<'a>,
    chunk: Vec<u8>,
    at: usize,
}

impl Source<'_> {
    /// What is left of the present chunk, at most `limit` bytes; empty at the end.
    fn some(&mut self, limit: u64) -> Result<&[u8], PartError> {
        if self.at == self.chunk.len() {
            self.file.next_chunk(&mut self.chunk)?;
            self.at = 0;
        }
        let begin = self.at;
        self.at += usize::try_from(limit).unwrap_or(usize::MAX).min(self.chunk.len() - begin);
        Ok(&self.chunk[begin..self.at])
    }

    /// Exactly `length` bytes, for what is kept whole; `false` if there are fewer.
    fn fill(&mut self, into: &mut Vec<u8>, length: u64) -> Result<bool, PartError> {
        let end = into.len() as u64 + length;
        while (into.len() as u64) < end {
            let missing = end - into.len() as u64;
            let some = self.some(missing)?;
            if some.is_empty() {
                return Ok(false);
            }
            into.extend_from_slice(some);
        }
        Ok(true)
    }
}

fn parse(source: &mut Source<'_>, length: u64, path: &Path) -> Result<Delta, MemoryError> {
    let invalid = |reason| MemoryError::Invalid { path: path.to_owned(), reason };
    let mut header = Vec::with_capacity(HEADER);
    if !source.fill(&mut header, HEADER as u64)? || &header[..16] != MAGIC {
        return Err(invalid("it does not begin as one"));
    }
    let number = |at: usize, width: usize| {
        header[at..at + width].iter().rev().fold(0_u64, |value, byte| value << 8 | u64::from(*byte))
    };
    if number(16, 4) != u64::from(VERSION) {
        return Err(invalid("its format is newer than this program"));
    }
    if number(20, 4) != PAGE {
        return Err(invalid("its pages are of another size"));
    }
    let (size, count, pages) = (Bytes(number(24, 8)), number(48, 8), number(56, 8));
    let base = uuid::Uuid::from_slice(&header[32..48]).ok().filter(|id| !id.is_nil());
    let head = count
        .checked_mul(RUN as u64)
        .and_then(|table| table.checked_add(HEADER as u64)?.checked_next_multiple_of(PAGE));
    let expected = head.zip(pages.checked_mul(PAGE)).and_then(|(head, data)| head.checked_add(data));
    if expected != Some(length) {
        return Err(invalid("its length is not what its header says"));
    }
    let head = head.unwrap_or_default();

    // Not reserved in advance: it is as large as the file says, which is as large as the file.
    let mut table = Vec::new();
    if !source.fill(&mut table, head - HEADER as u64)? {
        return Err(invalid("it is cut off"));
    }
    let (table, padding) = table.split_at((count as usize) * RUN);
    let runs = Runs::from_bytes(table, size)?;
    if runs.pages() != pages || padding.iter().any(|byte| *byte != 0) {
        return Err(invalid("its list of pages contradicts its header"));
    }
    let mut writer = DeltaWriter::new(base.map(SnapshotId::from_uuid), size)?;
    for run in runs.as_slice() {
        let mut first = run.first;
        while first < run.end() {
            // Whole pages: the first one begins at a multiple of their size, and a chunk is a multiple of it.
            let some = source.some((run.end() - first) * PAGE)?;
            if some.is_empty() {
                return Err(invalid("it is cut off"));
            }
            writer.append(first, some)?;
            first += some.len() as u64 / PAGE;
        }
    }
    writer.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        memory::{
            Memory,
            delta::tests::{SIZE, delta},
        },
        parts::{CHUNK, hash_file},
    };
    use proptest::prelude::*;
    use std::{path::PathBuf, sync::Arc};

    fn directory() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ram.delta");
        (directory, path)
    }

    fn content(delta: Delta) -> Vec<u8> {
        let mut whole = vec![0; delta.size().0 as usize];
        Memory { base: None, delta: Some(Arc::new(delta)) }.read_at(0, &mut whole).unwrap();
        whole
    }

    /// As an attacker would who can forge the hashes too.
    fn read(bytes: &[u8]) -> Result<Delta, MemoryError> {
        let (_directory, path) = directory();
        std::fs::write(&path, bytes).unwrap();
        Delta::read(&path, &hash_file(&path).unwrap(), None).map(|(delta, _)| delta)
    }

    fn stored() -> Vec<u8> {
        let (_directory, path) = directory();
        delta(None, &[(0, 1), (2, 2), (63, 3)]).write(&path).unwrap();
        std::fs::read(path).unwrap()
    }

    #[test]
    fn a_delta_is_read_as_it_was_written_and_its_part_is_that_of_the_file() {
        for base in [None, Some(SnapshotId::new())] {
            let (_directory, path) = directory();
            let written = delta(base, &[(0, 1), (2, 2), (3, 0), (63, 3)]);
            let part = written.write(&path).unwrap();
            assert_eq!(part, hash_file(&path).unwrap());
            assert!(written.write(&path).is_err(), "it replaces nothing");
            let (read, identity) = Delta::read(&path, &part, None).unwrap();
            assert_eq!((read.base(), read.runs()), (base, written.runs()));
            assert_eq!(content(read), content(written));
            let (trusted, _) = Delta::read(&path, &part, Some(&identity)).unwrap();
            assert_eq!(trusted.base(), base);
        }
    }

    #[test]
    fn a_delta_of_several_chunks_is_read_whole() {
        let size = Bytes(8 << 20);
        let mut writer = DeltaWriter::new(None, size).unwrap();
        let data: Vec<u8> = (0..5 * CHUNK / 2).map(|n| (n % 249) as u8 + 1).collect();
        writer.append(3, &data).unwrap();
        let written = writer.finish().unwrap();
        let (_directory, path) = directory();
        let part = written.write(&path).unwrap();
        assert_eq!(part.chunks.len(), 3);
        let (read, _) = Delta::read(&path, &part, None).unwrap();
        assert!(content(read) == content(written));
    }

    #[test]
    fn corrupted_memory_page_refused() {
        let (_directory, path) = directory();
        let part = delta(None, &[(0, 1), (2, 2)]).write(&path).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(&[0x55], PAGE * 2 + 100).unwrap();
        let refused = Delta::read(&path, &part, None).unwrap_err();
        assert!(matches!(refused, MemoryError::Part(PartError::Damaged { offset: 0, .. })), "{refused}");
        assert!(refused.to_string().contains("ram.delta"), "{refused}");
    }

    #[test]
    fn checksum_collision_1_2_3_1_detected() {
        let (_directory, path) = directory();
        let part = delta(None, &[(0, 1), (1, 2)]).write(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        delta(None, &[(0, 3), (1, 1)]).write(&path).unwrap();
        assert!(matches!(Delta::read(&path, &part, None), Err(MemoryError::Part(PartError::Damaged { .. }))));
    }

    #[test]
    fn page_index_beyond_end_no_panic() {
        for (at, value) in [(64, 64_u32), (64, u32::MAX), (68, 65), (68, u32::MAX), (72, 0)] {
            let mut bytes = stored();
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            assert!(read(&bytes).is_err(), "{at} {value}");
        }
    }

    /// A header that promises more than the file holds is refused before anything is reserved for it.
    #[test]
    fn decompression_bomb_bounded() {
        for (at, value) in
            [(24, u64::MAX), (24, 1 << 60), (48, 1 << 61), (48, 1 << 40), (56, 1 << 51), (56, 4)]
        {
            let mut bytes = stored();
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
            assert!(read(&bytes).is_err(), "{at} {value}");
        }
        // The largest memory there can be, with three pages in it: as small as its file.
        let mut bytes = stored();
        bytes[24..32].copy_from_slice(&(1_u64 << 44).to_le_bytes());
        let large = read(&bytes).unwrap();
        assert_eq!((large.size(), large.pages()), (Bytes(1 << 44), 3));
        use std::os::unix::fs::MetadataExt;
        assert!(large.file().metadata().unwrap().blocks() * 512 < 1 << 20, "the rest is a hole");
    }

    #[test]
    fn a_file_of_another_version_or_kind_or_length_is_refused_in_words() {
        type Damage = fn(&mut Vec<u8>);
        let cases: [(&str, Damage); 6] = [
            ("does not begin", |bytes| bytes[0] = b'x'),
            ("newer", |bytes| bytes[16] = 2),
            ("another size", |bytes| bytes[20] = 1),
            ("its length", |bytes| bytes.truncate(PAGE as usize)),
            ("its length", |bytes| bytes.push(0)),
            ("contradicts", |bytes| bytes[PAGE as usize - 1] = 1),
        ];
        for (said, damage) in cases {
            let mut bytes = stored();
            damage(&mut bytes);
            let refused = read(&bytes).unwrap_err().to_string();
            assert!(refused.contains(said), "{refused}");
        }
        assert!(read(&[]).is_err());
        assert_eq!(read(&stored()).unwrap().size(), SIZE);
    }

    #[test]
    fn a_full_disk_leaves_nothing() {
        let delta = delta(None, &[(0, 1)]);
        assert!(delta.write(Path::new("/dev/full")).is_err(), "it exists");
        let (directory, _) = directory();
        assert!(delta.write(&directory.path().join("none/ram.delta")).is_err());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn a_hostile_file_is_refused_or_harmless(changes in prop::collection::vec((0_usize..128, any::<u8>()), 1..6), cut in 0_usize..20_000) {
            let mut bytes = stored();
            for (at, value) in changes {
                bytes[at] = value;
            }
            bytes.truncate(cut.max(1));
            if let Ok(delta) = read(&bytes) {
                prop_assert!(delta.bytes().0 <= bytes.len() as u64);
            }
        }
    }
}
