//! The body of the fuzz target in `/fuzz`, which the tests here run on bounded random input as well.

use super::{Contents, FIXED, Reader};
use crate::parts::CHUNK;

/// Whatever bytes somebody hands over as an exported snapshot, as they are and with a header whose hash is right, as one
/// who wants to harm would make it: refused or read, and never more handed out than the header said.
pub fn read(bytes: &[u8]) {
    attempt(bytes);
    if bytes.len() > FIXED {
        let mut forged = bytes.to_vec();
        let length = (forged.len() - FIXED)
            .min(u32::from_le_bytes([bytes[20], bytes[21], bytes[22], bytes[23]]) as usize);
        let hash = super::contents::hash(&forged[FIXED..FIXED + length]);
        forged[24..FIXED].copy_from_slice(hash.as_bytes());
        attempt(&forged);
    }
}

fn attempt(bytes: &[u8]) {
    let Ok(reader) = Reader::open(bytes) else { return };
    let declared = reader.contents().bytes();
    let mut given = 0;
    let read = reader.read_parts(|_, _, piece| {
        assert!(!piece.is_empty() && piece.len() as u64 <= CHUNK, "a piece is what one hash covers");
        given += piece.len() as u64;
        assert!(given <= declared, "no more than was declared");
        Ok(())
    });
    if let Ok(contents) = read {
        assert_eq!(given, declared, "all of it, or a refusal");
        let (_, hash) = contents.to_bytes().expect("what was read can be written");
        assert_eq!(hash, contents.to_bytes().expect("twice").1);
    }
}

/// A small valid one, to begin from.
pub fn seed() -> Vec<u8> {
    let contents: Contents = super::tests_support::small();
    let mut bytes = Vec::new();
    let open = |name| Ok(super::tests_support::part(name));
    super::write(&contents, open, &mut bytes).expect("a vector takes all");
    bytes
}
