//! Reading one that comes from anywhere.

use super::{ArchiveError, Contents, FIXED, MAGIC, MAX_FRAME, MAX_HEADER, PartName, VERSION};
use crate::parts::{CHUNK, Hash};
use ruzstd::decoding::StreamingDecoder;
use std::io::{self, Read};

/// A stream whose header was read and is as it should be; nothing else of it was.
#[derive(Debug)]
pub struct Reader<R> {
    contents: Contents,
    hash: Hash,
    from: R,
}

impl<R: Read> Reader<R> {
    /// Reads the header. No more memory is taken than was read.
    pub fn open(mut from: R) -> Result<Self, ArchiveError> {
        let mut fixed = [0; FIXED];
        exact(&mut from, &mut fixed, || "its header".into())?;
        let (magic, rest) = fixed.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(ArchiveError::invalid("it is no exported snapshot"));
        }
        let number = |at: usize| u32::from_le_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]);
        if number(0) != VERSION {
            let why = format!("it has version {}, and this program reads {VERSION}", number(0));
            return Err(ArchiveError::invalid(why));
        }
        let length = number(4) as usize;
        if length > MAX_HEADER {
            return Err(ArchiveError::invalid("its header is too long"));
        }
        let mut header = Vec::new();
        let read = (&mut from).take(length as u64).read_to_end(&mut header).map_err(ArchiveError::Read)?;
        if read < length {
            return Err(ArchiveError::Truncated("its header".into()));
        }
        let mut said = [0; 32];
        said.copy_from_slice(&rest[8..]);
        let (contents, hash) = Contents::from_header(&header, &said)?;
        Ok(Self { contents, hash, from })
    }

    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// Of the header, and so of everything.
    pub fn hash(&self) -> Hash {
        self.hash
    }

    /// Hands out every part in pieces of at most 2 MiB, each compared with its hash before: the part, the place in it, the
    /// bytes. That all of it was there and nothing follows is known only when this returns.
    pub fn read_parts(
        mut self,
        mut take: impl FnMut(PartName, u64, &[u8]) -> Result<(), ArchiveError>,
    ) -> Result<Contents, ArchiveError> {
        let (mut frame, mut chunk) = (Vec::new(), Vec::new());
        for (name, part) in self.contents.parts() {
            let mut offset = 0;
            for expected in &part.chunks {
                let length = CHUNK.min(part.length - offset);
                let damaged = || ArchiveError::Damaged { part: name, offset, length };
                let mut size = [0; 4];
                exact(&mut self.from, &mut size, || name.to_string())?;
                let size = u32::from_le_bytes(size) as usize;
                if size > MAX_FRAME {
                    return Err(damaged());
                }
                frame.resize(size, 0);
                exact(&mut self.from, &mut frame, || name.to_string())?;
                chunk.resize(length as usize, 0);
                if !decompress(&frame, &mut chunk) || Hash::from(blake3::hash(&chunk)) != *expected {
                    return Err(damaged());
                }
                take(name, offset, &chunk)?;
                offset += length;
            }
        }
        match self.from.read(&mut [0]).map_err(ArchiveError::Read)? {
            0 => Ok(self.contents),
            _ => Err(ArchiveError::Trailing),
        }
    }
}

/// Whether `frame` holds exactly as much as fits `chunk`.
fn decompress(frame: &[u8], chunk: &mut [u8]) -> bool {
    let mut rest = frame;
    // A frame that says it needs more than it may hold is refused before anything is taken for it.
    let Ok(mut decoder) = StreamingDecoder::new_with_max_window_size(&mut rest, CHUNK) else { return false };
    let filled = decoder.read_exact(chunk).is_ok();
    let ended = filled && matches!(decoder.read(&mut [0]), Ok(0));
    // The frame's own checksum tells nothing new, but a bit of it that flipped is a bit that flipped.
    let (said, is) = (decoder.decoder.get_checksum_from_data(), decoder.decoder.get_calculated_checksum());
    drop(decoder);
    ended && rest.is_empty() && (said.is_none() || said == is)
}

fn exact(from: &mut impl Read, bytes: &mut [u8], what: impl Fn() -> String) -> Result<(), ArchiveError> {
    from.read_exact(bytes).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => ArchiveError::Truncated(what()),
        _ => ArchiveError::Read(error),
    })
}
