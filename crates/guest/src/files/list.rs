//! Listing a directory, a batch of entries at a time.

use super::{Files, blocking, path::GuestPath, stat};
use crate::fault::Context;
use offshoot_guest_proto::message::{GuestError, ListItem};
use rustix::{
    fd::OwnedFd,
    fs::{OFlags, RawDir},
    io::Errno,
};
use std::{mem::MaybeUninit, sync::Arc};

/// What one system call fills: a few hundred entries.
const BATCH: usize = 16 * 1024;

#[derive(Debug)]
pub struct Listing {
    directory: Arc<OwnedFd>,
    files: Files,
    path: String,
}

impl Files {
    pub async fn list(&self, path: String) -> Result<Listing, GuestError> {
        let resolved = GuestPath::parse(&path)?;
        let directory = self
            .as_user("list", path.clone(), move |root| {
                Ok(root.open(resolved.as_str(), OFlags::RDONLY | OFlags::DIRECTORY)?)
            })
            .await?;
        Ok(Listing { directory: Arc::new(directory), files: self.clone(), path })
    }
}

impl Listing {
    /// The next entries, in the order the directory holds them; none at the end.
    pub async fn next(&mut self) -> Result<Vec<ListItem>, GuestError> {
        let (directory, path) = (Arc::clone(&self.directory), self.path.clone());
        let identity = self.files.identity.clone();
        blocking(move || {
            let batch = identity.run(|| {
                let mut buffer = vec![MaybeUninit::uninit(); BATCH];
                let mut entries = RawDir::new(&*directory, &mut buffer);
                let mut batch = Vec::new();
                while let Some(entry) = entries.next() {
                    let entry = entry?;
                    let name = entry.file_name();
                    if !matches!(name.to_bytes(), b"." | b"..") {
                        match stat::of_entry(&*directory, name) {
                            Ok(stat) => batch.push(item(name.to_bytes(), stat)),
                            // Removed while we looked.
                            Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => {}
                            Err(error) => return Err(error),
                        }
                    }
                    // A batch of entries that all vanished must not look like the end.
                    if entries.is_buffer_empty() && !batch.is_empty() {
                        break;
                    }
                }
                Ok(batch)
            });
            batch.context("list", path)
        })
        .await
    }
}

fn item(name: &[u8], stat: offshoot_guest_proto::message::FileStat) -> ListItem {
    let text = String::from_utf8_lossy(name);
    let lossy = matches!(text, std::borrow::Cow::Owned(_));
    ListItem::Entry { name: text.into_owned(), lossy, stat }
}
