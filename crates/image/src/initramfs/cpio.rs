//! cpio archives in the `newc` format the kernel unpacks (Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! An entry is a header of ASCII hex fields, the name with its NUL, and the content; name and content each end on a
//! multiple of four. Everything that could differ between two builds (inode numbers, times, owners) is fixed.

use super::InitramfsError;

const MAGIC: &[u8] = b"070701";
const FIELDS: usize = 13;
const HEADER: usize = 6 + FIELDS * 8;
const TRAILER: &str = "TRAILER!!!";

// Positions of the fields that matter.
const MODE: usize = 1;
const SIZE: usize = 6;
const DEVICE_MAJOR: usize = 9;
const DEVICE_MINOR: usize = 10;
const NAME_SIZE: usize = 11;

const TYPE_MASK: u32 = 0o170_000;
const TYPE_DIRECTORY: u32 = 0o040_000;
const TYPE_CHARACTER: u32 = 0o020_000;
const TYPE_FILE: u32 = 0o100_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
    CharacterDevice { major: u32, minor: u32 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry<'a> {
    pub(super) name: &'a str,
    pub(super) kind: Kind,
    /// Permission bits only.
    pub(super) mode: u32,
    pub(super) content: &'a [u8],
}

/// An archive being written.
pub(super) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    pub(super) fn new() -> Self {
        Self { bytes: Vec::new(), entries: 0 }
    }

    pub(super) fn push(&mut self, entry: &Entry<'_>) {
        self.entries += 1;
        let (kind, links, (major, minor)) = match entry.kind {
            Kind::File => (TYPE_FILE, 1, (0, 0)),
            Kind::Directory => (TYPE_DIRECTORY, 2, (0, 0)),
            Kind::CharacterDevice { major, minor } => (TYPE_CHARACTER, 1, (major, minor)),
        };
        self.write(self.entries, kind | entry.mode, links, (major, minor), entry.name, entry.content);
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        self.write(0, 0, 1, (0, 0), TRAILER, b"");
        self.bytes
    }

    fn write(&mut self, inode: u32, mode: u32, links: u32, device: (u32, u32), name: &str, content: &[u8]) {
        // The format has 32-bit sizes; our agent and modules are a thousand times smaller.
        let size = u32::try_from(content.len()).expect("an initramfs entry is far below 4 GiB");
        let name_size = name.len() as u32 + 1;
        let fields: [u32; FIELDS] =
            [inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0];
        self.bytes.extend(MAGIC);
        for field in fields {
            self.bytes.extend(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// The entries of an archive written by [`Archive`], up to its trailer.
pub(super) fn read(bytes: &[u8]) -> Reader<'_> {
    Reader { bytes, at: 0, ended: false }
}

pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    ended: bool,
}

impl<'a> Iterator for Reader<'a> {
    type Item = Result<Entry<'a>, InitramfsError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let entry = self.entry().transpose();
        self.ended = !matches!(entry, Some(Ok(_)));
        entry
    }
}

impl<'a> Reader<'a> {
    /// `None` at the trailer.
    fn entry(&mut self) -> Result<Option<Entry<'a>>, InitramfsError> {
        let at = self.at;
        let format = InitramfsError::Format { at };
        if !self.bytes.get(at..).is_some_and(|rest| rest.starts_with(MAGIC)) {
            return Err(if at < self.bytes.len() { format } else { InitramfsError::Truncated { at } });
        }
        let header = self.take(HEADER, at)?;
        let field = |index: usize| {
            let digits = &header[6 + index * 8..14 + index * 8];
            let text = std::str::from_utf8(digits).ok().filter(|text| !text.starts_with('+'))?;
            u32::from_str_radix(text, 16).ok()
        };
        let all = || {
            Some((field(MODE)?, field(SIZE)?, field(DEVICE_MAJOR)?, field(DEVICE_MINOR)?, field(NAME_SIZE)?))
        };
        let Some((mode, size, major, minor, name_size)) = all() else { return Err(format) };
        let name = self.take(name_size as usize, at)?;
        self.align();
        let name = match name.split_last().map(|(nul, name)| (nul, std::str::from_utf8(name))) {
            Some((0, Ok(name))) => name,
            _ => return Err(format),
        };
        if name == TRAILER {
            return Ok(None);
        }
        let content = self.take(size as usize, at)?;
        self.align();
        let kind = match mode & TYPE_MASK {
            TYPE_FILE => Kind::File,
            TYPE_DIRECTORY => Kind::Directory,
            TYPE_CHARACTER => Kind::CharacterDevice { major, minor },
            _ => return Err(format),
        };
        Ok(Some(Entry { name, kind, mode: mode & !TYPE_MASK, content }))
    }

    fn take(&mut self, size: usize, entry: usize) -> Result<&'a [u8], InitramfsError> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let taken = rest.get(..size).ok_or(InitramfsError::Truncated { at: entry })?;
        self.at += size;
        Ok(taken)
    }

    fn align(&mut self) {
        self.at = self.at.next_multiple_of(4);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_entry_has_exactly_the_bytes_of_the_format() {
        let mut archive = Archive::new();
        archive.push(&Entry { name: "init", kind: Kind::File, mode: 0o755, content: b"hello" });
        let console = Kind::CharacterDevice { major: 5, minor: 1 };
        archive.push(&Entry { name: "dev/console", kind: console, mode: 0o600, content: b"" });
        let expected = concat!(
            "070701",
            "00000001",
            "000081ed",
            "00000000",
            "00000000",
            "00000001",
            "00000000",
            "00000005",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000005",
            "00000000",
            "init\0\0",
            "hello\0\0\0",
            "070701",
            "00000002",
            "00002180",
            "00000000",
            "00000000",
            "00000001",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000005",
            "00000001",
            "0000000c",
            "00000000",
            "dev/console\0\0\0",
            "070701",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000001",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "0000000b",
            "00000000",
            "TRAILER!!!\0\0\0\0",
        );
        assert_eq!(String::from_utf8(archive.finish()).unwrap(), expected);
    }

    #[test]
    fn cpio_itself_lists_what_was_written_where_it_is_installed() {
        use std::{io::Write, process};
        let mut archive = Archive::new();
        archive.push(&Entry { name: "dev", kind: Kind::Directory, mode: 0o755, content: b"" });
        archive.push(&Entry { name: "init", kind: Kind::File, mode: 0o755, content: &[7; 1001] });
        let spawned = process::Command::new("cpio")
            .args(["--list", "--verbose", "--numeric-uid-gid", "--quiet"])
            .stdin(process::Stdio::piped())
            .stdout(process::Stdio::piped())
            .spawn();
        let Ok(mut cpio) = spawned else { return };
        cpio.stdin.take().unwrap().write_all(&archive.finish()).unwrap();
        let output = cpio.wait_with_output().unwrap();
        let listing = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<Vec<&str>> = listing.lines().map(|line| line.split_whitespace().collect()).collect();
        assert!(output.status.success());
        assert_eq!((lines[0][0], lines[0].last()), ("drwxr-xr-x", Some(&"dev")));
        assert_eq!((lines[1][0], lines[1][4], lines[1].last()), ("-rwxr-xr-x", "1001", Some(&"init")));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(name in "[a-z/]{1,40}", content: Vec<u8>, mode in 0_u32..0o7777) {
            let entry = Entry { name: &name, kind: Kind::File, mode, content: &content };
            let mut archive = Archive::new();
            archive.push(&entry);
            let bytes = archive.finish();
            prop_assert_eq!(bytes.len() % 4, 0);
            let read: Vec<_> = read(&bytes).map(Result::unwrap).collect();
            prop_assert_eq!(read, vec![entry]);
        }

        #[test]
        fn damage_is_reported_without_a_panic(at in 0_usize..300, byte: u8, cut in 0_usize..400) {
            let mut archive = Archive::new();
            archive.push(&Entry { name: "init", kind: Kind::File, mode: 0o755, content: b"hello" });
            let mut bytes = archive.finish();
            if let Some(place) = bytes.get_mut(at) { *place = byte }
            bytes.truncate(cut);
            let _ = read(&bytes).count();
        }
    }
}
