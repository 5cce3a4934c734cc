//! A sandbox's saved state in the two parts every state has here: a device state, which is a file, and memory.
//!
//! ```text
//! runsc checkpoint:   checkpoint.img   pages_meta.img          pages.img
//!                          |                |                      |
//!                     device.state = header, both       the first pages of a memory of the VM's size
//! ```
//! `pages.img` holds every page in use, one behind the other. Taken for the beginning of a memory, it is shared, compared,
//! hashed and stored like a virtual machine's: a delta is the pages in which two such files differ.

use crate::{
    BootStep,
    keeper::{
        machine::{CallError, StartError},
        run::PassedMemory,
        spec::Spec,
        wire::{Checkpointed, DeltaFile},
    },
    memory::{Delta, DeltaWriter, PAGE},
};
use offshoot_types::{Bytes, SnapshotId};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::{FileExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

const MAGIC: &[u8; 8] = b"OSSBX\0\0\x01";
const HEADER: usize = 8 + 3 * 8;
const CHECKPOINT: &str = "checkpoint.img";
const PAGES_META: &str = "pages_meta.img";
const PAGES: &str = "pages.img";
const DEVICE_STATE: &str = "device.state";
/// The state of the sandbox's kernel without its memory; half a megabyte in an idle one.
const MAX_DEVICE_STATE: u64 = 256 << 20;
/// Pages looked at at once.
const BLOCK: usize = 256 * PAGE as usize;

/// The memory a sandbox continued from, which its next state is against.
#[derive(Debug, Clone)]
pub(super) struct Saved {
    size: Bytes,
    base_id: Option<SnapshotId>,
    base: Option<Arc<File>>,
    delta: Option<Arc<Delta>>,
}

/// What a sandbox's kernel writes a state to. Files without names, on the disk where the state will be: what is not read
/// back at once can leave the host's memory, which counts as the sandbox's.
#[derive(Debug)]
pub(super) struct Raw {
    checkpoint: File,
    meta: File,
    pages: File,
}

/// A directory that `runsc` restores from; gone with this value.
#[derive(Debug)]
pub(super) struct Image {
    path: PathBuf,
    /// What the directory's link to the pages leads to.
    _pages: Option<Arc<File>>,
}

impl Raw {
    /// In the order in which they are passed.
    pub fn files(&self) -> [BorrowedFd<'_>; 3] {
        [&self.checkpoint, &self.meta, &self.pages].map(File::as_fd)
    }
}

impl Image {
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // What cannot be removed goes with the VM's state directory.
        let _left = fs::remove_dir_all(&self.path);
    }
}

/// Lengths of the three files in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Lengths {
    checkpoint: u64,
    meta: u64,
    pages: u64,
}

impl Lengths {
    fn to_bytes(self) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(MAGIC);
        for (at, length) in [(8, self.checkpoint), (16, self.meta), (24, self.pages)] {
            header[at..at + 8].copy_from_slice(&length.to_le_bytes());
        }
        header
    }

    /// Of a file of `length` bytes, for a memory of `size`; `None` if it is none of ours.
    fn parse(header: &[u8; HEADER], length: u64, size: Bytes) -> Option<Self> {
        let at = |at: usize| Some(u64::from_le_bytes(header.get(at..at + 8)?.try_into().ok()?));
        let lengths = Self { checkpoint: at(8)?, meta: at(16)?, pages: at(24)? };
        let held = lengths.checkpoint.checked_add(lengths.meta)?.checked_add(HEADER as u64)?;
        let whole = held == length && lengths.pages <= size.0 && lengths.pages.is_multiple_of(PAGE);
        (header.starts_with(MAGIC) && whole).then_some(lengths)
    }
}

impl Saved {
    pub fn new(spec: &Spec, memory: PassedMemory) -> Self {
        Self {
            size: spec.memory,
            base_id: spec.memory_base,
            base: memory.base.map(Arc::new),
            delta: memory.delta.map(Arc::new),
        }
    }

    /// Gives `runsc` the files it restores from.
    pub async fn lay_out(&self, device_state: &Path, state_dir: &Path) -> Result<Image, StartError> {
        let (saved, from, path) = (self.clone(), device_state.to_owned(), state_dir.join("image"));
        let laid = tokio::task::spawn_blocking(move || saved.lay_out_now(&from, path)).await;
        let laid = laid.map_err(io::Error::other).and_then(|laid| laid);
        laid.map_err(|error| {
            let what = format!("cannot continue from the state `{}`", device_state.display());
            StartError::new(BootStep::Vmm, &what, error)
        })
    }

    fn lay_out_now(&self, device_state: &Path, path: PathBuf) -> io::Result<Image> {
        let file = File::open(device_state)?;
        let foreign = || io::Error::new(io::ErrorKind::InvalidData, "it is no saved state of a sandbox");
        let length = file.metadata()?.len();
        let mut header = [0; HEADER];
        file.read_exact_at(&mut header, 0).map_err(|_| foreign())?;
        let lengths = (length <= MAX_DEVICE_STATE).then(|| Lengths::parse(&header, length, self.size));
        let lengths = lengths.flatten().ok_or_else(foreign)?;
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::create_dir(&path)?;
        let mut image = Image { path, _pages: None };
        let mut rest = &file;
        io::Seek::seek(&mut rest, io::SeekFrom::Start(HEADER as u64))?;
        for (name, length) in [(CHECKPOINT, lengths.checkpoint), (PAGES_META, lengths.meta)] {
            let mut part = create(&image.path.join(name))?;
            let copied = io::copy(&mut rest.take(length), &mut part)?;
            if copied != length {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let pages = self.pages(lengths.pages)?;
        // This process holds the memory file; `runsc` opens it anew.
        let target = format!("/proc/{}/fd/{}", std::process::id(), pages.as_raw_fd());
        std::os::unix::fs::symlink(target, image.path.join(PAGES))?;
        image._pages = Some(pages);
        Ok(image)
    }

    /// The first `length` bytes of the memory, perhaps with more behind them.
    fn pages(&self, length: u64) -> io::Result<Arc<File>> {
        match (&self.base, &self.delta) {
            (Some(base), None) => Ok(base.clone()),
            (None, Some(delta)) => Ok(delta.shared_file()),
            (base, delta) => {
                let file =
                    File::from(rustix::fs::memfd_create("offshoot-pages", rustix::fs::MemfdFlags::CLOEXEC)?);
                let mut buffer = vec![0; BLOCK];
                let mut at = 0;
                while at < length {
                    let block = &mut buffer[..BLOCK.min((length - at) as usize)];
                    match base {
                        Some(base) => base.read_exact_at(block, at)?,
                        None => block.fill(0),
                    }
                    if let Some(delta) = delta {
                        delta.overlay(at, block)?;
                    }
                    file.write_all_at(block, at)?;
                    at += block.len() as u64;
                }
                Ok(Arc::new(file))
            }
        }
    }

    /// A place for a new state on the disk of `beside`.
    pub fn raw(&self, beside: &Path) -> Result<Raw, CallError> {
        let path = beside.join("sandbox");
        let file = || {
            let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
            fs::remove_file(&path).map(|()| file)
        };
        let made = || Ok(Raw { checkpoint: file()?, meta: file()?, pages: file()? });
        made().map_err(|error| CallError::failed(&format!("make `{}`", path.display()), &error))
    }

    /// The state that was written there, as parts.
    pub async fn collect(&self, raw: Raw, dir: &Path) -> Result<(Checkpointed, OwnedFd), CallError> {
        let (saved, dir) = (self.clone(), dir.to_owned());
        let collected = tokio::task::spawn_blocking(move || saved.collect_now(&raw, &dir)).await;
        let collected = collected.map_err(io::Error::other).and_then(|collected| collected);
        collected.map_err(|error| CallError::failed("collect the sandbox's state", &error))
    }

    fn collect_now(&self, raw: &Raw, dir: &Path) -> io::Result<(Checkpointed, OwnedFd)> {
        let Raw { checkpoint, meta, pages } = raw;
        let length = |file: &File| file.metadata().map(|metadata| metadata.len());
        let lengths = Lengths { checkpoint: length(checkpoint)?, meta: length(meta)?, pages: length(pages)? };
        if lengths.pages > self.size.0 || !lengths.pages.is_multiple_of(PAGE) {
            let held = Bytes(lengths.pages);
            let message =
                format!("the guest holds {held} in memory, more than the {} it was given", self.size);
            return Err(io::Error::other(message));
        }
        let delta = self.delta_to(pages, lengths.pages)?;
        let mut state = create(&dir.join(DEVICE_STATE))?;
        state.write_all(&lengths.to_bytes())?;
        for mut part in [checkpoint, meta] {
            part.rewind()?;
            io::copy(&mut part, &mut state)?;
        }
        let said = Checkpointed {
            paused_us: 0,
            device_state: length(&state)?,
            delta: Some(DeltaFile { memory: delta.size().0, runs: delta.runs().len() as u64 }),
        };
        Ok((said, delta.file().try_clone()?.into()))
    }

    /// The pages in which `pages` differs from what this sandbox continued from.
    fn delta_to(&self, pages: &File, length: u64) -> io::Result<Delta> {
        let mut writer = DeltaWriter::new(self.base_id, self.size).map_err(io::Error::other)?;
        let (mut new, mut old) = (vec![0; BLOCK], vec![0; BLOCK]);
        let mut at = 0;
        while at < length {
            let block = BLOCK.min((length - at) as usize);
            let new = &mut new[..block];
            pages.read_exact_at(new, at)?;
            match &self.base {
                None => writer.append(at / PAGE, new).map_err(io::Error::other)?,
                Some(base) => {
                    let old = &mut old[..block];
                    base.read_exact_at(old, at)?;
                    append_changed(&mut writer, at / PAGE, old, new)?;
                }
            }
            at += block as u64;
        }
        writer.finish().map_err(io::Error::other)
    }
}

fn append_changed(writer: &mut DeltaWriter, first: u64, old: &[u8], new: &[u8]) -> io::Result<()> {
    let page = PAGE as usize;
    let pages = new.len() / page;
    let same = |index: usize| old[index * page..][..page] == new[index * page..][..page];
    let mut begin = 0;
    for index in 0..=pages {
        if index == pages || same(index) {
            if begin < index {
                let changed = &new[begin * page..index * page];
                writer.append(first + begin as u64, changed).map_err(io::Error::other)?;
            }
            begin = index + 1;
        }
    }
    Ok(())
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Base;

    const SIZE: Bytes = Bytes(64 * PAGE);

    fn saved(base: Option<&Base>, delta: Option<Delta>) -> Saved {
        Saved {
            size: SIZE,
            base_id: base.map(Base::id),
            base: base.map(|base| Arc::new(base.file().try_clone().unwrap())),
            delta: delta.map(Arc::new),
        }
    }

    /// As a kernel leaves one: `pages` by the byte that fills each.
    fn raw(saved: &Saved, directory: &Path, pages: &[u8]) -> Raw {
        let raw = saved.raw(directory).unwrap();
        let filled: Vec<u8> = pages.iter().flat_map(|byte| vec![*byte; PAGE as usize]).collect();
        for (mut file, content) in
            [(&raw.checkpoint, b"kernel".as_slice()), (&raw.meta, b"meta"), (&raw.pages, filled.as_slice())]
        {
            file.write_all(content).unwrap();
        }
        raw
    }

    fn delta(saved: &Saved, directory: &Path, pages: &[u8]) -> Delta {
        let (said, file) = saved.collect_now(&raw(saved, directory, pages), directory).unwrap();
        let delta = said.delta.unwrap();
        Delta::received(file, saved.base_id, Bytes(delta.memory), delta.runs).unwrap()
    }

    fn laid(saved: &Saved, directory: &Path) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
        let image = saved.lay_out_now(&directory.join(DEVICE_STATE), directory.join("image")).unwrap();
        let read = |name| fs::read(image.path().join(name)).unwrap();
        let pages = read(PAGES).chunks_exact(PAGE as usize).map(|page| page[9]).collect();
        (read(CHECKPOINT), read(PAGES_META), pages)
    }

    #[test]
    fn a_state_comes_back_over_zeros_over_a_base_and_over_both() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let first = delta(&saved(None, None), path, &[1, 0, 3]);
        assert_eq!(first.pages(), 2, "pages of zeros are left out");
        let (kernel, meta, pages) = laid(&saved(None, Some(first.clone())), path);
        assert_eq!((kernel.as_slice(), meta.as_slice()), (b"kernel".as_slice(), b"meta".as_slice()));
        assert_eq!(pages[..3], [1, 0, 3]);

        let base = Base::build(SnapshotId::new(), None, &first).unwrap();
        let below = saved(Some(&base), None);
        assert_eq!(laid(&below, path).2[..3], [1, 0, 3]);
        let second = delta(&below, path, &[1, 5, 0, 7]);
        assert_eq!(second.pages(), 3, "the first page is the same");
        assert_eq!(laid(&saved(Some(&base), Some(second)), path).2, [1, 5, 0, 7]);
        assert!(!path.join("image").exists() && !path.join("sandbox").exists());
    }

    #[test]
    fn what_is_no_state_or_does_not_fit_is_refused_and_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let larger = saved(None, None);
        let too_large = larger.collect_now(&raw(&larger, path, &[1; 65]), path).unwrap_err();
        assert!(too_large.to_string().contains("more than"), "{too_large}");
        let whole = Lengths { checkpoint: 6, meta: 4, pages: PAGE }.to_bytes();
        let mut foreign = whole;
        foreign[0] = b'x';
        let cut = [whole.as_slice(), b"kernel"].concat();
        for bytes in [b"this is no device state".as_slice(), &foreign, &cut] {
            fs::write(path.join(DEVICE_STATE), bytes).unwrap();
            let error = saved(None, None)
                .lay_out_now(&path.join(DEVICE_STATE), path.join("image"))
                .expect_err("it was taken");
            assert!(error.to_string().contains("no saved state"), "{error}");
            assert!(!path.join("image").exists());
        }
    }
}
