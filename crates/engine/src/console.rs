//! The console log of a VM's present or latest boot: guest data, passed on as bytes.

use crate::{VmView, state_dir::Layout};
use bytes::{Bytes, BytesMut};
use offshoot_types::{ErrorCode, Failure};
use std::{io, os::unix::fs::MetadataExt, path::PathBuf, time::Duration};
use tokio::{fs::File, io::AsyncReadExt, sync::watch};

/// How often a followed log is looked at: files announce nothing.
const POLL: Duration = Duration::from_millis(150);
const READ: usize = 64 * 1024;

/// What happens at the end of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follow {
    No,
    /// Wait for more while the VM has a process.
    Yes,
}

/// Reads a console from its beginning.
#[derive(Debug)]
pub struct Console {
    layout: Layout,
    view: watch::Receiver<VmView>,
    /// The log being read, with its inode: the keeper rotates it by renaming.
    open: Option<(File, u64)>,
}

impl Console {
    pub(crate) fn new(layout: Layout, view: watch::Receiver<VmView>) -> Self {
        Self { layout, view, open: None }
    }

    /// The next bytes; `None` at the end.
    pub async fn next(&mut self, follow: Follow) -> Result<Option<Bytes>, Failure> {
        loop {
            // Whether more can come is asked before reading: what is written in between is read next time.
            let ended = !self.view.borrow().state.name().has_process() || self.view.has_changed().is_err();
            let data = self.read().await.map_err(|source| self.unreadable(&source))?;
            if !data.is_empty() {
                return Ok(Some(data));
            }
            if follow == Follow::No || ended {
                return Ok(None);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn read(&mut self) -> io::Result<Bytes> {
        let mut buffer = BytesMut::with_capacity(READ);
        if let Some((file, _)) = &mut self.open
            && file.read_buf(&mut buffer).await? > 0
        {
            return Ok(buffer.freeze());
        }
        let Some(path) = self.latest()? else { return Ok(Bytes::new()) };
        let mut file = match File::open(&path).await {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Bytes::new()),
            Err(error) => return Err(error),
        };
        let inode = file.metadata().await?.ino();
        if self.open.as_ref().is_some_and(|(_, known)| *known == inode) {
            return Ok(Bytes::new());
        }
        file.read_buf(&mut buffer).await?;
        self.open = Some((file, inode));
        Ok(buffer.freeze())
    }

    /// The log in the newest boot directory.
    fn latest(&self) -> io::Result<Option<PathBuf>> {
        let vm = self.view.borrow().id;
        let entries = match std::fs::read_dir(self.layout.vm(vm)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let newest = entries
            .filter_map(Result::ok)
            .filter_map(|entry| entry.file_name().to_str()?.strip_prefix('g')?.parse::<u64>().ok())
            .max();
        Ok(newest
            .map(|g| self.layout.boot(vm, offshoot_types::Generation(g)).join(crate::state_dir::CONSOLE)))
    }

    fn unreadable(&self, source: &io::Error) -> Failure {
        let name = self.view.borrow().name.clone();
        Failure::new(ErrorCode::Internal, format!("cannot read the console log of VM `{name}`"))
            .caused_by(source)
            .hint("check the permissions and the disk of the state directory")
    }
}
