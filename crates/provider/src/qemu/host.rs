//! The QEMU of this host: where it is and what it is.

use crate::program::{identity, on_path};
use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

const PROGRAM: &str = "qemu-system-x86_64";
pub(super) const INSTALL: &str = "install QEMU: `apt install qemu-system-x86`, `dnf install qemu-system-x86-core` \
                                  or `pacman -S qemu-system-x86`";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Qemu {
    pub program: PathBuf,
    /// `QEMU 7.2.22`
    pub version: String,
    /// Changes whenever the file does.
    pub identity: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoQemu {
    #[error("`{PROGRAM}` is not installed")]
    Missing,
    #[error("`{}` cannot be run: {reason}", program.display())]
    Unusable { program: PathBuf, reason: String },
}

impl Qemu {
    /// Runs the program once; `known` is believed while its file is the same.
    pub fn find(given: Option<&Path>, known: Option<Self>) -> Result<Self, NoQemu> {
        let program = match given {
            Some(path) => path.to_owned(),
            None => on_path(PROGRAM).ok_or(NoQemu::Missing)?,
        };
        let unusable = |reason: String| NoQemu::Unusable { program: program.clone(), reason };
        let identity = identity(&program).map_err(|error| unusable(error.to_string()))?;
        if let Some(known) = known.filter(|known| known.identity == identity) {
            return Ok(known);
        }
        let output = Command::new(&program)
            .arg("--version")
            .env_clear()
            .stdin(Stdio::null())
            .output()
            .map_err(|error| unusable(error.to_string()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version =
            text.strip_prefix("QEMU emulator version ").and_then(|rest| rest.split_whitespace().next());
        let version = version.ok_or_else(|| unusable(format!("`--version` ended with {}", output.status)))?;
        Ok(Self { version: format!("QEMU {version}"), identity, program })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_not_qemu_is_refused_by_name() {
        let missing = Qemu::find(Some(Path::new("/no/such/qemu")), None).unwrap_err();
        assert!(missing.to_string().contains("/no/such/qemu"), "{missing}");
        let other = Qemu::find(Some(Path::new("/bin/false")), None).unwrap_err();
        assert!(matches!(other, NoQemu::Unusable { .. }), "{other}");
    }
}
