//! A guest small enough to read: `cat`, `yes`, `true`; one file in memory; TCP that echoes; contexts that repeat
//! their code; a flag for frozen.

use offshoot_guest_proto::{
    client::{Client, ConnectOptions},
    message::*,
    server::{CodePeer, ExecPeer, FilePeer, HostHandle, Server, Services, TcpPeer},
    session::CloseReason,
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};
use tokio::{sync::watch, task::JoinHandle};

use crate::port::{GuestEnd, HostEnd};

#[derive(Default)]
pub struct Toy {
    pub hellos: Mutex<Vec<HostHello>>,
    pub ends: watch::Sender<Vec<CloseReason>>,
    pub shutdown: watch::Sender<Option<ShutdownKind>>,
    pub file: Mutex<Vec<u8>>,
    pub clock: AtomicI64,
    /// Output so far of each `count` process: they survive sessions.
    pub running: Mutex<HashMap<[u8; 16], Vec<u8>>>,
    pub frozen: AtomicBool,
    pub thawed: Mutex<Vec<Thaw>>,
    pub interrupts: watch::Sender<u32>,
}

pub const PID: u32 = 42;
/// What a picture shown by code consists of, again and again, up to the largest value.
pub const PICTURE: &str = "pixel\u{e9}";

pub fn start(exec: u8, argv: &[&str]) -> ExecStart {
    ExecStart {
        exec: [exec; 16],
        command: ExecCommand::Argv(argv.iter().map(|&word| word.to_owned()).collect()),
        env: Default::default(),
        cwd: None,
        user: "root".into(),
        pty: None,
        stdin: true,
        timeout_ms: None,
        max_output: None,
        limits: ResourceLimits::default(),
    }
}

pub fn ended() -> ExecEnd {
    ExecEnd { status: ExitKind::Code(0), truncated: false, wall_us: 1, user_us: 1, system_us: 1 }
}

fn error(kind: GuestErrorKind, message: &str) -> GuestError {
    GuestError { kind, message: message.into() }
}

pub fn hello() -> GuestHello {
    GuestHello {
        version: PROTOCOL_VERSION,
        epoch: [0; 16],
        agent_version: "toy".into(),
        boot_id: "b".into(),
        kernel_release: "6.1-toy".into(),
        ready_ms: 7,
        frozen: false,
    }
}

pub fn thawed(thaw: &Thaw) -> Thawed {
    let identity = thaw.identity.as_ref();
    Thawed {
        kernel_random: Reseeded::Yes,
        clock_offset_ns: 0,
        hostname: identity.map_or("toy".into(), |identity| identity.hostname.clone()),
        machine_id: identity.map_or(String::new(), NewIdentity::machine_id_text),
        ssh_host_keys: vec![],
        connections_dropped: 0,
        interpreters: vec![],
        processes_not_reseeded: 1,
        hooks: vec![],
    }
}

pub fn thaw() -> Thaw {
    let identity = Some(NewIdentity { hostname: "fork".into(), machine_id: [0xAB; 16] });
    Thaw { instance: [4; 16], time: HostTime::now(), entropy: Entropy([9; 64]), identity }
}

pub fn run(code: &str) -> RunCode {
    RunCode {
        context: "default".into(),
        language: None,
        code: code.into(),
        timeout_ms: None,
        user: "user".into(),
        cwd: None,
        context_env: BTreeMap::new(),
        env: BTreeMap::new(),
        existing: false,
    }
}

impl Services for Toy {
    async fn hello(&self, host: &HostHello) -> Result<GuestHello, GuestError> {
        self.hellos.lock().unwrap().push(host.clone());
        if host.hostname == "unwelcome" {
            return Err(error(GuestErrorKind::PermissionDenied, "not you"));
        }
        Ok(GuestHello { frozen: self.frozen.load(Ordering::Relaxed), ..hello() })
    }

    fn heartbeat(&self, _time: HostTime) -> i64 {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }

    async fn exec(&self, start: ExecStart, peer: ExecPeer) {
        let ExecCommand::Argv(argv) = &start.command else {
            return peer.fail(error(GuestErrorKind::Unsupported, "no shell")).await;
        };
        match argv[0].as_str() {
            "cat" => {
                let (mut inputs, mut outputs) = peer.split();
                let mut offset = 0;
                if outputs.started(PID).await.is_err() {
                    return;
                }
                while let Ok(input) = inputs.next().await {
                    match input {
                        ExecInput::Stdin(data) => {
                            let length = data.len() as u64;
                            if outputs.output(OutputStream::Stdout, offset, data).await.is_err() {
                                return;
                            }
                            offset += length;
                        }
                        ExecInput::StdinEnd | ExecInput::Kill => {
                            let _left = outputs.ended(ended()).await;
                            return;
                        }
                        ExecInput::Resize(_) | ExecInput::Signal(_) => {}
                    }
                }
            }
            "yes" => {
                let (_inputs, mut outputs) = peer.split();
                let mut offset = 0;
                let _ = outputs.started(PID).await;
                while outputs.output(OutputStream::Stdout, offset, vec![b'y'; 10_000]).await.is_ok() {
                    offset += 10_000;
                }
            }
            "true" => {
                let (_inputs, mut outputs) = peer.split();
                let _ = outputs.started(PID).await;
                let _ = outputs.ended(ended()).await;
            }
            "survivor" => {
                self.running.lock().unwrap().insert(start.exec, b"said before".to_vec());
                let (mut inputs, mut outputs) = peer.split();
                let _ = outputs.started(PID).await;
                // Runs on, whatever becomes of the host.
                while inputs.next().await.is_ok() {}
            }
            name => peer.fail(error(GuestErrorKind::ExecFailed, &format!("execute {name}: not found"))).await,
        }
    }

    async fn attach(&self, attach: ExecAttach, peer: ExecPeer) {
        let said = self.running.lock().unwrap().get(&attach.exec).cloned();
        let Some(said) = said else {
            return peer.fail(error(GuestErrorKind::NotFound, "no such process")).await;
        };
        let (_inputs, mut outputs) = peer.split();
        let offset = attach.stdout_offset;
        let _ = outputs.started(PID).await;
        let _ = outputs.output(OutputStream::Stdout, offset, said[offset as usize..].to_vec()).await;
        let _ = outputs.ended(ended()).await;
    }

    async fn list_execs(&self) -> Vec<ExecSummary> {
        let running = self.running.lock().unwrap();
        running
            .keys()
            .map(|&exec| ExecSummary { exec, pid: PID, ended: None, stdout: 3, stderr: 4 })
            .collect()
    }

    async fn file(&self, request: FileRequest, mut peer: FilePeer) {
        let stat = |size| FileStat {
            kind: FileKind::File,
            size,
            mode: 0o644,
            uid: 0,
            gid: 0,
            modified_ns: 0,
            symlink_target: None,
        };
        let size = || self.file.lock().unwrap().len() as u64;
        match request.operation {
            FileOperation::Read { offset, length, .. } => {
                if peer.reply(Ok(stat(size()))).await.is_err() {
                    return;
                }
                let bytes = self.file.lock().unwrap().clone();
                let end = length.map_or(bytes.len(), |length| (offset + length) as usize);
                for chunk in bytes[offset as usize..end].chunks(CHUNK) {
                    if peer.send(&FileChunk::Data(chunk.to_vec())).await.is_err() {
                        return;
                    }
                }
                let _ = peer.send(&FileChunk::End).await;
            }
            FileOperation::Write { path, .. } => {
                if peer.reply(Ok(())).await.is_err() {
                    return;
                }
                let mut bytes = Vec::new();
                while let Ok(chunk) = peer.chunk().await {
                    match chunk {
                        FileChunk::Data(_) if path == "/full" => {
                            let full = error(GuestErrorKind::NoSpace, "write /full: no space left");
                            let _ = peer.reply::<FileStat>(Err(full)).await;
                            return;
                        }
                        FileChunk::Data(data) => bytes.extend(data),
                        FileChunk::End => {
                            let size = bytes.len() as u64;
                            *self.file.lock().unwrap() = bytes;
                            let _ = peer.reply(Ok(stat(size))).await;
                            return;
                        }
                        FileChunk::Failed(_) => return,
                    }
                }
            }
            FileOperation::List { .. } => {
                let _ = peer.reply(Ok(())).await;
                let entry = ListItem::Entry { name: "a".into(), lossy: false, stat: stat(1) };
                let _ = peer.send(&entry).await;
                let _ = peer.send(&ListItem::End).await;
            }
            FileOperation::Watch { path, .. } => {
                let _ = peer.reply(Ok(())).await;
                let _ = peer.send(&WatchEvent { change: WatchChange::Created, path }).await;
                peer.left().await;
            }
            FileOperation::Stat { .. } => {
                let _ = peer.reply(Ok(stat(size()))).await;
            }
            _ => {
                let _ = peer.reply::<()>(Err(error(GuestErrorKind::NotFound, "no such file"))).await;
            }
        }
    }

    async fn tcp(&self, port: u16, peer: TcpPeer) {
        if port != 7 {
            return peer.refuse(error(GuestErrorKind::ConnectionRefused, "connect: refused")).await;
        }
        let Ok(tunnel) = peer.accept().await else { return };
        let (mut read, mut write) = tokio::io::split(tunnel);
        if tokio::io::copy(&mut read, &mut write).await.is_ok() {
            let _ = tokio::io::AsyncWriteExt::shutdown(&mut write).await;
        }
    }

    async fn info(&self) -> Result<GuestInfo, GuestError> {
        Err(error(GuestErrorKind::Unsupported, "a toy knows nothing of itself"))
    }

    fn may_shutdown(&self, kind: ShutdownKind) -> Result<(), GuestError> {
        match kind {
            ShutdownKind::PowerOff => Ok(()),
            ShutdownKind::Reboot => Err(error(GuestErrorKind::Unsupported, "a toy does not restart")),
        }
    }

    async fn shutdown(&self, kind: ShutdownKind) {
        self.shutdown.send_replace(Some(kind));
        std::future::pending().await
    }

    async fn freeze(&self, deadline: Duration) -> Result<Frozen, GuestError> {
        if deadline.is_zero() {
            return Err(error(GuestErrorKind::Other, "freeze: not within 0 ms"));
        }
        self.frozen.store(true, Ordering::Relaxed);
        Ok(Frozen { processes: 3, took_us: 9 })
    }

    async fn unfreeze(&self) -> Result<(), GuestError> {
        self.frozen.store(false, Ordering::Relaxed);
        Ok(())
    }

    async fn thaw(&self, thaw: Thaw) -> Result<Thawed, GuestError> {
        self.thawed.lock().unwrap().push(thaw.clone());
        self.frozen.store(false, Ordering::Relaxed);
        Ok(thawed(&thaw))
    }

    async fn run_code(&self, run: RunCode, peer: CodePeer) {
        if !is_context_name(&run.context) {
            return peer.fail(error(GuestErrorKind::InvalidArgument, "no name")).await;
        }
        let (mut inputs, mut outputs) = peer.split();
        let language = run.language.unwrap_or(Language::Python);
        let _ = outputs.send(CodeEvent::Started { language, pid: PID, created: true, count: 1 }).await;
        let interrupted = run.code == "forever";
        if interrupted {
            // An interrupt, or the end of the stream.
            drop(inputs.next().await);
            self.interrupts.send_modify(|count| *count += 1);
        } else {
            let data = run.code.into_bytes();
            let _ = outputs.send(CodeEvent::Output { stream: OutputStream::Stdout, data }).await;
            let mime: BTreeMap<_, _> = [(TEXT_PLAIN.to_owned(), "42".to_owned())].into();
            let mut picture = mime.clone();
            picture.insert("image/png".to_owned(), PICTURE.repeat(MAX_VALUE / PICTURE.len() - 1));
            let _ = outputs.send(CodeEvent::Display { mime: picture, id: None, update: false }).await;
            let _ = outputs.send(CodeEvent::Value { mime }).await;
        }
        let _ = outputs.send(CodeEvent::Ended { interrupted, wall_us: 1 }).await;
    }

    async fn contexts(&self) -> Result<Vec<ContextInfo>, GuestError> {
        let (language, pid) = (Language::Bash, Some(PID));
        let (user, cwd) = ("user".to_owned(), "/".to_owned());
        Ok(vec![ContextInfo {
            context: "default".into(),
            language,
            pid,
            busy: false,
            user,
            cwd,
            created_ms: 1,
        }])
    }

    async fn remove_context(&self, context: String) -> Result<(), GuestError> {
        if context == "default" { Ok(()) } else { Err(error(GuestErrorKind::NotFound, "no such context")) }
    }

    fn session_ended(&self, reason: &CloseReason) {
        self.ends.send_modify(|ends| ends.push(reason.clone()));
    }
}

/// A guest that is running, until it is dropped.
pub struct Guest {
    pub toy: Arc<Toy>,
    pub host: HostHandle,
    task: JoinHandle<()>,
}

impl Guest {
    #[expect(clippy::disallowed_methods, reason = "the guest of a test is owned by this struct")]
    pub fn start(end: GuestEnd) -> Self {
        let toy = Arc::new(Toy::default());
        let server = Server::new(end);
        let host = server.host();
        let services = toy.clone();
        let task = tokio::spawn(async move {
            server.serve(services).await;
        });
        Self { toy, host, task }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub fn options() -> ConnectOptions {
    let mut options = ConnectOptions::new("toy", 1);
    options.deadline = Duration::from_secs(20);
    options.patience = Duration::from_secs(20);
    options
}

pub async fn connect(end: HostEnd) -> Client {
    Client::connect(end, options()).await.expect("the toy shakes hands").0
}
