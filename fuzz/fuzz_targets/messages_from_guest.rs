//! The body of one frame from a hostile guest, decoded as each message the host may be waiting for.
#![no_main]

libfuzzer_sys::fuzz_target!(|body: &[u8]| offshoot_guest_proto::fuzz::from_guest(body));
