//! System packages: installed by apt where we may, named for the common package managers where we may not.

use crate::process::{checked, on_path};
use anyhow::{Result, bail};
use std::process::Command;

/// A program we need, and the package that brings it.
struct Need {
    program: &'static str,
    apt: &'static str,
    dnf: &'static str,
    pacman: &'static str,
}

/// To build: SQLite is compiled from source.
const BUILD: &[Need] = &[Need { program: "cc", apt: "gcc", dnf: "gcc", pacman: "gcc" }];

/// To build images and run VMs.
const RUN: &[Need] = &[
    Need {
        program: "qemu-system-x86_64",
        apt: "qemu-system-x86",
        dnf: "qemu-system-x86-core",
        pacman: "qemu-system-x86",
    },
    Need { program: "mmdebstrap", apt: "mmdebstrap", dnf: "mmdebstrap", pacman: "mmdebstrap (AUR)" },
    Need { program: "mkfs.erofs", apt: "erofs-utils", dnf: "erofs-utils", pacman: "erofs-utils" },
    Need { program: "mkfs.ext4", apt: "e2fsprogs", dnf: "e2fsprogs", pacman: "e2fsprogs" },
    Need { program: "qemu-img", apt: "qemu-utils", dnf: "qemu-img", pacman: "qemu-img" },
];

pub fn ensure_build() -> Result<()> {
    install(BUILD.iter())
}

pub fn ensure() -> Result<()> {
    install(BUILD.iter().chain(RUN))
}

fn install<'a>(needs: impl Iterator<Item = &'a Need>) -> Result<()> {
    let missing: Vec<&Need> = needs.filter(|need| !on_path(need.program)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names =
        |pick: fn(&Need) -> &'static str| missing.iter().map(|need| pick(need)).collect::<Vec<_>>().join(" ");
    if !may_install() {
        bail!(
            "missing programs; install them and run this again:\n  Debian, Ubuntu:  apt-get install --no-install-recommends {}\n  \
             Fedora:          dnf install {}\n  Arch:            pacman -S {}",
            names(|n| n.apt),
            names(|n| n.dnf),
            names(|n| n.pacman)
        );
    }
    eprintln!("installing: {}", names(|n| n.apt));
    checked(apt().args(["update", "-qq"]))?;
    checked(
        apt()
            .args(["install", "-y", "-qq", "--no-install-recommends"])
            .args(missing.iter().map(|need| need.apt)),
    )
}

/// Whether packages can be installed by apt, as root or through sudo.
pub fn may_install() -> bool {
    on_path("apt-get") && (effective_user_is_root() || on_path("sudo"))
}

/// `apt-get`, through sudo when we are not root; never asks.
pub fn apt() -> Command {
    let mut command = as_root("env");
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]);
    command
}

/// A program, through sudo when we are not root.
pub fn as_root(program: &str) -> Command {
    if effective_user_is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.arg(program);
    command
}

fn effective_user_is_root() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| {
        status
            .lines()
            .find_map(|l| l.strip_prefix("Uid:"))
            .is_some_and(|ids| ids.split_whitespace().nth(1) == Some("0"))
    })
}
