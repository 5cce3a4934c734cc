//! Out of a VM.

use super::{
    Copied, Job, MAX_DEPTH,
    place::{LocalPath, RemotePath, Shape, join},
    too_deep,
    tree::{Directory, Name},
};
use crate::failure::{Result, Stop, file, usage};
use futures::{FutureExt, StreamExt, future::LocalBoxFuture};
use offshoot_api::v1::{FileKind, FileStat, ListQuery, ReadQuery, StatQuery};
use offshoot_types::{ErrorCode, Failure, VmRef};
use std::path::{Path, PathBuf};
use tokio::io::AsyncWriteExt;

pub(super) async fn download(mut job: Job<'_>, from: &RemotePath, to: &LocalPath) -> Result<Copied> {
    let stat = StatQuery { path: from.path.clone(), follow: true, user: job.user.clone() };
    let stat = job.client.stat_file(&from.vm, &stat).await?;
    let source = Source { vm: &from.vm, path: from.path.clone(), stat };
    if source.stat.kind == FileKind::File {
        job.progress.bytes(Some(source.stat.size));
    } else {
        job.progress.bytes(None);
    }
    match target(from, to)? {
        Target::Named { parent, name } => {
            let parent = open(&parent)?;
            let name = Name::check(&name).map_err(|error| usage(error.to_string()))?;
            job.fetch(&source, &parent, &to.path, name, 0).await?;
        }
        Target::Itself(directory) => {
            if source.stat.kind != FileKind::Directory {
                let message = format!("`{}` in the VM is not a directory", from.path);
                return Err(usage(message).hint("leave out the `/.` at its end").into());
            }
            std::fs::create_dir_all(&directory).map_err(|error| file("make", &directory, error))?;
            let opened = open(&directory)?;
            job.fetch_contents(&source, &opened, &directory, 0).await?;
        }
    }
    Ok(job.copied)
}

/// Where the thing copied is to appear.
enum Target {
    Named {
        parent: PathBuf,
        name: String,
    },
    /// Its contents go right into this directory.
    Itself(PathBuf),
}

fn target(from: &RemotePath, to: &LocalPath) -> Result<Target> {
    if from.shape == Shape::Contents || from.name().is_none() {
        return Ok(Target::Itself(to.path.clone()));
    }
    let source_name = from.name().unwrap_or_default().to_owned();
    if to.path.is_dir() {
        return Ok(Target::Named { parent: to.path.clone(), name: source_name });
    }
    if to.shape != Shape::Plain {
        return Err(file("open", &to.path, rustix::io::Errno::NOENT).into());
    }
    let name = to.path.file_name().and_then(|name| name.to_str());
    let Some(name) = name else {
        return Err(usage(format!("`{}` cannot be the name of a new file", to.path.display())).into());
    };
    let parent = match to.path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    Ok(Target::Named { parent, name: name.to_owned() })
}

fn open(directory: &Path) -> Result<Directory> {
    Directory::open(directory).map_err(|error| file("open", directory, error).into())
}

/// One thing in the VM, as the guest describes it.
struct Source<'a> {
    vm: &'a VmRef,
    path: String,
    stat: FileStat,
}

impl Job<'_> {
    /// `shown` is the path of `parent` and what follows, for messages only.
    fn fetch<'f>(
        &'f mut self,
        source: &'f Source<'f>,
        parent: &'f Directory,
        shown: &'f Path,
        name: Name<'f>,
        depth: usize,
    ) -> LocalBoxFuture<'f, Result> {
        async move {
            let failed = |operation: &str, error: std::io::Error| -> Stop {
                let failure = file(operation, shown, error);
                match failure.code {
                    ErrorCode::Unavailable => failure
                        .hint("what is there already is of another kind: remove it, or copy elsewhere")
                        .into(),
                    _ => failure.into(),
                }
            };
            match source.stat.kind {
                FileKind::Directory => {
                    let directory =
                        parent.enter(name).map_err(|error| failed("make the directory", error))?;
                    self.fetch_contents(source, &directory, shown, depth).await?;
                    directory.set_mode(source.stat.mode).map_err(|error| failed("set the mode of", error))?;
                    self.copied.directories += 1;
                }
                FileKind::Symlink => {
                    let target = source.stat.symlink_target.as_deref().unwrap_or_default();
                    parent.link(target, name).map_err(|error| failed("make the link", error))?;
                    self.copied.symlinks += 1;
                }
                FileKind::File => self.fetch_file(source, parent, shown, name).await?,
                FileKind::Other => self.skip(&source.path),
            }
            Ok(())
        }
        .boxed_local()
    }

    async fn fetch_contents(
        &mut self,
        source: &Source<'_>,
        directory: &Directory,
        shown: &Path,
        depth: usize,
    ) -> Result {
        if depth >= MAX_DEPTH {
            return Err(too_deep(&source.path));
        }
        let mut query =
            ListQuery { path: source.path.clone(), user: self.user.clone(), ..ListQuery::default() };
        // A large directory comes in several answers.
        loop {
            let listing = self.client.list_directory(source.vm, &query).await?;
            for entry in listing.entries {
                let name = Name::check(&entry.name)
                    .map_err(|error| Failure::new(ErrorCode::Guest, error.to_string()))?;
                if entry.lossy {
                    return Err(Failure::new(
                        ErrorCode::Unsupported,
                        format!(
                            "`{}` in the VM holds a name that is not UTF-8: `{}`",
                            source.path, entry.name
                        ),
                    )
                    .hint("rename it, or pack the directory with `tar` inside the VM")
                    .into());
                }
                let child =
                    Source { vm: source.vm, path: join(&source.path, name.as_str()), stat: entry.stat };
                self.fetch(&child, directory, &shown.join(name.as_str()), name, depth + 1).await?;
            }
            query.cursor = listing.next_cursor;
            if query.cursor.is_none() {
                break;
            }
        }
        Ok(())
    }

    async fn fetch_file(
        &mut self,
        source: &Source<'_>,
        parent: &Directory,
        shown: &Path,
        name: Name<'_>,
    ) -> Result {
        let failed = |error: std::io::Error| file("write", shown, error);
        let read = ReadQuery { path: source.path.clone(), user: self.user.clone(), ..ReadQuery::default() };
        let mut download = self.client.read_file(source.vm, &read).await?;
        let mut new = parent.create(name).map_err(failed)?;
        let mut local = tokio::fs::File::from_std(new.take_file());
        let mut bytes = 0;
        while let Some(chunk) = download.content.next().await {
            let chunk = chunk?;
            local.write_all(&chunk).await.map_err(failed)?;
            bytes += chunk.len() as u64;
            self.chunk(chunk.len());
        }
        local.flush().await.map_err(failed)?;
        new.commit(&local, source.stat.mode).map_err(failed)?;
        self.arrived(&shown.display().to_string(), bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::copy::Place;

    fn places(from: &str, to: &str) -> (RemotePath, LocalPath) {
        match (from.parse(), to.parse()) {
            (Ok(Place::Remote(from)), Ok(Place::Local(to))) => (from, to),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_target_is_chosen_as_cp_chooses_it() {
        let dir = tempfile::tempdir().unwrap();
        let here = dir.path().to_str().unwrap();
        let chosen = |from: &str, to: &str| {
            let (from, to) = places(from, to);
            match target(&from, &to) {
                Ok(Target::Named { parent, name }) => Some(parent.join(name)),
                Ok(Target::Itself(directory)) => Some(directory),
                Err(_) => None,
            }
        };
        let below = |name: &str| Some(dir.path().join(name));
        assert_eq!(chosen("a:/etc/hostname", here), below("hostname"));
        assert_eq!(chosen("a:/etc/hostname", &format!("{here}/new")), below("new"));
        assert_eq!(chosen("a:/etc/hostname", &format!("{here}/new/")), None, "no such directory");
        assert_eq!(chosen("a:/etc/.", &format!("{here}/new")), below("new"));
        assert_eq!(chosen("a:/", &format!("{here}/new")), below("new"));
        assert_eq!(chosen("a:/etc/hostname", "new"), Some("./new".into()));
    }
}
