//! Several frozen layers as one, which reads as they do over whatever lies below them.
//!
//! ```text
//! newest   | A |   |   | 0 |            A, B: data    0: reads as zeros    blank: looks at the one below
//! below    |   | B |   | C |
//! merged   | A | B |   | 0 |
//! ```
//! A VMM wrote the tables that are read here, and a guest may have taken it over: every number is checked before it is
//! used, and what our VMMs never write (compressed clusters, other layouts) is refused.

use super::{
    DiskError, Kind, io,
    qcow2::{self, CLUSTER, Layout},
};
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use std::{
    fs::{File, OpenOptions},
    io::{Read, Seek},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// Of one table: entries of 8 bytes in one cluster.
const ENTRIES: u64 = CLUSTER / 8;
/// Where in an entry the place in the file stands.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZEROS: u64 = 1;

/// A layer that is read.
struct Source {
    file: File,
    path: PathBuf,
    length: u64,
    l1: Vec<u64>,
}

/// Makes at `path`, which must not exist, one layer of `layers`, newest first; `below` is what they lie over, for its
/// header. It appears there complete, flushed and frozen, or not at all. Blocks for as long as copying their data takes.
pub fn merge(layers: &[PathBuf], below: &Path, kind: Kind, path: &Path) -> Result<(), DiskError> {
    let mut sources = Vec::new();
    let mut size = None;
    for layer in layers {
        let found = super::inspect(layer)?.size;
        let expected = *size.get_or_insert(found);
        if found != expected {
            return Err(DiskError::OtherSize { path: layer.clone(), expected, found });
        }
        sources.push(Source::open(layer, found.0)?);
    }
    let Some(size) = size else { return Err(DiskError::Layers { layers: 0 }) };
    let layout = Layout::new(size.0);
    let header = layout.header(below, kind)?;
    let temporary = path.with_extension("new");
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary);
    let file = file.map_err(io("create", &temporary))?;
    let written = Target { file: &file, path: &temporary, layout: &layout, next: layout.end() }
        .fill(&header, &sources)
        .and_then(|()| super::freeze(&temporary));
    // `hard_link` rather than `rename`: it never replaces a layer that exists.
    let linked = written.and_then(|()| std::fs::hard_link(&temporary, path).map_err(io("write", path)));
    let removed = std::fs::remove_file(&temporary).map_err(io("remove", &temporary));
    linked.and(removed)?;
    let Some(parent) = path.parent() else { return Ok(()) };
    File::open(parent).and_then(|directory| directory.sync_all()).map_err(io("flush", parent))
}

impl Source {
    fn open(path: &Path, size: u64) -> Result<Self, DiskError> {
        qcow2::check_plain(path)?;
        let foreign = |reason| DiskError::Foreign { path: path.to_owned(), reason };
        let mut file = File::open(path).map_err(io("open", path))?;
        // Held as long as the file is open. Whoever runs a VM holds an exclusive one on what it writes to.
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(DiskError::Written { path: path.to_owned() }),
            Err(error) => return Err(io("lock", path)(error.into())),
        }
        let length = file.metadata().map_err(io("look at", path))?.len();
        let mut head = [0; 48];
        file.read_exact(&mut head).map_err(io("read", path))?;
        file.rewind().map_err(io("read", path))?;
        let number = |at: usize, bytes: usize| {
            head[at..at + bytes].iter().fold(0_u64, |value, byte| value << 8 | u64::from(*byte))
        };
        let (entries, at) = (number(36, 4), number(40, 8));
        // As many as the size asks for; a VMM never changes that of a disk that does not grow.
        if entries != Layout::new(size).l1_entries() {
            return Err(foreign("its first table has another size"));
        }
        let l1 = table(&file, path, at, entries, length)?;
        Ok(Self { file, path: path.to_owned(), length, l1 })
    }

    /// The table behind entry `index` of the first one, if there is one.
    fn second(&self, index: u64) -> Result<Option<Vec<u64>>, DiskError> {
        match self.l1[index as usize] & OFFSET {
            0 => Ok(None),
            at => table(&self.file, &self.path, at, ENTRIES, self.length).map(Some),
        }
    }
}

/// Reads `entries` numbers at `at`, if they lie in the file.
fn table(file: &File, path: &Path, at: u64, entries: u64, length: u64) -> Result<Vec<u64>, DiskError> {
    let foreign = |reason| DiskError::Foreign { path: path.to_owned(), reason };
    let end = at.checked_add(entries * 8).filter(|end| *end <= length);
    if !at.is_multiple_of(CLUSTER) || end.is_none() {
        return Err(foreign("one of its tables does not lie in it"));
    }
    let mut bytes = vec![0; (entries * 8) as usize];
    file.read_exact_at(&mut bytes, at).map_err(io("read", path))?;
    Ok(bytes.as_chunks::<8>().0.iter().map(|entry| u64::from_be_bytes(*entry)).collect())
}

struct Target<'a> {
    file: &'a File,
    path: &'a Path,
    layout: &'a Layout,
    /// Where the next cluster goes.
    next: u64,
}

impl Target<'_> {
    fn fill(mut self, header: &[u8], sources: &[Source]) -> Result<(), DiskError> {
        self.write(0, header)?;
        let mut cluster = vec![0; CLUSTER as usize];
        for index in 0..self.layout.l1_entries() {
            let mut tables = Vec::new();
            for source in sources {
                tables.extend(source.second(index)?.map(|table| (source, table)));
            }
            if tables.is_empty() {
                continue;
            }
            let mut merged = vec![0_u64; ENTRIES as usize];
            for (place, entry) in merged.iter_mut().enumerate() {
                let newest =
                    tables.iter().find(|(_, table)| table[place] & (OFFSET | ZEROS | COMPRESSED) != 0);
                let Some((source, table)) = newest else { continue };
                *entry = self.copy(source, table[place], &mut cluster)?;
            }
            if merged.iter().any(|entry| *entry != 0) {
                let bytes: Vec<u8> = merged.iter().flat_map(|entry| entry.to_be_bytes()).collect();
                let at = self.append(&bytes)?;
                self.write(Layout::L1 + index * 8, &(at | COPIED).to_be_bytes())?;
            }
        }
        self.count()
    }

    /// What stands for a cluster of `source` in the merged table.
    fn copy(&mut self, source: &Source, entry: u64, cluster: &mut [u8]) -> Result<u64, DiskError> {
        let foreign = |reason| DiskError::Foreign { path: source.path.clone(), reason };
        if entry & COMPRESSED != 0 {
            return Err(foreign("it is compressed"));
        }
        if entry & ZEROS != 0 {
            return Ok(ZEROS);
        }
        let at = entry & OFFSET;
        if !at.is_multiple_of(CLUSTER) || at >= source.length {
            return Err(foreign("one of its clusters does not lie in it"));
        }
        // The file may end within its last cluster: the rest reads as zeros.
        let held = (source.length - at).min(CLUSTER) as usize;
        source.file.read_exact_at(&mut cluster[..held], at).map_err(io("read", &source.path))?;
        cluster[held..].fill(0);
        if cluster.iter().all(|byte| *byte == 0) {
            return Ok(ZEROS);
        }
        Ok(self.append(cluster)? | COPIED)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<u64, DiskError> {
        let at = self.next;
        self.write(at, bytes)?;
        self.next += CLUSTER;
        Ok(at)
    }

    /// Writes down that every cluster is used once: blocks of 16-bit counts, the first where an empty layer has it.
    fn count(mut self) -> Result<(), DiskError> {
        const COVERED: u64 = CLUSTER / 2;
        let mut blocks = vec![self.layout.refcount_block()];
        while (blocks.len() as u64) * COVERED < self.next / CLUSTER {
            blocks.push(self.next);
            self.next += CLUSTER;
        }
        let clusters = self.next / CLUSTER;
        for (number, at) in (0..).zip(&blocks) {
            let used = (clusters - number * COVERED).min(COVERED);
            self.write(*at, &1_u16.to_be_bytes().repeat(used as usize))?;
        }
        let table: Vec<u8> = blocks.iter().flat_map(|at| at.to_be_bytes()).collect();
        self.write(self.layout.refcount_table(), &table)?;
        self.file.set_len(self.next).map_err(io("write", self.path))
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.file.write_all_at(bytes, at).map_err(io("write", self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Durability, disk};
    use offshoot_types::DiskMib;
    use proptest::prelude::*;
    use std::{fs, process::Command};

    const SIZE: u64 = 64 << 20;

    fn run(program: &str, arguments: &[&str]) -> String {
        let done = Command::new(program).args(arguments).output();
        let done = done.expect("this test needs qemu-img and qemu-io (package qemu-utils)");
        assert!(done.status.success(), "{program} {arguments:?}: {done:?}");
        String::from_utf8(done.stdout).unwrap()
    }

    struct Bench {
        dir: tempfile::TempDir,
        layers: Vec<PathBuf>,
    }

    impl Bench {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let template = dir.path().join("template");
            fs::write(&template, [0xa5; 1 << 20]).unwrap();
            File::options().write(true).open(&template).unwrap().set_len(SIZE).unwrap();
            Self { dir, layers: Vec::new() }
        }
        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }
        /// A new layer on top, in which a VMM does this.
        fn layer(&mut self, commands: &[String]) {
            let path = self.path(&format!("{}.qcow2", self.layers.len()));
            let size = DiskMib::from_mib(SIZE >> 20).unwrap();
            match self.layers.first() {
                None => {
                    disk::create_overlay(&self.path("template"), size, &path, Durability::Volatile).unwrap()
                }
                Some(below) => disk::create_layer(below, size, &path, Durability::Volatile).unwrap(),
            }
            let mut arguments = vec!["-f", "qcow2", "-d", "unmap"];
            for command in commands {
                arguments.extend(["-c", command.as_str()]);
            }
            run("qemu-io", &[&arguments[..], &[path.to_str().unwrap()]].concat());
            self.layers.insert(0, path);
        }
        fn content(&self, top: &Path) -> blake3::Hash {
            let raw = self.path("raw");
            run(
                "qemu-img",
                &["convert", "-f", "qcow2", "-O", "raw", top.to_str().unwrap(), raw.to_str().unwrap()],
            );
            blake3::hash(&fs::read(raw).unwrap())
        }
        /// All layers from `first` to before `end` as one, which nothing else may be said against.
        fn merged(&self, end: usize) -> PathBuf {
            let path = self.path("merged.qcow2");
            let _ = fs::remove_file(&path);
            let (below, kind) = match self.layers.get(end) {
                Some(below) => (below.clone(), Kind::Layer),
                None => (self.path("template"), Kind::Template),
            };
            merge(&self.layers[..end], &below, kind, &path).unwrap();
            run("qemu-img", &["check", "-f", "qcow2", path.to_str().unwrap()]);
            path
        }
    }

    #[test]
    fn merged_layers_read_as_they_did_above_each_other() {
        let mut bench = Bench::new();
        bench.layer(&["write -P 1 0 256k".into(), "write -P 2 63M 1M".into()]);
        bench.layer(&["write -P 3 64k 4k".into(), "write -z 128k 64k".into(), "discard 63M 64k".into()]);
        bench.layer(&["write -P 4 130k 1k".into(), "write -z -u 0 64k".into()]);
        bench.layer(&[]);
        let top = bench.layers[0].clone();
        for end in 1..=4 {
            assert_eq!(bench.content(&bench.merged(end)), bench.content(&top), "{end}");
        }
        assert!(
            merge(&bench.layers, &bench.path("template"), Kind::Template, &top).is_err(),
            "nothing is replaced"
        );
        let names = fs::read_dir(bench.dir.path()).unwrap();
        assert!(names.filter_map(Result::ok).all(|name| name.path().extension().is_none_or(|e| e != "new")));
    }

    #[test]
    fn a_layer_that_is_written_to_is_refused() {
        let mut bench = Bench::new();
        bench.layer(&["write -P 1 0 64k".into()]);
        bench.layer(&[]);
        let writer = File::open(&bench.layers[1]).unwrap();
        flock(&writer, FlockOperation::NonBlockingLockExclusive).unwrap();
        let merge = || merge(&bench.layers, &bench.path("template"), Kind::Template, &bench.path("m.qcow2"));
        assert!(matches!(merge(), Err(DiskError::Written { path }) if path == bench.layers[1]));
        flock(&writer, FlockOperation::NonBlockingLockShared).unwrap();
        merge().unwrap();
    }

    /// Where in its file a cluster lies says nothing of where it is on the disk.
    #[test]
    fn a_cluster_beyond_two_gibibytes_is_merged() {
        let mut bench = Bench::new();
        bench.layer(&["write -P 1 0 64k".into(), "write -P 2 64k 64k".into()]);
        let layer = bench.layers[0].clone();
        let file = File::options().read(true).write(true).open(&layer).unwrap();
        let number = |at: u64| {
            let mut bytes = [0; 8];
            file.read_exact_at(&mut bytes, at).unwrap();
            u64::from_be_bytes(bytes) & OFFSET
        };
        // The first is moved to behind a hole.
        let (second, far) = (number(Layout::L1), 3_u64 << 30);
        let mut cluster = vec![0; CLUSTER as usize];
        file.read_exact_at(&mut cluster, number(second)).unwrap();
        file.write_all_at(&cluster, far).unwrap();
        file.write_all_at(&vec![0xee; CLUSTER as usize], number(second)).unwrap();
        file.write_all_at(&(far | COPIED).to_be_bytes(), second).unwrap();
        bench.layer(&["write -P 3 100k 1k".into()]);
        let top = bench.layers[0].clone();
        let merged = bench.merged(2);
        assert_eq!(bench.content(&merged), bench.content(&top));
        assert!(merged.metadata().unwrap().len() < 1 << 20, "holes are not copied");
    }

    #[test]
    fn a_hostile_table_is_refused() {
        let mut bench = Bench::new();
        bench.layer(&["write -P 1 0 64k".into()]);
        let layer = bench.layers[0].clone();
        let good = fs::read(&layer).unwrap();
        let l1 = CLUSTER as usize;
        let second = (u64::from_be_bytes(good[l1..l1 + 8].try_into().unwrap()) & OFFSET) as usize;
        for (at, value, said) in [
            (l1, u64::MAX, "tables does not lie"),
            (l1, (1 << 40) | COPIED, "tables does not lie"),
            (second, (1 << 40) | COPIED, "clusters does not lie"),
            (second, COMPRESSED | 512, "compressed"),
            (second, 512 | COPIED, "clusters does not lie"),
            (40, 1 << 40, "tables does not lie"),
        ] {
            let mut bytes = good.clone();
            bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
            let hostile = bench.path("hostile.qcow2");
            fs::write(&hostile, bytes).unwrap();
            let out = bench.path("out.qcow2");
            let refused =
                merge(&[hostile, layer.clone()], &bench.path("template"), Kind::Template, &out).unwrap_err();
            assert!(refused.to_string().contains(said), "{said}: {refused}");
            assert!(!out.exists());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn any_writes_merge_to_the_same(
            layers in prop::collection::vec(prop::collection::vec((0_u64..1000, 1_u64..40, 0_u8..4), 0..6), 1..5),
            end in any::<prop::sample::Index>(),
        ) {
            let mut bench = Bench::new();
            for writes in &layers {
                let commands: Vec<String> = writes.iter().map(|(at, length, what)| {
                    let (at, length) = (at * 65_000 / 512 * 512, length * 9_000 / 512 * 512 + 512);
                    match what {
                        0 => format!("write -z {at} {length}"),
                        1 => format!("discard {at} {length}"),
                        pattern => format!("write -P {} {at} {length}", pattern + 40),
                    }
                }).collect();
                bench.layer(&commands);
            }
            let end = 1 + end.index(layers.len());
            let top = bench.layers[0].clone();
            prop_assert_eq!(bench.content(&bench.merged(end)), bench.content(&top));
        }
    }
}
