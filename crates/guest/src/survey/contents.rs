//! Hashes of files.

use super::{BLOCK, Spell, Spells, entry::regular, layers::Layers, walk::fill};
use offshoot_guest_proto::message::Contents;
use rustix::{
    fd::OwnedFd,
    fs::{Mode, OFlags, ResolveFlags, openat2},
    io::Errno,
};
use std::{fs::File, io, vec};

pub struct Hashing {
    now: OwnedFd,
    ahead: vec::IntoIter<Vec<u8>>,
    open: Option<(File, Box<blake3::Hasher>)>,
}

impl Hashing {
    pub fn new(layers: Layers, paths: Vec<Vec<u8>>) -> Self {
        Self { now: layers.now, ahead: paths.into_iter(), open: None }
    }

    /// One block, or the next file. `None` at the end.
    fn step(&mut self) -> io::Result<Option<Option<Contents>>> {
        if let Some((mut file, mut hasher)) = self.open.take() {
            let mut block = vec![0; BLOCK];
            let read = fill(&mut file, &mut block)?;
            hasher.update(&block[..read]);
            if read < BLOCK {
                return Ok(Some(Some(Contents::Hash(*hasher.finalize().as_bytes()))));
            }
            self.open = Some((file, hasher));
            return Ok(Some(None));
        }
        let Some(path) = self.ahead.next() else { return Ok(None) };
        match self.open(&path)? {
            Some(file) => {
                self.open = Some((file, Box::default()));
                Ok(Some(None))
            }
            None => Ok(Some(Some(Contents::Gone))),
        }
    }

    fn open(&self, path: &[u8]) -> io::Result<Option<File>> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        loop {
            match openat2(&self.now, path, flags, Mode::empty(), within) {
                Ok(fd) => return regular(fd),
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO | Errno::NODEV) => {
                    return Ok(None);
                }
                // A rename elsewhere came between.
                Err(Errno::AGAIN) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl Spells for Hashing {
    type Item = Contents;
    const WHAT: &'static str = "hash files on";

    fn spell(&mut self) -> io::Result<(Vec<Contents>, bool)> {
        let (spell, mut page) = (Spell::begin(), Vec::new());
        while !spell.is_over() {
            match self.step()? {
                None => return Ok((page, false)),
                Some(found) => page.extend(found),
            }
        }
        Ok((page, true))
    }

    fn left_out(&self) -> u64 {
        0
    }
}
