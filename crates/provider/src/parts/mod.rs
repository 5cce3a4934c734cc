//! The files a snapshot consists of, as hashes: one per 2 MiB, and one over those.
//!
//! ```text
//! file:    | 2 MiB | 2 MiB | ... | rest |
//! chunks:    BLAKE3  BLAKE3        BLAKE3        a damaged place is found to 2 MiB, and checked alone
//! root:      BLAKE3 over length and chunks       the whole file in 32 bytes
//! ```
//! A file once verified is trusted for as long as its [`Identity`] is the same, so nothing is hashed twice.

mod identity;

pub use identity::{Identity, Trusted};

use serde::{Deserialize, Serialize};
use std::{
    fmt,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    str::FromStr,
};

/// What one hash covers, in bytes.
pub const CHUNK: u64 = 2 << 20;
/// So that a root is never the hash of something else.
const CONTEXT: &str = "offshoot 2026 part of a snapshot: root over 2 MiB chunks";

/// A BLAKE3 hash, written as 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Hash([u8; 32]);

impl Hash {
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}
impl From<blake3::Hash> for Hash {
    fn from(hash: blake3::Hash) -> Self {
        Self(hash.into())
    }
}
impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        blake3::Hash::from(self.0).fmt(f)
    }
}
impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
impl FromStr for Hash {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let lower = !text.bytes().any(|byte| byte.is_ascii_uppercase());
        let hash = blake3::Hash::from_hex(text).ok().filter(|_| lower);
        hash.map(Self::from).ok_or_else(|| format!("`{text}` is no BLAKE3 hash in lower-case hex digits"))
    }
}
impl From<Hash> for String {
    fn from(hash: Hash) -> Self {
        hash.to_string()
    }
}
impl TryFrom<String> for Hash {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// The bytes of a file, in hashes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// In bytes.
    pub length: u64,
    pub root: Hash,
    /// Of each 2 MiB; the last may be shorter.
    pub chunks: Vec<Hash>,
}

#[derive(Debug, thiserror::Error)]
pub enum PartError {
    #[error("cannot {operation} `{}`", path.display())]
    Io {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{}` is {found} bytes long, {expected} were written", path.display())]
    Length { path: PathBuf, expected: u64, found: u64 },
    #[error("`{}` is damaged: the {length} bytes from {offset} on are not what was written", path.display())]
    Damaged { path: PathBuf, offset: u64, length: u64 },
    #[error("the hashes of `{}` contradict each other", path.display())]
    Contradiction { path: PathBuf },
    #[error("`{}` was changed while it was read", path.display())]
    Changed { path: PathBuf },
}

impl PartError {
    fn io(operation: &'static str, path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { operation, path: path.to_owned(), source }
    }
}

impl Part {
    fn new(length: u64, chunks: Vec<Hash>) -> Self {
        Self { length, root: root(length, &chunks), chunks }
    }

    /// Of bytes in memory.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = PartHasher::default();
        hasher.update(bytes);
        hasher.finish()
    }

    /// That the root is the one of these chunks, and that they are as many as the length asks for.
    pub fn is_consistent(&self) -> bool {
        self.chunks.len() as u64 == self.length.div_ceil(CHUNK)
            && self.root == root(self.length, &self.chunks)
    }
}

fn root(length: u64, chunks: &[Hash]) -> Hash {
    let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
    hasher.update(&length.to_le_bytes());
    for chunk in chunks {
        hasher.update(chunk.as_bytes());
    }
    hasher.finalize().into()
}

/// Hashes bytes on their way to a file.
#[derive(Debug, Default)]
pub struct PartHasher {
    length: u64,
    chunks: Vec<Hash>,
    current: blake3::Hasher,
}

impl PartHasher {
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = CHUNK - self.length % CHUNK;
            let (now, later) = bytes.split_at(bytes.len().min(room as usize));
            self.current.update(now);
            self.length += now.len() as u64;
            bytes = later;
            if self.length.is_multiple_of(CHUNK) {
                self.end_chunk();
            }
        }
    }

    fn end_chunk(&mut self) {
        self.chunks.push(self.current.finalize().into());
        self.current.reset();
    }

    pub fn finish(mut self) -> Part {
        if !self.length.is_multiple_of(CHUNK) {
            self.end_chunk();
        }
        Part::new(self.length, self.chunks)
    }
}

/// Hashes a file as it is. Reads all of it: for large files not on a thread that others wait for.
pub fn hash_file(path: &Path) -> Result<Part, PartError> {
    let io = PartError::io;
    let mut file = File::open(path).map_err(io("open", path))?;
    let mut hasher = PartHasher::default();
    let mut buffer = vec![0; CHUNK as usize];
    loop {
        match file.read(&mut buffer).map_err(io("read", path))? {
            0 => return Ok(hasher.finish()),
            length => hasher.update(&buffer[..length]),
        }
    }
}

/// Compares a file with what was written; names the first place that differs. Reads all of it, unless it is the very
/// file that was verified before: then `known` is that file's identity. Returns its identity now.
pub fn verify_file(path: &Path, part: &Part, known: Option<&Identity>) -> Result<Identity, PartError> {
    trusting(known, |known| {
        let mut file = PartFile::open(path, part, known)?;
        let mut buffer = Vec::new();
        if !file.is_trusted() {
            while file.next_chunk(&mut buffer)? {}
        }
        file.finish()
    })
}

/// Reads a file with the identity it is known by. If that changes meanwhile, once more with every byte verified.
pub(crate) fn trusting<T, E: HasChanged>(
    known: Option<&Identity>,
    read: impl Fn(Option<&Identity>) -> Result<T, E>,
) -> Result<T, E> {
    match read(known) {
        Err(error) if known.is_some() && error.has_changed() => read(None),
        read => read,
    }
}

/// Whether a file was not the same one all along.
pub(crate) trait HasChanged {
    fn has_changed(&self) -> bool;
}

impl HasChanged for PartError {
    fn has_changed(&self) -> bool {
        matches!(self, Self::Changed { .. })
    }
}

/// A file read in order, each chunk verified before it is given out.
#[derive(Debug)]
pub(crate) struct PartFile<'a> {
    file: File,
    path: &'a Path,
    part: &'a Part,
    identity: Identity,
    trusted: bool,
    next: usize,
}

impl<'a> PartFile<'a> {
    pub fn open(path: &'a Path, part: &'a Part, known: Option<&Identity>) -> Result<Self, PartError> {
        if !part.is_consistent() {
            return Err(PartError::Contradiction { path: path.to_owned() });
        }
        let file = File::open(path).map_err(PartError::io("open", path))?;
        let identity = Identity::of(&file).map_err(PartError::io("look at", path))?;
        if identity.size() != part.length {
            let (expected, found) = (part.length, identity.size());
            return Err(PartError::Length { path: path.to_owned(), expected, found });
        }
        let trusted = known == Some(&identity);
        Ok(Self { file, path, part, identity, trusted, next: 0 })
    }

    /// Whether it was verified before and has not changed since.
    pub fn is_trusted(&self) -> bool {
        self.trusted
    }

    /// The next chunk; `false` at the end.
    pub fn next_chunk(&mut self, buffer: &mut Vec<u8>) -> Result<bool, PartError> {
        let Some(expected) = self.part.chunks.get(self.next) else {
            buffer.clear();
            return Ok(false);
        };
        let offset = self.next as u64 * CHUNK;
        let length = CHUNK.min(self.part.length - offset);
        buffer.resize(length as usize, 0);
        self.file.read_exact(buffer).map_err(PartError::io("read", self.path))?;
        if !self.trusted && Hash::from(blake3::hash(buffer)) != *expected {
            return Err(PartError::Damaged { path: self.path.to_owned(), offset, length });
        }
        self.next += 1;
        Ok(true)
    }

    /// That nobody wrote to it meanwhile. A new name is no harm to a file of which each byte was verified, and a snapshot is
    /// linked while it is read when its disk is merged: what it was known by before comes back, which nothing trusts any more.
    pub fn finish(self) -> Result<Identity, PartError> {
        let now = Identity::of(&self.file).map_err(PartError::io("look at", self.path))?;
        let same = if self.trusted { now == self.identity } else { now.is_unwritten_since(&self.identity) };
        if !same {
            return Err(PartError::Changed { path: self.path.to_owned() });
        }
        Ok(self.identity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileExt, MetadataExt};

    fn written(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("part");
        std::fs::write(&path, bytes).unwrap();
        (directory, path)
    }

    #[test]
    fn a_part_says_length_chunks_and_root_however_the_bytes_arrive() {
        let bytes: Vec<u8> = (0..5 << 20).map(|n: u32| (n % 251) as u8).collect();
        let (_directory, path) = written(&bytes);
        let part = hash_file(&path).unwrap();
        assert_eq!((part.length, part.chunks.len()), (5 << 20, 3));
        assert!(part.is_consistent());
        let mut pieces = PartHasher::default();
        bytes.chunks(777_777).for_each(|piece| pieces.update(piece));
        assert_eq!(pieces.finish(), part);
        assert_eq!(Part::of(&bytes), part);
        let text = serde_json::to_string(&part).unwrap();
        assert_eq!(serde_json::from_str::<Part>(&text).unwrap(), part);
        assert!(Part::of(&[]).chunks.is_empty() && Part::of(&[]).is_consistent());
    }

    #[test]
    fn a_flipped_byte_is_found_in_its_chunk_and_another_length_is_told() {
        let bytes = vec![7; 5 << 20];
        let (_directory, path) = written(&bytes);
        let part = hash_file(&path).unwrap();
        verify_file(&path, &part, None).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(&[8], (2 << 20) + 3).unwrap();
        let damaged = verify_file(&path, &part, None).unwrap_err();
        assert!(
            matches!(damaged, PartError::Damaged { offset: 2_097_152, length: 2_097_152, .. }),
            "{damaged}"
        );
        assert!(damaged.to_string().contains(path.to_str().unwrap()));
        file.set_len(3).unwrap();
        assert!(matches!(verify_file(&path, &part, None), Err(PartError::Length { found: 3, .. })));
    }

    #[test]
    fn a_file_that_is_linked_while_it_is_read_is_whole_and_one_that_is_written_to_is_not() {
        let (directory, path) = written(&vec![7; 5 << 20]);
        let part = hash_file(&path).unwrap();
        let mut buffer = Vec::new();
        // As a merge does beside a restore.
        let read_while = |known: Option<&Identity>, meanwhile: &dyn Fn()| {
            let mut file = PartFile::open(&path, &part, known)?;
            while file.next_chunk(&mut Vec::new())? {}
            // What comes later has another time, however coarse the clock is.
            let clock = directory.path().join("clock");
            let last_change = |path: &Path| {
                let metadata = std::fs::metadata(path).unwrap();
                (metadata.ctime(), metadata.ctime_nsec())
            };
            while std::fs::write(&clock, b"x").is_ok() && last_change(&clock) == last_change(&path) {}
            meanwhile();
            file.finish()
        };
        let other = directory.path().join("link");
        let link = || std::fs::hard_link(&path, &other).unwrap();
        let before = read_while(None, &link).unwrap();
        std::fs::remove_file(&other).unwrap();
        let now = verify_file(&path, &part, Some(&before)).unwrap();
        assert_ne!(now, before, "what was read before it was linked is not what is known");

        // What was not read is not vouched for, and is then read.
        assert!(matches!(read_while(Some(&now), &link), Err(PartError::Changed { .. })));
        let known = Identity::of(&File::open(&path).unwrap()).unwrap();
        let attempts = std::cell::Cell::new(0);
        let identity = trusting(Some(&known), |known| {
            attempts.set(attempts.get() + 1);
            read_while(known, &|| drop(std::fs::remove_file(&other)))
        });
        assert_eq!((identity.is_ok(), attempts.get()), (true, 2));

        let file = File::options().write(true).open(&path).unwrap();
        let write = || file.write_all_at(&[8], 3).unwrap();
        assert!(matches!(read_while(None, &write), Err(PartError::Changed { .. })));
        let mut damaged = PartFile::open(&path, &part, None).unwrap();
        assert!(matches!(damaged.next_chunk(&mut buffer), Err(PartError::Damaged { offset: 0, .. })));
    }

    /// Sums and exclusive ors are the same for these; hashes are not.
    #[test]
    fn checksum_collision_1_2_3_1_detected() {
        for (one, other) in
            [(&[1_u8, 2][..], &[3_u8, 1][..]), (&[1, 2], &[2, 1]), (&[0], &[0, 0]), (&[], &[0])]
        {
            assert_ne!(Part::of(one).root, Part::of(other).root, "{one:?} {other:?}");
        }
        let swapped = [vec![1; CHUNK as usize], vec![2; CHUNK as usize]];
        assert_ne!(Part::of(&swapped.concat()).root, Part::of(&[&swapped[1][..], &swapped[0]].concat()).root);
    }

    #[test]
    fn a_list_of_hashes_that_is_not_its_roots_is_no_proof() {
        let (_directory, path) = written(&[1, 2, 3]);
        let good = hash_file(&path).unwrap();
        let mut forged = good;
        std::fs::write(&path, [1, 2, 4]).unwrap();
        forged.chunks = hash_file(&path).unwrap().chunks;
        assert!(matches!(verify_file(&path, &forged, None), Err(PartError::Contradiction { .. })));
        forged.chunks.push(forged.chunks[0]);
        assert!(matches!(verify_file(&path, &forged, None), Err(PartError::Contradiction { .. })));
        assert!("AB".repeat(32).parse::<Hash>().is_err() && "zz".parse::<Hash>().is_err());
    }
}
