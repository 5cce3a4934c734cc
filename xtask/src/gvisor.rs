//! gVisor's `runsc`: nothing needs it, and everything that can use it does once it is here.
//!
//! Debian 12 has one of 2022, which is too old; its backports have a newer one. Enabling backports adds one file to apt's
//! sources, installs nothing by itself (apt prefers the release unless it is told otherwise), and is undone by removing
//! the file: `cargo xtask gvisor --remove`.

use crate::{
    packages::{apt, as_root, may_install},
    process::{checked, on_path, output},
};
use anyhow::{Context, Result};
use std::{
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

#[derive(clap::Args)]
pub struct Args {
    /// Remove `runsc` and what was added to apt's sources for it.
    #[arg(long)]
    remove: bool,
}

const SOURCES: &str = "/etc/apt/sources.list.d/offshoot-backports.sources";
const BACKPORTS: &str = "\
# Added by `cargo xtask gvisor` for the package runsc; removed by `cargo xtask gvisor --remove`.
Types: deb
URIs: http://deb.debian.org/debian
Suites: bookworm-backports
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
";
const BY_HAND: &str = "https://gvisor.dev/docs/user_guide/install/";

/// Where this host gets a `runsc` that is new enough.
#[derive(Debug, PartialEq, Eq)]
enum Source {
    Backports,
    Release,
    /// The package manager has none.
    Elsewhere,
}

impl Source {
    fn of(os_release: &str) -> Self {
        let value = |key: &str| {
            let line = os_release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            line.map(|value| value.trim_matches('"'))
        };
        let release: Option<u32> = value("VERSION_ID").and_then(|id| id.parse().ok());
        match (value("ID"), release) {
            (Some("debian"), Some(12)) => Self::Backports,
            (Some("debian"), Some(13..)) => Self::Release,
            _ => Self::Elsewhere,
        }
    }
}

pub fn run(args: &Args) -> Result<()> {
    if args.remove { remove() } else { install() }
}

/// As part of a set-up that goes on without it.
pub fn offer() {
    if on_path("runsc") {
        return;
    }
    if let Err(error) = install() {
        eprintln!("gVisor was not installed, everything else works without it: {error:#}");
    }
}

fn install() -> Result<()> {
    let os_release = std::fs::read_to_string("/etc/os-release").context("read /etc/os-release")?;
    let source = Source::of(&os_release);
    if source == Source::Elsewhere || !may_install() {
        eprintln!("to run VMs as gVisor sandboxes as well, install `runsc`: {BY_HAND}");
        return Ok(());
    }
    if source == Source::Backports && !Path::new(SOURCES).exists() {
        eprintln!(
            "enabling bookworm-backports for `runsc`: {SOURCES} (`cargo xtask gvisor --remove` undoes it)"
        );
        write_as_root(SOURCES, BACKPORTS)?;
    }
    eprintln!("installing: runsc");
    checked(apt().args(["update", "-qq"]))?;
    let mut install = apt();
    install.args(["install", "-y", "-qq", "--no-install-recommends"]);
    if source == Source::Backports {
        install.args(["-t", "bookworm-backports"]);
    }
    checked(install.arg("runsc"))?;
    let version = output(Command::new("runsc").arg("--version"))?;
    eprintln!("{}", version.lines().next().unwrap_or("runsc"));
    Ok(())
}

fn remove() -> Result<()> {
    if on_path("runsc") {
        checked(apt().args(["remove", "-y", "-qq", "runsc"]))?;
    }
    if Path::new(SOURCES).exists() {
        checked(as_root("rm").arg(SOURCES))?;
        checked(apt().args(["update", "-qq"]))?;
    }
    Ok(())
}

fn write_as_root(path: &str, text: &str) -> Result<()> {
    let mut tee = as_root("tee");
    let mut child = tee.arg(path).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().context("run tee")?;
    let mut stdin = child.stdin.take().context("write to tee")?;
    stdin.write_all(text.as_bytes()).with_context(|| format!("write {path}"))?;
    drop(stdin);
    let status = child.wait().context("wait for tee")?;
    anyhow::ensure!(status.success(), "cannot write {path}: tee ended with {status}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_debian_has_a_package_that_is_new_enough() {
        let os = |id: &str, version: &str| format!("PRETTY_NAME=\"x\"\nID={id}\nVERSION_ID=\"{version}\"\n");
        assert_eq!(Source::of(&os("debian", "12")), Source::Backports);
        assert_eq!(Source::of(&os("debian", "13")), Source::Release);
        assert_eq!(Source::of(&os("debian", "11")), Source::Elsewhere);
        assert_eq!(Source::of(&os("ubuntu", "24.04")), Source::Elsewhere);
        assert_eq!(Source::of(""), Source::Elsewhere);
    }
}
