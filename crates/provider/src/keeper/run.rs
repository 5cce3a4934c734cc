//! A keeper's life, from its first instruction to its last.

use super::{
    cgroup::Plan,
    channel::Channel,
    connection,
    files::{ExitRecord, Files, KeeperRecord, write_json},
    log::KeeperLog,
    spec::Spec,
    vmm::{StartError, Vmm},
    wire::{StartFailed, Started},
};
use crate::{
    BootStep, Durability, Exit, os,
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
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::unix::AsyncFd,
    signal::unix::{SignalKind, signal},
    sync::watch,
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
    pub vmm: Vmm,
    pub channel: Channel,
    pub started: Started,
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
/// `keeper.lock`, standard error `keeper.log`.
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
}

fn prepare(path: &Path) -> Result<(Spec, Inherited), (&'static str, io::Error)> {
    let spec = Spec::read(path).map_err(|error| ("cannot read the specification", error))?;
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
    Ok((spec, Inherited { daemon, lock }))
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
    let mut record = KeeperRecord { keeper: keeper.id.clone(), vmm: None, cgroups: groups.paths() };

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
    let confinement = groups.enter();
    for line in &confinement.report {
        log.line(line);
    }

    let limits = confinement.report.clone();
    let started = match lock_disk(&keeper.spec.data_disk) {
        Ok(disk) => {
            start(&keeper.spec, &files, &log, limits, &mut record).await.map(|running| (running, disk))
        }
        Err(error) => Err(Box::new(failed(error, None, &files))),
    };
    let code = match started {
        Ok((running, _disk_lock)) => {
            log.line("running");
            publish.send_replace(Phase::Running(running.clone()));
            let exit = until_ended(&running.vmm, &log).await;
            let record = ExitRecord {
                exit: Some(exit.clone()),
                start_failed: None,
                vmm_stderr: running.vmm.stderr_lines(),
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
    for failure in confinement.leave() {
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

/// Two VMMs on one disk destroy it. The VMM's own image locks would refuse the second as well, but cannot say
/// who holds the first; the kernel's list of locks can.
fn lock_disk(path: &Path) -> Result<File, StartError> {
    let error = |message| StartError { step: BootStep::Keeper, message };
    let opened = File::options().read(true).write(true).open(path);
    let file = opened.map_err(|e| error(format!("cannot open the data disk `{}`: {e}", path.display())))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let holder = lock_holder(&file).unwrap_or_else(|| "an unknown process".into());
            Err(error(format!("the data disk `{}` is in use by {holder}", path.display())))
        }
        Err(e) => Err(error(format!("cannot lock the data disk `{}`: {e}", path.display()))),
    }
}

fn lock_holder(file: &File) -> Option<String> {
    let metadata = file.metadata().ok()?;
    let (major, minor) = (rustix::fs::major(metadata.dev()), rustix::fs::minor(metadata.dev()));
    let place = format!("{major:02x}:{minor:02x}:{}", metadata.ino());
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let pid = locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        (fields.get(1) == Some(&"FLOCK") && fields.get(5) == Some(&place.as_str()))
            .then(|| fields.get(4).copied())?
    })?;
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let command = String::from_utf8_lossy(&command).replace('\0', " ");
    Some(format!("process {pid} (`{}`)", command.trim_end()))
}

async fn start(
    spec: &Spec,
    files: &Files,
    log: &Arc<KeeperLog>,
    limits: Vec<String>,
    record: &mut KeeperRecord,
) -> Result<Arc<Running>, Box<StartFailed>> {
    let fail = |error, vmm| Box::new(failed(error, vmm, files));
    let (vmm, channel) = Vmm::start(spec, files, log.clone()).map_err(|error| fail(error, None))?;
    record.vmm = Some(vmm.id().clone());
    let ready = async {
        write_json(&files.keeper(), record, false).map_err(|error| StartError {
            step: BootStep::Keeper,
            message: format!("cannot write `{}`: {error}", files.keeper().display()),
        })?;
        // Before the guest looks for it: the VMM finds the connection waiting.
        channel.open().await.map_err(|error| StartError {
            step: BootStep::Channel,
            message: format!("cannot connect to the VMM's channel: {error}"),
        })?;
        vmm.ready(spec.start_deadline).await
    };
    match ready.await {
        Ok(()) => {
            let started = Started { vmm: vmm.id().clone(), limits };
            Ok(Arc::new(Running { vmm, channel, started }))
        }
        Err(error) => {
            vmm.stop(Duration::ZERO).await;
            Err(fail(error, Some(&vmm)))
        }
    }
}

fn failed(error: StartError, vmm: Option<&Vmm>, files: &Files) -> StartFailed {
    StartFailed {
        step: error.step,
        message: error.message,
        hint: None,
        exit: vmm.and_then(|vmm| vmm.exit().borrow().clone()),
        console_tail: super::console::tail(&files.console_log()),
        vmm_stderr: vmm.map(Vmm::stderr_lines).unwrap_or_default(),
    }
}

/// A keeper that is told to end (the host shuts down) takes its VM with it in good order.
async fn until_ended(vmm: &Vmm, log: &KeeperLog) -> Exit {
    let mut exit = vmm.exit();
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
        vmm.stop(Duration::ZERO).await;
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
        spawn(Task::StopLadder, async move { self.vmm.stop(grace).await })
    }
}
