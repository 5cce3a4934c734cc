//! One chunk on the pipe: its bytes, and finding the next one in a buffer. Pure; the table is in the crate's doc.

use std::fmt;

pub const MAGIC: [u8; 4] = [0xF5, b'O', b'S', 0xC1];
pub const HEADER: usize = 24;
/// A virtio-serial port cuts writes at 32 KiB; a chunk is never larger, so one write carries a whole one.
pub const MAX_CHUNK: usize = 32 * 1024;
pub const MAX_PAYLOAD: usize = MAX_CHUNK - HEADER;
const CRC_AT: usize = 20;
const TOKEN: usize = 16;
pub const CONTROL_CHUNK: usize = HEADER + TOKEN;

/// The random token that names one session on a pipe.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Epoch(pub [u8; TOKEN]);

impl Epoch {
    /// A fresh one from the kernel's random source.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut token = [0; TOKEN];
        getrandom::fill(&mut token)?;
        Ok(Self(token))
    }

    pub(crate) fn tag(self) -> [u8; 8] {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        [a, b, c, d, e, f, g, h]
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.tag().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chunk {
    Sync(Epoch),
    Echo(Epoch),
    /// `length` bytes of payload follow the header.
    Data {
        tag: [u8; 8],
        sequence: u32,
        length: usize,
    },
}

impl Chunk {
    /// Header and payload.
    pub fn size(&self) -> usize {
        match self {
            Self::Sync(_) | Self::Echo(_) => CONTROL_CHUNK,
            Self::Data { length, .. } => HEADER + length,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decoded {
    /// These bytes cannot begin a chunk.
    Skip(usize),
    /// The buffer ends before the chunk does, or is empty.
    Incomplete,
    /// A chunk with a valid CRC begins the buffer.
    Chunk(Chunk),
}

/// Looks at the start of `buffer`. Never skips a byte that may begin a valid chunk.
pub fn decode(buffer: &[u8]) -> Decoded {
    match buffer.iter().position(|&byte| byte == MAGIC[0]) {
        None if buffer.is_empty() => return Decoded::Incomplete,
        None => return Decoded::Skip(buffer.len()),
        Some(0) => {}
        Some(at) => return Decoded::Skip(at),
    }
    let seen = buffer.len().min(MAGIC.len());
    if buffer[..seen] != MAGIC[..seen] {
        return Decoded::Skip(1);
    }
    let Some((header, rest)) = buffer.split_first_chunk::<HEADER>() else {
        return Decoded::Incomplete;
    };
    let [_, _, _, _, kind, reserved, l0, l1, tag @ .., s0, s1, s2, s3, c0, c1, c2, c3] = *header;
    let length = usize::from(u16::from_be_bytes([l0, l1]));
    let plausible = match kind {
        1 | 2 => length == TOKEN,
        3 => length <= MAX_PAYLOAD,
        _ => false,
    };
    if !plausible || reserved != 0 {
        return Decoded::Skip(1);
    }
    let Some(payload) = rest.get(..length) else {
        return Decoded::Incomplete;
    };
    if crc(&header[..CRC_AT], payload) != u32::from_be_bytes([c0, c1, c2, c3]) {
        return Decoded::Skip(1);
    }
    let control = <[u8; TOKEN]>::try_from(payload).map(Epoch).ok().filter(|epoch| epoch.tag() == tag);
    match (kind, control) {
        (3, _) => Decoded::Chunk(Chunk::Data { tag, sequence: u32::from_be_bytes([s0, s1, s2, s3]), length }),
        (1, Some(epoch)) => Decoded::Chunk(Chunk::Sync(epoch)),
        (2, Some(epoch)) => Decoded::Chunk(Chunk::Echo(epoch)),
        _ => Decoded::Skip(1),
    }
}

pub fn sync(epoch: Epoch) -> [u8; CONTROL_CHUNK] {
    control(1, epoch)
}

pub fn echo(epoch: Epoch) -> [u8; CONTROL_CHUNK] {
    control(2, epoch)
}

fn control(kind: u8, epoch: Epoch) -> [u8; CONTROL_CHUNK] {
    let mut chunk = [0; CONTROL_CHUNK];
    chunk[HEADER..].copy_from_slice(&epoch.0);
    seal(&mut chunk, kind, epoch.tag(), 0);
    chunk
}

/// Completes a data chunk whose payload already lies behind the room for its header.
pub fn seal_data(chunk: &mut [u8], epoch: Epoch, sequence: u32) {
    seal(chunk, 3, epoch.tag(), sequence);
}

fn seal(chunk: &mut [u8], kind: u8, tag: [u8; 8], sequence: u32) {
    let (header, payload) = chunk.split_at_mut(HEADER);
    let length =
        u16::try_from(payload.len()).expect("a payload is shorter than MAX_CHUNK, which fits 16 bits");
    header[..4].copy_from_slice(&MAGIC);
    header[4] = kind;
    header[5] = 0;
    header[6..8].copy_from_slice(&length.to_be_bytes());
    header[8..16].copy_from_slice(&tag);
    header[16..CRC_AT].copy_from_slice(&sequence.to_be_bytes());
    let crc = crc(&header[..CRC_AT], payload);
    header[CRC_AT..].copy_from_slice(&crc.to_be_bytes());
}

fn crc(header: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(header);
    hasher.update(payload);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn data(epoch: Epoch, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let mut chunk = vec![0; HEADER];
        chunk.extend_from_slice(payload);
        seal_data(&mut chunk, epoch, sequence);
        chunk
    }

    proptest! {
        #[test]
        fn what_was_sealed_is_decoded_and_every_shorter_prefix_is_incomplete(
            token: [u8; 16], sequence: u32, payload in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let epoch = Epoch(token);
            let wire = data(epoch, sequence, &payload);
            let expected = Chunk::Data { tag: epoch.tag(), sequence, length: payload.len() };
            prop_assert_eq!(decode(&wire), Decoded::Chunk(expected));
            prop_assert_eq!(expected.size(), wire.len());
            for cut in 0..wire.len() {
                prop_assert_eq!(decode(&wire[..cut]), Decoded::Incomplete);
            }
        }

        #[test]
        fn no_single_flipped_bit_goes_unnoticed(
            token: [u8; 16], payload in prop::collection::vec(any::<u8>(), 1..64), at: prop::sample::Index, bit in 0..8,
        ) {
            let mut wire = data(Epoch(token), 7, &payload);
            let at = at.index(wire.len());
            wire[at] ^= 1_u8 << bit;
            // A longer length asks for more bytes; give it some.
            wire.resize(2 * MAX_CHUNK, 0);
            prop_assert!(matches!(decode(&wire), Decoded::Skip(_)));
        }

        #[test]
        fn skipping_never_passes_a_whole_chunk(
            garbage in prop::collection::vec(prop_oneof![Just(MAGIC[0]), Just(b'O'), any::<u8>()], 0..200), token: [u8; 16],
        ) {
            let wire = [&garbage[..], &sync(Epoch(token))[..], &[0; MAX_CHUNK][..]].concat();
            let mut at = 0;
            let found = loop {
                match decode(&wire[at..]) {
                    Decoded::Skip(bytes) => at += bytes,
                    other => break other,
                }
            };
            prop_assert_eq!(found, Decoded::Chunk(Chunk::Sync(Epoch(token))));
            prop_assert_eq!(at, garbage.len());
        }
    }

    #[test]
    fn a_control_chunk_whose_tag_is_not_its_token_is_no_chunk() {
        let mut wire = sync(Epoch([1; 16]));
        let payload = [2; TOKEN];
        wire[HEADER..].copy_from_slice(&payload);
        let crc = crc(&wire[..CRC_AT], &payload);
        wire[CRC_AT..HEADER].copy_from_slice(&crc.to_be_bytes());
        assert_eq!(decode(&wire), Decoded::Skip(1));
    }
}
