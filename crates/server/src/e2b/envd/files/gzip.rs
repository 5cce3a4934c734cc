//! Compressed bodies, a piece at a time.

use flate2::{
    Compression,
    write::{GzEncoder, MultiGzDecoder},
};
use std::io::{self, Write as _};

/// What is sent compressed, if the client would have it so. Smaller files are not worth it.
pub const WORTH: u64 = 1024;

/// A client that says `gzip`, and not that it would rather not.
pub fn is_wanted(accept_encoding: &str) -> bool {
    accept_encoding.split(',').any(|part| {
        let (coding, weight) = part.split_once(';').unwrap_or((part, ""));
        let refused = weight.trim().strip_prefix("q=").is_some_and(|weight| weight.trim().parse() == Ok(0.0));
        coding.trim().eq_ignore_ascii_case("gzip") && !refused
    })
}

#[derive(Debug)]
pub struct Compressor(GzEncoder<Vec<u8>>);

impl Compressor {
    pub fn new() -> Self {
        // The data's way is short: what counts is the time.
        Self(GzEncoder::new(Vec::new(), Compression::fast()))
    }

    /// What is ready to be sent by now; perhaps nothing.
    pub fn push(&mut self, data: &[u8]) -> io::Result<Vec<u8>> {
        self.0.write_all(data)?;
        Ok(std::mem::take(self.0.get_mut()))
    }

    pub fn finish(self) -> io::Result<Vec<u8>> {
        self.0.finish()
    }
}

/// What a piece may become is bounded by the piece: about a thousandfold.
#[derive(Debug)]
pub struct Expander(MultiGzDecoder<Vec<u8>>);

impl Expander {
    /// Bytes that are to be expanded at once.
    pub const PIECE: usize = 16 * 1024;

    pub fn new() -> Self {
        Self(MultiGzDecoder::new(Vec::new()))
    }

    pub fn push(&mut self, piece: &[u8]) -> io::Result<Vec<u8>> {
        self.0.write_all(piece)?;
        Ok(std::mem::take(self.0.get_mut()))
    }

    /// What was still to come; an error if the data ends too early.
    pub fn finish(self) -> io::Result<Vec<u8>> {
        self.0.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_compressed_piece_by_piece_is_the_same_when_it_is_expanded() {
        let data: Vec<u8> = (0..300_000_u32).map(|n| (n / 7) as u8).collect();
        let mut compressor = Compressor::new();
        let mut wire = Vec::new();
        for piece in data.chunks(10_000) {
            wire.extend(compressor.push(piece).unwrap());
        }
        wire.extend(compressor.finish().unwrap());
        assert!(wire.len() < data.len() / 4);
        let mut expander = Expander::new();
        let mut back = Vec::new();
        for piece in wire.chunks(1000) {
            back.extend(expander.push(piece).unwrap());
        }
        back.extend(expander.finish().unwrap());
        assert!(back == data);

        let mut cut = Expander::new();
        let pushed = cut.push(&wire[..wire.len() / 2]).is_ok();
        assert!(pushed && cut.finish().is_err(), "half of it is not all of it");
        assert!(Expander::new().push(b"no gzip at all").is_err());
    }

    #[test]
    fn gzip_is_wanted_by_who_says_so() {
        for wanted in ["gzip", "deflate, GZIP;q=0.5", "br , gzip"] {
            assert!(is_wanted(wanted), "{wanted}");
        }
        for not in ["", "identity", "gzip;q=0", "gzip; q=0.0", "deflate"] {
            assert!(!is_wanted(not), "{not}");
        }
    }
}
