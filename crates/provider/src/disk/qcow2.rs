//! The few clusters of an empty qcow2 image, written and recognised.

use super::{DiskError, Kind, Layer};
use offshoot_types::Bytes;
use std::{
    fs::File,
    io::{self, Read, Write},
    os::unix::{ffi::OsStrExt, fs::FileExt},
    path::{Path, PathBuf},
};

const MAGIC: [u8; 4] = *b"QFI\xfb";
const VERSION: u32 = 3;
const HEADER_LENGTH: u32 = 104;
const CLUSTER_BITS: u32 = 16;
pub(super) const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// 16-bit reference counts, as `qemu-img` makes them.
const REFCOUNT_ORDER: u32 = 4;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
/// What a VMM's messages call features; it writes that by itself.
const EXTENSION_FEATURE_NAMES: u32 = 0x6803_f857;
/// The format's own limit.
pub(super) const MAX_BACKING_NAME: usize = 1023;

impl Kind {
    /// As the header names it.
    const fn format(self) -> &'static [u8] {
        match self {
            Self::Template => b"raw",
            Self::Layer => b"qcow2",
        }
    }
}

/// Reads the header of a file made here; anything else is refused, however valid.
pub(super) fn inspect(path: &Path) -> Result<Layer, DiskError> {
    let io = |source| DiskError::Io { operation: "read", path: path.to_owned(), source };
    let foreign = |reason| DiskError::Foreign { path: path.to_owned(), reason };
    let mut head = Vec::with_capacity(4096);
    File::open(path).map_err(io)?.take(4096).read_to_end(&mut head).map_err(io)?;
    let field = |at: usize, length: usize| {
        let bytes = head.get(at..at + length).ok_or_else(|| foreign("it is too short"))?;
        Ok(bytes.iter().fold(0_u64, |value, byte| value << 8 | u64::from(*byte)))
    };
    if head.get(..4) != Some(&MAGIC) || field(4, 4)? != u64::from(VERSION) {
        return Err(foreign("it is not qcow2 version 3"));
    }
    if field(20, 4)? != u64::from(CLUSTER_BITS) || field(100, 4)? != u64::from(HEADER_LENGTH) {
        return Err(foreign("its layout is another"));
    }
    let (at, length) = (field(8, 8)? as usize, field(16, 4)? as usize);
    if length == 0 || length > MAX_BACKING_NAME {
        return Err(foreign("it is over nothing"));
    }
    let name =
        at.checked_add(length).and_then(|end| head.get(at..end)).ok_or_else(|| foreign("it is too short"))?;
    let below = PathBuf::from(std::ffi::OsStr::from_bytes(name));
    if !below.is_absolute() {
        return Err(foreign("what it is over is not an absolute path"));
    }
    if field(104, 4)? != u64::from(EXTENSION_BACKING_FORMAT) {
        return Err(foreign("it does not say what it is over"));
    }
    let format = (112_usize.checked_add(field(108, 4)? as usize)).and_then(|end| head.get(112..end));
    let kind = [Kind::Template, Kind::Layer].into_iter().find(|kind| Some(kind.format()) == format);
    let kind = kind.ok_or_else(|| foreign("what it is over has another format"))?;
    Ok(Layer { size: Bytes(field(24, 8)?), below, kind })
}

/// That the header of a file that looks like ours asks for nothing that ours never does. A VMM opens further files, or
/// takes keys, because of what stands there.
pub(super) fn check_plain(path: &Path) -> Result<(), DiskError> {
    let io = |source| DiskError::Io { operation: "read", path: path.to_owned(), source };
    let foreign = |reason| Err(DiskError::Foreign { path: path.to_owned(), reason });
    let mut head = vec![0; CLUSTER as usize];
    File::open(path).and_then(|file| file.read_exact_at(&mut head, 0)).map_err(io)?;
    let field = |at: usize, length: usize| {
        head[at..at + length].iter().fold(0_u64, |value, byte| value << 8 | u64::from(*byte))
    };
    if field(32, 4) != 0 {
        return foreign("it is encrypted");
    }
    if field(60, 4) != 0 {
        return foreign("it holds snapshots of its own");
    }
    // Which bits a VMM may set by itself changes; one it must understand is none of ours.
    if field(72, 8) != 0 {
        return foreign("it needs features that data disks do not have");
    }
    let mut at = HEADER_LENGTH as usize;
    loop {
        if at + 8 > head.len() {
            return foreign("its header does not end");
        }
        let (kind, length) = (field(at, 4), field(at + 4, 4) as usize);
        match u32::try_from(kind) {
            Ok(0) => return Ok(()),
            Ok(EXTENSION_BACKING_FORMAT | EXTENSION_FEATURE_NAMES) => {}
            _ => return foreign("its header has an extension that data disks do not have"),
        }
        at += 8 + length.next_multiple_of(8);
    }
}

/// Where the clusters of an empty image lie: header, L1 table, refcount table, one refcount block.
pub(super) struct Layout {
    size: u64,
    l1_entries: u64,
    l1_clusters: u64,
}

impl Layout {
    pub const L1: u64 = CLUSTER;

    pub fn new(size: u64) -> Self {
        // One L1 entry covers one L2 table, which covers CLUSTER / 8 clusters.
        let l1_entries = size.div_ceil(CLUSTER * (CLUSTER / 8));
        Self { size, l1_entries, l1_clusters: (l1_entries * 8).div_ceil(CLUSTER) }
    }

    pub fn refcount_table(&self) -> u64 {
        Self::L1 + self.l1_clusters * CLUSTER
    }

    pub fn refcount_block(&self) -> u64 {
        self.refcount_table() + CLUSTER
    }

    pub fn end(&self) -> u64 {
        self.refcount_block() + CLUSTER
    }

    pub fn l1_entries(&self) -> u64 {
        self.l1_entries
    }

    pub fn header(&self, below: &Path, kind: Kind) -> Result<Vec<u8>, DiskError> {
        let name = below.as_os_str().as_bytes();
        if !below.is_absolute() || name.len() > MAX_BACKING_NAME {
            return Err(DiskError::Below { path: below.to_owned() });
        }
        // The backing format, padded to 8 bytes, then the end mark; the name follows.
        let mut extensions = Vec::new();
        extensions.extend(EXTENSION_BACKING_FORMAT.to_be_bytes());
        extensions.extend((kind.format().len() as u32).to_be_bytes());
        extensions.extend(kind.format());
        extensions.resize(extensions.len().next_multiple_of(8), 0);
        extensions.extend([0; 8]);
        let name_offset = u64::from(HEADER_LENGTH) + extensions.len() as u64;

        let mut header = Vec::new();
        header.extend(MAGIC);
        header.extend(VERSION.to_be_bytes());
        header.extend(name_offset.to_be_bytes());
        header.extend((name.len() as u32).to_be_bytes());
        header.extend(CLUSTER_BITS.to_be_bytes());
        header.extend(self.size.to_be_bytes());
        header.extend(0_u32.to_be_bytes()); // not encrypted
        header.extend((self.l1_entries as u32).to_be_bytes());
        header.extend(Self::L1.to_be_bytes());
        header.extend(self.refcount_table().to_be_bytes());
        header.extend(1_u32.to_be_bytes()); // clusters of the refcount table
        header.extend([0; 4 + 8]); // no internal snapshots
        header.extend([0; 24]); // no incompatible, compatible or autoclear features
        header.extend(REFCOUNT_ORDER.to_be_bytes());
        header.extend(HEADER_LENGTH.to_be_bytes());
        header.extend(extensions);
        header.extend(name);
        Ok(header)
    }

    pub fn write(&self, mut file: &File, header: &[u8]) -> io::Result<()> {
        file.write_all(header)?;
        file.write_all_at(&self.refcount_block().to_be_bytes(), self.refcount_table())?;
        let clusters = (self.end() / CLUSTER) as usize;
        let counts: Vec<u8> = 1_u16.to_be_bytes().repeat(clusters);
        file.write_all_at(&counts, self.refcount_block())?;
        // The L1 table is all zeros: a hole. So is the rest of the last cluster.
        file.set_len(self.end())
    }
}
