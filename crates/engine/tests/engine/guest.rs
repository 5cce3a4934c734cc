//! A guest in memory: runs a handful of "programs" behind the real protocol.
//!
//! `true`, `exit N`, `echo TEXT`, `cat` (until its input ends), `sleep` (until killed; obeys its time limit),
//! `deaf` (neither reads nor obeys its time limit), `spam N` (bytes), `note TEXT` (keeps it in memory), `notes` (what is
//! kept there), `save TEXT` (keeps it on the disk), `saved` (what is kept there).
//!
//! All of a guest is in [`State`], which the host's memory file holds, and in the files of its disk.

use offshoot_guest_proto::{
    message::{
        DiskRequest, DiskUse, ExecAttach, ExecCommand, ExecEnd, ExecInput, ExecStart, ExecSummary, ExitKind,
        FileChunk, FileRequest, Frozen, GuestError, GuestErrorKind, GuestHello, GuestInfo, HostHello,
        HostTime, NewIdentity, OutputStream, Reseeded, ShutdownKind, Thaw, Thawed,
    },
    server::{ExecPeer, FilePeer, Services, TcpPeer},
};
use offshoot_provider::{DiskStack, Exit};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashMap},
    io::Write,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::sync::watch;

pub struct Guest {
    hostname: Mutex<String>,
    exit: watch::Sender<Option<Exit>>,
    stubborn: bool,
    mute: AtomicBool,
    /// Speaks another version of the protocol.
    pub old: AtomicBool,
    pub frozen: AtomicBool,
    /// Refuses to be renewed.
    pub stale: AtomicBool,
    /// Does not answer a freeze.
    pub restless: AtomicBool,
    /// It cannot write to its disk.
    pub flush_fails: AtomicBool,
    /// What it writes lies in its memory: it can carry that.
    pub carries: AtomicBool,
    /// It gives up half-way.
    pub carrying_fails: AtomicBool,
    pids: AtomicU32,
    programs: Mutex<HashMap<[u8; 16], Arc<Program>>>,
    notes: Mutex<String>,
    machine_id: Mutex<String>,
    pub disk: Mutex<DiskStack>,
    /// Its layers, open: what is removed is read on, as by a real VMM.
    files: Mutex<HashMap<PathBuf, std::fs::File>>,
    /// Every thaw it was asked for.
    pub thaws: Mutex<Vec<Thaw>>,
}

/// What is in a guest's memory.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub struct State {
    notes: String,
    machine_id: String,
    frozen: bool,
    /// Running programs with what they said.
    programs: BTreeMap<String, (u32, Vec<u8>)>,
}

/// Behind an empty layer's own clusters: what was saved in it.
const DATA: u64 = 4 << 16;

/// What was saved in a layer.
fn behind(layer: &std::fs::File) -> Vec<u8> {
    let length = layer.metadata().unwrap().len().saturating_sub(DATA);
    let mut bytes = vec![0; usize::try_from(length).unwrap()];
    layer.read_exact_at(&mut bytes, DATA).unwrap();
    bytes
}

/// What was saved in a layer is gone.
pub fn forget(layer: &Path) {
    let file = std::fs::File::options().write(true).open(layer).unwrap();
    file.set_len(file.metadata().unwrap().len().min(DATA)).unwrap();
}

/// One layer of several, newest first.
pub fn merge(layers: &[PathBuf], to: &Path) {
    let mut all = std::fs::read(&layers[0]).unwrap();
    all.resize(DATA as usize, 0);
    for layer in layers.iter().rev() {
        all.extend(behind(&std::fs::File::open(layer).unwrap()));
    }
    let file = std::fs::File::create_new(to).unwrap();
    file.write_all_at(&all, 0).unwrap();
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o400)).unwrap();
}

#[derive(Debug)]
struct Program {
    pid: u32,
    state: watch::Sender<ProgramState>,
}

#[derive(Debug, Default)]
struct ProgramState {
    output: Vec<u8>,
    end: Option<ExitKind>,
}

impl Guest {
    pub fn new(
        hostname: &str,
        exit: watch::Sender<Option<Exit>>,
        stubborn: bool,
        disk: DiskStack,
        state: State,
    ) -> Arc<Self> {
        let programs = state.programs.into_iter().map(|(id, (pid, output))| {
            let id = uuid::Uuid::parse_str(&id).unwrap().into_bytes();
            let state = watch::Sender::new(ProgramState { output, end: None });
            (id, Arc::new(Program { pid, state }))
        });
        let layers = disk.layers.clone();
        let guest = Arc::new(Self {
            hostname: Mutex::new(hostname.into()),
            exit,
            stubborn,
            mute: AtomicBool::new(false),
            old: AtomicBool::new(false),
            frozen: AtomicBool::new(state.frozen),
            stale: AtomicBool::new(false),
            restless: AtomicBool::new(false),
            flush_fails: AtomicBool::new(false),
            carries: AtomicBool::new(false),
            carrying_fails: AtomicBool::new(false),
            pids: AtomicU32::new(1),
            programs: Mutex::new(programs.collect()),
            notes: Mutex::new(state.notes),
            machine_id: Mutex::new(state.machine_id),
            disk: Mutex::new(disk),
            files: Mutex::default(),
            thaws: Mutex::default(),
        });
        guest.open(&layers);
        guest
    }
    /// What is in its memory at this instant.
    pub fn state(&self) -> State {
        let running = self.programs.lock().unwrap();
        let running = running.iter().filter(|(_, program)| program.state.borrow().end.is_none());
        State {
            notes: self.notes.lock().unwrap().clone(),
            machine_id: self.machine_id.lock().unwrap().clone(),
            frozen: self.frozen.load(Ordering::SeqCst),
            programs: running
                .map(|(id, program)| {
                    let output = program.state.borrow().output.clone();
                    (uuid::Uuid::from_bytes(*id).to_string(), (program.pid, output))
                })
                .collect(),
        }
    }
    pub fn is_frozen(&self) -> bool {
        self.frozen.load(Ordering::SeqCst)
    }
    fn save(&self, text: &str) {
        let top = self.disk.lock().unwrap().layers[0].clone();
        let file = std::fs::File::options().write(true).open(&top).unwrap();
        let end = file.metadata().unwrap().len().max(DATA);
        file.write_all_at(text.as_bytes(), end).unwrap();
    }
    /// What is on the disk, through all its layers.
    pub fn saved(&self) -> Vec<u8> {
        let mut all = Vec::new();
        for layer in self.disk.lock().unwrap().layers.iter().rev() {
            let files = self.files.lock().unwrap();
            all.write_all(&behind(&files[layer])).unwrap();
        }
        all
    }
    /// Opens those it has not open, and lets go of all others.
    pub fn open(&self, layers: &[PathBuf]) {
        let mut files = self.files.lock().unwrap();
        files.retain(|path, _| layers.contains(path));
        for layer in layers {
            files.entry(layer.clone()).or_insert_with(|| std::fs::File::open(layer).unwrap());
        }
    }
    /// Whether it says nothing at all.
    pub fn set_mute(&self, mute: bool) {
        self.mute.store(mute, Ordering::SeqCst);
    }
    pub fn power_off(&self) {
        self.exit.send_replace(Some(Exit::PoweredOff));
    }
    /// Programs that run.
    pub fn running(&self) -> usize {
        self.programs.lock().unwrap().values().filter(|p| p.state.borrow().end.is_none()).count()
    }

    async fn speak(&self) {
        if self.mute.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
    }
}

impl Program {
    fn say(&self, bytes: &[u8]) {
        self.state.send_modify(|state| state.output.extend_from_slice(bytes));
    }
    fn end(&self, how: ExitKind) {
        self.state.send_modify(|state| {
            state.end.get_or_insert(how);
        });
    }

    /// Streams from an offset until the end or until the host leaves.
    async fn attend(&self, mut offset: u64, reads: bool, peer: ExecPeer) {
        let (mut inputs, mut outputs) = peer.split();
        if outputs.started(self.pid).await.is_err() {
            return;
        }
        let mut changes = self.state.subscribe();
        loop {
            let (data, end) = {
                let state = changes.borrow_and_update();
                let from = usize::try_from(offset).unwrap().min(state.output.len());
                let to = state.output.len().min(from + 64 * 1024);
                (state.output[from..to].to_vec(), state.end)
            };
            if !data.is_empty() {
                let length = data.len() as u64;
                if outputs.output(OutputStream::Stdout, offset, data).await.is_err() {
                    return;
                }
                offset += length;
                continue;
            }
            if let Some(status) = end {
                let end = ExecEnd { status, truncated: false, wall_us: 1, user_us: 1, system_us: 1 };
                let _ = outputs.ended(end).await;
                return;
            }
            tokio::select! {
                _ = changes.changed() => {}
                input = inputs.next(), if reads => match input {
                    Ok(ExecInput::Stdin(data)) => self.say(&data),
                    Ok(ExecInput::StdinEnd) => self.end(ExitKind::Code(0)),
                    Ok(ExecInput::Signal(signal)) => self.end(ExitKind::Signal(signal)),
                    Ok(ExecInput::Kill) => self.end(ExitKind::Signal(9)),
                    Ok(ExecInput::Resize(_)) => {}
                    Err(_) => return,
                }
            }
        }
    }
}

fn refuse(kind: GuestErrorKind, message: &str) -> GuestError {
    GuestError { kind, message: message.into() }
}

impl Services for Guest {
    async fn hello(&self, hello: &HostHello) -> Result<GuestHello, GuestError> {
        self.speak().await;
        assert_eq!(hello.hostname, *self.hostname.lock().unwrap());
        if self.old.load(Ordering::SeqCst) {
            let version = hello.version;
            let message = format!("protocol version {version}: this agent speaks {}", version - 1);
            return Err(GuestError { kind: GuestErrorKind::InvalidArgument, message });
        }
        Ok(GuestHello {
            version: hello.version,
            epoch: hello.epoch,
            agent_version: "test".into(),
            boot_id: "boot".into(),
            kernel_release: "6.1.0-guest".into(),
            ready_ms: 1,
            frozen: self.is_frozen(),
        })
    }

    fn heartbeat(&self, _: HostTime) -> i64 {
        0
    }

    async fn exec(&self, start: ExecStart, peer: ExecPeer) {
        self.speak().await;
        let argv = match start.command {
            ExecCommand::Argv(argv) => argv,
            ExecCommand::Shell(script) => script.split_whitespace().map(String::from).collect(),
        };
        if self.programs.lock().unwrap().contains_key(&start.exec) {
            return peer.fail(refuse(GuestErrorKind::AlreadyExists, "exec: started already")).await;
        }
        let pid = self.pids.fetch_add(1, Ordering::SeqCst);
        let program = Arc::new(Program { pid, state: watch::Sender::default() });
        let number = || argv.get(1).and_then(|n| n.parse::<usize>().ok()).unwrap_or_default();
        let mut reads = true;
        match argv[0].as_str() {
            "true" => program.end(ExitKind::Code(0)),
            "exit" => program.end(ExitKind::Code(i32::try_from(number()).unwrap())),
            "echo" => {
                program.say(argv[1].as_bytes());
                program.end(ExitKind::Code(0));
            }
            "note" => {
                self.notes.lock().unwrap().push_str(&argv[1]);
                program.end(ExitKind::Code(0));
            }
            "notes" => {
                program.say(self.notes.lock().unwrap().as_bytes());
                program.end(ExitKind::Code(0));
            }
            "save" => {
                self.save(&argv[1]);
                program.end(ExitKind::Code(0));
            }
            "saved" => {
                program.say(&self.saved());
                program.end(ExitKind::Code(0));
            }
            "spam" => {
                program.say(&vec![b'x'; number()]);
                program.end(ExitKind::Code(0));
            }
            "cat" => {}
            "deaf" => reads = false,
            "sleep" => {
                if let Some(limit) = start.timeout_ms {
                    let program = program.clone();
                    tokio::spawn(async move {
                        tokio::time::sleep(Duration::from_millis(limit)).await;
                        program.end(ExitKind::TimedOut);
                    });
                }
            }
            other => {
                let error = refuse(GuestErrorKind::ExecFailed, &format!("exec {other}: no such program"));
                return peer.fail(error).await;
            }
        }
        self.programs.lock().unwrap().insert(start.exec, program.clone());
        program.attend(0, reads, peer).await;
    }

    async fn attach(&self, attach: ExecAttach, peer: ExecPeer) {
        self.speak().await;
        let program = self.programs.lock().unwrap().get(&attach.exec).cloned();
        match program {
            Some(program) => program.attend(attach.stdout_offset, true, peer).await,
            None => peer.fail(refuse(GuestErrorKind::NotFound, "attach: no such process")).await,
        }
    }

    async fn list_execs(&self) -> Vec<ExecSummary> {
        let summary = |(exec, program): (&[u8; 16], &Arc<Program>)| {
            let end = |status| ExecEnd { status, truncated: false, wall_us: 1, user_us: 1, system_us: 1 };
            let state = program.state.borrow();
            let (ended, stdout) = (state.end.map(end), state.output.len() as u64);
            ExecSummary { exec: *exec, pid: program.pid, ended, stdout, stderr: 0 }
        };
        self.programs.lock().unwrap().iter().map(summary).collect()
    }

    async fn file(&self, _: FileRequest, mut peer: FilePeer) {
        let _ = peer.reply::<()>(Err(refuse(GuestErrorKind::Unsupported, "no files here"))).await;
    }

    async fn tcp(&self, _: u16, peer: TcpPeer) {
        peer.refuse(refuse(GuestErrorKind::ConnectionRefused, "connect: refused")).await;
    }

    async fn info(&self) -> Result<GuestInfo, GuestError> {
        self.speak().await;
        Err(refuse(GuestErrorKind::Unsupported, "no information"))
    }

    async fn flush(&self) -> Result<(), GuestError> {
        if self.flush_fails.load(Ordering::SeqCst) {
            return Err(refuse(GuestErrorKind::Other, "flush the data disk: Input/output error"));
        }
        Ok(())
    }

    async fn disk(&self, request: DiskRequest, mut peer: FilePeer) {
        self.speak().await;
        if !self.carries.load(Ordering::SeqCst) {
            return peer.refuse(refuse(GuestErrorKind::Unsupported, "carry the disk: not by this one")).await;
        }
        let fails = self.carrying_fails.load(Ordering::SeqCst);
        let failure = || refuse(GuestErrorKind::NoSpace, "carry the disk: half of it");
        match request {
            DiskRequest::Keep => {
                assert!(self.is_frozen(), "its programs are to stand still first");
                let saved = self.saved();
                peer.reply(Ok(DiskUse { bytes: saved.len() as u64 })).await.unwrap();
                if !matches!(peer.chunk().await, Ok(FileChunk::End)) {
                    return;
                }
                for program in self.programs.lock().unwrap().values() {
                    program.end(ExitKind::Signal(15));
                }
                if !saved.is_empty() {
                    let _ = peer.send(&FileChunk::Data(saved)).await;
                }
                let last = if fails { FileChunk::Failed(failure()) } else { FileChunk::End };
                let _ = peer.send(&last).await;
            }
            DiskRequest::PutBack => {
                assert!(self.programs.lock().unwrap().is_empty(), "nothing has run");
                let top = self.disk.lock().unwrap().layers[0].clone();
                forget(&top);
                let _ = peer.reply(Ok(())).await;
                while let Ok(FileChunk::Data(data)) = peer.chunk().await {
                    self.save(std::str::from_utf8(&data).unwrap());
                }
                let _ = peer.reply(if fails { Err(failure()) } else { Ok(()) }).await;
            }
        }
    }

    async fn freeze(&self, _: Duration) -> Result<Frozen, GuestError> {
        if self.restless.load(Ordering::SeqCst) {
            return Err(refuse(GuestErrorKind::Other, "freeze: a process does not stand still"));
        }
        self.frozen.store(true, Ordering::SeqCst);
        Ok(Frozen { processes: 1, took_us: 1 })
    }

    async fn unfreeze(&self) -> Result<(), GuestError> {
        self.frozen.store(false, Ordering::SeqCst);
        Ok(())
    }

    async fn thaw(&self, thaw: Thaw) -> Result<Thawed, GuestError> {
        self.speak().await;
        if self.stale.load(Ordering::SeqCst) {
            return Err(refuse(GuestErrorKind::Other, "thaw: the random generator takes no entropy"));
        }
        let mut machine_id = self.machine_id.lock().unwrap();
        if let Some(identity) = &thaw.identity {
            *machine_id = NewIdentity::machine_id_text(identity);
            self.hostname.lock().unwrap().clone_from(&identity.hostname);
        }
        let thawed = Thawed {
            kernel_random: Reseeded::Yes,
            clock_offset_ns: 0,
            hostname: self.hostname.lock().unwrap().clone(),
            machine_id: machine_id.clone(),
            ssh_host_keys: vec![],
            connections_dropped: 0,
            interpreters: vec![],
            processes_not_reseeded: 0,
            hooks: vec![],
        };
        self.thaws.lock().unwrap().push(thaw);
        self.frozen.store(false, Ordering::SeqCst);
        Ok(thawed)
    }

    fn may_shutdown(&self, _: ShutdownKind) -> Result<(), GuestError> {
        if self.stubborn { Err(refuse(GuestErrorKind::Other, "not now")) } else { Ok(()) }
    }

    async fn shutdown(&self, _: ShutdownKind) {
        self.power_off();
    }
}
