//! The last bytes of one output stream, addressed by their offset in the stream.
//!
//! ```text
//! 0 ........ start ################ end        start: oldest byte still held, end: bytes ever written
//!            `------ at most CAPACITY ------'
//! ```

use std::collections::VecDeque;

/// Bytes held per stream: what a reader that comes back may still see, and how far a process may run ahead of
/// an attached one.
pub const CAPACITY: usize = 256 * 1024;

#[derive(Debug, Default)]
pub struct Ring {
    bytes: VecDeque<u8>,
    end: u64,
}

/// What a reader at an offset finds.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing new.
    Nothing,
    /// Bytes from the reader's offset on.
    Data(Vec<u8>),
    /// Overwritten; the oldest byte held has this offset.
    Lost { next_offset: u64 },
}

impl Ring {
    pub fn end(&self) -> u64 {
        self.end
    }

    pub fn held(&self) -> usize {
        self.bytes.len()
    }

    fn start(&self) -> u64 {
        self.end - self.bytes.len() as u64
    }

    /// Appends, overwriting the oldest bytes.
    pub fn write(&mut self, data: &[u8]) {
        self.end += data.len() as u64;
        let kept = &data[data.len().saturating_sub(CAPACITY)..];
        let overflow = (self.bytes.len() + kept.len()).saturating_sub(CAPACITY);
        self.bytes.drain(..overflow);
        self.bytes.extend(kept);
    }

    /// At most `limit` bytes from `offset` on.
    pub fn read(&self, offset: u64, limit: usize) -> Found {
        if offset < self.start() {
            return Found::Lost { next_offset: self.start() };
        }
        let Ok(skip) = usize::try_from(offset - self.start()) else { return Found::Nothing };
        let count = self.bytes.len().saturating_sub(skip).min(limit);
        if count == 0 {
            return Found::Nothing;
        }
        // By slices: byte by byte is what an emulated CPU feels.
        let (front, back) = self.bytes.as_slices();
        let mut data = Vec::with_capacity(count);
        let from_front = front.get(skip..).unwrap_or_default();
        data.extend_from_slice(&from_front[..count.min(from_front.len())]);
        let skip = skip.saturating_sub(front.len());
        data.extend_from_slice(&back[skip..skip + count - data.len()]);
        Found::Data(data)
    }

    /// Forgets what is held, keeping the offsets.
    pub fn clear(&mut self) {
        self.bytes = VecDeque::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_found_by_their_offset_in_the_stream() {
        let mut ring = Ring::default();
        ring.write(b"hello ");
        ring.write(b"world");
        assert_eq!(ring.read(0, 100), Found::Data(b"hello world".to_vec()));
        assert_eq!(ring.read(6, 3), Found::Data(b"wor".to_vec()));
        assert_eq!(ring.read(11, 100), Found::Nothing);
        assert_eq!(ring.read(99, 100), Found::Nothing);
    }

    #[test]
    fn what_was_overwritten_is_reported_with_the_next_offset_that_is_not() {
        let mut ring = Ring::default();
        ring.write(&[1; CAPACITY]);
        assert!(matches!(ring.read(0, 1), Found::Data(_)));
        ring.write(&[2; 10]);
        assert_eq!(ring.read(0, 1), Found::Lost { next_offset: 10 });
        assert_eq!(ring.read(10, 1), Found::Data(vec![1]));
        assert_eq!(ring.read(CAPACITY as u64, 100), Found::Data(vec![2; 10]));
    }

    #[test]
    fn a_write_larger_than_the_ring_keeps_its_tail() {
        let mut ring = Ring::default();
        let mut data = vec![7; CAPACITY];
        data.extend([8; 5]);
        ring.write(b"before");
        ring.write(&data);
        assert_eq!(ring.held(), CAPACITY);
        assert_eq!(ring.read(6, 1), Found::Lost { next_offset: 11 });
        assert_eq!(ring.read(ring.end() - 5, 100), Found::Data(vec![8; 5]));
    }

    #[test]
    fn every_byte_is_found_wherever_the_ring_wraps() {
        let byte = |offset: usize| (offset % 251) as u8;
        let mut ring = Ring::default();
        let mut written = 0;
        for step in [CAPACITY, 1, 1000, CAPACITY / 2, CAPACITY - 1] {
            let data: Vec<u8> = (written..written + step).map(byte).collect();
            ring.write(&data);
            written += step;
            let start = written - CAPACITY;
            for (skip, limit) in
                [(0, CAPACITY), (1, 5), (CAPACITY / 2 - 1, 7), (CAPACITY - 1, 9), (999, 60_000)]
            {
                let expected: Vec<u8> = (start + skip..written).take(limit).map(byte).collect();
                assert_eq!(
                    ring.read((start + skip) as u64, limit),
                    Found::Data(expected),
                    "{step} {skip} {limit}"
                );
            }
        }
    }

    #[test]
    fn a_cleared_ring_reports_all_of_it_lost() {
        let mut ring = Ring::default();
        ring.write(b"abc");
        ring.clear();
        assert_eq!(ring.read(0, 9), Found::Lost { next_offset: 3 });
        assert_eq!(ring.read(3, 9), Found::Nothing);
    }
}
