//! What the history tells to whom.

use super::files::path_of;
use crate::{Engine, OutputStream, core::Core, error, keys::Sees};
use offshoot_policy::Authorized;
use offshoot_store::{HistoryFilter, HistoryPage, HistoryRecord, HistoryStream, blocking};
use offshoot_types::{Actor, Command, ErrorCode, Failure, OperationId, VmId, VmRef};
use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::PathBuf,
};

/// One run, and how much of what it said can be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryEntry {
    pub record: HistoryRecord,
    /// Bytes of stdout, from the beginning, that [`Engine::history_stream`] has.
    pub stdout: u64,
    pub stderr: u64,
}

/// Some of what is kept of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryBytes {
    pub bytes: Vec<u8>,
    /// How many are kept, from the beginning.
    pub kept: u64,
    /// How many there were.
    pub total: u64,
}

impl Engine {
    /// What was run in the VM named, which may be destroyed if it is named by its id, or in all ([`Command::Inspect`]),
    /// newest first. Whose and which VM's is said by the permit, not by the filter.
    pub async fn history(
        &self,
        permit: Authorized<Command>,
        filter: HistoryFilter,
        limit: u32,
    ) -> Result<HistoryPage, Failure> {
        let actor = permit.grant().actor();
        let vm = match permit.get() {
            Command::Inspect { vm } => vm.clone(),
            other => return Err(error::wrong_permit("history", other.action())),
        };
        let names_begin = match self.core().keys.sees(actor) {
            Sees::All => None,
            Sees::Only(prefix) => Some(prefix.to_string()),
            nothing @ Sees::Nothing => {
                return Err(nothing.all("history").err().unwrap_or_else(error::shutting_down));
            }
        };
        let vm = match vm {
            Some(vm) => Some(self.core().known_vm(&vm, actor).await?),
            None => None,
        };
        let filter = HistoryFilter { owner: Some(actor.owner()), vm, names_begin, ..filter };
        Ok(self.core().store.read(move |view| view.history(&filter, limit)).await?)
    }

    /// One run ([`Command::InspectOperation`]).
    pub async fn history_entry(&self, permit: Authorized<Command>) -> Result<HistoryEntry, Failure> {
        let record = self.core().found_history(&permit, "history_entry").await?;
        let kept = async |stream| self.core().kept(&record, stream).await.map(|kept| kept.bytes());
        let (stdout, stderr) = (kept(OutputStream::Stdout).await?, kept(OutputStream::Stderr).await?);
        Ok(HistoryEntry { record, stdout, stderr })
    }

    /// At most `limit` bytes from `offset` of what is kept of a stream ([`Command::InspectOperation`]).
    pub async fn history_stream(
        &self,
        permit: Authorized<Command>,
        stream: OutputStream,
        offset: u64,
        limit: u64,
    ) -> Result<HistoryBytes, Failure> {
        let record = self.core().found_history(&permit, "history_stream").await?;
        if record.ended.is_none() {
            let message = "it still runs, and what it says is written down when it has ended";
            return Err(Failure::new(ErrorCode::WrongState, message)
                .hint("attach to it: `GET /v1/vms/{vm}/execs/{id}/attach`"));
        }
        let kept = self.core().kept(&record, stream).await?;
        let total = of(&record, stream).map_or(0, |stream| stream.bytes);
        let known = kept.bytes();
        let bytes = blocking(move || kept.read(offset, limit)).await;
        let bytes = match bytes {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(error)) => {
                let message = "what the program said could not be read from its file";
                return Err(Failure::new(ErrorCode::Internal, message).caused_by(&error));
            }
            Err(_cancelled) => return Err(error::shutting_down()),
        };
        Ok(HistoryBytes { bytes, kept: known, total })
    }
}

impl Core {
    pub(super) async fn found_history(
        &self,
        permit: &Authorized<Command>,
        method: &'static str,
    ) -> Result<HistoryRecord, Failure> {
        let Command::InspectOperation { id } = permit.get() else {
            return Err(error::wrong_permit(method, permit.get().action()));
        };
        let (id, actor) = (*id, permit.grant().actor());
        let found = self.store.read(move |view| view.history_entry(id)).await?;
        let sees = self.keys.sees(actor);
        let own = found.filter(|found| found.owner == actor.owner() && sees.name(&found.vm_name));
        own.ok_or_else(|| not_found(id))
    }

    /// A VM of the actor's that exists, or one that did: that by its id only.
    async fn known_vm(&self, vm: &VmRef, actor: &Actor) -> Result<VmId, Failure> {
        let owner = actor.owner();
        let missing = match (self.manager.find(vm, &owner), vm) {
            (Ok(handle), _) => return Ok(handle.id),
            (Err(failure), VmRef::Id(id)) => {
                let found = self.store.vm(*id).await?;
                let sees = self.keys.sees(actor);
                if found.is_some_and(|vm| vm.owner == owner && sees.name(&vm.name)) {
                    return Ok(*id);
                }
                failure
            }
            (Err(failure), VmRef::Name(_)) => failure,
        };
        Err(missing.hint(
            "of a VM that is gone the history is found by its id, which `offshoot history --json` tells",
        ))
    }

    /// Where what is kept of a stream is.
    async fn kept(&self, record: &HistoryRecord, stream: OutputStream) -> Result<Kept, Failure> {
        let Some(said) = of(record, stream) else { return Ok(Kept::Inline(Vec::new())) };
        if said.file > 0 {
            let path = path_of(&self.layout.history(), record.operation, stream);
            let most = said.file;
            let found = blocking(move || {
                let bytes = std::fs::metadata(&path).map_or(0, |metadata| metadata.len().min(most));
                (path, bytes)
            });
            match found.await {
                Ok((path, bytes)) if bytes > 0 => return Ok(Kept::File { path, bytes }),
                // Other files needed its room.
                Ok(_) => {}
                Err(_cancelled) => return Err(error::shutting_down()),
            }
        }
        let mut bytes = said.head.clone();
        if is_whole(said) {
            bytes.extend_from_slice(&said.tail);
        }
        Ok(Kept::Inline(bytes))
    }
}

/// Whether both ends together are all that was read of it.
fn is_whole(said: &HistoryStream) -> bool {
    (said.head.len() + said.tail.len()) as u64 == said.bytes.saturating_sub(said.lost)
}

enum Kept {
    Inline(Vec<u8>),
    File { path: PathBuf, bytes: u64 },
}

impl Kept {
    fn bytes(&self) -> u64 {
        match self {
            Self::Inline(bytes) => bytes.len() as u64,
            Self::File { bytes, .. } => *bytes,
        }
    }

    fn read(self, offset: u64, limit: u64) -> io::Result<Vec<u8>> {
        let begin = offset.min(self.bytes());
        let end = begin.saturating_add(limit).min(self.bytes());
        match self {
            Self::Inline(mut bytes) => {
                // Both are within what is in memory.
                bytes.truncate(end as usize);
                Ok(bytes.split_off(begin as usize))
            }
            Self::File { path, .. } => {
                let mut file = File::open(path)?;
                file.seek(SeekFrom::Start(begin))?;
                let mut bytes = Vec::new();
                file.take(end - begin).read_to_end(&mut bytes)?;
                Ok(bytes)
            }
        }
    }
}

fn of(record: &HistoryRecord, stream: OutputStream) -> Option<&HistoryStream> {
    let output = record.output.as_ref()?;
    Some(match stream {
        OutputStream::Stdout => &output.stdout,
        OutputStream::Stderr => &output.stderr,
    })
}

pub(crate) fn not_found(id: OperationId) -> Failure {
    Failure::new(ErrorCode::NotFound, format!("there is no `{id}` in the history"))
        .hint("`offshoot history` lists what was run; what is old is forgotten")
}
