//! Bytes that somebody hands over as an exported snapshot.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| offshoot_provider::archive::fuzz::read(bytes));
