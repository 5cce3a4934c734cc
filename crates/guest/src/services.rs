//! The protocol's services, each handed to the module that does it.

use crate::{
    clock,
    contexts::Contexts,
    entries::{self, Entries},
    exec::{Attachment, Execs, Output},
    fault::{Context, fault, invalid},
    files::{self, Files, Reading, Root, Seen, What},
    freeze::Freezer,
    info,
    init::{self, DataDisk, SandboxDisk},
    kernel::Kernel,
    presence::HostPresence,
    reaper::Reaper,
    shutdown,
    survey::{self, Layers},
    tcp::{self, Tunnels},
    thaw::Thawer,
    tree,
    usage::Meter,
    users::Users,
};
use offshoot_guest_proto::{
    CloseReason,
    message::{
        CHUNK, ContextInfo, DiskRequest, DiskUse, EntryItem, EntryOperation, EntryRequest, ExecAttach,
        ExecInput, ExecStart, ExecSummary, FileChunk, FileOperation, FileRequest, Frozen, GuestError,
        GuestErrorKind, GuestHello, GuestInfo, HostHello, HostTime, Language, ListItem, RunCode,
        ShutdownKind, SurveyRequest, Thaw, Thawed, Usage, WatchChange, WatchEvent,
    },
    resync::EpochEnd,
    server::{self, CodePeer, Detached, ExecInputs, ExecOutputs, ExecPeer, FilePeer, SurveyPeer, TcpPeer},
};
use rustix::fd::OwnedFd;
use serde::Serialize;
use serde_bytes::ByteBuf;
use std::{sync::Arc, time::Duration};

#[derive(Debug)]
pub struct Services {
    pub kernel: Kernel,
    pub reaper: Arc<Reaper>,
    pub presence: Arc<HostPresence>,
    pub users: Arc<Users>,
    pub execs: Execs,
    pub contexts: Arc<Contexts>,
    pub freezer: Arc<Freezer>,
    pub thawer: Thawer,
    pub tunnels: Tunnels,
    pub root: Arc<Root>,
    pub data: Arc<DataDisk>,
    pub meter: Meter,
    /// The root directory of the VM's image.
    pub image: Option<OwnedFd>,
    /// When the agent was ready, in milliseconds since the kernel started.
    pub ready_ms: u64,
}

impl Services {
    /// What the VM has written, apart from its image.
    fn layers(&self) -> Result<Layers, GuestError> {
        match (self.data.directory(), &self.image) {
            (Some(data), Some(image)) => Layers::open(data, image),
            _ => {
                let message = "survey: this VM's kernel does not show what was written apart from the image";
                Err(fault(GuestErrorKind::Unsupported, message))
            }
        }
    }
}

impl Services {
    async fn keep_disk(&self, disk: &SandboxDisk, peer: &mut FilePeer) -> Result<(), Detached> {
        if !self.freezer.is_frozen() {
            let message = "keep the disk: its programs are to stand still first";
            return peer.reply::<()>(Err(invalid(message))).await;
        }
        let upper = match used(disk).and_then(|used| Ok((used, duplicate(&disk.upper)?))) {
            Ok((used, upper)) => {
                peer.reply(Ok(used)).await?;
                upper
            }
            Err(error) => return peer.reply::<()>(Err(error)).await,
        };
        if peer.chunk().await? != FileChunk::End {
            return Ok(());
        }
        if !shutdown::end_programs(self.kernel, self.reaper.passes()).await {
            let message = "keep the disk: some of its programs do not end";
            return peer.send(&FileChunk::Failed(fault(GuestErrorKind::Other, message))).await;
        }
        let (to, mut chunks) = tree::outgoing(CHUNK);
        let packing = tree::on_thread("keep", move || tree::pack(upper, tree::OPAQUE, to));
        let sending = async {
            let mut sent = Ok(());
            while let (Ok(()), Some(chunk)) = (&sent, chunks.recv().await) {
                sent = peer.send(&FileChunk::Data(chunk)).await;
            }
            // Without a reader the thread has nothing to go on for.
            chunks.close();
            sent
        };
        let (packed, sent) = tokio::join!(packing, sending);
        sent?;
        match packed {
            Ok(()) => peer.send(&FileChunk::End).await,
            Err(error) => peer.send(&FileChunk::Failed(error)).await,
        }
    }
}

fn duplicate(directory: &OwnedFd) -> Result<OwnedFd, GuestError> {
    directory.try_clone().context("open", "the disk")
}

fn used(disk: &SandboxDisk) -> Result<DiskUse, GuestError> {
    let stat = rustix::fs::fstatvfs(&disk.upper).context("measure", "the disk")?;
    Ok(DiskUse { bytes: stat.f_blocks.saturating_sub(stat.f_bfree).saturating_mul(stat.f_frsize) })
}

async fn put_disk_back(disk: &SandboxDisk, peer: &mut FilePeer) -> Result<(), Detached> {
    let root = match duplicate(&disk.root) {
        Ok(root) => root,
        Err(error) => return peer.reply::<()>(Err(error)).await,
    };
    peer.reply(Ok(())).await?;
    let (to, from) = tree::incoming();
    let unpacking = tree::on_thread("put back", move || tree::unpack(root, from));
    let receiving = async {
        let received = loop {
            match peer.chunk().await {
                Ok(FileChunk::Data(data)) => match to.send(data).await {
                    Ok(()) => {}
                    // The thread has failed, and says why.
                    Err(_ended) => break Ok(true),
                },
                Ok(FileChunk::End) => break Ok(true),
                Ok(FileChunk::Failed(_)) => break Ok(false),
                Err(left) => break Err(left),
            }
        };
        // It waits for more as long as there may be some.
        drop(to);
        received
    };
    let (unpacked, received) = tokio::join!(unpacking, receiving);
    if received? { peer.reply(unpacked).await } else { Ok(()) }
}

impl server::Services for Services {
    async fn hello(&self, hello: &HostHello) -> Result<GuestHello, GuestError> {
        self.presence.heard();
        clock::follow(self.kernel, hello.time);
        init::set_hostname(&hello.hostname).map_err(|error| match std::error::Error::source(&error) {
            Some(source) => fault(GuestErrorKind::Other, format!("{error}: {source}")),
            None => invalid(error.to_string()),
        })?;
        Ok(GuestHello {
            version: hello.version,
            epoch: hello.epoch,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            boot_id: info::boot_id()?,
            kernel_release: info::kernel_release(),
            ready_ms: self.ready_ms,
            frozen: self.freezer.is_frozen(),
        })
    }

    fn heartbeat(&self, time: HostTime) -> i64 {
        self.presence.heard();
        clock::follow(self.kernel, time)
    }

    async fn exec(&self, start: ExecStart, peer: ExecPeer) {
        // Nothing is awaited between this and the start.
        self.freezer.running().await;
        match self.execs.start(&start) {
            Ok(attachment) => relay(attachment, peer).await,
            Err(error) => peer.fail(error).await,
        }
    }

    async fn attach(&self, attach: ExecAttach, peer: ExecPeer) {
        match self.execs.attach(attach.exec, [attach.stdout_offset, attach.stderr_offset]) {
            Ok(attachment) => relay(attachment, peer).await,
            Err(error) => peer.fail(error).await,
        }
    }

    async fn list_execs(&self) -> Vec<ExecSummary> {
        self.execs.list()
    }

    async fn file(&self, request: FileRequest, mut peer: FilePeer) {
        let outcome = match self.users.find(&request.user) {
            Ok(user) => {
                let files = Files::new(Arc::clone(&self.root), user.identity);
                file_operation(&files, request.operation, &mut peer).await
            }
            Err(error) => peer.reply::<()>(Err(error)).await,
        };
        // A host that left has no use for the outcome; what was half written is dropped with its guard.
        drop(outcome);
    }

    async fn tcp(&self, port: u16, peer: TcpPeer) {
        let mut stream = match tcp::connect(port).await {
            Ok(stream) => stream,
            Err(error) => return peer.refuse(error).await,
        };
        let open = self.tunnels.open();
        if let Ok(mut tunnel) = peer.accept().await {
            // Either side's failure ends the connection for both, which is all there is to do about it.
            drop(tokio::io::copy_bidirectional(&mut *stream, &mut tunnel).await);
        }
        open.close();
    }

    async fn info(&self) -> Result<GuestInfo, GuestError> {
        info::collect()
    }

    fn may_shutdown(&self, _kind: ShutdownKind) -> Result<(), GuestError> {
        Ok(())
    }

    async fn shutdown(&self, kind: ShutdownKind) {
        shutdown::shut_down(self.kernel, kind, &self.data, self.reaper.passes()).await
    }

    async fn flush(&self) -> Result<(), GuestError> {
        let data = Arc::clone(&self.data);
        let flushed = tokio::task::spawn_blocking(move || data.flush()).await;
        flushed.map_err(std::io::Error::other).and_then(|flushed| flushed).context("flush", "the data disk")
    }

    async fn freeze(&self, deadline: Duration) -> Result<Frozen, GuestError> {
        let frozen = self.freezer.freeze(deadline).await?;
        // Only what goes from here on was open when the state was saved.
        self.tunnels.forget_cut();
        self.thawer.forget();
        Ok(frozen)
    }

    async fn unfreeze(&self) -> Result<(), GuestError> {
        self.freezer.unfreeze().await
    }

    async fn go_on(&self, time: HostTime) -> Result<(), GuestError> {
        self.presence.heard();
        self.thawer.go_on(time).await
    }

    async fn thaw(&self, thaw: Thaw) -> Result<Thawed, GuestError> {
        self.presence.heard();
        self.thawer.thaw(thaw, self.tunnels.cut()).await
    }

    async fn run_code(&self, run: RunCode, peer: CodePeer) {
        self.contexts.run(run, peer).await
    }

    async fn contexts(&self) -> Result<Vec<ContextInfo>, GuestError> {
        Ok(self.contexts.list())
    }

    async fn remove_context(&self, context: String) -> Result<(), GuestError> {
        self.contexts.remove(&context).await
    }

    async fn restart_context(&self, context: String) -> Result<(), GuestError> {
        self.contexts.restart(&context).await
    }

    async fn prepare_interpreter(&self, language: Language, user: String) -> Result<(), GuestError> {
        self.contexts.prepare(language, user).await
    }

    async fn survey(&self, request: SurveyRequest, peer: SurveyPeer) {
        let outcome = match request {
            SurveyRequest::Processes => survey::processes(Arc::clone(&self.users), peer).await,
            SurveyRequest::Changes | SurveyRequest::Contents { .. } => match (self.layers(), request) {
                (Ok(layers), SurveyRequest::Contents { paths }) => {
                    survey::contents(layers, paths.into_iter().map(ByteBuf::into_vec).collect(), peer).await
                }
                (Ok(layers), _) => survey::changes(layers, peer).await,
                (Err(error), _) => {
                    peer.refuse(error).await;
                    Ok(())
                }
            },
        };
        // A host that left has no use for the rest.
        drop(outcome);
    }

    async fn entry(&self, request: EntryRequest, mut peer: FilePeer) {
        let outcome = match self.users.find(&request.user) {
            Ok(user) => {
                let entries = Entries::new(Arc::clone(&self.root), Arc::clone(&self.users), user);
                entry_operation(&entries, request.operation, &mut peer).await
            }
            Err(error) => peer.reply::<()>(Err(error)).await,
        };
        // A host that left has no use for the outcome; what was half written is there as far as it came.
        drop(outcome);
    }

    async fn usage(&self) -> Result<Usage, GuestError> {
        self.meter.read()
    }

    async fn disk(&self, request: DiskRequest, mut peer: FilePeer) {
        let outcome = match (&*self.data, request) {
            (DataDisk::Sandbox(disk), DiskRequest::Keep) => self.keep_disk(disk, &mut peer).await,
            (DataDisk::Sandbox(disk), DiskRequest::PutBack) => put_disk_back(disk, &mut peer).await,
            (DataDisk::Ext4(_) | DataDisk::Memory(_), _) => {
                let message = "carry the disk: this VM has one of its own";
                peer.reply::<()>(Err(fault(GuestErrorKind::Unsupported, message))).await
            }
        };
        // A host that left has no use for the outcome: everything is where it was.
        drop(outcome);
    }

    fn session_ended(&self, reason: &CloseReason) {
        // A new session takes the old one's place whenever a daemon or a state is new.
        if !matches!(reason, CloseReason::Epoch(EpochEnd::NewEpoch)) {
            crate::console::warn(format_args!("session with the host ended: {reason:?}"));
        }
    }
}

/// Input one way, output the other, until the process has ended or the host has left.
async fn relay(mut attachment: Attachment, peer: ExecPeer) {
    let (inputs, mut outputs) = peer.split();
    let process = Arc::clone(attachment.process());
    let output = async {
        outputs.started(process.pid.cast_unsigned()).await?;
        send_output(&mut attachment, outputs).await
    };
    tokio::select! {
        biased;
        // Sent to the end, or the host has left: either way the stream is over.
        _over = output => {}
        () = take_input(&process, inputs) => {}
    }
}

async fn send_output(attachment: &mut Attachment, mut outputs: ExecOutputs) -> Result<(), Detached> {
    while let Some(output) = attachment.next().await {
        match output {
            Output::Data { stream, offset, data } => outputs.output(stream, offset, data).await?,
            Output::Lost { stream, next_offset } => outputs.lost(stream, next_offset).await?,
            Output::Ended(end) => return outputs.ended(end).await,
        }
    }
    Ok(())
}

/// Returns once the host has left.
async fn take_input(process: &crate::exec::Process, mut inputs: ExecInputs) {
    while let Ok(input) = inputs.next().await {
        match input {
            ExecInput::Stdin(data) => process.stdin.write(&data).await,
            ExecInput::StdinEnd => process.stdin.end().await,
            ExecInput::Resize(size) => process.resize(size),
            ExecInput::Signal(number) => process.signal(number),
            ExecInput::Kill => process.kill(),
        }
    }
}

async fn file_operation(
    files: &Files,
    operation: FileOperation,
    peer: &mut FilePeer,
) -> Result<(), Detached> {
    match operation {
        FileOperation::Stat { path, follow } => peer.reply(files.stat(path, follow).await).await,
        FileOperation::MakeDirectory { path, parents, mode } => {
            peer.reply(files.make_directory(path, parents, mode).await).await
        }
        FileOperation::Rename { from, to } => peer.reply(files.rename(from, to).await).await,
        FileOperation::Remove { path, recursive } => peer.reply(files.remove(path, recursive).await).await,
        FileOperation::Symlink { target, path } => peer.reply(files.symlink(target, path).await).await,
        FileOperation::SetMode { path, mode } => peer.reply(files.set_mode(path, mode).await).await,
        FileOperation::List { path } => list(files, path, peer).await,
        FileOperation::Read { path, offset, length } => read(files, path, offset, length, peer).await,
        FileOperation::Write { path, mode, make_parents, exclusive } => {
            match files.write(path, mode, make_parents, exclusive).await {
                Ok(writing) => receive(writing, files::Writing::append, files::Writing::commit, peer).await,
                Err(error) => peer.reply::<()>(Err(error)).await,
            }
        }
        FileOperation::Watch { path, recursive } => match files.watch(path, recursive).await {
            Ok(watching) => {
                peer.reply(Ok(())).await?;
                tell(watching, async |watching| watching.next().await.map(told), peer).await
            }
            Err(error) => peer.reply::<()>(Err(error)).await,
        },
    }
}

async fn entry_operation(
    entries: &Entries,
    operation: EntryOperation,
    peer: &mut FilePeer,
) -> Result<(), Detached> {
    match operation {
        EntryOperation::Stat { path } => peer.reply(entries.stat(&path).await).await,
        EntryOperation::MakeDirectory { path } => peer.reply(entries.make_directory(&path).await).await,
        EntryOperation::Move { from, to } => peer.reply(entries.rename(&from, &to).await).await,
        EntryOperation::Remove { path } => peer.reply(entries.remove(&path).await).await,
        EntryOperation::Compose { sources, to } => peer.reply(entries.compose(&sources, &to).await).await,
        EntryOperation::List { path, depth } => match entries.list(&path, depth).await {
            Ok(listing) => list_entries(listing, peer).await,
            Err(error) => peer.reply::<()>(Err(error)).await,
        },
        EntryOperation::Read { path, offset, length } => match entries.read(&path, offset, length).await {
            Ok((entry, reading)) => {
                peer.reply(Ok(entry)).await?;
                send_file(reading, peer).await
            }
            Err(error) => peer.reply::<()>(Err(error)).await,
        },
        EntryOperation::Write { path, attributes } => match entries.write(&path, attributes).await {
            Ok(writing) => receive(writing, entries::Writing::append, entries::Writing::finish, peer).await,
            Err(error) => peer.reply::<()>(Err(error)).await,
        },
        EntryOperation::Watch { path, recursive, entries: described } => {
            match entries.watch(&path, recursive, described).await {
                Ok(watching) => {
                    peer.reply(Ok(watching.directory().to_owned())).await?;
                    tell(watching, entries::Watching::next, peer).await
                }
                Err(error) => peer.reply::<()>(Err(error)).await,
            }
        }
    }
}

async fn list_entries(mut listing: entries::Listing, peer: &mut FilePeer) -> Result<(), Detached> {
    peer.reply(Ok(())).await?;
    loop {
        match listing.next().await {
            Ok(batch) if batch.is_empty() => return peer.send(&EntryItem::End).await,
            Ok(batch) => {
                for entry in batch {
                    peer.send(&EntryItem::Entry(Box::new(entry))).await?;
                }
            }
            Err(error) => return peer.send(&EntryItem::Failed(error)).await,
        }
    }
}

/// Takes chunks until there are no more; what was written is answered.
async fn receive<W, T: Serialize>(
    mut writing: W,
    append: impl AsyncFn(&mut W, Vec<u8>) -> Result<(), GuestError>,
    finish: impl AsyncFnOnce(W) -> Result<T, GuestError>,
    peer: &mut FilePeer,
) -> Result<(), Detached> {
    peer.reply(Ok(())).await?;
    loop {
        let outcome = match peer.chunk().await? {
            FileChunk::Data(data) => match append(&mut writing, data).await {
                Ok(()) => continue,
                Err(error) => Err(error),
            },
            FileChunk::End => finish(writing).await,
            // The host gave up: nobody waits for an answer.
            FileChunk::Failed(_) => return Ok(()),
        };
        return peer.reply(outcome).await;
    }
}

/// Tells what happens until the host has heard enough.
async fn tell<W, E: Serialize>(
    mut watching: W,
    next: impl AsyncFn(&mut W) -> Result<E, GuestError>,
    peer: &mut FilePeer,
) -> Result<(), Detached> {
    loop {
        let event = tokio::select! {
            event = next(&mut watching) => event,
            () = peer.left() => return Ok(()),
        };
        match event {
            Ok(event) => peer.send(&event).await?,
            // The end of the stream tells the host that nothing more will come.
            Err(error) => {
                crate::console::warn(format_args!("{error}"));
                return Ok(());
            }
        }
    }
}

async fn list(files: &Files, path: String, peer: &mut FilePeer) -> Result<(), Detached> {
    let mut listing = match files.list(path).await {
        Ok(listing) => listing,
        Err(error) => return peer.reply::<()>(Err(error)).await,
    };
    peer.reply(Ok(())).await?;
    loop {
        match listing.next().await {
            Ok(batch) if batch.is_empty() => return peer.send(&ListItem::End).await,
            Ok(batch) => {
                for item in batch {
                    peer.send(&item).await?;
                }
            }
            Err(error) => return peer.send(&ListItem::Failed(error)).await,
        }
    }
}

async fn read(
    files: &Files,
    path: String,
    offset: u64,
    length: Option<u64>,
    peer: &mut FilePeer,
) -> Result<(), Detached> {
    let (stat, reading) = match files.read(path, offset, length).await {
        Ok(opened) => opened,
        Err(error) => return peer.reply::<()>(Err(error)).await,
    };
    peer.reply(Ok(stat)).await?;
    send_file(reading, peer).await
}

async fn send_file(mut reading: Reading, peer: &mut FilePeer) -> Result<(), Detached> {
    loop {
        match reading.next().await {
            Ok(Some(data)) => peer.send(&FileChunk::Data(data)).await?,
            Ok(None) => return peer.send(&FileChunk::End).await,
            Err(error) => return peer.send(&FileChunk::Failed(error)).await,
        }
    }
}

/// A rename is told as `Removed` of the old name and `Renamed` of the new one.
fn told(seen: Seen) -> WatchEvent {
    let change = match seen.what {
        What::Created => WatchChange::Created,
        What::MovedIn => WatchChange::Renamed,
        What::Modified => WatchChange::Modified,
        What::Removed | What::MovedOut => WatchChange::Removed,
        What::AttributesChanged => WatchChange::AttributesChanged,
        What::Overflow => WatchChange::Overflow,
    };
    WatchEvent { change, path: seen.path }
}
