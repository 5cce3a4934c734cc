//! Where things are, from flags and environment: the only place of the program that looks for them.
//!
//! State directory: `--state-dir`, else `OFFSHOOT_HOME`, else `~/.local/share/offshoot`.
//! Images: `OFFSHOOT_IMAGES`, else `$XDG_CACHE_HOME/offshoot/images`, else `~/.cache/offshoot/images`.

use crate::failure::{Result, file, usage};
use offshoot_api::socket::RuntimeBase;
use offshoot_types::{ErrorCode, Failure};
use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

/// File of the state directory that an autostarted daemon logs to.
pub const DAEMON_LOG: &str = "daemon.log";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// Absolute, but not made and not canonical until [`Paths::prepare`].
    pub state_dir: PathBuf,
}

/// The state directory, made and canonical, so that its socket has one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateDir(PathBuf);

impl Paths {
    /// `given` is the flag or its environment variable, `home` the user's home directory.
    pub fn new(given: Option<PathBuf>, home: Option<PathBuf>) -> Result<Self> {
        let dir = given
            .filter(|dir| !dir.as_os_str().is_empty())
            .or_else(|| Some(home.filter(|home| home.is_absolute())?.join(".local/share/offshoot")))
            .ok_or_else(|| {
                usage("cannot tell where to keep state: HOME is not set").hint("give `--state-dir DIR`")
            })?;
        let state_dir = std::path::absolute(&dir).map_err(|error| file("find", &dir, error))?;
        Ok(Self { state_dir })
    }

    /// Makes the state directory, readable by its owner only, if it is not there.
    pub fn prepare(&self) -> Result<StateDir> {
        let dir = &self.state_dir;
        let hint = "give another place with `--state-dir` or OFFSHOOT_HOME";
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .and_then(|()| dir.canonicalize())
            .map(StateDir)
            // A path that is a file is a wrong option, not a VM that exists already.
            .map_err(|error| match error.kind() {
                io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => Failure::new(
                    ErrorCode::InvalidArgument,
                    format!("the state directory `{}` is not a directory", dir.display()),
                ),
                _ => file("make the state directory", dir, error),
            })
            .map_err(|failure| failure.hint(hint).into())
    }

    /// The state directory if it is there already.
    pub fn existing(&self) -> io::Result<Option<StateDir>> {
        match self.state_dir.canonicalize() {
            Ok(dir) => Ok(Some(StateDir(dir))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl StateDir {
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Where its daemon listens, if one runs.
    pub fn socket(&self) -> PathBuf {
        RuntimeBase::from_environment().socket_path(&self.0)
    }

    pub fn daemon_log(&self) -> PathBuf {
        self.0.join(DAEMON_LOG)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_wins_over_the_default_and_nothing_at_all_is_a_usage_error() {
        let home = || Some(PathBuf::from("/home/a"));
        let given = Paths::new(Some("/srv/x".into()), home()).unwrap();
        assert_eq!(given.state_dir, Path::new("/srv/x"));
        let default = Paths::new(None, home()).unwrap();
        assert_eq!(default.state_dir, Path::new("/home/a/.local/share/offshoot"));
        assert_eq!(Paths::new(Some("".into()), home()).unwrap(), default);
        assert!(Paths::new(None, None).is_err());
        assert!(Paths::new(None, Some("relative".into())).is_err());
    }

    #[test]
    fn a_state_directory_is_made_private_and_named_canonically() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        let paths = Paths::new(Some(link.join("state")), None).unwrap();
        assert_eq!(paths.existing().unwrap(), None);
        let made = paths.prepare().unwrap();
        assert_eq!(made.path(), dir.path().canonicalize().unwrap().join("state"));
        assert_eq!(fs::metadata(made.path()).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(paths.existing().unwrap(), Some(made));
    }
}
