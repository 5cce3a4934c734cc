//! The agent's executable, from the initramfs of an image: the one that runs in a virtual machine of it.
//!
//! A saved sandbox has the file open, and finds it again by path, size and time: so each agent has one place, by its
//! content, and one time.

use super::Failure;
use rustix::fs::{CWD, Mode, OFlags, RenameFlags, Timespec, Timestamps};
use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

const NAME: &str = "offshoot-guest";
/// The agent is the program the kernel starts.
const INIT: &[u8] = b"init";
/// Nobody's initramfs is near this: ours is a fiftieth.
const MAX: u64 = 256 << 20;
/// The same for every copy of it, whoever makes it when. 2001-09-09 01:46:40 UTC.
const TIME: Timespec = Timespec { tv_sec: 1_000_000_000, tv_nsec: 0 };

/// The agent in `initramfs`, as a file below `cache`. Blocks.
pub(super) fn place(initramfs: &Path, cache: &Path) -> Result<PathBuf, Failure> {
    let failure = |what: String| move |source| Failure::Io { what, source };
    let read = || format!("read the image's initramfs `{}`", initramfs.display());
    let size = initramfs.metadata().map_err(failure(read()))?.len();
    if size > MAX {
        return Err(Failure::NoAgent { initramfs: initramfs.to_owned() });
    }
    let archive = fs::read(initramfs).map_err(failure(read()))?;
    let agent = find(&archive, INIT).ok_or_else(|| Failure::NoAgent { initramfs: initramfs.to_owned() })?;
    let directory = cache.join(blake3::hash(agent).to_hex().as_str());
    let path = directory.join(NAME);
    if path.is_file() {
        return Ok(path);
    }
    put(agent, cache, &directory).map_err(failure(format!("write the agent to `{}`", path.display())))?;
    Ok(path)
}

/// The directory appears with its file complete, or not at all.
fn put(agent: &[u8], cache: &Path, directory: &Path) -> io::Result<()> {
    fs::create_dir_all(cache)?;
    let new = cache.join(format!(".new-{}", uuid::Uuid::new_v4().simple()));
    let made = fs::create_dir(&new).and_then(|()| {
        let mut file = File::create_new(new.join(NAME))?;
        file.write_all(agent)?;
        file.set_permissions(fs::Permissions::from_mode(0o555))?;
        rustix::fs::futimens(&file, &Timestamps { last_access: TIME, last_modification: TIME })?;
        file.sync_all()?;
        match rustix::fs::renameat_with(CWD, &new, CWD, directory, RenameFlags::NOREPLACE) {
            // Somebody else was faster, with the same content.
            Err(rustix::io::Errno::EXIST) => fs::remove_dir_all(&new),
            renamed => Ok(renamed?),
        }
    });
    if made.is_err() {
        // The first failure is the one to tell.
        let _left = fs::remove_dir_all(&new);
        return made;
    }
    let parent =
        rustix::fs::open(cache, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(rustix::fs::fsync(parent)?)
}

/// A file in the first cpio archive (`newc`) of an initramfs.
fn find<'a>(archive: &'a [u8], wanted: &[u8]) -> Option<&'a [u8]> {
    const HEADER: usize = 110;
    const SIZE: usize = 6 + 6 * 8;
    const NAME_SIZE: usize = 6 + 11 * 8;
    let mut at: usize = 0;
    loop {
        let header = archive.get(at..at.checked_add(HEADER)?)?;
        if !header.starts_with(b"070701") {
            return None;
        }
        let field = |from: usize| {
            let digits = std::str::from_utf8(&header[from..from + 8]).ok()?;
            usize::try_from(u32::from_str_radix(digits, 16).ok()?).ok()
        };
        let name_from = at + HEADER;
        let name_to = name_from.checked_add(field(NAME_SIZE)?)?;
        let name = archive.get(name_from..name_to)?.strip_suffix(b"\0")?;
        let content_from = name_to.next_multiple_of(4);
        let content_to = content_from.checked_add(field(SIZE)?)?;
        let content = archive.get(content_from..content_to)?;
        if name == wanted {
            return Some(content);
        }
        if name == b"TRAILER!!!" {
            return None;
        }
        at = content_to.next_multiple_of(4);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (name, content) in entries.iter().copied().chain([("TRAILER!!!", b"".as_slice())]) {
            let fields = [1, 0o100_755, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0];
            bytes.extend(b"070701");
            fields.iter().for_each(|field| bytes.extend(format!("{field:08x}").as_bytes()));
            bytes.extend(name.as_bytes());
            bytes.push(0);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes.extend(content);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }

    #[test]
    fn the_agent_of_an_initramfs_has_one_place_by_its_content() {
        let directory = tempfile::tempdir().unwrap();
        let (initramfs, cache) = (directory.path().join("initramfs"), directory.path().join("agents"));
        fs::write(&initramfs, archive(&[("dev/console", b""), ("init", b"\x7fELF agent"), ("x", b"y")]))
            .unwrap();
        let path = place(&initramfs, &cache).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"\x7fELF agent");
        let before = path.metadata().unwrap();
        assert_eq!(place(&initramfs, &cache).unwrap(), path);
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
        assert_eq!(place(&initramfs, &cache).unwrap(), path);
        let again = path.metadata().unwrap();
        assert_eq!(again.modified().unwrap(), before.modified().unwrap(), "a copy made later is as old");
        assert_eq!((again.permissions().mode() & 0o777, fs::read_dir(&cache).unwrap().count()), (0o555, 1));
    }

    #[test]
    fn an_initramfs_without_an_agent_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let initramfs = directory.path().join("initramfs");
        for content in [archive(&[("linuxrc", b"x")]), b"\x1f\x8b compressed".to_vec(), Vec::new()] {
            fs::write(&initramfs, content).unwrap();
            let error = place(&initramfs, &directory.path().join("agents")).unwrap_err();
            assert!(error.to_string().contains("initramfs"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..300), whole in any::<bool>()) {
            let mut archive = archive(&[("a", b"content")]);
            let at = bytes.len().min(archive.len());
            archive.splice(if whole { 0 } else { archive.len() - at }.., bytes);
            prop_assert_eq!(find(&archive, b"init"), None);
        }
    }
}
