#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| offshoot_code::fuzz::blocks(bytes));
