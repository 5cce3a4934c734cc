//! What the other verbs build on: the guest agent, the `offshoot` binary, the images.

use crate::process::{cargo, checked, output, target_dir};
use anyhow::{Context, Result};
use std::{path::PathBuf, process::Command};

/// The agent is linked statically against the host's own target: no extra toolchain is needed.
const GUEST_TARGET: &str = "x86_64-unknown-linux-gnu";

pub struct Built {
    pub offshoot: PathBuf,
    pub guest: PathBuf,
}

/// Builds the static guest agent, then `offshoot` with the agent inside.
pub fn build() -> Result<Built> {
    let guest = guest()?;
    checked(
        cargo()
            .args(["build", "--release", "--locked", "--package", "offshoot-cli"])
            .env("OFFSHOOT_GUEST_BIN", &guest),
    )?;
    let offshoot = target_dir().join("release/offshoot");
    Ok(Built { offshoot, guest })
}

fn guest() -> Result<PathBuf> {
    let flags = std::env::var("RUSTFLAGS").unwrap_or_default();
    checked(
        cargo()
            .args([
                "build",
                "--profile",
                "guest",
                "--locked",
                "--package",
                "offshoot-guest",
                "--target",
                GUEST_TARGET,
            ])
            .env("RUSTFLAGS", format!("{flags} -C target-feature=+crt-static").trim_start()),
    )?;
    Ok(target_dir().join(GUEST_TARGET).join("guest/offshoot-guest"))
}

/// Builds the named image unless it is there and current; progress goes to the terminal.
pub fn image(built: &Built, name: &str) -> Result<()> {
    checked(Command::new(&built.offshoot).args(["image", "build", name]))
}

/// The version `git describe` would print, for benchmark records.
pub fn revision() -> Result<String> {
    let mut git = Command::new("git");
    git.args(["rev-parse", "--short", "HEAD"]).current_dir(crate::process::root());
    Ok(output(&mut git).context("read the git revision")?.trim().to_owned())
}
