//! The programs a build needs, and the packages that bring them.

use super::BuildError;
use std::{env, os::unix::fs::PermissionsExt, path::PathBuf};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MissingTool {
    pub program: &'static str,
    pub apt: &'static str,
    pub dnf: &'static str,
    /// `None`: not in the distribution's own repositories.
    pub pacman: Option<&'static str>,
}

const fn tool(
    program: &'static str,
    apt: &'static str,
    dnf: &'static str,
    pacman: Option<&'static str>,
) -> MissingTool {
    MissingTool { program, apt, dnf, pacman }
}

const NEEDED: [MissingTool; 7] = [
    tool("mmdebstrap", "mmdebstrap", "mmdebstrap", None),
    tool("dpkg-deb", "dpkg", "dpkg", Some("dpkg")),
    tool("mkfs.erofs", "erofs-utils", "erofs-utils", Some("erofs-utils")),
    tool("mke2fs", "e2fsprogs", "e2fsprogs", Some("e2fsprogs")),
    tool("tar", "tar", "tar", Some("tar")),
    tool("unshare", "util-linux", "util-linux", Some("util-linux")),
    tool("setpriv", "util-linux", "util-linux", Some("util-linux")),
];

/// Maps the many users of a root filesystem for a builder who is not root.
const WITHOUT_ROOT: MissingTool = tool("newuidmap", "uidmap", "shadow-utils", Some("shadow"));

impl MissingTool {
    /// How to install them, for each package manager.
    pub fn install(tools: &[Self]) -> String {
        let names = |pick: fn(&Self) -> Option<&'static str>| {
            let mut names: Vec<_> = tools.iter().filter_map(pick).collect();
            names.dedup();
            names.join(" ")
        };
        let mut pacman = names(|tool| tool.pacman);
        for tool in tools.iter().filter(|tool| tool.pacman.is_none()) {
            pacman.push_str(&format!(" (and {} from the AUR)", tool.program));
        }
        format!(
            "install them:\n  Debian, Ubuntu:  apt-get install --no-install-recommends {}\n  Fedora:          dnf install {}\n  Arch:            pacman -S {}",
            names(|tool| Some(tool.apt)),
            names(|tool| Some(tool.dnf)),
            pacman.trim_start()
        )
    }
}

pub(super) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

pub(super) fn require() -> Result<(), BuildError> {
    let tools = missing();
    if tools.is_empty() { Ok(()) } else { Err(BuildError::MissingTools { tools }) }
}

/// Programs a build needs and this host lacks.
pub fn missing() -> Vec<MissingTool> {
    let extra = (!is_root()).then_some(WITHOUT_ROOT);
    NEEDED.into_iter().chain(extra).filter(|tool| find(tool.program).is_none()).collect()
}

/// Where a program is. The administrator's directories are looked into as well: Debian does not put them on the path
/// of ordinary users, but they may run what is there.
pub(super) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let executable = |path: &PathBuf| {
        path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(executable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hint_names_each_package_for_each_package_manager() {
        let hint = MissingTool::install(&[NEEDED[0], NEEDED[2]]);
        assert!(hint.contains("apt-get install --no-install-recommends mmdebstrap erofs-utils"), "{hint}");
        assert!(hint.contains("dnf install mmdebstrap erofs-utils"), "{hint}");
        assert!(hint.contains("pacman -S erofs-utils (and mmdebstrap from the AUR)"), "{hint}");
    }

    #[test]
    fn a_program_is_found_by_name_and_a_missing_one_is_not() {
        assert!(find("sh").is_some());
        assert!(find("no-such-program-anywhere").is_none());
    }
}
