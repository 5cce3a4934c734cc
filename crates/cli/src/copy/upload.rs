//! Into a VM.

use super::{
    Copied, Job, MAX_DEPTH,
    place::{LocalPath, RemotePath, Shape, join},
    too_deep,
};
use crate::failure::{Result, file, usage};
use bytes::Bytes;
use futures::{FutureExt, Stream, future::LocalBoxFuture, stream};
use offshoot_api::{
    ClientError,
    v1::{FileKind, MakeDirectory, RemoveFile, SetMode, StatQuery, Symlink, WriteQuery},
};
use offshoot_types::{ErrorCode, Failure, VmRef};
use std::{
    fs::{self, Metadata},
    io,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::io::AsyncReadExt;

/// Bytes of one read.
const CHUNK: usize = 256 * 1024;

pub(super) async fn upload(mut job: Job<'_>, from: &LocalPath, to: &RemotePath) -> Result<Copied> {
    // What the user names is followed if it is a link; links inside a tree are copied as links.
    let metadata = fs::metadata(&from.path).map_err(|error| file("open", &from.path, error))?;
    if from.shape != Shape::Plain && !metadata.is_dir() {
        return Err(usage(format!("`{}` is not a directory", from.path.display())).into());
    }
    if metadata.is_file() {
        job.progress.bytes(Some(metadata.len()));
    } else {
        job.progress.bytes(None);
    }
    let existing = job.stat(&to.vm, &to.path).await?;
    let into_existing = existing == Some(FileKind::Directory);
    let (target, target_exists) = if into_existing && from.shape != Shape::Contents {
        let name = source_name(&from.path)?;
        let inside = to.join(&name);
        let exists = job.stat(&to.vm, &inside).await? == Some(FileKind::Directory);
        (inside, exists)
    } else if to.shape != Shape::Plain && !into_existing {
        let message = format!("`{}` in the VM is not a directory", to.path);
        return Err(Failure::new(ErrorCode::NotFound, message)
            .hint("make it first, or leave out the `/` at its end")
            .into());
    } else {
        (to.path.clone(), into_existing)
    };
    let top = if target_exists { Top::Exists } else { Top::Missing };
    job.send(&to.vm, &from.path, &metadata, target, top, 0).await?;
    Ok(job.copied)
}

/// Whether the directory to send to has to be made, its parents being there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Top {
    Missing,
    Exists,
    /// Below the top: exists or not, its parent is there.
    Below,
}

fn source_name(path: &Path) -> Result<String> {
    let canonical = path.canonicalize().map_err(|error| file("open", path, error))?;
    // `cp link dir/` makes `dir/link`; only `.` and `..` have to be resolved to have a name at all.
    let name = path.file_name().or_else(|| canonical.file_name());
    let Some(name) = name else {
        return Err(usage("`/` has no name to copy it under")
            .hint("write `/.` to copy what is in it")
            .into());
    };
    utf8(Path::new(name)).map(str::to_owned)
}

fn utf8(name: &Path) -> Result<&str> {
    name.to_str().ok_or_else(|| {
        usage(format!("`{}` is not UTF-8, which names inside a VM must be", name.display()))
            .hint("rename it, or copy a tar archive")
            .into()
    })
}

impl Job<'_> {
    async fn stat(&self, vm: &VmRef, path: &str) -> Result<Option<FileKind>> {
        let query = StatQuery { path: path.into(), follow: true, user: self.user.clone() };
        match self.client.stat_file(vm, &query).await {
            Ok(stat) => Ok(Some(stat.kind)),
            Err(error) if error.code() == ErrorCode::NotFound && self.vm_exists(vm).await? => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Tells a missing file from a missing VM.
    async fn vm_exists(&self, vm: &VmRef) -> Result<bool> {
        self.client.vm(vm).await?;
        Ok(true)
    }

    fn send<'f>(
        &'f mut self,
        vm: &'f VmRef,
        from: &'f Path,
        metadata: &'f Metadata,
        to: String,
        top: Top,
        depth: usize,
    ) -> LocalBoxFuture<'f, Result> {
        async move {
            let kind = metadata.file_type();
            if kind.is_dir() {
                self.send_directory(vm, from, metadata, to, top, depth).await
            } else if kind.is_symlink() {
                self.send_link(vm, from, to).await
            } else if kind.is_file() {
                self.send_file(vm, from, metadata, to).await
            } else {
                self.skip(&from.display().to_string());
                Ok(())
            }
        }
        .boxed_local()
    }

    async fn send_directory(
        &mut self,
        vm: &VmRef,
        from: &Path,
        metadata: &Metadata,
        to: String,
        top: Top,
        depth: usize,
    ) -> Result {
        if depth >= MAX_DEPTH {
            return Err(too_deep(&from.display().to_string()));
        }
        let mode = metadata.permissions().mode() & 0o7777;
        if top != Top::Exists {
            // Writable for us until everything is inside.
            let make = MakeDirectory {
                path: to.clone(),
                parents: top == Top::Below,
                mode: Some(mode | 0o700),
                user: self.user.clone(),
            };
            self.client.make_directory(vm, &make).await?;
        }
        let mut entries = fs::read_dir(from)
            .and_then(|entries| entries.collect::<io::Result<Vec<_>>>())
            .map_err(|error| file("list", from, error))?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            let metadata = entry.metadata().map_err(|error| file("open", &path, error))?;
            let name = entry.file_name();
            let target = join(&to, utf8(Path::new(&name))?);
            self.send(vm, &path, &metadata, target, Top::Below, depth + 1).await?;
        }
        if top != Top::Exists {
            let set = SetMode { path: to, mode, user: self.user.clone() };
            self.client.set_mode(vm, &set).await?;
        }
        self.copied.directories += 1;
        Ok(())
    }

    async fn send_file(&mut self, vm: &VmRef, from: &Path, metadata: &Metadata, to: String) -> Result {
        let opened = tokio::fs::File::open(from).await.map_err(|error| file("open", from, error))?;
        let write = WriteQuery {
            path: to,
            mode: Some(metadata.permissions().mode() & 0o7777),
            user: self.user.clone(),
            ..WriteQuery::default()
        };
        let sent = Arc::new(AtomicU64::new(0));
        let before = self.copied.bytes;
        let writing = self.client.write_file(vm, &write, content(opened, Arc::clone(&sent)));
        let watching = watch(self.progress, before, &sent);
        tokio::select! {
            biased;
            written = writing => written?,
            never = watching => match never {},
        };
        let bytes = sent.load(Ordering::Relaxed);
        self.copied.bytes = before + bytes;
        self.progress.position(self.copied.bytes);
        self.arrived(&from.display().to_string(), bytes);
        Ok(())
    }

    async fn send_link(&mut self, vm: &VmRef, from: &Path, to: String) -> Result {
        let target = fs::read_link(from).map_err(|error| file("read the link", from, error))?;
        let link = Symlink { target: utf8(&target)?.to_owned(), path: to.clone(), user: self.user.clone() };
        match self.client.symlink(vm, &link).await {
            Err(error) if error.code() == ErrorCode::AlreadyExists => self.replace_by(vm, &link).await?,
            made => made?,
        }
        self.copied.symlinks += 1;
        Ok(())
    }

    /// A file or link gives way to a link; a directory does not, since all it holds would go with it.
    async fn replace_by(&self, vm: &VmRef, link: &Symlink) -> Result<(), ClientError> {
        let remove = RemoveFile { path: link.path.clone(), recursive: false, user: self.user.clone() };
        self.client.remove_file(vm, &remove).await?;
        self.client.symlink(vm, link).await
    }
}

/// A file as a stream, counted as it goes.
fn content(
    opened: tokio::fs::File,
    sent: Arc<AtomicU64>,
) -> impl Stream<Item = io::Result<Bytes>> + Send + Sync + 'static {
    stream::try_unfold((opened, sent), |(mut opened, sent)| async move {
        let mut buffer = Vec::with_capacity(CHUNK);
        let count = opened.read_buf(&mut buffer).await?;
        sent.fetch_add(count as u64, Ordering::Relaxed);
        Ok((count > 0).then(|| (Bytes::from(buffer), (opened, sent))))
    })
}

/// Shows how far a transfer is, for as long as it is polled.
async fn watch(
    progress: &crate::progress::Progress,
    before: u64,
    sent: &AtomicU64,
) -> std::convert::Infallible {
    let mut ticks = tokio::time::interval(std::time::Duration::from_millis(100));
    loop {
        ticks.tick().await;
        progress.position(before + sent.load(Ordering::Relaxed));
    }
}
