//! Running a program of a build.
//!
//! ```text
//! spawned --exits--> Exited                      the rest of its group is killed
//!    |---cancelled--> (TERM to the group --exits, or GRACE passes-->) KILL --> Cancelled
//! ```
//! Every program leads a process group of its own and is killed when we die (`setpriv --pdeathsig`, so that no code has
//! to run between fork and exec). That reaches the program but not its children, and mmdebstrap has many and mounts
//! things; so it runs in PID and mount namespaces of its own, and the kernel ends and unmounts everything with the
//! first process. Output goes to the log and, line by line, to the progress callback.

use super::{Build, BuildError, Progress, Stage, tools};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fd::OwnedFd,
    io::Errno,
    pipe::PipeFlags,
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open},
};
use std::{
    collections::VecDeque,
    ffi::OsStr,
    fs::File,
    io::{self, Write},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

/// How long a cancelled program may tidy up where only it can: mmdebstrap without root has its tree in /tmp.
const GRACE: Duration = Duration::from_secs(20);
/// How long the last of a killed program's children may take to be gone.
const LINGER: Duration = Duration::from_secs(5);
/// Lines kept for the error message, and characters of each.
const TAIL: usize = 20;
const LINE: usize = 400;

/// A program to run for a stage.
pub(super) struct Program {
    name: &'static str,
    command: Command,
    stdout: Output,
    /// Between TERM and KILL when cancelled; zero for KILL at once.
    grace: Duration,
}

#[derive(PartialEq)]
enum Output {
    /// With the messages, to the log.
    Log,
    Elsewhere,
}

impl Program {
    /// A program without children of its own.
    pub(super) fn new(name: &'static str) -> Self {
        Self::below(name, &["--pdeathsig", "KILL", "--"])
    }

    /// A program whose children and mounts end with it.
    pub(super) fn confined(name: &'static str) -> Self {
        const NAMESPACES: [&str; 6] =
            ["--mount", "--propagation=private", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"];
        match tools::is_root() {
            true => {
                let setpriv = ["--pdeathsig", "KILL", "--", "unshare"];
                Self::below(name, &[&setpriv[..], &NAMESPACES, &["--"]].concat())
            }
            // Without root it is mmdebstrap itself that makes the namespaces, and TERM lets it tidy up outside them.
            false => Self { grace: GRACE, ..Self::below(name, &["--pdeathsig", "TERM", "--"]) },
        }
    }

    /// `name` as the last of the programs that `setpriv` turns into.
    fn below(name: &'static str, setpriv: &[&str]) -> Self {
        let mut command = Command::new("setpriv");
        let path = tools::find(name).unwrap_or_else(|| name.into());
        command.args(setpriv).arg(path);
        // Messages are parsed by no one, but logged and shown: one language, no terminal control.
        command.env("LC_ALL", "C.UTF-8").env("DEBIAN_FRONTEND", "noninteractive").env_remove("TERM");
        command.stdin(Stdio::null()).process_group(0);
        Self { name, command, stdout: Output::Log, grace: Duration::ZERO }
    }

    pub(super) fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    pub(super) fn arg(self, arg: impl AsRef<OsStr>) -> Self {
        self.args([arg])
    }

    pub(super) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub(super) fn directory(mut self, path: &Path) -> Self {
        self.command.current_dir(path);
        self
    }

    pub(super) fn stdin(mut self, file: File) -> Self {
        self.command.stdin(file);
        self
    }

    pub(super) fn stdout(mut self, file: File) -> Self {
        self.command.stdout(file);
        self.stdout = Output::Elsewhere;
        self
    }
}

impl Build<'_> {
    /// Runs the program to its end; anything but status 0 is an error with its last lines.
    pub(super) fn run_program(&mut self, stage: Stage, mut program: Program) -> Result<(), BuildError> {
        let (name, grace) = (program.name, program.grace);
        let run_error = |source| BuildError::Run { program: name.into(), source };
        let (output, writer) =
            rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|e| run_error(e.into()))?;
        if program.stdout == Output::Log {
            program.command.stdout(writer.try_clone().map_err(run_error)?);
        }
        program.command.stderr(writer);
        let child = program.command.spawn().map_err(run_error)?;
        // The command holds our copies of the pipe's writing end; without them the reader sees the end of output.
        drop(program);

        let mut lines = Lines { partial: Vec::new(), tail: VecDeque::new() };
        let ended = Running { child, output, grace }
            .wait(self, |build, bytes| {
                // A full disk must not hide what the program itself said.
                let _ = build.log.write_all(bytes);
                lines.push(bytes, |text| (build.progress)(Progress::Line { stage, text }));
            })
            .map_err(run_error)?;
        match ended {
            Ended::Cancelled => Err(BuildError::Cancelled),
            Ended::Exited(status) if status.success() => Ok(()),
            Ended::Exited(status) => Err(BuildError::Failed {
                stage,
                program: name.into(),
                status: status.to_string(),
                tail: lines.finish(),
                log: self.log_path.clone(),
            }),
        }
    }
}

enum Ended {
    Exited(ExitStatus),
    Cancelled,
}

struct Running {
    child: Child,
    output: OwnedFd,
    grace: Duration,
}

impl Running {
    fn wait<'b>(
        mut self,
        build: &mut Build<'b>,
        mut take: impl FnMut(&mut Build<'b>, &[u8]),
    ) -> io::Result<Ended> {
        let pid = Pid::from_child(&self.child);
        let exit = pidfd_open(pid, PidfdFlags::empty())?;
        let cancel = build.cancel.clone();
        let mut chunk = [0; 8192];
        let mut deadline = None;
        let mut open = true;
        loop {
            let left = deadline.map(|deadline: Instant| deadline.saturating_duration_since(Instant::now()));
            let (exited, stopped, said) = {
                let mut fds = [
                    PollFd::new(&exit, PollFlags::IN),
                    PollFd::from_borrowed_fd(cancel.as_fd(), wanted(deadline.is_none())),
                    PollFd::new(&self.output, PollFlags::IN),
                ];
                // A closed pipe would be ready for ever, whatever is asked of it.
                let watched = if open { 3 } else { 2 };
                let timeout = left.map(Timespec::try_from).transpose().map_err(io::Error::other)?;
                match poll(&mut fds[..watched], timeout.as_ref()) {
                    Err(Errno::INTR) => continue,
                    // The grace has passed: the kill below ends it.
                    Ok(0) => break,
                    polled => polled?,
                };
                let ready = |at: usize, asked: bool| asked && !fds[at].revents().is_empty();
                (ready(0, true), ready(1, deadline.is_none()), ready(2, open))
            };
            if stopped {
                deadline = Some(Instant::now() + self.grace);
                if self.grace.is_zero() {
                    break;
                }
                signal_group(pid, Signal::TERM)?;
            } else if said {
                // Before its exit, because it belongs to the story.
                match rustix::io::read(&self.output, &mut chunk)? {
                    0 => open = false,
                    n => take(build, &chunk[..n]),
                }
            } else if exited {
                break;
            }
        }
        // The leader is not reaped yet, so the group's id is still its own. Whatever it left behind ends here.
        signal_group(pid, Signal::KILL)?;
        // The output ends when the last process that could write to it is gone, and with it whatever still worked in
        // the directory that is removed next.
        let killed = Instant::now();
        while open {
            let left = LINGER.saturating_sub(killed.elapsed()).try_into().map_err(io::Error::other)?;
            match poll(&mut [PollFd::new(&self.output, PollFlags::IN)], Some(&left)) {
                Err(Errno::INTR) => continue,
                Ok(0) => break,
                polled => polled?,
            };
            match rustix::io::read(&self.output, &mut chunk)? {
                0 => open = false,
                n => take(build, &chunk[..n]),
            }
        }
        let status = self.child.wait()?;
        Ok(if deadline.is_some() { Ended::Cancelled } else { Ended::Exited(status) })
    }
}

fn wanted(wanted: bool) -> PollFlags {
    if wanted { PollFlags::IN } else { PollFlags::empty() }
}

fn signal_group(leader: Pid, signal: Signal) -> io::Result<()> {
    match kill_process_group(leader, signal) {
        // All gone already, or only zombies are left.
        Ok(()) | Err(Errno::SRCH | Errno::PERM) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Output cut into printable lines of bounded length.
struct Lines {
    partial: Vec<u8>,
    tail: VecDeque<String>,
}

impl Lines {
    fn push(&mut self, bytes: &[u8], mut show: impl FnMut(&str)) {
        for byte in bytes {
            match byte {
                b'\n' | b'\r' => {
                    if let Some(line) = self.take() {
                        show(&line);
                    }
                }
                // More than fits is in the log.
                _ if self.partial.len() >= LINE => {}
                byte => self.partial.push(*byte),
            }
        }
    }

    fn take(&mut self) -> Option<String> {
        let bytes = std::mem::take(&mut self.partial);
        let text: String = String::from_utf8_lossy(&bytes).chars().filter(|c| !c.is_control()).collect();
        let text = text.trim_end();
        if text.is_empty() {
            return None;
        }
        if self.tail.len() == TAIL {
            self.tail.pop_front();
        }
        self.tail.push_back(text.to_owned());
        Some(text.to_owned())
    }

    fn finish(mut self) -> Vec<String> {
        self.take();
        self.tail.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BuildOptions, Cancel, Store};

    fn run(
        script: &str,
        cancel: Option<Cancel>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> (tempfile::TempDir, Result<(), BuildError>) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let options = BuildOptions { cancel, ..BuildOptions::default() };
        let mut build = Build::begin(&store, &options, progress).unwrap();
        let result = build.run_program(Stage::Disk, Program::new("sh").args(["-c", script]));
        (directory, result)
    }

    #[test]
    fn output_arrives_line_by_line_and_in_the_log() {
        let mut seen = Vec::new();
        let (directory, result) =
            run("echo one; printf 'two\\033[1m\\n' >&2; printf three", None, &mut |event| {
                if let Progress::Line { text, .. } = event {
                    seen.push(text.to_owned());
                }
            });
        result.unwrap();
        assert_eq!(seen, ["one", "two[1m"]);
        let log = std::fs::read_dir(directory.path().join("logs")).unwrap().next().unwrap().unwrap();
        assert_eq!(std::fs::read(log.path()).unwrap(), b"one\ntwo\x1b[1m\nthree");
    }

    #[test]
    fn a_failure_carries_the_last_lines_and_no_more() {
        let (_directory, result) = run("seq 1 100; printf last; exit 3", None, &mut |_| {});
        let error = result.unwrap_err();
        let BuildError::Failed { status, tail, .. } = &error else { panic!("{error:?}") };
        assert_eq!(status, "exit status: 3");
        assert_eq!((tail.len(), tail[TAIL - 1].as_str()), (TAIL, "last"));
        assert!(error.hint().unwrap().contains("  last\n"));
    }

    #[test]
    fn a_child_left_behind_does_not_outlive_the_program() {
        let started = Instant::now();
        let (_directory, result) = run("sleep 1000 & echo $!", None, &mut |_| {});
        result.unwrap();
        assert!(started.elapsed() < Duration::from_secs(100));
    }

    #[test]
    fn cancelling_ends_the_whole_group() {
        let cancel = Cancel::new().unwrap();
        let switch = cancel.clone();
        let mut children = Vec::new();
        let started = Instant::now();
        let (_directory, result) = run("sleep 1000 & echo $!; wait", Some(cancel), &mut |event| {
            if let Progress::Line { text, .. } = event {
                children.push(text.to_owned());
                switch.cancel();
            }
        });
        assert!(matches!(result, Err(BuildError::Cancelled)));
        assert!(started.elapsed() < Duration::from_secs(15), "TERM was enough");
        // Killed, but perhaps still on its way out.
        while Path::new(&format!("/proc/{}", children[0])).exists() && !is_zombie(&children[0]) {
            assert!(started.elapsed() < GRACE, "the child lives on");
            std::thread::yield_now();
        }
    }

    #[test]
    fn what_a_confined_program_starts_ends_with_it_even_in_a_session_of_its_own() {
        let mut pids = Vec::new();
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let mut progress = |event: Progress<'_>| {
            if let Progress::Line { text, .. } = event {
                pids.push(text.to_owned());
            }
        };
        let mut build = Build::begin(&store, &BuildOptions::default(), &mut progress).unwrap();
        let script = "setsid sleep 4321 >/dev/null 2>&1 & readlink /proc/self";
        let program = Program::confined("sh").args(["-c", script]);
        match build.run_program(Stage::Disk, program) {
            // Namespaces are for root; without them mmdebstrap does this itself.
            Err(BuildError::Failed { .. }) => return,
            result => result.unwrap(),
        }
        drop(build);
        if tools::is_root() {
            let alive = std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
                std::fs::read(entry.path().join("cmdline")).is_ok_and(|line| line == b"sleep\x004321\0")
            });
            assert!(!alive);
            assert!(pids[0].parse::<u32>().unwrap() < 10, "it has process ids of its own: {pids:?}");
        }
    }

    fn is_zombie(pid: &str) -> bool {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
    }
}
