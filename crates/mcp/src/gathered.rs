//! Output of any length in bounded memory: its beginning and its end.

use std::collections::VecDeque;

/// Bytes kept of the beginning: where a program says what it is about.
const HEAD: usize = 16 * 1024;
/// Bytes kept of the end: where it says how it ended.
const TAIL: usize = 32 * 1024;

/// One stream, as far as it is kept.
#[derive(Debug, Default)]
pub struct Gathered {
    head: Vec<u8>,
    tail: VecDeque<u8>,
    /// Bytes between the two that are gone.
    dropped: u64,
}

impl Gathered {
    pub fn push(&mut self, mut data: &[u8]) {
        let room = HEAD - self.head.len();
        let (first, rest) = data.split_at(data.len().min(room));
        self.head.extend_from_slice(first);
        data = rest;
        // Of a piece that is longer than the tail, only its end can stay.
        let skipped = data.len().saturating_sub(TAIL);
        let surplus = (self.tail.len() + data.len() - skipped).saturating_sub(TAIL);
        self.tail.drain(..surplus);
        self.tail.extend(&data[skipped..]);
        self.dropped += (skipped + surplus) as u64;
    }

    /// That much was lost before it came here.
    pub fn lost(&mut self, bytes: u64) {
        self.dropped += bytes;
    }

    pub fn is_empty(&self) -> bool {
        self.head.is_empty() && self.dropped == 0
    }

    /// Bytes that are not in the text.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// As text, which says where something is missing and how much.
    pub fn text(&self) -> String {
        let (one, other) = self.tail.as_slices();
        let tail = [one, other].concat();
        if self.dropped == 0 {
            return String::from_utf8_lossy(&[&self.head[..], &tail].concat()).into_owned();
        }
        let (head, tail) = (String::from_utf8_lossy(&self.head), String::from_utf8_lossy(&tail));
        format!("{head}\n[... {} bytes left out here ...]\n{tail}", self.dropped)
    }
}

/// The beginning of a text, at most so many bytes of it, and whether that is all.
pub fn beginning(text: &str, bytes: usize) -> (&str, bool) {
    let cut = (0..=bytes.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    (&text[..cut], cut == text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gathered(pieces: impl IntoIterator<Item = Vec<u8>>) -> Gathered {
        let mut gathered = Gathered::default();
        pieces.into_iter().for_each(|piece| gathered.push(&piece));
        gathered
    }

    #[test]
    fn what_fits_is_whole_whatever_its_pieces() {
        let all: Vec<u8> = (0..HEAD + TAIL).map(|n| b'a' + (n % 26) as u8).collect();
        for size in [1, 7, 4096, all.len()] {
            let gathered = gathered(all.chunks(size).map(<[u8]>::to_vec));
            assert_eq!((gathered.dropped(), gathered.text().as_bytes()), (0, &all[..]), "pieces of {size}");
        }
    }

    #[test]
    fn what_does_not_fit_loses_its_middle_which_is_counted() {
        for size in [1000, 4096, 5 * TAIL] {
            let mut all = vec![b'-'; 10 * (HEAD + TAIL)];
            all[..5].copy_from_slice(b"begin");
            let end = all.len() - 3;
            all[end..].copy_from_slice(b"end");
            let gathered = gathered(all.chunks(size).map(<[u8]>::to_vec));
            let text = gathered.text();
            assert!(text.starts_with("begin") && text.ends_with("end"), "pieces of {size}");
            assert_eq!(gathered.dropped() as usize, all.len() - HEAD - TAIL);
            assert!(text.contains(&format!("{} bytes left out", gathered.dropped())));
        }
    }

    #[test]
    fn what_was_lost_on_the_way_counts_too() {
        let mut gathered = gathered([b"x".to_vec()]);
        assert!(!gathered.is_empty());
        gathered.lost(9);
        assert!(gathered.text().contains("9 bytes left out"));
    }

    #[test]
    fn a_beginning_ends_between_characters() {
        assert_eq!(beginning("aé", 2), ("a", false));
        assert_eq!(beginning("aé", 3), ("aé", true));
    }
}
