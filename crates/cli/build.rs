//! Puts the guest agent inside the binary, if the build names one (`cargo xtask build` does).
//!
//! `OFFSHOOT_GUEST_BIN` is the path of the static agent. Without it the binary is complete but for the agent and
//! says so when one is needed; a path that cannot be read ends the build, since silence would ship such a binary.

#![expect(clippy::disallowed_macros, reason = "a build script speaks to cargo on its standard output")]

use std::{env, fs, path::PathBuf};

fn main() {
    println!("cargo::rerun-if-env-changed=OFFSHOOT_GUEST_BIN");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("guest-agent");
    let agent = match env::var_os("OFFSHOOT_GUEST_BIN").filter(|path| !path.is_empty()) {
        Some(path) => {
            let path = PathBuf::from(path);
            println!("cargo::rerun-if-changed={}", path.display());
            fs::read(&path)
                .unwrap_or_else(|e| panic!("OFFSHOOT_GUEST_BIN: cannot read {}: {e}", path.display()))
        }
        None => Vec::new(),
    };
    fs::write(&out, agent).unwrap_or_else(|e| panic!("cannot write {}: {e}", out.display()));
}
