//! Writing one.

use super::{ArchiveError, Contents, PartName};
use crate::{
    memory::Delta,
    parts::{CHUNK, Hash, Part, PartHasher},
};
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use std::io::{self, Read, Write};

/// Writes header and parts. Each part is read from what `open` gives for it and compared with its hashes on the way: what
/// is damaged is not passed on. Blocks. Returns the hash of the header.
pub fn write(
    contents: &Contents,
    mut open: impl FnMut(PartName) -> io::Result<Box<dyn Read>>,
    mut to: impl Write,
) -> Result<Hash, ArchiveError> {
    let (header, hash) = contents.to_bytes()?;
    to.write_all(&header).map_err(ArchiveError::Write)?;
    let mut chunk = Vec::new();
    for (name, part) in contents.parts() {
        let mut from = open(name).map_err(ArchiveError::Read)?;
        let mut offset = 0;
        for expected in &part.chunks {
            let length = CHUNK.min(part.length - offset);
            chunk.resize(length as usize, 0);
            from.read_exact(&mut chunk).map_err(ArchiveError::Read)?;
            if Hash::from(blake3::hash(&chunk)) != *expected {
                return Err(ArchiveError::Damaged { part: name, offset, length });
            }
            let frame = compress_to_vec(chunk.as_slice(), CompressionLevel::Fastest);
            to.write_all(&(frame.len() as u32).to_le_bytes())
                .and_then(|()| to.write_all(&frame))
                .map_err(ArchiveError::Write)?;
            offset += length;
        }
    }
    to.flush().map_err(ArchiveError::Write)?;
    Ok(hash)
}

/// The part that a memory in the daemon's own memory will be, without writing it anywhere.
pub fn hash_memory(memory: &Delta) -> io::Result<Part> {
    let mut hasher = PartHasher::default();
    io::copy(&mut memory.reader(), &mut Hashing(&mut hasher))?;
    Ok(hasher.finish())
}

struct Hashing<'a>(&'a mut PartHasher);

impl Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
