//! The file that holds what a VM had written, where its disk is its memory.
//!
//! | field | bytes | meaning |
//! |---|---|---|
//! | magic | 8 | `OSKEPT`, 0, version 1 |
//! | blocks | | each: length of its frame (4), of its bytes (4), a Zstandard frame |
//!
//! What the bytes are is the guest's affair: here they are counted, compressed and hashed, never read. A file gets its name
//! once all of it is on the host's disk; length and hash are in the VM's row.

use crate::machine::io_failure;
use offshoot_store::KeptDisk;
use offshoot_types::{ErrorCode, Failure, OperationId};
use ruzstd::{
    decoding::StreamingDecoder,
    encoding::{CompressionLevel, compress_to_vec},
};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

const MAGIC: &[u8; 8] = b"OSKEPT\0\x01";
const PREFIX: &str = "disk-";
const ENDING: &str = ".kept";
/// While it is written.
const NEW: &str = ".new";
/// Compressed at once.
const BLOCK: usize = 1 << 20;
/// A block that does not compress grows by a few bytes.
const MOST_FRAME: usize = BLOCK + (64 << 10);
/// What a full disk of the host needs beside the archive.
const SPARE: u64 = 16 << 20;

/// A file on its way to be one. Dropped before [`finish`](Self::finish), it leaves a file that the next one removes.
#[derive(Debug)]
pub(crate) struct Writer {
    directory: PathBuf,
    name: String,
    operation: OperationId,
    file: File,
    hasher: blake3::Hasher,
    block: Vec<u8>,
    length: u64,
    unpacked: u64,
}

/// The name of the file that a stop makes.
fn file_name(operation: OperationId) -> String {
    format!("{PREFIX}{}{ENDING}", operation.as_uuid().simple())
}

/// Removes what earlier stops left in a VM's directory, but for `keep`. Blocks.
pub(crate) fn remove_others(directory: &Path, keep: Option<&str>) -> Result<(), Failure> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io_failure("read", directory, &error)),
    };
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name();
        let Some(text) = name.to_str() else { continue };
        let ours = text.starts_with(PREFIX) && (text.ends_with(ENDING) || text.ends_with(NEW));
        if ours && Some(text) != keep {
            let path = entry.path();
            fs::remove_file(&path).map_err(|error| io_failure("remove", &path, &error))?;
        }
    }
    Ok(())
}

/// Whether the disk of the host has room for `bytes` more, however badly they compress. Blocks.
pub(crate) fn check_room(directory: &Path, bytes: u64) -> Result<(), Failure> {
    let stat =
        rustix::fs::statvfs(directory).map_err(|errno| io_failure("measure", directory, &errno.into()))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free >= bytes.saturating_add(SPARE) {
        return Ok(());
    }
    let (needed, free) = (bytes.saturating_add(SPARE) >> 20, free >> 20);
    let message = format!(
        "the disk that holds {} has {free} MiB left, and what the VM has written may need {needed} MiB",
        directory.display()
    );
    Err(Failure::new(ErrorCode::NoResource, message).hint("free space there, then stop the VM again"))
}

impl Writer {
    /// Blocks.
    pub fn create(directory: &Path, operation: OperationId) -> Result<Self, Failure> {
        let name = file_name(operation);
        let path = directory.join(format!("{name}{NEW}"));
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
        let file = file.map_err(|error| io_failure("create", &path, &error))?;
        let mut writer = Self {
            directory: directory.to_owned(),
            name,
            operation,
            file,
            hasher: blake3::Hasher::new(),
            block: Vec::with_capacity(BLOCK),
            length: 0,
            unpacked: 0,
        };
        writer.put(MAGIC).map_err(|error| writer.failure("write", &error))?;
        Ok(writer)
    }

    fn path(&self) -> PathBuf {
        self.directory.join(format!("{}{NEW}", self.name))
    }

    fn failure(&self, verb: &str, error: &io::Error) -> Failure {
        io_failure(verb, &self.path(), error)
    }

    /// How much was taken that [`write`](Self::write) has not written yet.
    pub fn is_full(&self) -> bool {
        self.block.len() >= BLOCK
    }

    /// Takes bytes into memory.
    pub fn take(&mut self, bytes: &[u8]) {
        self.block.extend_from_slice(bytes);
    }

    /// Writes what was taken. Blocks.
    pub fn write(mut self) -> Result<Self, Failure> {
        let block = std::mem::replace(&mut self.block, Vec::with_capacity(BLOCK));
        for part in block.chunks(BLOCK) {
            let frame = compress_to_vec(part, CompressionLevel::Fastest);
            let lengths = [(frame.len() as u32).to_le_bytes(), (part.len() as u32).to_le_bytes()].concat();
            let put = self.put(&lengths).and_then(|()| self.put(&frame));
            put.map_err(|error| self.failure("write", &error))?;
            self.unpacked += part.len() as u64;
        }
        Ok(self)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Writes the rest, and returns once all of it is on the host's disk under its name. Blocks.
    pub fn finish(self) -> Result<KeptDisk, Failure> {
        let done = self.write()?;
        let (new, path) = (done.path(), done.directory.join(&done.name));
        let durable = || {
            done.file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(&done.directory)?.sync_all()
        };
        durable().map_err(|error| io_failure("make durable", &path, &error))?;
        Ok(KeptDisk {
            operation: done.operation,
            file: done.name,
            length: done.length,
            unpacked: done.unpacked,
            hash: done.hasher.finalize().to_hex().to_string(),
            current: false,
        })
    }
}

/// The bytes of a file, block by block.
#[derive(Debug)]
pub(crate) struct Reader {
    path: PathBuf,
    from: io::BufReader<Hashed>,
    expected: KeptDisk,
    unpacked: u64,
}

#[derive(Debug)]
struct Hashed {
    file: io::Take<File>,
    hasher: blake3::Hasher,
}

impl Read for Hashed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        Ok(read)
    }
}

fn damaged(path: &Path, what: &str) -> Failure {
    let message = format!("the archive {} of what the VM had written is damaged: {what}", path.display());
    Failure::new(ErrorCode::Snapshot, message)
        .hint("a copy of the file put in its place is taken; `offshoot rollback` goes back to a snapshot, if there is one")
}

/// Whether the file is the one that was written. Blocks.
pub(crate) fn check(directory: &Path, kept: &KeptDisk) -> Result<(), Failure> {
    let mut reader = Reader::open(directory, kept)?;
    let read = io::copy(&mut reader.from, &mut io::sink());
    read.map_err(|error| io_failure("read", &reader.path, &error))?;
    reader.judge()
}

impl Reader {
    /// Blocks.
    pub fn open(directory: &Path, kept: &KeptDisk) -> Result<Self, Failure> {
        let path = directory.join(&kept.file);
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(damaged(&path, "it is not there"));
            }
            opened => opened.map_err(|error| io_failure("open", &path, &error))?,
        };
        let length = file.metadata().map_err(|error| io_failure("measure", &path, &error))?.len();
        if length != kept.length {
            return Err(damaged(&path, &format!("it has {length} bytes, {} were written", kept.length)));
        }
        let hashed = Hashed { file: file.take(length), hasher: blake3::Hasher::new() };
        let from = io::BufReader::new(hashed);
        Ok(Self { path, from, expected: kept.clone(), unpacked: 0 })
    }

    fn judge(&self) -> Result<(), Failure> {
        match self.from.get_ref().hasher.finalize().to_hex().as_str() == self.expected.hash {
            true => Ok(()),
            false => Err(damaged(&self.path, "its hash is another")),
        }
    }

    /// The next block; `None` at the end of a file that is whole. What came before it is to be forgotten if it is not.
    /// Blocks.
    pub fn next(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        if self.unpacked == 0 {
            let mut magic = [0; MAGIC.len()];
            self.fill(&mut magic)?;
            if magic != *MAGIC {
                return Err(damaged(&self.path, "it is of another format"));
            }
        }
        if self.unpacked >= self.expected.unpacked {
            return self.judge().map(|()| None);
        }
        let mut lengths = [0; 8];
        self.fill(&mut lengths)?;
        let at = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| lengths[at + i])) as usize;
        let (frame, length) = (at(0), at(4));
        let left = self.expected.unpacked - self.unpacked;
        if frame > MOST_FRAME || length == 0 || length > BLOCK || length as u64 > left {
            return Err(damaged(&self.path, "it has a block of absurd length"));
        }
        let mut packed = vec![0; frame];
        self.fill(&mut packed)?;
        let mut block = Vec::with_capacity(length);
        let decoded = StreamingDecoder::new(packed.as_slice()).map_err(io::Error::other);
        let decoded = decoded.and_then(|decoder| decoder.take(length as u64 + 1).read_to_end(&mut block));
        if decoded.is_err() || block.len() != length {
            return Err(damaged(&self.path, "a block of it does not unpack"));
        }
        self.unpacked += length as u64;
        Ok(Some(block))
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), Failure> {
        match self.from.read_exact(buffer) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(damaged(&self.path, "it ends too early"))
            }
            read => read.map_err(|error| io_failure("read", &self.path, &error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(directory: &Path, content: &[u8]) -> KeptDisk {
        let mut writer = Writer::create(directory, OperationId::new()).unwrap();
        for chunk in content.chunks(100_000) {
            writer.take(chunk);
            if writer.is_full() {
                writer = writer.write().unwrap();
            }
        }
        writer.finish().unwrap()
    }

    fn read(directory: &Path, kept: &KeptDisk) -> Result<Vec<u8>, Failure> {
        let mut reader = Reader::open(directory, kept)?;
        let mut content = Vec::new();
        while let Some(block) = reader.next()? {
            content.extend(block);
        }
        Ok(content)
    }

    #[test]
    fn what_was_written_comes_back_and_only_one_file_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let noise: Vec<u8> =
            (0..3_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        for content in [noise.as_slice(), &vec![0; 2 * BLOCK], b"x", b""] {
            let kept = written(dir.path(), content);
            assert_eq!(kept.unpacked, content.len() as u64);
            check(dir.path(), &kept).unwrap();
            assert!(read(dir.path(), &kept).unwrap() == content);
            fs::write(dir.path().join("g3"), "").unwrap();
            Writer::create(dir.path(), OperationId::new()).unwrap();
            remove_others(dir.path(), Some(&kept.file)).unwrap();
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "and what is not its own");
            remove_others(dir.path(), None).unwrap();
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        }
        remove_others(&dir.path().join("none"), None).unwrap();
    }

    #[test]
    fn a_file_that_is_another_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let kept = written(dir.path(), &[5; 10_000]);
        let path = dir.path().join(&kept.file);
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x20;
            fs::write(&path, &bad).unwrap();
            for refused in [check(dir.path(), &kept).map(|()| Vec::new()), read(dir.path(), &kept)] {
                let refused = refused.unwrap_err();
                assert_eq!(refused.code, ErrorCode::Snapshot, "{at}: {refused}");
                assert!(refused.message.contains(&kept.file), "{refused}");
            }
        }
        for bad in [good[..good.len() - 1].to_vec(), [good.as_slice(), b"x"].concat()] {
            fs::write(&path, &bad).unwrap();
            assert_eq!(check(dir.path(), &kept).unwrap_err().code, ErrorCode::Snapshot);
        }
        fs::remove_file(&path).unwrap();
        assert_eq!(check(dir.path(), &kept).unwrap_err().code, ErrorCode::Snapshot);
    }

    #[test]
    fn a_host_without_room_is_told_before_anything_is_written() {
        let dir = tempfile::tempdir().unwrap();
        check_room(dir.path(), 1).unwrap();
        assert_eq!(check_room(dir.path(), u64::MAX).unwrap_err().code, ErrorCode::NoResource);
    }
}
