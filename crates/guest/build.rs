//! Builds the add-on that live JavaScript contexts load to reseed OpenSSL.

use std::{env, path::Path, process::Command};

#[expect(clippy::disallowed_macros, reason = "how a build script speaks to cargo")]
fn main() {
    println!("cargo::rerun-if-changed=addon/reseed.c");
    println!("cargo::rerun-if-env-changed=CC");
    let out = env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    let compiler = env::var("CC").unwrap_or_else(|_| "cc".into());
    let target = Path::new(&out).join("reseed.node");
    let flags = ["-shared", "-fPIC", "-Os", "-s", "-nostdlib", "-ffreestanding", "-fvisibility=hidden"];
    let status = Command::new(&compiler)
        .args(flags)
        .args(["-Wl,-z,now", "-Wl,-z,noexecstack", "-Wl,--build-id=none", "addon/reseed.c", "-o"])
        .arg(&target)
        .status();
    match status {
        Ok(status) if status.success() => {}
        outcome => panic!("{compiler} could not build addon/reseed.c: {outcome:?}"),
    }
}
