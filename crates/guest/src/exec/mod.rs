//! Running processes for the host, and keeping them when it leaves.
//!
//! ```text
//! start --> Command (what) + User (who) --> tree, pipes or terminal --> launch --> Process --> driver task
//! attach --> registry by id, also of the last 256 that have ended (10 minutes, 4 MiB of output together)
//! ```

mod command;
mod launch;
mod process;
mod ring;
mod stdin;
mod tree;

pub use command::Command;
pub use launch::{Launch, LaunchError};
pub use process::{Attachment, Output, Process};
#[cfg(test)]
pub use tree::ProcessGroups;
pub use tree::{Cgroups, Tree, Trees};

use crate::{
    fault::{Context, fault, reason},
    presence::HostPresence,
    reaper::Reaper,
    sys,
    users::{User, Users},
};
use command::Directory;
use launch::Step;
use offshoot_guest_proto::message::{ExecStart, ExecSummary, GuestError, GuestErrorKind, PtySize};
use process::Driver;
use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{CWD, Gid, Mode, OFlags, Uid, fchmod, fchown, openat},
    io,
    pipe::{PipeFlags, pipe_with},
    pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, ptsname, unlockpt},
};
use std::{
    collections::{HashMap, VecDeque},
    fmt::Write,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use stdin::Stdin;
use tokio::io::Interest;

/// Processes running at the same time.
const MAX_RUNNING: usize = 256;
const KEEP_ENDED: usize = 256;
const KEEP_ENDED_FOR: Duration = Duration::from_secs(600);
/// Output held for processes that have ended, all together: the VM's memory is not ours.
const KEEP_ENDED_OUTPUT: usize = 4 * 1024 * 1024;

#[derive(Debug)]
pub struct Execs {
    reaper: Arc<Reaper>,
    presence: Arc<HostPresence>,
    trees: Arc<dyn Trees>,
    users: Arc<Users>,
    registry: Arc<Mutex<Registry>>,
}

#[derive(Debug, Default)]
struct Registry {
    processes: HashMap<[u8; 16], Arc<Process>>,
    /// Oldest first.
    ended: VecDeque<([u8; 16], Instant)>,
}

impl Execs {
    pub fn new(
        reaper: Arc<Reaper>,
        presence: Arc<HostPresence>,
        trees: Arc<dyn Trees>,
        users: Arc<Users>,
    ) -> Self {
        let execs = Self { reaper, presence, trees, users, registry: Arc::default() };
        execs.collect_trees();
        execs
    }

    /// Surviving children are orphans: when some were reaped, their tree may have become empty.
    fn collect_trees(&self) {
        let (trees, mut passes) = (Arc::clone(&self.trees), self.reaper.passes());
        crate::task::forever("tree collector", async move {
            while passes.changed().await.is_ok() {
                trees.collect();
            }
        });
    }

    /// Starts a process and attaches to its output from the beginning.
    pub fn start(&self, start: &ExecStart) -> Result<Attachment, GuestError> {
        let user = self.users.find(&start.user)?;
        let command = Command::resolve(start, &user)?;
        // Held until the process is registered: two starts with one id cannot both pass.
        let mut registry = lock(&self.registry);
        registry.expire();
        if registry.processes.contains_key(&start.exec) {
            let message = format!("exec {}: an exec with this id exists", hex(&start.exec));
            return Err(fault(GuestErrorKind::AlreadyExists, message));
        }
        if registry.processes.len() - registry.ended.len() >= MAX_RUNNING {
            let message =
                format!("exec: {MAX_RUNNING} processes run already, the most this VM's agent drives");
            return Err(fault(GuestErrorKind::Exhausted, message));
        }
        let (process, driver) = self.launch(start, &user, &command)?;
        registry.processes.insert(start.exec, Arc::clone(&process));
        drop(registry);
        let attachment = process.attach([0, 0]);
        let registry = Arc::clone(&self.registry);
        crate::task::forever("process driver", async move {
            Arc::clone(&process).drive(driver).await;
            lock(&registry).note_ended(process.id);
        });
        Ok(attachment)
    }

    /// Attaches to a process that runs or has lately ended.
    pub fn attach(&self, exec: [u8; 16], offsets: [u64; 2]) -> Result<Attachment, GuestError> {
        let mut registry = lock(&self.registry);
        registry.expire();
        match registry.processes.get(&exec) {
            Some(process) => Ok(process.attach(offsets)),
            None => {
                let message = format!("exec {}: no such exec runs or has lately ended", hex(&exec));
                Err(fault(GuestErrorKind::NotFound, message))
            }
        }
    }

    pub fn list(&self) -> Vec<ExecSummary> {
        let mut registry = lock(&self.registry);
        registry.expire();
        let summary = |process: &Arc<Process>| {
            let [stdout, stderr] = process.printed();
            ExecSummary {
                exec: process.id,
                pid: process.pid.cast_unsigned(),
                ended: process.end(),
                stdout,
                stderr,
            }
        };
        registry.processes.values().map(summary).collect()
    }

    fn launch(
        &self,
        start: &ExecStart,
        user: &User,
        command: &Command,
    ) -> Result<(Arc<Process>, Driver), GuestError> {
        let tree = self
            .trees
            .create(&hex(&start.exec), start.limits.processes)
            .context("make cgroup of exec", hex(&start.exec))?;
        let streams =
            Streams::open(start.pty, start.stdin, user).context("open streams of exec", hex(&start.exec))?;
        let launch = Launch {
            command,
            identity: &user.identity,
            stdin: streams.child[0].as_fd(),
            stdout: streams.child[1].as_fd(),
            stderr: streams.child[2].as_fd(),
            extra: &[],
            terminal: start.pty.is_some(),
            birth: tree.birth(),
        };
        let mut failure = None;
        let started = Instant::now();
        let launched = self.reaper.expecting(|| match launch.start() {
            Ok(pid) => Ok((pid, ())),
            Err(error) => {
                failure = Some(launch_failure(error, start, command));
                Err(std::io::ErrorKind::Other.into())
            }
        });
        let (exit, pid, ()) = launched.map_err(|error| {
            failure.unwrap_or_else(|| fault(GuestErrorKind::Other, format!("start a process: {error}")))
        })?;
        let terminal = start.pty.is_some().then(|| Arc::clone(&streams.stdout));
        let process = Process::new(start.exec, pid, tree, streams.stdin, terminal, start.max_output);
        let driver = Driver {
            exit,
            started,
            timeout: start.timeout_ms.map(Duration::from_millis),
            stdout: streams.stdout,
            stderr: streams.stderr,
            presence: Arc::clone(&self.presence),
            reaper_passes: self.reaper.passes(),
        };
        Ok((process, driver))
    }
}

fn lock(registry: &Mutex<Registry>) -> MutexGuard<'_, Registry> {
    registry.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Registry {
    fn note_ended(&mut self, id: [u8; 16]) {
        self.ended.push_back((id, Instant::now()));
        self.expire();
        let held = |registry: &Self, id: &[u8; 16]| registry.processes.get(id).map_or(0, |p| p.held_output());
        let mut total: usize = self.ended.iter().map(|(id, _)| held(self, id)).sum();
        for (id, _) in &self.ended {
            if total <= KEEP_ENDED_OUTPUT {
                break;
            }
            total -= held(self, id);
            if let Some(process) = self.processes.get(id) {
                process.forget_output();
            }
        }
    }

    fn expire(&mut self) {
        while let Some((id, at)) = self.ended.front() {
            if self.ended.len() <= KEEP_ENDED && at.elapsed() < KEEP_ENDED_FOR {
                break;
            }
            self.processes.remove(id);
            self.ended.pop_front();
        }
    }
}

pub fn launch_failure(error: LaunchError, start: &ExecStart, command: &Command) -> GuestError {
    use offshoot_guest_proto::message::ExecCommand;
    let program = match &start.command {
        ExecCommand::Argv(argv) => argv.first().map_or("", String::as_str),
        ExecCommand::Shell(_) => "/bin/bash",
    };
    match error {
        LaunchError::Clone(source) => {
            // EAGAIN: `pids.max` of this exec or of the VM is reached.
            fault(crate::fault::kind_of(&source), format!("start {program}: {}", reason(&source)))
        }
        LaunchError::Child { step: Step::Program, source } => {
            let reason = match source.raw_os_error() {
                Some(libc::ENOENT) if program.contains('/') => "no such file in the VM".to_owned(),
                Some(libc::ENOENT) => "command not found in the VM's PATH".to_owned(),
                _ => reason(&source),
            };
            fault(GuestErrorKind::ExecFailed, format!("run {program}: {reason}"))
        }
        LaunchError::Child { step: Step::Directory, source } => {
            let directory = match &command.directory {
                Directory::Chosen(path) | Directory::Home(path) => path.to_string_lossy(),
            };
            fault(
                crate::fault::kind_of(&source),
                format!("enter working directory {directory}: {}", reason(&source)),
            )
        }
        LaunchError::Child { step, source } => fault(
            crate::fault::kind_of(&source),
            format!("prepare {program} ({}): {}", format!("{step:?}").to_lowercase(), reason(&source)),
        ),
    }
}

/// Both ends of what connects a process to us.
struct Streams {
    child: [Arc<OwnedFd>; 3],
    stdin: Stdin,
    stdout: Arc<sys::AsyncFd>,
    /// A terminal has no stderr of its own.
    stderr: Option<sys::AsyncFd>,
}

impl Streams {
    fn open(pty: Option<PtySize>, wants_stdin: bool, user: &User) -> std::io::Result<Self> {
        match pty {
            Some(size) => Self::terminal(size, user),
            None => Self::pipes(wants_stdin),
        }
    }

    fn pipes(wants_stdin: bool) -> std::io::Result<Self> {
        let (child_stdin, stdin) = if wants_stdin {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
            (read, Stdin::pipe(async_fd(write, Interest::WRITABLE)?))
        } else {
            (openat(CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?, Stdin::none())
        };
        let (stdout, child_stdout) = pipe_with(PipeFlags::CLOEXEC)?;
        let (stderr, child_stderr) = pipe_with(PipeFlags::CLOEXEC)?;
        Ok(Self {
            child: [child_stdin, child_stdout, child_stderr].map(Arc::new),
            stdin,
            stdout: Arc::new(async_fd(stdout, Interest::READABLE)?),
            stderr: Some(async_fd(stderr, Interest::READABLE)?),
        })
    }

    fn terminal(size: PtySize, user: &User) -> std::io::Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let ours = openpt(flags)?;
        unlockpt(&ours)?;
        let theirs = Arc::new(other_side(&ours, flags)?);
        rustix::termios::tcsetwinsize(&ours, process::window(size))?;
        if rustix::process::geteuid().is_root() {
            // Theirs to open again by name; the group `tty` may write to it, as `mesg y` would have it.
            fchown(&theirs, Some(Uid::from_raw(user.identity.uid)), None::<Gid>)?;
            fchmod(&theirs, Mode::from_raw_mode(0o620))?;
        }
        let ours = Arc::new(async_fd(ours, Interest::READABLE | Interest::WRITABLE)?);
        Ok(Self {
            child: [Arc::clone(&theirs), Arc::clone(&theirs), theirs],
            stdin: Stdin::terminal(Arc::clone(&ours)),
            stdout: ours,
            stderr: None,
        })
    }
}

/// By name where the kernel does not open it for us: gVisor has no `TIOCGPTPEER`.
fn other_side(ours: &OwnedFd, flags: OpenptFlags) -> std::io::Result<OwnedFd> {
    match ioctl_tiocgptpeer(ours, flags) {
        Err(io::Errno::NOTTY) => {
            let name = ptsname(ours, Vec::new())?;
            Ok(openat(CWD, name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?)
        }
        opened => Ok(opened?),
    }
}

pub fn async_fd(fd: OwnedFd, interest: Interest) -> std::io::Result<sys::AsyncFd> {
    io::ioctl_fionbio(&fd, true)?;
    sys::async_fd(fd, interest)
}

fn hex(id: &[u8; 16]) -> String {
    id.iter().fold(String::with_capacity(32), |mut text, byte| {
        // Writing to a string cannot fail.
        let _always_ok = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests;
