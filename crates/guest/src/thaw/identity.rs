//! Who the machine is: hostname and machine id.

use crate::{
    fault::{Context, fault},
    init,
};
use offshoot_guest_proto::message::{GuestError, GuestErrorKind, NewIdentity};
use std::{fs, io, path::Path};

/// Of older programs: on most systems a link to the other.
const DBUS_MACHINE_ID: &str = "var/lib/dbus/machine-id";

/// Takes hostname and machine id on. Nobody reads the files meanwhile: everything stands still.
pub fn take_on(root: &Path, identity: &NewIdentity) -> Result<(), GuestError> {
    let id = identity.machine_id_text();
    init::set_hostname(&identity.hostname).and_then(|()| init::set_machine_id(&id)).map_err(|error| {
        let reason = std::error::Error::source(&error).map(|source| format!(": {source}"));
        fault(GuestErrorKind::Other, format!("{error}{}", reason.unwrap_or_default()))
    })?;
    follow(root, &id)
}

/// The file of older programs, where it is one of its own.
fn follow(root: &Path, id: &str) -> Result<(), GuestError> {
    let dbus = root.join(DBUS_MACHINE_ID);
    match fs::symlink_metadata(&dbus) {
        Ok(meta) if meta.is_file() => replace(&dbus, format!("{id}\n").as_bytes(), 0o444),
        // A link to the first, or not there.
        _ => Ok(()),
    }
}

/// Empty where there is none.
pub fn machine_id() -> Result<String, GuestError> {
    match fs::read_to_string(init::MACHINE_ID) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error).context("read", init::MACHINE_ID),
    }
}

/// Writes a file beside and renames it into place.
pub fn replace(path: &Path, data: &[u8], mode: u32) -> Result<(), GuestError> {
    use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _};
    let mut name = path.as_os_str().to_owned();
    name.push(".offshoot-new");
    let beside = std::path::PathBuf::from(name);
    let write = || {
        // Of an earlier thaw that was cut off.
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?.write_all(data)?;
        fs::rename(&beside, path)
    };
    write().context("replace", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_file_with_the_id_follows_and_a_link_stays_a_link() {
        let root = tempfile::tempdir().unwrap();
        follow(root.path(), &"a".repeat(32)).unwrap();
        let dbus = root.path().join(DBUS_MACHINE_ID);
        assert!(!dbus.exists());
        fs::create_dir_all(dbus.parent().unwrap()).unwrap();
        fs::write(&dbus, "old\n").unwrap();
        follow(root.path(), &"a".repeat(32)).unwrap();
        assert_eq!(fs::read_to_string(&dbus).unwrap(), format!("{}\n", "a".repeat(32)));
        fs::remove_file(&dbus).unwrap();
        std::os::unix::fs::symlink("../../../etc/machine-id", &dbus).unwrap();
        follow(root.path(), &"b".repeat(32)).unwrap();
        assert!(fs::symlink_metadata(&dbus).unwrap().is_symlink());
    }
}
