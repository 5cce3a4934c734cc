//! One interpreter process: how it is started, and what connects it to the agent.
//!
//! ```text
//! fd 0        /dev/null                   fd 12  the runner script, sealed
//! fd 1, 2     pipes, read while code runs fd 13  control socket: orders in, answers out
//!                                         fd 14  the code to run, read-only
//!                                         fd 15  pipe: one line for each reseeding
//! ```
//! The script and the code lie in anonymous files that only the agent can write. 12 to 15 are among the descriptors
//! node keeps from its children by itself; the other runners see to that.

use super::answer::{self, Answer, Nonsense};
use crate::{
    exec::{Command, Launch, Tree, Trees, async_fd, launch_failure},
    fault::{Context, fault},
    reaper::{Exit, Reaper},
    sys,
    users::User,
};
use offshoot_guest_proto::message::{
    CodeEvent, ExecCommand, ExecStart, GuestError, GuestErrorKind, Language, MAX_VALUE, ResourceLimits,
};
use rustix::{
    fd::{AsFd, AsRawFd, OwnedFd},
    fs::{MemfdFlags, Mode, OFlags, SealFlags, fchmod, fcntl_add_seals, ftruncate, memfd_create},
    net::{AddressFamily, SocketFlags, SocketType, socketpair},
    pipe::{PipeFlags, pipe_with},
    process::{Pid, Signal, kill_process_group},
};
use std::{
    collections::BTreeMap,
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::{io::Interest, sync::watch};

/// Below it are the numbers the interpreter gets.
const FIRST_FREE: i32 = 16;
const READ: usize = 64 * 1024;

/// How a language is run.
struct Recipe {
    argv: &'static [&'static str],
    script: &'static str,
    /// The signal that asks for a reseeding.
    reseed: i32,
}

fn recipe(language: Language) -> Recipe {
    match language {
        Language::Python => Recipe {
            argv: &["python3", "/proc/self/fd/12"],
            script: concat!(
                "LIBRARY = r'''",
                include_str!("runners/display.py"),
                include_str!("runners/charts.py"),
                "'''\n",
                include_str!("runners/runner.py"),
            ),
            reseed: libc::SIGRTMAX() - 3,
        },
        Language::Javascript => Recipe {
            // Node resolves the name of a script, which an anonymous file does not have.
            // Of its internals it is asked for the parser it has.
            argv: &["node", "--expose-internals", "-e", "eval(require('fs').readFileSync(12, 'utf8'))"],
            script: concat!(include_str!("runners/imports.js"), include_str!("runners/runner.js")),
            // It knows no real-time signals.
            reseed: libc::SIGUSR2,
        },
        Language::Bash => Recipe {
            argv: &["bash", "--noprofile", "--norc", "/proc/self/fd/12"],
            script: include_str!("runners/runner.sh"),
            reseed: libc::SIGRTMAX() - 3,
        },
    }
}

/// What is needed to start one.
#[derive(Debug)]
pub struct Starter {
    pub reaper: Arc<Reaper>,
    pub trees: Arc<dyn Trees>,
    /// The add-on that reseeds OpenSSL in node, as a file; why not, otherwise.
    pub addon: Result<std::path::PathBuf, String>,
}

/// What others than the owner may do with an interpreter.
#[derive(Debug)]
pub struct Live {
    pub language: Language,
    pub pid: i32,
    tree: Box<dyn Tree>,
    acks: sys::AsyncFd,
    /// It has answered something, which it does only once it listens for all signals.
    answered: AtomicBool,
    exit: watch::Sender<Option<Exit>>,
    /// Output read by nobody yet is the next code's.
    pub pipes: [sys::AsyncFd; 2],
}

/// The right to give it code.
#[derive(Debug)]
pub struct Interpreter {
    pub live: Arc<Live>,
    /// What it keeps of random numbers may be that of another VM: see [`super::spares`].
    pub stale: bool,
    /// For one that was not started for its context: where that is to be, and its environment, in words.
    pub unsettled: Option<String>,
    /// Pieces of code it was given.
    pub count: u32,
    control: sys::AsyncFd,
    code: OwnedFd,
    received: Vec<u8>,
    /// The number of the last order: what is said of others is nobody's.
    order: u64,
}

impl Starter {
    /// Starts an interpreter in a tree of that name. Without a wait: see [`crate::freeze`].
    pub fn start(
        &self,
        tree: &str,
        language: Language,
        user: &User,
        cwd: Option<&str>,
        env: &BTreeMap<String, String>,
    ) -> Result<Interpreter, GuestError> {
        let recipe = recipe(language);
        let mut env = env.clone();
        if let (Language::Javascript, Ok(addon)) = (language, &self.addon) {
            env.insert("OFFSHOOT_RESEED".to_owned(), addon.to_string_lossy().into_owned());
        }
        let start = ExecStart {
            exec: [0; 16],
            command: ExecCommand::Argv(recipe.argv.iter().map(|&word| word.to_owned()).collect()),
            env,
            cwd: cwd.map(str::to_owned),
            user: user.name.clone(),
            pty: None,
            stdin: false,
            timeout_ms: None,
            max_output: None,
            limits: ResourceLimits::default(),
        };
        let command = Command::resolve(&start, user)?;
        let wires = Wires::open(recipe.script).context("open descriptors of context", tree)?;
        self.trees.collect();
        let cgroup = self.trees.create(tree, None).context("make cgroup of context", tree)?;
        let [script, control, code, acks] = &wires.theirs;
        let launch = Launch {
            command: &command,
            identity: &user.identity,
            stdin: wires.null.as_fd(),
            stdout: wires.output[0].as_fd(),
            stderr: wires.output[1].as_fd(),
            extra: &[(script.as_fd(), 12), (control.as_fd(), 13), (code.as_fd(), 14), (acks.as_fd(), 15)],
            terminal: false,
            birth: cgroup.birth(),
        };
        let mut failure = None;
        let launched = self.reaper.expecting(|| match launch.start() {
            Ok(pid) => Ok((pid, ())),
            Err(error) => {
                failure = Some(launch_failure(error, &start, &command));
                Err(io::ErrorKind::Other.into())
            }
        });
        let (exited, pid, ()) = launched.map_err(|error| {
            failure.unwrap_or_else(|| fault(GuestErrorKind::Other, format!("start an interpreter: {error}")))
        })?;
        let live = Arc::new(Live {
            language,
            pid,
            tree: cgroup,
            acks: wires.acks,
            answered: AtomicBool::new(false),
            exit: watch::Sender::new(None),
            pipes: wires.pipes,
        });
        let watched = Arc::clone(&live);
        crate::task::forever("interpreter's exit", async move {
            // The reaper lives as long as the runtime.
            if let Ok(exit) = exited.await {
                watched.exit.send_replace(Some(exit));
            }
        });
        let (control, code) = (wires.control, wires.code);
        Ok(Interpreter {
            live,
            stale: false,
            unsettled: None,
            count: 0,
            control,
            code,
            received: Vec::new(),
            order: 0,
        })
    }
}

impl Live {
    pub fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Returns once the process is gone. Cancel-safe.
    pub async fn exited(&self) -> Exit {
        let mut exit = self.exit.subscribe();
        match exit.wait_for(Option::is_some).await.map(|exit| *exit) {
            Ok(Some(exit)) => exit,
            // The sender is ours.
            _ => std::future::pending().await,
        }
    }

    /// As Ctrl-C would: to the interpreter and the children it has in the foreground.
    pub fn interrupt(&self) {
        if let (None, Some(group)) = (self.exit(), Pid::from_raw(self.pid)) {
            // Ended this very moment: its end is about to be seen.
            let _gone = kill_process_group(group, Signal::INT);
        }
    }

    /// SIGKILL to everything it has started.
    pub fn kill(&self) -> io::Result<()> {
        self.tree.kill(self.pid)
    }

    /// Asks for a reseeding; to be answered by [`Live::reseeded`].
    pub fn ask_to_reseed(&self) -> io::Result<()> {
        self.forget_acks();
        let signal = recipe(self.language).reseed;
        // One that still starts has no handler, and would be ended by the signal. Not every kernel says who has one.
        let listens = catches(&std::fs::read_to_string(format!("/proc/{}/status", self.pid))?, signal);
        if !listens.unwrap_or_else(|| self.answered.load(Ordering::Relaxed)) {
            return Err(io::Error::other("it does not listen for the signal yet"));
        }
        sys::send_signal(self.pid, signal)
    }

    /// What the interpreter says of its reseeding: `ok`, or what went wrong. Not cancel-safe.
    pub async fn reseeded(&self) -> io::Result<String> {
        let mut line = Vec::new();
        loop {
            let mut buffer = [0; 512];
            let count =
                self.acks.async_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut buffer)?)).await?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            line.extend_from_slice(&buffer[..count]);
            if let Some(end) = line.iter().position(|&byte| byte == b'\n') {
                let text = String::from_utf8_lossy(&line[..end]);
                return Ok(text.chars().filter(|c| !c.is_control()).take(500).collect());
            }
            if line.len() > 4096 {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
    }

    /// An answer to an earlier thaw that gave up waiting is none to this one.
    fn forget_acks(&self) {
        let mut buffer = [0; 512];
        while rustix::io::read(&self.acks, &mut buffer).is_ok_and(|count| count > 0) {}
    }
}

impl Interpreter {
    /// Hands over code. An interpreter reads all of an order before it ends it: this never waits.
    pub fn run(&mut self, code: &str) -> io::Result<()> {
        self.count = self.count.saturating_add(1);
        self.give("run", code)
    }

    /// Lets it go on after a display: all it wrote before that is taken, and nothing it wrote after.
    pub fn told(&self, serial: u64) -> io::Result<()> {
        self.say(&format!("told {serial}\n"))
    }

    /// Does what its first code will need, without a trace in its variables. Only before that. Not cancel-safe.
    pub async fn warm(&mut self) -> io::Result<()> {
        self.order("warm", "").await
    }

    /// Takes new random numbers. Only before its first code. Not cancel-safe.
    pub async fn renew(&mut self) -> io::Result<()> {
        self.order("renew", "").await
    }

    /// Goes to the directory and takes on the environment of its context. Only before its first code. Not cancel-safe.
    pub async fn settle(&mut self) -> io::Result<()> {
        match self.unsettled.take() {
            Some(words) => self.order("settle", &words).await,
            None => Ok(()),
        }
    }

    /// Puts these into the environment for the next code only. Not cancel-safe.
    pub async fn lend(&mut self, env: &BTreeMap<String, String>) -> io::Result<()> {
        self.order("lend", &words(env)).await
    }

    fn give(&mut self, order: &str, text: &str) -> io::Result<()> {
        ftruncate(&self.code, 0)?;
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            let at = (text.len() - rest.len()) as u64;
            rest = &rest[rustix::io::pwrite(&self.code, rest, at)?..];
        }
        self.order += 1;
        self.say(&format!("{order} {}\n", self.order))
    }

    /// Writes a line, for which there is room unless the interpreter has stopped reading.
    fn say(&self, line: &str) -> io::Result<()> {
        match rustix::io::write(&self.control, line.as_bytes())? {
            count if count == line.len() => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }

    async fn order(&mut self, order: &str, text: &str) -> io::Result<()> {
        self.give(order, text)?;
        loop {
            match self.answer().await {
                Ok(Answer::End { status: 0 }) => return Ok(()),
                // Its text is nobody's: a thread shows what it has to while code runs.
                Ok(Answer::Display { serial, .. }) => self.told(serial)?,
                Ok(Answer::Conclusion(CodeEvent::Error { name, message, .. })) => {
                    return Err(io::Error::other(format!("{name}: {message}")));
                }
                answer => return Err(io::Error::other(format!("it answered {answer:?}"))),
            }
        }
    }

    /// The next answer to the last order; [`Nonsense`] also where the socket has ended. Cancel-safe.
    pub async fn answer(&mut self) -> Result<Answer, Nonsense> {
        loop {
            if let Some((order, answer)) = answer::take(&mut self.received)? {
                if order == self.order {
                    return Ok(answer);
                }
                continue;
            }
            if self.received.len() > 2 * MAX_VALUE {
                return Err(Nonsense);
            }
            // Most answers are small; a picture is read in larger pieces.
            self.received.reserve(if self.received.is_empty() { 4096 } else { READ });
            let received = &mut self.received;
            let read = |fd: &OwnedFd| Ok(rustix::io::read(fd, rustix::buffer::spare_capacity(received))?);
            match self.control.async_io(Interest::READABLE, read).await {
                Ok(count) if count > 0 => self.live.answered.store(true, Ordering::Relaxed),
                _ => return Err(Nonsense),
            }
        }
    }
}

/// Variables of an environment as the runners read them.
pub fn words(env: &BTreeMap<String, String>) -> String {
    env.iter().map(|(name, value)| format!("{name}={value}\0")).collect()
}

/// Whether a process whose `/proc/PID/status` this is has a handler for the signal; `None` where that is not said, as by
/// gVisor's kernel.
fn catches(status: &str, signal: i32) -> Option<bool> {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"))?;
    let mask = u64::from_str_radix(mask.trim(), 16).unwrap_or(0);
    let handlers = u32::try_from(signal - 1).ok().and_then(|bit| mask.checked_shr(bit));
    Some(handlers.is_some_and(|handlers| handlers & 1 == 1))
}

/// Takes what is in a pipe, at most 64 KiB; `None` at its end.
pub fn read_pipe(pipe: &sys::AsyncFd) -> Option<Vec<u8>> {
    let mut data = Vec::with_capacity(READ);
    let outcome = pipe.try_io(Interest::READABLE, |fd| {
        Ok(rustix::io::read(fd, rustix::buffer::spare_capacity(&mut data))?)
    });
    match outcome {
        Ok(0) => None,
        Ok(_count) => Some(data),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
            Some(Vec::new())
        }
        Err(_) => None,
    }
}

/// All descriptors of an interpreter, ours and theirs.
struct Wires {
    null: OwnedFd,
    output: [OwnedFd; 2],
    pipes: [sys::AsyncFd; 2],
    /// Script, control, code, acks.
    theirs: [OwnedFd; 4],
    control: sys::AsyncFd,
    code: OwnedFd,
    acks: sys::AsyncFd,
}

impl Wires {
    fn open(script: &str) -> io::Result<Self> {
        let (stdout, child_stdout) = pipe_with(PipeFlags::CLOEXEC)?;
        let (stderr, child_stderr) = pipe_with(PipeFlags::CLOEXEC)?;
        let (acks, child_acks) = pipe_with(PipeFlags::CLOEXEC)?;
        let (control, child_control) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        let code = anonymous_file(c"offshoot-code")?;
        let child_code = read_only(&code)?;
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self {
            null,
            output: [child_stdout, child_stderr],
            pipes: [async_fd(stdout, Interest::READABLE)?, async_fd(stderr, Interest::READABLE)?],
            theirs: [
                above(&sealed(script)?)?,
                above(&child_control)?,
                above(&child_code)?,
                above(&child_acks)?,
            ],
            control: async_fd(control, Interest::READABLE)?,
            code,
            acks: async_fd(acks, Interest::READABLE)?,
        })
    }
}

/// The same description under a number that is none of the interpreter's.
fn above(fd: &OwnedFd) -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(fd, FIRST_FREE)?)
}

fn anonymous_file(name: &std::ffi::CStr) -> io::Result<OwnedFd> {
    let file = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    fchmod(&file, Mode::from_raw_mode(0o444))?;
    Ok(file)
}

/// A description of its own, at the file's beginning.
fn read_only(file: &OwnedFd) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// A file with this text that nobody can change any more.
fn sealed(text: &str) -> io::Result<OwnedFd> {
    let file = anonymous_file(c"offshoot-runner")?;
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        rest = &rest[rustix::io::write(&file, rest)?..];
    }
    fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    read_only(&file)
}

/// Writes the add-on for node where every user can load it and only root can change it.
pub fn place_addon(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    std::fs::write(path, include_bytes!(concat!(env!("OUT_DIR"), "/reseed.node")))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o555))
}

#[cfg(test)]
mod tests {
    use super::catches;

    #[test]
    fn a_handler_is_read_off_the_mask_of_caught_signals() {
        let status = "SigIgn:\t0000000000000000\nSigCgt:\t1000000000000802\n";
        for (signal, caught) in [(2, true), (12, true), (61, true), (1, false), (64, false), (0, false)] {
            assert_eq!(catches(status, signal), Some(caught), "{signal}");
        }
        assert_eq!(catches("State:\tR (running)\n", 2), None);
    }
}
