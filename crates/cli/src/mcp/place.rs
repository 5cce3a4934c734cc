//! Changing a file of somebody else: at once or not at all, and what was there is kept beside it.

use crate::failure::{Result, file};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// Copies of a file that is changed again and again.
const MAX_COPIES: u32 = 1000;

/// The file's text; nothing if there is none. A link that leads nowhere is none of ours to replace.
pub fn read(path: &Path) -> Result<String> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !is_link(path) => Ok(String::new()),
        Err(error) => Err(file("read", path, error).into()),
    }
}

/// Puts `text` in place, and returns where the copy of what was there is.
pub fn replace(path: &Path, text: &str) -> Result<Option<PathBuf>> {
    // A file that is a link, as those of people who keep their configuration elsewhere are, stays one.
    let (path, mode) = match fs::metadata(path) {
        Ok(found) => {
            let real = path.canonicalize().map_err(|error| file("find", path, error))?;
            (real, Some(found.permissions().mode() & 0o777))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound && !is_link(path) => (path.to_path_buf(), None),
        Err(error) => return Err(file("look at", path, error).into()),
    };
    if let Some(dir) = path.parent() {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(|error| file("make the directory", dir, error))?;
    }
    let copy = match mode {
        Some(_) => Some(set_aside(&path)?),
        None => None,
    };
    let beside = named(&path, ".offshoot-new");
    write(&beside, text, mode.unwrap_or(0o600)).and_then(|()| fs::rename(&beside, &path)).map_err(
        |error| {
            // What is half written is of no use to anybody.
            let _ = fs::remove_file(&beside);
            file("write", &path, error)
        },
    )?;
    Ok(copy)
}

fn is_link(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink())
}

fn write(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut to = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    // Whatever the umask says: others may read it as they could before.
    to.set_permissions(fs::Permissions::from_mode(mode))?;
    to.write_all(text.as_bytes())?;
    to.sync_all()
}

/// Copies the file to a name that is free.
fn set_aside(path: &Path) -> Result<PathBuf> {
    for number in 0..MAX_COPIES {
        let suffix = if number == 0 { String::new() } else { format!("-{number}") };
        let copy = named(path, &format!(".before-offshoot{suffix}"));
        // Claims the name, which `copy` would not.
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&copy) {
            Ok(mut to) => {
                let copied = File::open(path).and_then(|mut from| io::copy(&mut from, &mut to));
                copied.and_then(|_| to.sync_all()).map_err(|error| file("write", &copy, error))?;
                return Ok(copy);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(file("write", &copy, error).into()),
        }
    }
    let taken = io::Error::new(io::ErrorKind::AlreadyExists, "there are too many copies of it");
    Err(file("copy", path, taken).into())
}

fn named(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done<T>(result: Result<T>) -> T {
        result.unwrap_or_else(|stop| panic!("{stop:?}"))
    }

    #[test]
    fn a_new_file_is_private_and_an_old_one_keeps_its_mode_and_a_copy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/config.json");
        assert_eq!(done(read(&path)), "");
        assert_eq!(done(replace(&path, "one")), None);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o664)).unwrap();
        let first = done(replace(&path, "two")).unwrap();
        let second = done(replace(&path, "three")).unwrap();
        assert_eq!(
            (fs::read_to_string(first).unwrap(), fs::read_to_string(second).unwrap()),
            ("one".into(), "two".into())
        );
        assert_eq!(done(read(&path)), "three");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o664);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 3, "nothing half written is left");
    }

    #[test]
    fn a_link_stays_one() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real.json"), dir.path().join("link.json"));
        fs::write(&real, "one").unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        done(replace(&link, "two"));
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&real).unwrap(), "two");
    }

    #[test]
    fn a_link_that_leads_nowhere_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link.json");
        std::os::unix::fs::symlink(dir.path().join("elsewhere.json"), &link).unwrap();
        assert!(read(&link).is_err() && replace(&link, "two").is_err());
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    }

    #[test]
    fn a_file_that_cannot_be_replaced_is_left_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        fs::write(&path, "one").unwrap();
        // Stands where the new content would be written.
        fs::create_dir(named(&path, ".offshoot-new")).unwrap();
        assert!(replace(&path, "two").is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "one");
    }
}
