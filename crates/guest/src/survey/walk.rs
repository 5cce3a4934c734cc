//! The walk over everything the VM may have changed.
//!
//! In a directory that the VM wrote to, only the names it wrote can differ. A directory that hides the image's, shows
//! another one, or is there on one side only may differ in any name.

use super::{
    BLOCK, PAGE_BYTES, Spell, Spells,
    entry::{file, look, names},
    layers::{DIRECTORY, Layers},
};
use offshoot_guest_proto::message::{ChangedPath, DiskEntry, DiskKind, MAX_PAGE, MAX_SURVEY_PATH};
use rustix::{
    fd::OwnedFd,
    fs::{Mode, openat},
    io::Errno,
};
use std::{
    ffi::{CStr, CString},
    fs::File,
    io::{self, Read},
    vec,
};

pub struct Walk {
    plain: fn(&OwnedFd) -> io::Result<bool>,
    /// Directories on the way to where it is, the root first.
    stack: Vec<Level>,
    /// The root, before it was looked at.
    root: Option<Layers>,
    comparing: Option<Comparing>,
    left_out: u64,
}

/// A directory, from each side it is seen from.
struct Level {
    path: Vec<u8>,
    upper: Option<OwnedFd>,
    now: Option<OwnedFd>,
    image: Option<OwnedFd>,
    ahead: vec::IntoIter<CString>,
}

/// Two files of one size, read side by side.
struct Comparing {
    found: ChangedPath,
    now: File,
    image: File,
}

impl Walk {
    pub fn new(layers: Layers) -> Self {
        let plain = layers.plain;
        Self { plain, stack: Vec::new(), root: Some(layers), comparing: None, left_out: 0 }
    }

    /// One step: a block of two files, or a name. `None` at the end of the walk.
    fn step(&mut self) -> io::Result<Option<Option<ChangedPath>>> {
        if let Some(comparing) = self.comparing.take() {
            return Ok(Some(match comparing.go_on()? {
                Progress::Differ(found) => Some(found),
                Progress::Same => None,
                Progress::More(comparing) => {
                    self.comparing = Some(comparing);
                    None
                }
            }));
        }
        if let Some(Layers { upper, now, image, .. }) = self.root.take() {
            let (seen, was) = (look(Some(&now), c".")?, look(Some(&image), c".")?);
            self.stack.push(self.level(b"/".to_vec(), Some(upper), Some(now), Some(image))?);
            return Ok(Some(differ(&seen, &was).then(|| ChangedPath {
                path: b"/".to_vec(),
                now: seen,
                image: was,
            })));
        }
        let Some(level) = self.stack.last_mut() else { return Ok(None) };
        match level.ahead.next() {
            Some(name) => self.visit(&name).map(Some),
            None => {
                self.stack.pop();
                Ok(Some(None))
            }
        }
    }

    fn visit(&mut self, name: &CStr) -> io::Result<Option<ChangedPath>> {
        let Some(level) = self.stack.last() else { return Ok(None) };
        let mut path = level.path.clone();
        if path.len() > 1 {
            path.push(b'/');
        }
        path.extend_from_slice(name.to_bytes());
        if path.len() > MAX_SURVEY_PATH {
            self.left_out += 1;
            return Ok(None);
        }
        let (now, image) = (look(level.now.as_ref(), name)?, look(level.image.as_ref(), name)?);
        let is_directory =
            |entry: &Option<DiskEntry>| entry.as_ref().is_some_and(|entry| entry.kind == DiskKind::Directory);
        let below = if is_directory(&now) || is_directory(&image) {
            let upper = directory(level.upper.as_ref(), name)?;
            let seen = if is_directory(&now) { directory(level.now.as_ref(), name)? } else { None };
            let was = if is_directory(&image) { directory(level.image.as_ref(), name)? } else { None };
            Some(self.level(path.clone(), upper, seen, was)?)
        } else {
            None
        };
        let found = if differ(&now, &image) {
            Some(ChangedPath { path, now, image })
        } else if now.as_ref().is_some_and(|now| now.kind == DiskKind::File) {
            self.compare(ChangedPath { path, now, image }, name)?
        } else {
            None
        };
        self.stack.extend(below);
        Ok(found)
    }

    /// Whether two files that look alike hold the same is found out in the next steps.
    fn compare(&mut self, mut found: ChangedPath, name: &CStr) -> io::Result<Option<ChangedPath>> {
        let Some(Level { now: Some(now), image: Some(image), .. }) = self.stack.last() else {
            return Ok(None);
        };
        match (file(now, name)?, file(image, name)?) {
            (Some(now), Some(image)) => {
                self.comparing = Some(Comparing { found, now, image });
                Ok(None)
            }
            // Gone or replaced since it was looked at.
            _ => {
                found.now = look(Some(now), name)?;
                Ok(Some(found))
            }
        }
    }

    fn level(
        &self,
        path: Vec<u8>,
        upper: Option<OwnedFd>,
        now: Option<OwnedFd>,
        image: Option<OwnedFd>,
    ) -> io::Result<Level> {
        let both = now.is_some() && image.is_some();
        let mut ahead = match &upper {
            Some(upper) if both && (self.plain)(upper)? => names(upper)?,
            _ => {
                let mut all = now.as_ref().map(names).transpose()?.unwrap_or_default();
                all.extend(image.as_ref().map(names).transpose()?.unwrap_or_default());
                all
            }
        };
        ahead.sort_unstable();
        ahead.dedup();
        Ok(Level { path, upper, now, image, ahead: ahead.into_iter() })
    }
}

impl Spells for Walk {
    type Item = ChangedPath;
    const WHAT: &'static str = "list changes on";

    fn spell(&mut self) -> io::Result<(Vec<ChangedPath>, bool)> {
        let (spell, mut page, mut bytes) = (Spell::begin(), Vec::new(), 0);
        while !spell.is_over() && page.len() < MAX_PAGE && bytes < PAGE_BYTES {
            match self.step()? {
                None => return Ok((page, false)),
                Some(None) => {}
                Some(Some(found)) => {
                    let links = [&found.now, &found.image].into_iter().flatten();
                    bytes += found.path.len();
                    bytes += links
                        .filter_map(|entry| entry.target.as_ref())
                        .map(|target| target.len())
                        .sum::<usize>();
                    page.push(found);
                }
            }
        }
        Ok((page, true))
    }

    fn left_out(&self) -> u64 {
        self.left_out
    }
}

/// What can be told without reading a file. A directory's times and size say only that something in it changed.
fn differ(now: &Option<DiskEntry>, image: &Option<DiskEntry>) -> bool {
    let (Some(now), Some(image)) = (now, image) else { return now.is_some() || image.is_some() };
    DiskEntry { stamp: image.stamp, ..now.clone() } != *image
}

/// A directory to read; `None` where there is none of that name.
fn directory(parent: Option<&OwnedFd>, name: &CStr) -> io::Result<Option<OwnedFd>> {
    let Some(parent) = parent else { return Ok(None) };
    match openat(parent, name, DIRECTORY, Mode::empty()) {
        Ok(directory) => Ok(Some(directory)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

enum Progress {
    Differ(ChangedPath),
    Same,
    More(Comparing),
}

impl Comparing {
    fn go_on(mut self) -> io::Result<Progress> {
        let (mut now, mut image) = (vec![0; BLOCK], vec![0; BLOCK]);
        let (read, was) = (fill(&mut self.now, &mut now)?, fill(&mut self.image, &mut image)?);
        Ok(match now[..read] == image[..was] {
            false => Progress::Differ(self.found),
            true if read < BLOCK => Progress::Same,
            true => Progress::More(self),
        })
    }
}

/// Reads until the buffer is full or the file at its end.
pub fn fill(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests;
