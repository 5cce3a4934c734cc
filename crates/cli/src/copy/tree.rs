//! A directory on the host that hostile names cannot lead out of.
//!
//! Everything happens relative to an open directory, one checked component at a time, and no symbolic link is
//! ever followed below the root the user named. So neither `..` nor a link planted by an earlier copy, nor one
//! exchanged while we work, makes us write anywhere else.

use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{AtFlags, Mode, OFlags, fchmod, mkdirat, openat, renameat, symlinkat, unlinkat},
    io::Errno,
};
use std::{
    fs::File,
    io,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

/// A single component that stays where it is put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Name<'a>(&'a str);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the VM names a file `{text}`, which cannot be a file's name")]
pub struct InvalidName {
    text: String,
}

impl<'a> Name<'a> {
    pub fn check(text: &'a str) -> Result<Self, InvalidName> {
        let valid = !matches!(text, "" | "." | "..") && !text.contains(['/', '\0']) && text.len() <= 255;
        if valid { Ok(Self(text)) } else { Err(InvalidName { text: text.escape_default().to_string() }) }
    }

    pub fn as_str(self) -> &'a str {
        self.0
    }
}

/// An open directory.
#[derive(Debug)]
pub struct Directory(OwnedFd);

const SEARCH: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC);

impl Directory {
    /// The place the user named; links in the user's own path are followed.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(rustix::fs::open(path, SEARCH, Mode::empty())?))
    }

    /// The directory of that name, made (0700) if nothing is there. Anything else in its place is refused, a link
    /// to a directory too.
    pub fn enter(&self, name: Name<'_>) -> io::Result<Self> {
        match mkdirat(&self.0, name.0, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Self(openat(&self.0, name.0, SEARCH | OFlags::NOFOLLOW, Mode::empty())?))
    }

    /// A new file that takes the name once it is complete.
    pub fn create(&self, name: Name<'_>) -> io::Result<NewFile<'_>> {
        let temporary = temporary_name();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&self.0, &temporary, flags, Mode::RUSR | Mode::WUSR)?;
        Ok(NewFile {
            file: Some(File::from(file)),
            place: Temporary { directory: self, name: temporary, taken: false },
            name: name.0.to_owned(),
        })
    }

    /// Makes a link, in place of a file or link of that name.
    pub fn link(&self, target: &str, name: Name<'_>) -> io::Result<()> {
        let temporary = temporary_name();
        symlinkat(target, &self.0, &temporary)?;
        Temporary { directory: self, name: temporary, taken: false }.rename(name.0)
    }

    /// Permission bits, without those that lend the owner's identity.
    pub fn set_mode(&self, mode: u32) -> io::Result<()> {
        Ok(fchmod(&self.0, permissions(mode))?)
    }
}

/// A file on its way. Dropped before [`NewFile::commit`] it leaves nothing.
#[derive(Debug)]
pub struct NewFile<'a> {
    file: Option<File>,
    place: Temporary<'a>,
    name: String,
}

impl NewFile<'_> {
    /// For writing; taken once.
    pub fn take_file(&mut self) -> File {
        self.file.take().expect("the file is taken once, by whoever writes it")
    }

    /// Gives it its mode and its name.
    pub fn commit(self, file: &impl AsFd, mode: u32) -> io::Result<()> {
        fchmod(file, permissions(mode))?;
        self.place.rename(&self.name)
    }
}

/// A name that goes away unless it becomes another.
#[derive(Debug)]
struct Temporary<'a> {
    directory: &'a Directory,
    name: String,
    taken: bool,
}

impl Temporary<'_> {
    fn rename(mut self, name: &str) -> io::Result<()> {
        renameat(&self.directory.0, &self.name, &self.directory.0, name)?;
        self.taken = true;
        Ok(())
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if !self.taken {
            // The copy has failed already; a leftover is hidden and named for what it is.
            let _ = unlinkat(&self.directory.0, &self.name, AtFlags::empty());
        }
    }
}

fn temporary_name() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!(".offshoot-copy-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

fn permissions(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & 0o777)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{fs, io::Write, os::unix::fs::PermissionsExt, os::unix::fs::symlink};

    fn name(text: &str) -> Name<'_> {
        Name::check(text).unwrap()
    }

    fn write(directory: &Directory, file_name: &str, text: &str, mode: u32) -> io::Result<()> {
        let mut new = directory.create(name(file_name))?;
        let mut file = new.take_file();
        file.write_all(text.as_bytes())?;
        new.commit(&file, mode)
    }

    #[test]
    fn names_that_lead_elsewhere_are_no_names() {
        for bad in ["", ".", "..", "a/b", "/etc", "../x", "a\0b", &"x".repeat(256)] {
            assert!(Name::check(bad).is_err(), "{bad:?}");
        }
        for good in ["a", "...", "..a", "naïve – 漢", " ", "-rf"] {
            assert!(Name::check(good).is_ok(), "{good:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_is_one_component(text in any::<String>()) {
            if let Ok(name) = Name::check(&text) {
                let joined = Path::new("/root").join(name.as_str());
                prop_assert_eq!(joined.parent(), Some(Path::new("/root")));
                prop_assert_eq!(joined.components().count(), 3);
            }
        }
    }

    #[test]
    fn a_link_planted_by_an_earlier_copy_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        fs::create_dir(&victim).unwrap();
        let out = dir.path().join("out");
        fs::create_dir(&out).unwrap();
        let root = Directory::open(&out).unwrap();
        root.link(victim.to_str().unwrap(), name("link")).unwrap();
        assert!(root.enter(name("link")).is_err(), "a link is not a directory to enter");
        root.link("/etc/passwd", name("passwd")).unwrap();
        write(&root, "passwd", "mine", 0o644).unwrap();
        assert_eq!(fs::read_to_string(out.join("passwd")).unwrap(), "mine");
        assert!(!out.join("passwd").is_symlink(), "the link was replaced, not followed");
        assert_eq!(fs::read_dir(&victim).unwrap().count(), 0);
    }

    #[test]
    fn the_root_itself_may_be_a_link_since_the_user_named_it() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("real")).unwrap();
        symlink("real", dir.path().join("link")).unwrap();
        let root = Directory::open(&dir.path().join("link")).unwrap();
        write(&root, "a", "x", 0o600).unwrap();
        assert!(dir.path().join("real/a").exists());
    }

    #[test]
    fn set_id_bits_of_a_guest_never_reach_the_host() {
        let dir = tempfile::tempdir().unwrap();
        let root = Directory::open(dir.path()).unwrap();
        write(&root, "a", "x", 0o6755).unwrap();
        let sub = root.enter(name("sub")).unwrap();
        sub.set_mode(0o7751).unwrap();
        let mode = |path: &str| fs::metadata(dir.path().join(path)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("a"), mode("sub")), (0o755, 0o751));
    }

    #[test]
    fn a_file_that_did_not_arrive_leaves_the_old_one_and_no_trace() {
        let dir = tempfile::tempdir().unwrap();
        let root = Directory::open(dir.path()).unwrap();
        write(&root, "a", "old", 0o644).unwrap();
        let mut half = root.create(name("a")).unwrap();
        half.take_file().write_all(b"ne").unwrap();
        drop(half);
        assert_eq!(fs::read_to_string(dir.path().join("a")).unwrap(), "old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_directory_is_not_replaced_by_a_file_or_link() {
        let dir = tempfile::tempdir().unwrap();
        let root = Directory::open(dir.path()).unwrap();
        root.enter(name("d")).unwrap();
        assert!(write(&root, "d", "x", 0o644).is_err());
        assert!(root.link("x", name("d")).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
