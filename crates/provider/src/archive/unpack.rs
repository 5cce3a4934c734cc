//! Writing the parts of one that is read as files.

use super::{ArchiveError, Contents, PartName, Reader};
use crate::{
    disk,
    memory::{Delta, MemoryError},
};
use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// The smallest hole.
const BLOCK: usize = 4096;

/// Writes each part to where `path` says; those it says nothing for are read, compared and left out. The files must not
/// exist; they are flushed, and the layers are frozen. Memory and layers are looked into: what comes from elsewhere is
/// used only if it is what this program writes. On failure nothing is left. Blocks.
pub fn unpack<R: Read>(
    reader: Reader<R>,
    path: impl Fn(PartName) -> Option<PathBuf>,
) -> Result<Contents, ArchiveError> {
    let mut made = Vec::new();
    let unpacked = fill(reader, &path, &mut made);
    if unpacked.is_err() {
        for path in made {
            // Whoever asked removes the directory with it, or finds it by its record.
            let _ = fs::remove_file(path);
        }
    }
    unpacked
}

fn fill<R: Read>(
    reader: Reader<R>,
    path: &impl Fn(PartName) -> Option<PathBuf>,
    made: &mut Vec<PathBuf>,
) -> Result<Contents, ArchiveError> {
    let mut open: Option<(PartName, File, PathBuf)> = None;
    let contents = reader.read_parts(|name, offset, bytes| {
        if offset == 0 {
            open = None;
            if let Some(path) = path(name) {
                let created = File::options().write(true).create_new(true).mode(0o600).open(&path);
                let file = created.map_err(io("create", &path))?;
                made.push(path.clone());
                open = Some((name, file, path));
            }
        }
        match &open {
            Some((of, file, path)) if *of == name => sparse(file, offset, bytes).map_err(io("write", path)),
            _ => Ok(()),
        }
    })?;
    for (name, part) in contents.parts() {
        let Some(path) = path(name) else { continue };
        let file = File::options().write(true).open(&path).map_err(io("open", &path))?;
        file.set_len(part.length).and_then(|()| file.sync_all()).map_err(io("flush", &path))?;
        match name {
            PartName::DeviceState => {}
            PartName::Memory => {
                let checked = Delta::read(&path, part, None)
                    .and_then(|(delta, _)| delta.check(None, contents.memory.bytes()));
                checked.map_err(|error: MemoryError| ArchiveError::Memory(name, error))?;
            }
            PartName::Layer(_) => disk::check_imported(&path, contents.disk.bytes())
                .and_then(|()| disk::freeze(&path))
                .map_err(|error| ArchiveError::Disk(name, error))?,
        }
    }
    Ok(contents)
}

/// Writes what is not zeros; the rest stays a hole.
fn sparse(file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
    let mut at = 0;
    while at < bytes.len() {
        let held = |at: usize| bytes[at..bytes.len().min(at + BLOCK)].iter().any(|byte| *byte != 0);
        let begin = at;
        while at < bytes.len() && held(at) {
            at = bytes.len().min(at + BLOCK);
        }
        if begin < at {
            file.write_all_at(&bytes[begin..at], offset + begin as u64)?;
        } else {
            at = bytes.len().min(at + BLOCK);
        }
    }
    Ok(())
}

fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ArchiveError {
    let path = path.to_owned();
    move |source| ArchiveError::File { operation, path, source }
}
