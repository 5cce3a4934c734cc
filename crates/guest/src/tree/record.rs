//! The records of the stream, each a tag and its fields; numbers are little-endian, bytes come after their length.

use rustix::fs::Timespec;
use std::{
    ffi::CString,
    io::{self, Read, Write},
};

pub const MAGIC: &[u8; 8] = b"OSTREE\0\x01";
/// Longer than any name, target, path or attribute of a file system here.
const MAX_BYTES: usize = 128 * 1024;
/// Of one file. Linux allows names of 64 KiB together.
const MAX_ATTRIBUTES: usize = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Tag {
    End = 0,
    Directory = 1,
    Leave = 2,
    File = 3,
    Symlink = 4,
    Node = 5,
    Link = 6,
    Gone = 7,
}

impl TryFrom<u8> for Tag {
    type Error = io::Error;

    fn try_from(byte: u8) -> io::Result<Self> {
        const TAGS: [Tag; 8] =
            [Tag::End, Tag::Directory, Tag::Leave, Tag::File, Tag::Symlink, Tag::Node, Tag::Link, Tag::Gone];
        TAGS.get(usize::from(byte)).copied().ok_or_else(|| bad("an unknown record"))
    }
}

/// What a file, directory or link has besides its contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub modified: Timespec,
    pub extended: Vec<(CString, Vec<u8>)>,
}

pub fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the stream has {what}"))
}

/// Writes fields.
#[derive(Debug)]
pub struct Put<W> {
    to: W,
    records: u64,
}

impl<W: Write> Put<W> {
    pub fn begin(mut to: W) -> io::Result<Self> {
        to.write_all(MAGIC)?;
        Ok(Self { to, records: 0 })
    }

    pub fn tag(&mut self, tag: Tag) -> io::Result<()> {
        self.records += 1;
        self.to.write_all(&[tag as u8])
    }

    pub fn number(&mut self, number: u64) -> io::Result<()> {
        self.to.write_all(&number.to_le_bytes())
    }

    pub fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        let length = u32::try_from(bytes.len()).ok().filter(|length| *length as usize <= MAX_BYTES);
        let length = length.ok_or_else(|| io::Error::other("a name or an attribute is too long to keep"))?;
        self.to.write_all(&length.to_le_bytes())?;
        self.to.write_all(bytes)
    }

    pub fn attributes(&mut self, attributes: &Attributes) -> io::Result<()> {
        let Attributes { mode, uid, gid, modified, extended } = attributes;
        for number in [u64::from(*mode), u64::from(*uid), u64::from(*gid), modified.tv_sec.cast_unsigned()] {
            self.number(number)?;
        }
        self.number(u64::try_from(modified.tv_nsec).unwrap_or(0))?;
        if extended.len() > MAX_ATTRIBUTES {
            return Err(io::Error::other(format!("a file has {} attributes", extended.len())));
        }
        self.number(extended.len() as u64)?;
        for (name, value) in extended {
            self.bytes(name.as_bytes())?;
            self.bytes(value)?;
        }
        Ok(())
    }

    /// The last record: a stream that was cut has none.
    pub fn end(mut self) -> io::Result<()> {
        let records = self.records;
        self.tag(Tag::End)?;
        self.number(records)?;
        self.to.flush()
    }
}

/// Reads fields, none of which is larger than what one could have been written as.
#[derive(Debug)]
pub struct Take<R> {
    from: R,
    records: u64,
}

impl<R: Read> Take<R> {
    pub fn begin(mut from: R) -> io::Result<Self> {
        let mut magic = [0; MAGIC.len()];
        from.read_exact(&mut magic)?;
        if magic != *MAGIC {
            return Err(bad("another format"));
        }
        Ok(Self { from, records: 0 })
    }

    pub fn tag(&mut self) -> io::Result<Tag> {
        let mut byte = [0];
        self.from.read_exact(&mut byte)?;
        let tag = Tag::try_from(byte[0])?;
        if tag != Tag::End {
            self.records += 1;
        }
        Ok(tag)
    }

    pub fn number(&mut self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.from.read_exact(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Of the bytes that follow, at most `most`.
    pub fn length(&mut self, most: usize) -> io::Result<usize> {
        let mut length = [0; 4];
        self.from.read_exact(&mut length)?;
        let length = u32::from_le_bytes(length) as usize;
        if length > most { Err(bad("a field that is too long")) } else { Ok(length) }
    }

    pub fn bytes(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.length(MAX_BYTES)?];
        self.from.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// A name in a directory, never another way through the tree.
    pub fn name(&mut self) -> io::Result<CString> {
        let name = self.bytes()?;
        if matches!(name.as_slice(), b"" | b"." | b"..") || name.contains(&b'/') {
            return Err(bad("what is no file name"));
        }
        CString::new(name).map_err(|_| bad("what is no file name"))
    }

    pub fn attributes(&mut self) -> io::Result<Attributes> {
        let small = |number: u64| u32::try_from(number).map_err(|_| bad("an attribute out of range"));
        let mode = small(self.number()?)? & 0o7777;
        let (uid, gid) = (small(self.number()?)?, small(self.number()?)?);
        let tv_sec = self.number()?.cast_signed();
        let tv_nsec = i64::from(small(self.number()?)?);
        let count = usize::try_from(self.number()?).unwrap_or(usize::MAX);
        if count > MAX_ATTRIBUTES {
            return Err(bad("too many attributes"));
        }
        let mut extended = Vec::new();
        for _ in 0..count {
            let name = CString::new(self.bytes()?).map_err(|_| bad("what is no attribute's name"))?;
            extended.push((name, self.bytes()?));
        }
        Ok(Attributes { mode, uid, gid, modified: Timespec { tv_sec, tv_nsec }, extended })
    }

    /// Fills `block`.
    pub fn block(&mut self, block: &mut [u8]) -> io::Result<()> {
        self.from.read_exact(block)
    }

    /// After the last record: whether all of them have come, and nothing else.
    pub fn end(mut self) -> io::Result<()> {
        if self.number()? != self.records {
            return Err(bad("fewer records than were written"));
        }
        match self.from.read(&mut [0])? {
            0 => Ok(()),
            _ => Err(bad("more behind its end")),
        }
    }
}
