//! Files with what programs said: written behind the program's back, removed with their rows, bounded in all.

use crate::{
    OutputStream,
    core::Core,
    tasks::TaskKind,
    trace::{Scope, TraceEvent},
};
use bytes::Bytes;
use offshoot_store::blocking;
use offshoot_types::OperationId;
use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
};
use tokio::sync::{mpsc, oneshot};

/// Most bytes of all programs together that wait to be written; a file that would need more is cut.
const MOST_WAITING: u64 = 64 << 20;
/// Pieces written at once.
const PIECES: usize = 64;
/// Once there is too much, the oldest go until this many tenths of what is allowed are left.
const TENTHS_LEFT: u64 = 9;

pub(super) const fn extension(stream: OutputStream) -> &'static str {
    match stream {
        OutputStream::Stdout => "stdout",
        OutputStream::Stderr => "stderr",
    }
}

pub(super) fn path_of(directory: &Path, operation: OperationId, stream: OutputStream) -> PathBuf {
    directory.join(format!("{}.{}", operation.simple(), extension(stream)))
}

/// One file that is being written.
#[derive(Debug)]
pub(super) struct Spill {
    /// `None` once it is as long as it may become, or could not keep up.
    pieces: Option<mpsc::UnboundedSender<Bytes>>,
    room: u64,
    written: oneshot::Receiver<u64>,
    core: Option<Arc<Core>>,
}

impl Spill {
    /// A file that was there is replaced.
    pub fn begin(core: &Arc<Core>, path: PathBuf) -> Self {
        let (pieces, received) = mpsc::unbounded_channel();
        let (done, written) = oneshot::channel();
        let writer = Writer { core: core.clone(), path, received };
        core.tasks.spawn(TaskKind::Spiller, Scope::default(), async move {
            // A program whose end nobody records any more does not want to know.
            let _ = done.send(writer.run().await);
        });
        let room = core.options.history.per_stream.0;
        Self { pieces: Some(pieces), room, written, core: Some(core.clone()) }
    }

    #[cfg(test)]
    pub fn nowhere() -> Self {
        let (_, written) = oneshot::channel();
        Self { pieces: None, room: 0, written, core: None }
    }

    pub fn write(&mut self, mut piece: Bytes) {
        let (Some(pieces), Some(core)) = (&self.pieces, &self.core) else { return };
        piece.truncate(usize::try_from(self.room).unwrap_or(usize::MAX));
        self.room -= piece.len() as u64;
        let bytes = piece.len() as u64;
        let waiting = core.history.waiting.fetch_add(bytes, Ordering::Relaxed) + bytes;
        // Refused by a writer whose disk is full.
        if waiting > MOST_WAITING || pieces.send(piece).is_err() {
            core.history.waiting.fetch_sub(bytes, Ordering::Relaxed);
            self.pieces = None;
        } else if self.room == 0 {
            self.pieces = None;
        }
    }

    /// How many bytes the file has.
    pub async fn finish(self) -> u64 {
        drop(self.pieces);
        self.written.await.unwrap_or(0)
    }
}

struct Writer {
    core: Arc<Core>,
    path: PathBuf,
    received: mpsc::UnboundedReceiver<Bytes>,
}

impl Writer {
    async fn run(mut self) -> u64 {
        let (mut file, mut written) = (None, 0);
        let mut pieces = Vec::new();
        while self.received.recv_many(&mut pieces, PIECES).await > 0 {
            let batch = std::mem::take(&mut pieces);
            let bytes: u64 = batch.iter().map(|piece| piece.len() as u64).sum();
            let path = self.path.clone();
            let done = blocking(move || append(file, &path, &batch)).await;
            self.core.history.waiting.fetch_sub(bytes, Ordering::Relaxed);
            match done {
                Ok(Ok(open)) => file = Some(open),
                Ok(Err(error)) => {
                    self.failed(&error);
                    break;
                }
                // The runtime ends, and we with it.
                Err(_cancelled) => break,
            }
            written += bytes;
            self.core.history.wrote(bytes);
        }
        // What still comes is not waited for.
        self.received.close();
        while let Ok(piece) = self.received.try_recv() {
            self.core.history.waiting.fetch_sub(piece.len() as u64, Ordering::Relaxed);
        }
        written
    }

    /// The row says how much is there; this is for whoever runs the daemon.
    fn failed(&self, error: &io::Error) {
        let error = format!("{}: {error}", self.path.display());
        TraceEvent::StoreFailed { operation: "keep the output of a program", error: &error }
            .emit(&Scope::default());
    }
}

fn append(file: Option<File>, path: &Path, pieces: &[Bytes]) -> io::Result<File> {
    let mut file = match file {
        Some(file) => file,
        None => OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?,
    };
    pieces.iter().try_for_each(|piece| file.write_all(piece))?;
    Ok(file)
}

/// One file that is there.
struct Found {
    operation: OperationId,
    path: PathBuf,
    bytes: u64,
}

impl Core {
    /// Removes the files whose rows are gone and, if there is too much, the oldest. Their rows say how much there was.
    pub async fn sweep_history(&self) {
        let directory = self.layout.history();
        let found = match blocking(move || list(&directory)).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => return self.unswept(&error.to_string()),
            Err(_cancelled) => return,
        };
        let known: BTreeSet<OperationId> = found.iter().map(|file| file.operation).collect();
        let gone = match self.store.read(move |view| view.not_in_history(&known)).await {
            Ok(gone) => gone,
            Err(error) => return self.unswept(&error.to_string()),
        };
        let most = self.options.history.output.map_or(0, |most| most.0);
        let (needless, kept) = choose(found, &gone.into_iter().collect(), most);
        self.history.kept.store(kept, Ordering::Relaxed);
        let removed = blocking(move || needless.iter().try_for_each(|path| remove(path))).await;
        if let Ok(Err(error)) = removed {
            self.unswept(&error.to_string());
        }
    }

    fn unswept(&self, error: &str) {
        TraceEvent::StoreFailed { operation: "remove the output of programs", error }.emit(&Scope::default());
    }
}

fn list(directory: &Path) -> io::Result<Vec<Found>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let path = entry.path();
        let known = path.extension().is_some_and(|kind| kind == "stdout" || kind == "stderr");
        let operation = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
        let Some(operation) = operation.filter(|_| known) else { continue };
        match entry.metadata() {
            Ok(metadata) => found.push(Found { operation, path, bytes: metadata.len() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// The files that go, and how many bytes are left then.
fn choose(mut found: Vec<Found>, gone: &BTreeSet<OperationId>, most: u64) -> (Vec<PathBuf>, u64) {
    let mut kept: u64 = found.iter().map(|file| file.bytes).sum();
    // Ids made later sort later.
    found.sort_by_key(|file| (!gone.contains(&file.operation), file.operation));
    let too_much =
        found.iter().filter(|file| !gone.contains(&file.operation)).map(|file| file.bytes).sum::<u64>()
            > most;
    let until = if too_much { most / 10 * TENTHS_LEFT } else { most };
    let mut needless = Vec::new();
    for file in found {
        if gone.contains(&file.operation) || (too_much && kept > until) {
            kept -= file.bytes;
            needless.push(file.path);
        }
    }
    (needless, kept)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_without_a_row_go_and_then_the_oldest_until_there_is_room_again() {
        let ids: Vec<OperationId> = (0..5).map(|_| OperationId::new()).collect();
        let files = |bytes: u64| -> Vec<Found> {
            let file = |id: &OperationId| Found { operation: *id, path: id.to_string().into(), bytes };
            ids.iter().rev().map(file).collect()
        };
        let paths =
            |of: &[usize]| -> Vec<PathBuf> { of.iter().map(|at| ids[*at].to_string().into()).collect() };
        let orphan = BTreeSet::from([ids[3]]);
        assert_eq!(choose(files(10), &orphan, 1000), (paths(&[3]), 40));
        assert_eq!(choose(files(10), &orphan, 40), (paths(&[3]), 40), "just what is allowed");
        assert_eq!(choose(files(10), &orphan, 30), (paths(&[3, 0, 1]), 20), "room for a while");
        assert_eq!(choose(files(10), &BTreeSet::new(), 0), (paths(&[0, 1, 2, 3, 4]), 0));
    }

    #[test]
    fn only_files_of_ours_are_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let id = OperationId::new();
        for name in ["x.stdout", "note.txt", &format!("{}.log", id.simple())] {
            fs::write(folder.path().join(name), "x").unwrap();
        }
        append(None, &path_of(folder.path(), id, OutputStream::Stderr), &["abc".into()]).unwrap();
        let found = list(folder.path()).unwrap();
        assert_eq!(found.iter().map(|file| (file.operation, file.bytes)).collect::<Vec<_>>(), [(id, 3)]);
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(fs::metadata(&found[0].path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
