//! A keeper's life, from its first instruction to its last.

use super::{
    cgroup::{Confinement, Plan},
    connection,
    disk::Disk,
    files::{ExitRecord, Files, KeeperRecord, write_json},
    log::KeeperLog,
    machine::{CallError, Machine, StartError, Taken},
    qemu, sandbox,
    spec::{Monitor, Spec},
    wire::{Checkpoint, StartFailed, Started},
};
use crate::{
    Durability, Exit,
    memory::Delta,
    os,
    process::ProcessId,
    task::{Task, spawn},
};
use rustix::{fs::FlockOperation, net::SocketFlags};
use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, IntoRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::Path,
    process::ExitCode,
    sync::{Arc, PoisonError},
    time::Duration,
};
use tokio::{
    io::unix::AsyncFd,
    signal::unix::{SignalKind, signal},
    sync::{oneshot, watch},
};

/// How long clients may take to hear of the end and hang up.
const LINGER: Duration = Duration::from_secs(2);
/// Daemons that wait to be let in: one lives, a successor may overlap with it.
const BACKLOG: i32 = 8;
/// `sysexits.h` EX_USAGE: not started by a daemon.
const NOT_OURS: u8 = 64;
const REVOKED: u8 = 3;
const FAILED: u8 = 1;

/// What clients are told.
#[derive(Debug, Clone)]
pub(super) enum Phase {
    Starting,
    Running(Arc<Running>),
    Failed(StartFailed),
    /// Holds what ran, for its last figures.
    Ended(Arc<Running>, Exit),
}

#[derive(Debug)]
pub(super) struct Running {
    pub machine: Box<dyn Machine>,
    pub started: Started,
    pub log: Arc<KeeperLog>,
}

/// What every connection shares.
#[derive(Debug)]
pub(super) struct Keeper {
    pub spec: Spec,
    pub id: ProcessId,
    pub phase: watch::Receiver<Phase>,
    pub log: Arc<KeeperLog>,
}

/// `offshoot keeper --spec FILE`. Standard input is the daemon's connection, standard output the locked
/// `keeper.lock`, standard error `keeper.log`; memory files follow, as many as the specification speaks of.
pub fn main(spec: &Path) -> ExitCode {
    match prepare(spec) {
        Ok((spec, inherited)) => match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            // One thread: the VMM's life is tied to the thread that started it.
            Ok(runtime) => runtime.block_on(keep(spec, inherited)),
            Err(error) => complain("cannot start the runtime", &error),
        },
        Err((what, error)) => complain(what, &error),
    }
}

fn complain(what: &str, error: &io::Error) -> ExitCode {
    eprintln!("offshoot keeper: {what}: {error}");
    ExitCode::from(NOT_OURS)
}

/// What a keeper is born with.
struct Inherited {
    /// The daemon that started us.
    daemon: OwnedFd,
    /// Held until the process ends.
    lock: OwnedFd,
    memory: PassedMemory,
}

/// The memory a VM continues from. Given up once the VMM has it.
pub(super) struct PassedMemory {
    pub base: Option<File>,
    pub delta: Option<Delta>,
}

impl PassedMemory {
    fn take(spec: &Spec) -> io::Result<Self> {
        let mut passed = os::take_passed(spec.passed())?.into_iter();
        let base = spec.memory_base.and_then(|_| passed.next()).map(File::from);
        let runs = spec.restore.as_ref().and_then(|restore| restore.delta_runs);
        let delta = runs.zip(passed.next()).map(|(runs, file)| {
            Delta::received(file, spec.memory_base, spec.memory, runs).map_err(io::Error::other)
        });
        Ok(Self { base, delta: delta.transpose()? })
    }
}

fn prepare(path: &Path) -> Result<(Spec, Inherited), (&'static str, io::Error)> {
    let spec = Spec::read(path).map_err(|error| ("cannot read the specification", error))?;
    let memory =
        PassedMemory::take(&spec).map_err(|error| ("cannot take the memory that was passed", error))?;
    let lock = inherited_lock(&spec)
        .map_err(|error| ("standard output is not the locked keeper.lock: a daemon starts keepers", error))?;
    let daemon = io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .map_err(|error| ("cannot take the daemon's connection", error))?;
    // The copies above are the only ones that count; a library that prints must not reach them.
    let null = File::options().read(true).write(true).open("/dev/null");
    null.and_then(|null| {
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&null)?;
        // In lists of processes this one is seen for what it is.
        Ok(rustix::thread::set_name(c"offshoot-keeper")?)
    })
    .map_err(|error| ("cannot set up the process", error))?;
    Ok((spec, Inherited { daemon, lock, memory }))
}

fn inherited_lock(spec: &Spec) -> io::Result<OwnedFd> {
    let lock = io::stdout().as_fd().try_clone_to_owned()?;
    let expected = Files::new(&spec.state_dir, &spec.runtime_dir).lock().metadata()?;
    let given = rustix::fs::fstat(&lock)?;
    if (given.st_dev, given.st_ino) != (expected.dev(), expected.ino()) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is another file"));
    }
    // Held already by inheritance: this only confirms it.
    rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
    Ok(lock)
}

async fn keep(spec: Spec, inherited: Inherited) -> ExitCode {
    // Never closed by us: the kernel does, after the process's memory is gone.
    let _held = inherited.lock.into_raw_fd();
    let files = Files::new(&spec.state_dir, &spec.runtime_dir);
    let log = Arc::new(KeeperLog::open(&files.keeper_log()));
    let flush = spec.durability == Durability::Flushed;
    log.line(format_args!("keeper of `{}` ({} generation {})", spec.name, spec.vm, spec.generation.0));

    let (publish, phase) = watch::channel(Phase::Starting);
    let id = match ProcessId::of_self() {
        Ok(id) => id,
        Err(error) => return complain("cannot read /proc/self/stat", &error),
    };
    let keeper = Arc::new(Keeper { spec, id, phase, log: log.clone() });
    let groups = Plan::for_this_process(keeper.spec.vm, keeper.spec.generation, &keeper.spec.limits);
    let mut record = KeeperRecord {
        keeper: keeper.id.clone(),
        vmm: None,
        companions: Vec::new(),
        cgroups: groups.paths(),
    };

    // Who we are is written before the lease is claimed: whoever finds it claimed can find us.
    let claimed = write_json(&files.keeper(), &record, false).and_then(|()| files.claim());
    match claimed {
        Ok(true) => {}
        Ok(false) => {
            log.line("the lease was revoked: ending without a start");
            return ExitCode::from(REVOKED);
        }
        Err(error) => return complain("cannot claim the lease", &error),
    }

    let server = match connection::Server::start(keeper.clone(), inherited.daemon, bind(&files)) {
        Ok(server) => server,
        Err(error) => {
            log.line(format_args!("cannot serve: {error}"));
            return complain("cannot serve the daemon", &error);
        }
    };
    let confinement = Arc::new(std::sync::Mutex::new(groups.make()));

    let started = match Disk::lock(&keeper.spec.disk, keeper.spec.durability) {
        Ok(disk) => {
            let given = Given { disk, memory: inherited.memory, confinement: confinement.clone() };
            start(&keeper.spec, &files, &log, given, &mut record).await
        }
        Err(error) => Err(Box::new(start_failed(error.into(), &files))),
    };
    let code = match started {
        Ok(running) => {
            log.line("running");
            publish.send_replace(Phase::Running(running.clone()));
            let exit = until_ended(running.machine.as_ref(), &log).await;
            let record = ExitRecord {
                exit: Some(exit.clone()),
                start_failed: None,
                vmm_stderr: running.machine.stderr_lines(),
            };
            note(&log, write_json(&files.exit(), &record, flush));
            publish.send_replace(Phase::Ended(running, exit));
            ExitCode::SUCCESS
        }
        Err(failure) => {
            log.line(format_args!("start failed at {}: {}", failure.step, failure.message));
            let record = ExitRecord {
                exit: failure.exit.clone(),
                start_failed: Some((*failure).clone()),
                vmm_stderr: failure.vmm_stderr.clone(),
            };
            note(&log, write_json(&files.exit(), &record, flush));
            publish.send_replace(Phase::Failed(*failure));
            ExitCode::from(FAILED)
        }
    };

    if !server.finish(LINGER).await {
        log.line("a client did not hang up in time");
    }
    note(&log, files.remove_sockets().map(drop));
    let confinement = std::mem::take(&mut *confinement.lock().unwrap_or_else(PoisonError::into_inner));
    for failure in confinement.remove().await {
        log.line(failure);
    }
    log.line("keeper ends");
    code
}

fn note(log: &KeeperLog, result: io::Result<()>) {
    if let Err(error) = result {
        log.line(error);
    }
}

fn bind(files: &Files) -> io::Result<AsyncFd<OwnedFd>> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
    files.remove_sockets()?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(files.keeper_socket())?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    os::register(socket)
}

/// What a machine is started with besides its specification.
pub(super) struct Given {
    pub disk: Disk,
    pub memory: PassedMemory,
    /// Makes its processes keep to their limits.
    pub confinement: Arc<std::sync::Mutex<Confinement>>,
}

/// Why a start failed, and what the machine's process had to say.
pub(super) struct Failed {
    pub error: StartError,
    pub exit: Option<Exit>,
    pub vmm_stderr: Vec<String>,
}

impl From<StartError> for Failed {
    fn from(error: StartError) -> Self {
        Self { error, exit: None, vmm_stderr: Vec::new() }
    }
}

/// What is known of a machine once its process exists: written down, so that a successor finds it.
pub(super) struct Journal<'a> {
    pub files: &'a Files,
    pub record: &'a mut KeeperRecord,
}

impl Journal<'_> {
    pub fn write(&mut self, vmm: &ProcessId, companions: Vec<ProcessId>) -> Result<(), StartError> {
        self.record.vmm = Some(vmm.clone());
        self.record.companions = companions;
        let path = self.files.keeper();
        write_json(&path, self.record, false).map_err(|error| StartError {
            step: crate::BootStep::Keeper,
            message: format!("cannot write `{}`: {error}", path.display()),
        })
    }
}

async fn start(
    spec: &Spec,
    files: &Files,
    log: &Arc<KeeperLog>,
    given: Given,
    record: &mut KeeperRecord,
) -> Result<Arc<Running>, Box<StartFailed>> {
    let journal = Journal { files, record };
    let started = match &spec.monitor {
        Monitor::Qemu => qemu::start(spec, log, given, journal).await,
        Monitor::Sandbox { bundle } => sandbox::start(spec, bundle, log, given, journal).await,
    };
    let (machine, limits) = started.map_err(|failed| Box::new(start_failed(failed, files)))?;
    for line in &limits {
        log.line(line);
    }
    let started = Started { vmm: machine.id().clone(), companions: machine.companions(), limits };
    Ok(Arc::new(Running { machine, started, log: log.clone() }))
}

fn start_failed(failed: Failed, files: &Files) -> StartFailed {
    StartFailed {
        step: failed.error.step,
        message: failed.error.message,
        hint: None,
        exit: failed.exit,
        console_tail: super::console::tail(&files.console_log()),
        vmm_stderr: failed.vmm_stderr,
    }
}

/// A keeper that is told to end (the host shuts down) takes its VM with it in good order.
async fn until_ended(machine: &dyn Machine, log: &KeeperLog) -> Exit {
    let mut exit = machine.exit();
    let ended = async {
        match exit.wait_for(Option::is_some).await {
            Ok(exit) => exit.clone().unwrap_or(Exit::Code(-1)),
            Err(_) => Exit::Code(-1),
        }
    };
    let told = async {
        match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
            (Ok(mut terminate), Ok(mut interrupt)) => {
                tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
            }
            _ => std::future::pending().await,
        }
        log.line("told to end");
        machine.stop(Duration::ZERO).await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        exit = ended => exit,
        () = told => Exit::Code(-1),
    }
}

impl Running {
    /// Goes on when the asking client has gone: a stop half done helps nobody.
    pub fn stop(self: Arc<Self>, grace: Duration) -> tokio::task::JoinHandle<Option<crate::StopReport>> {
        spawn(Task::StopLadder, async move { self.machine.stop(grace).await })
    }

    /// Is finished when the asking client has gone, too, and then the CPUs do not stand still for a state that nobody
    /// has. `None` if the keeper broke off.
    pub async fn checkpoint(self: Arc<Self>, plan: Checkpoint) -> Option<Result<Taken, CallError>> {
        let (answer, heard) = oneshot::channel();
        spawn(Task::Checkpoint, async move {
            let taken = self.machine.checkpoint(&plan).await;
            if let Err(Ok(Taken { held: true, .. })) = answer.send(taken) {
                self.log.line("nobody asks for the state any more: the CPUs go on");
                if let Err(error) = self.machine.resume().await {
                    self.log.line(format_args!("they do not: {error}"));
                }
            }
        });
        heard.await.ok()
    }
}
