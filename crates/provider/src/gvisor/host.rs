//! The `runsc` of this host: where it is and what it is.

use crate::program::{identity, on_path};
use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

const PROGRAM: &str = "runsc";
pub(super) const INSTALL: &str = "install gVisor's `runsc` of 2024 or later: on Debian 12 from backports (`apt-get install -t bookworm-backports runsc`)";
/// Date of the oldest that runs an image's root as it is. Debian 12 itself has one of 2022.
const OLDEST: u32 = 20_240_101;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Runsc {
    pub program: PathBuf,
    /// `runsc 20240729`
    pub version: String,
    /// Changes whenever the file does.
    pub identity: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoRunsc {
    #[error("`{PROGRAM}` is not installed")]
    Missing,
    #[error("`{}` cannot be run: {reason}", program.display())]
    Unusable { program: PathBuf, reason: String },
    #[error("{version} (`{}`) is too old: it cannot run an image's root", program.display())]
    TooOld { program: PathBuf, version: String },
}

impl Runsc {
    /// Runs the program once; `known` is believed while its file is the same.
    pub fn find(given: Option<&Path>, known: Option<Self>) -> Result<Self, NoRunsc> {
        let program = match given {
            Some(path) => path.to_owned(),
            None => on_path(PROGRAM).ok_or(NoRunsc::Missing)?,
        };
        let unusable = |reason: String| NoRunsc::Unusable { program: program.clone(), reason };
        let identity = identity(&program).map_err(|error| unusable(error.to_string()))?;
        if let Some(known) = known.filter(|known| known.identity == identity) {
            return Ok(known);
        }
        let output = Command::new(&program).arg("--version").env_clear().stdin(Stdio::null()).output();
        let output = output.map_err(|error| unusable(error.to_string()))?;
        let date = released(&String::from_utf8_lossy(&output.stdout));
        let date = date.ok_or_else(|| unusable(format!("`--version` ended with {}", output.status)))?;
        let version = format!("{PROGRAM} {date}");
        match date < OLDEST {
            true => Err(NoRunsc::TooOld { program, version }),
            false => Ok(Self { program, version, identity }),
        }
    }
}

/// The date in `runsc version 0.0~20240729.0` (Debian's) or `runsc version release-20240729.0` (gVisor's own).
fn released(text: &str) -> Option<u32> {
    let version = text.strip_prefix("runsc version ")?.lines().next()?;
    let digits = version.split(|c: char| !c.is_ascii_digit()).find(|digits| digits.len() == 8)?;
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_known_by_its_date() {
        assert_eq!(released("runsc version 0.0~20240729.0\nspec: 1.0.2-dev\n"), Some(20_240_729));
        assert_eq!(released("runsc version release-20250106.0\n"), Some(20_250_106));
        assert_eq!(released("runsc version VERSION_MISSING\n"), None);
        assert_eq!(released("runc version 1.1.5\n"), None);
    }

    #[test]
    fn a_program_that_is_not_runsc_is_refused_by_name() {
        let missing = Runsc::find(Some(Path::new("/no/such/runsc")), None).unwrap_err();
        assert!(missing.to_string().contains("/no/such/runsc"), "{missing}");
        let other = Runsc::find(Some(Path::new("/bin/false")), None).unwrap_err();
        assert!(matches!(other, NoRunsc::Unusable { .. }), "{other}");
    }
}
