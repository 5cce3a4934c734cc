//! File operations as the host sees them. Transfers of any size flow in chunks; memory stays one chunk.

use super::{
    ClientError,
    call::{self, Call, Context},
};
use crate::message::{
    CHUNK, FileChunk, FileOperation, FileRequest, FileStat, HostOpen, ListItem, Reply, WatchEvent,
};
use bytes::Bytes;
use serde::de::{DeserializeOwned, IgnoredAny};

/// A name has at most 255 bytes; each may have become a three-byte replacement character.
const MAX_NAME: usize = 3 * 255;
/// `PATH_MAX`, with the same allowance.
pub(super) const MAX_PATH: usize = 3 * 4096;

/// File operations in the guest as one user.
#[derive(Debug, Clone)]
pub struct Files {
    context: Context,
    user: String,
}

impl Files {
    pub(super) fn new(context: Context, user: String) -> Self {
        Self { context, user }
    }

    /// Does not follow a final symlink unless `follow`.
    pub async fn stat(&self, path: impl Into<String>, follow: bool) -> Result<FileStat, ClientError> {
        let mut call = self.call("stat", FileOperation::Stat { path: path.into(), follow }).await?;
        let stat = call.reply::<FileStat>().await?;
        check_stat("stat", stat)
    }

    pub async fn list(&self, path: impl Into<String>) -> Result<Listing, ClientError> {
        let mut call = self.call("list", FileOperation::List { path: path.into() }).await?;
        call.reply::<()>().await?;
        Ok(Listing { call, over: false })
    }

    /// From `offset` on, at most `length` bytes.
    pub async fn read(
        &self,
        path: impl Into<String>,
        offset: u64,
        length: Option<u64>,
    ) -> Result<FileReader, ClientError> {
        let operation = FileOperation::Read { path: path.into(), offset, length };
        let mut call = self.call("read", operation).await?;
        let stat = check_stat("read", call.reply::<FileStat>().await?)?;
        Ok(FileReader { stat, incoming: Incoming::new(call, length) })
    }

    /// Written beside, renamed into place by [`FileWriter::finish`].
    pub async fn write(
        &self,
        path: impl Into<String>,
        mode: Option<u32>,
        make_parents: bool,
        exclusive: bool,
    ) -> Result<FileWriter, ClientError> {
        let operation = FileOperation::Write { path: path.into(), mode, make_parents, exclusive };
        let mut call = self.call("write", operation).await?;
        call.reply::<()>().await?;
        Ok(FileWriter(Outgoing { call }))
    }

    /// With `parents`, existing directories are fine.
    pub async fn make_directory(
        &self,
        path: impl Into<String>,
        parents: bool,
        mode: Option<u32>,
    ) -> Result<(), ClientError> {
        self.done("make-directory", FileOperation::MakeDirectory { path: path.into(), parents, mode }).await
    }

    pub async fn rename(&self, from: impl Into<String>, to: impl Into<String>) -> Result<(), ClientError> {
        self.done("rename", FileOperation::Rename { from: from.into(), to: to.into() }).await
    }

    pub async fn remove(&self, path: impl Into<String>, recursive: bool) -> Result<(), ClientError> {
        self.done("remove", FileOperation::Remove { path: path.into(), recursive }).await
    }

    pub async fn symlink(
        &self,
        target: impl Into<String>,
        path: impl Into<String>,
    ) -> Result<(), ClientError> {
        self.done("symlink", FileOperation::Symlink { target: target.into(), path: path.into() }).await
    }

    pub async fn set_mode(&self, path: impl Into<String>, mode: u32) -> Result<(), ClientError> {
        self.done("set-mode", FileOperation::SetMode { path: path.into(), mode }).await
    }

    /// Returns once the guest is watching: a change made afterwards is seen.
    pub async fn watch(&self, path: impl Into<String>, recursive: bool) -> Result<Watch, ClientError> {
        let mut call = self.call("watch", FileOperation::Watch { path: path.into(), recursive }).await?;
        call.reply::<()>().await?;
        Ok(Watch { call })
    }

    async fn done(&self, name: &'static str, operation: FileOperation) -> Result<(), ClientError> {
        self.call(name, operation).await?.reply().await
    }

    async fn call(&self, name: &'static str, operation: FileOperation) -> Result<Call, ClientError> {
        let context = Context { operation: name, ..self.context.clone() };
        let request = FileRequest { user: self.user.clone(), operation };
        Call::open(context, &HostOpen::File(request)).await
    }
}

/// The bytes of a file. Dropping it ends the transfer.
#[derive(Debug)]
pub struct FileReader {
    stat: FileStat,
    incoming: Incoming,
}

impl FileReader {
    /// As the file was when it was opened.
    pub fn stat(&self) -> &FileStat {
        &self.stat
    }

    /// The next bytes; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        self.incoming.next().await
    }
}

/// Chunks that the guest sends.
#[derive(Debug)]
pub(super) struct Incoming {
    call: Call,
    left: Option<u64>,
    over: bool,
}

impl Incoming {
    /// At most `limit` bytes.
    pub(super) fn new(call: Call, limit: Option<u64>) -> Self {
        Self { call, left: limit, over: false }
    }

    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        if self.over {
            return Ok(None);
        }
        match self.call.soon::<FileChunk>().await? {
            FileChunk::Data(data) => {
                let length = data.len();
                if length == 0 || length > CHUNK {
                    return Err(ClientError::protocol("read", format!("{length} bytes in one chunk")));
                }
                if let Some(left) = &mut self.left {
                    *left = left
                        .checked_sub(length as u64)
                        .ok_or_else(|| ClientError::protocol("read", "more bytes than were asked for"))?;
                }
                Ok(Some(data.into()))
            }
            FileChunk::End => {
                self.over = true;
                Ok(None)
            }
            FileChunk::Failed(error) => {
                self.over = true;
                Err(ClientError::Guest(error))
            }
        }
    }
}

/// A file being written. Dropping it before `finish` leaves the old file as it was.
#[derive(Debug)]
pub struct FileWriter(Outgoing);

impl FileWriter {
    /// Not cancel-safe: after a cancelled call every further one fails.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        self.0.send(bytes).await
    }

    /// Puts the file into place.
    pub async fn finish(self) -> Result<FileStat, ClientError> {
        check_stat("write", self.0.finish::<FileStat>().await?)
    }
}

/// Chunks that the guest takes.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) call: Call,
}

impl Outgoing {
    /// Not cancel-safe.
    pub(super) async fn send(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        for chunk in bytes.chunks(CHUNK) {
            let sent = self.call.send(&FileChunk::Data(chunk.to_vec())).await;
            if let Err(error) = sent {
                return Err(self.why(error).await);
            }
        }
        Ok(())
    }

    /// The guest's answer once it has all of it.
    pub(super) async fn finish<T: DeserializeOwned>(mut self) -> Result<T, ClientError> {
        if let Err(error) = self.call.send(&FileChunk::End).await {
            return Err(self.why(error).await);
        }
        self.call.reply().await
    }

    /// A guest that fails half-way (a full disk) says so and drops the stream: that answer is the better error.
    async fn why(&mut self, error: ClientError) -> ClientError {
        if !matches!(error, ClientError::Protocol { .. }) {
            return error;
        }
        match self.call.reader.recv::<Reply<IgnoredAny>>().await {
            Ok(Some(Reply::Err(guest))) => ClientError::Guest(guest),
            _ => error,
        }
    }
}

/// One name in a directory; always a plain file name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListEntry {
    pub name: String,
    /// The name is not UTF-8 in the guest: bytes were replaced.
    pub lossy: bool,
    pub stat: FileStat,
}

#[derive(Debug)]
pub struct Listing {
    call: Call,
    over: bool,
}

impl Listing {
    /// The next entry, in the guest's order; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<ListEntry>, ClientError> {
        if self.over {
            return Ok(None);
        }
        match self.call.soon::<ListItem>().await? {
            ListItem::Entry { name, lossy, stat } => {
                let stat = check_stat("list", stat)?;
                // A hostile name would otherwise become a path on the host when a directory is copied out.
                if name.is_empty()
                    || name.len() > MAX_NAME
                    || name == "."
                    || name == ".."
                    || name.contains(['/', '\0'])
                {
                    let shown: String = name.chars().take(64).collect();
                    return Err(ClientError::protocol("list", format!("{shown:?} as a file name")));
                }
                Ok(Some(ListEntry { name, lossy, stat }))
            }
            ListItem::End => {
                self.over = true;
                Ok(None)
            }
            ListItem::Failed(error) => {
                self.over = true;
                Err(ClientError::Guest(error))
            }
        }
    }
}

/// Changes below a path, until it is dropped.
#[derive(Debug)]
pub struct Watch {
    call: Call,
}

impl Watch {
    /// The next change. Cancel-safe.
    pub async fn next(&mut self) -> Result<WatchEvent, ClientError> {
        let event: WatchEvent = call::next(&self.call.context, &mut self.call.reader).await?;
        if event.path.len() > MAX_PATH {
            return Err(ClientError::protocol("watch", format!("a path of {} bytes", event.path.len())));
        }
        Ok(event)
    }
}

pub(super) fn check_stat(operation: &'static str, stat: FileStat) -> Result<FileStat, ClientError> {
    if stat.mode > 0o7777 {
        return Err(ClientError::protocol(operation, format!("mode {:o}", stat.mode)));
    }
    if stat.symlink_target.as_ref().is_some_and(|target| target.len() > MAX_PATH) {
        return Err(ClientError::protocol(operation, "a symlink target longer than any path"));
    }
    Ok(stat)
}
