//! The body of one frame to the agent, decoded as each message it may be waiting for.
#![no_main]

libfuzzer_sys::fuzz_target!(|body: &[u8]| offshoot_guest_proto::fuzz::from_host(body));
