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
    let root = effective_user_is_root();
    if !on_path("apt-get") || !(root || on_path("sudo")) {
        bail!(
            "missing programs; install them and run this again:\n  Debian, Ubuntu:  apt-get install --no-install-recommends {}\n  \
             Fedora:          dnf install {}\n  Arch:            pacman -S {}",
            names(|n| n.apt),
            names(|n| n.dnf),
            names(|n| n.pacman)
        );
    }
    eprintln!("installing: {}", names(|n| n.apt));
    checked(apt(root).args(["update", "-qq"]))?;
    checked(
        apt(root)
            .args(["install", "-y", "-qq", "--no-install-recommends"])
            .args(missing.iter().map(|need| need.apt)),
    )
}

/// `apt-get`, through sudo when we are not root; never asks.
fn apt(root: bool) -> Command {
    if root {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    } else {
        let mut command = Command::new("sudo");
        command.args(["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]);
        command
    }
}

fn effective_user_is_root() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| {
        status
            .lines()
            .find_map(|l| l.strip_prefix("Uid:"))
            .is_some_and(|ids| ids.split_whitespace().nth(1) == Some("0"))
    })
}
