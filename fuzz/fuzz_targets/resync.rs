//! Bytes on the pipe, to host and guest alike, from the first byte on and within an epoch.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime without I/O")
        .block_on(offshoot_guest_proto::fuzz::resync(bytes));
});
