//! Reading a file as a stream of chunks.

use super::{Files, blocking, path::GuestPath, stat};
use crate::fault::{Context, fault};
use offshoot_guest_proto::message::{CHUNK, FileKind, FileStat, GuestError, GuestErrorKind};
use rustix::{fd::OwnedFd, fs::OFlags, io::Errno, io::pread, io::read};
use std::sync::Arc;

#[derive(Debug)]
pub struct Reading {
    file: Arc<OwnedFd>,
    path: String,
    offset: u64,
    left: u64,
    seekable: bool,
}

impl Files {
    /// Opens a regular file for reading `length` bytes from `offset`. Devices and pipes are refused: they may
    /// never end.
    pub async fn read(
        &self,
        path: String,
        offset: u64,
        length: Option<u64>,
    ) -> Result<(FileStat, Reading), GuestError> {
        let resolved = GuestPath::parse(&path)?;
        // NONBLOCK: opening a FIFO nobody writes to must not wait.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let (file, stat) = self
            .as_user("open", path.clone(), move |root| {
                let file = root.open(resolved.as_str(), flags)?;
                let stat = stat::of(&file)?;
                Ok((file, stat))
            })
            .await?;
        match stat.kind {
            FileKind::File => {}
            FileKind::Directory => {
                return Err(fault(GuestErrorKind::IsADirectory, format!("read {path}: is a directory")));
            }
            FileKind::Symlink | FileKind::Other => {
                return Err(crate::fault::invalid(format!("read {path}: not a regular file")));
            }
        }
        // Files of /proc say they are empty and some cannot be read at an offset.
        let seekable = stat.size > 0 || offset > 0;
        let left = length.unwrap_or(u64::MAX);
        Ok((stat, Reading { file: Arc::new(file), path, offset, left, seekable }))
    }
}

impl Reading {
    pub fn file(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.file)
    }

    /// The next bytes; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, GuestError> {
        let limit = usize::try_from(self.left).unwrap_or(usize::MAX).min(CHUNK);
        if limit == 0 {
            return Ok(None);
        }
        let (file, offset, seekable, path) =
            (Arc::clone(&self.file), self.offset, self.seekable, self.path.clone());
        let data = blocking(move || {
            let mut data = vec![0; limit];
            let mut filled = 0;
            while filled < limit {
                let rest = &mut data[filled..];
                let count =
                    if seekable { pread(&file, rest, offset + filled as u64) } else { read(&file, rest) };
                match count {
                    Ok(0) => break,
                    Ok(count) => filled += count,
                    Err(Errno::INTR) => {}
                    Err(errno) => return Err(errno).context("read", path),
                }
            }
            data.truncate(filled);
            Ok(data)
        })
        .await?;
        self.offset += data.len() as u64;
        self.left -= data.len() as u64;
        if data.len() < limit {
            self.left = 0;
        }
        Ok((!data.is_empty()).then_some(data))
    }
}
