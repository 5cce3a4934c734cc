//! A guest in memory: runs a handful of "programs" behind the real protocol.
//!
//! `true`, `exit N`, `echo TEXT`, `cat` (until its input ends), `sleep` (until killed; obeys its time limit),
//! `deaf` (neither reads nor obeys its time limit), `spam N` (bytes).

use offshoot_guest_proto::{
    message::{
        ExecAttach, ExecCommand, ExecEnd, ExecInput, ExecStart, ExecSummary, ExitKind, FileRequest,
        GuestError, GuestErrorKind, GuestHello, GuestInfo, HostHello, HostTime, OutputStream, ShutdownKind,
    },
    server::{ExecPeer, FilePeer, Services, TcpPeer},
};
use offshoot_provider::Exit;
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::sync::watch;

pub struct Guest {
    hostname: String,
    exit: watch::Sender<Option<Exit>>,
    stubborn: bool,
    mute: AtomicBool,
    pids: AtomicU32,
    programs: Mutex<HashMap<[u8; 16], Arc<Program>>>,
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
    pub fn new(hostname: &str, exit: watch::Sender<Option<Exit>>, stubborn: bool) -> Arc<Self> {
        Arc::new(Self {
            hostname: hostname.into(),
            exit,
            stubborn,
            mute: AtomicBool::new(false),
            pids: AtomicU32::new(1),
            programs: Mutex::default(),
        })
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
        assert_eq!(hello.hostname, self.hostname);
        Ok(GuestHello {
            version: hello.version,
            epoch: hello.epoch,
            agent_version: "test".into(),
            boot_id: "boot".into(),
            kernel_release: "6.1.0-guest".into(),
            ready_ms: 1,
            frozen: false,
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
        Vec::new()
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

    fn may_shutdown(&self, _: ShutdownKind) -> Result<(), GuestError> {
        if self.stubborn { Err(refuse(GuestErrorKind::Other, "not now")) } else { Ok(()) }
    }

    async fn shutdown(&self, _: ShutdownKind) {
        self.power_off();
    }
}
