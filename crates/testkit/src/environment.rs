//! One test's world: directories, a cleared environment, the binary under test, and the final inspection.

use crate::{CommandOutput, processes_mentioning, wait_for};
use offshoot_types::VmId;
use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// A state directory of its own and everything started from it.
#[derive(Debug)]
pub struct TestEnv {
    /// What lies in the directory and goes before it.
    small_disk: Option<SmallDisk>,
    dir: TempDir,
    binary: PathBuf,
    images: PathBuf,
    /// Instances the warm pool keeps.
    pool: u32,
    rebase_idle: &'static str,
    /// What VMs are made with if nothing is said; `auto` is the strongest.
    provider: &'static str,
    finished: bool,
}

#[derive(Debug)]
struct SmallDisk {
    mount: PathBuf,
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Nobody could be told; the directory that is left shows it.
        let _not_unmounted = Command::new("umount").arg("-l").arg(&self.mount).status();
    }
}

/// A running `offshoot` whose streams the test holds.
#[derive(Debug)]
pub struct Session {
    pub child: Child,
}

impl Default for TestEnv {
    fn default() -> Self {
        Self::new()
    }
}

impl TestEnv {
    /// Panics if the binary or the images are not there: a test that silently skips proves nothing.
    pub fn new() -> Self {
        let binary = std::env::var_os("OFFSHOOT_BIN").map(PathBuf::from).unwrap_or_else(|| {
            panic!(
                "OFFSHOOT_BIN is not set: run these tests by `cargo xtask test`, which builds what they need"
            )
        });
        assert!(binary.is_file(), "{} does not exist: run `cargo xtask test`", binary.display());
        let images = std::env::var_os("OFFSHOOT_IMAGES").map_or_else(default_images, PathBuf::from);
        assert!(images.is_dir(), "{} does not exist: run `cargo xtask image base`", images.display());
        let dir = tempfile::Builder::new()
            .prefix("ofs-")
            .tempdir_in("/tmp")
            .expect("make a directory for the test");
        for sub in ["state", "run", "home", "work"] {
            fs::create_dir(dir.path().join(sub)).expect("make the test's directories");
        }
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        fs::set_permissions(dir.path().join("run"), private).expect("make the runtime directory private");
        Self {
            small_disk: None,
            dir,
            binary,
            images,
            pool: 0,
            rebase_idle: "never",
            provider: "auto",
            finished: false,
        }
    }

    /// With a warm pool that keeps so many instances. Without one no process runs that nobody asked for.
    pub fn with_pool(pool: u32) -> Self {
        let mut env = Self::new();
        env.set_pool(pool);
        env
    }

    /// What the warm pool of a daemon keeps that is started from here on.
    pub fn set_pool(&mut self, pool: u32) {
        self.pool = pool;
    }

    /// With sandboxes of gVisor instead of virtual machines; `None`, and said why, where it does not work.
    pub fn on_gvisor() -> Option<Self> {
        let mut env = Self::new();
        let checks = env.run(&["doctor", "--json"]).json()["checks"].clone();
        let checks = checks.as_array().expect("`doctor` lists checks");
        let gvisor = checks.iter().find(|check| check["name"] == "gvisor").expect("one of them is gVisor");
        if gvisor["verdict"] != "ok" {
            env.finish();
            eprintln!("skipped: gVisor does not work on this host: {}", gvisor["detail"]);
            return None;
        }
        env.provider = "gvisor";
        Some(env)
    }

    /// What VMs are made with from here on.
    pub fn set_provider(&mut self, provider: &'static str) {
        self.provider = provider;
    }

    /// Where a VM of which nothing was asked for so long is moved to a fresh base. Without it none is moved.
    pub fn with_rebase_idle(idle: &'static str) -> Self {
        let mut env = Self::new();
        env.rebase_idle = idle;
        env
    }

    /// With the state directory on a file system of its own that holds so much (a size as tmpfs takes it). Needs root.
    pub fn with_small_disk(size: &str) -> Self {
        let mut env = Self::new();
        let mount = env.state_dir();
        let options = format!("size={size},mode=700");
        let mut mounting = Command::new("mount");
        mounting.args(["-t", "tmpfs", "-o", &options, "offshoot-test"]).arg(&mount);
        assert!(mounting.status().is_ok_and(|s| s.success()), "mounting a small tmpfs needs root");
        env.small_disk = Some(SmallDisk { mount });
        env
    }

    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub fn runtime_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// A scratch directory; also the working directory of every command.
    pub fn work_dir(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    pub fn binary(&self) -> &Path {
        &self.binary
    }

    pub fn images(&self) -> &Path {
        &self.images
    }

    /// The binary with the test's environment and nothing else of ours.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.dir.path().join("home"))
            .env("LANG", "C.UTF-8")
            .env("XDG_RUNTIME_DIR", self.runtime_dir())
            .env("OFFSHOOT_HOME", self.state_dir())
            .env("OFFSHOOT_IMAGES", &self.images)
            .env("OFFSHOOT_POOL", self.pool.to_string())
            .env("OFFSHOOT_REBASE_IDLE", self.rebase_idle)
            .env("OFFSHOOT_PROVIDER", self.provider)
            .current_dir(self.work_dir())
            .stdin(Stdio::null());
        command
    }

    /// Runs to the end with an empty standard input.
    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> CommandOutput {
        self.finish_command(arguments, self.command(arguments), None)
    }

    /// Runs to the end with this standard input.
    #[track_caller]
    pub fn run_with_input(&self, arguments: &[&str], input: &[u8]) -> CommandOutput {
        self.finish_command(arguments, self.command(arguments), Some(input.to_vec()))
    }

    /// Runs with changes to the command (environment, directory).
    #[track_caller]
    pub fn run_adjusted(&self, arguments: &[&str], adjust: impl FnOnce(&mut Command)) -> CommandOutput {
        let mut command = self.command(arguments);
        adjust(&mut command);
        self.finish_command(arguments, command, None)
    }

    #[track_caller]
    fn finish_command(
        &self,
        arguments: &[&str],
        mut command: Command,
        input: Option<Vec<u8>>,
    ) -> CommandOutput {
        let began = Instant::now();
        if input.is_some() {
            command.stdin(Stdio::piped());
        }
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start {}: {e}", self.binary.display()));
        let writer = input.map(|bytes| {
            let mut stdin = child.stdin.take().expect("standard input is a pipe");
            // A child that leaves early closes the pipe: its status is what the test judges.
            std::thread::spawn(move || drop(stdin.write_all(&bytes)))
        });
        let output = child.wait_with_output().unwrap_or_else(|e| panic!("cannot wait for offshoot: {e}"));
        if let Some(writer) = writer {
            writer.join().expect("the writer of standard input does not panic");
        }
        CommandOutput::new(arguments, &output, began.elapsed())
    }

    /// Starts a command whose streams the test drives.
    #[track_caller]
    pub fn spawn(&self, arguments: &[&str]) -> Session {
        let child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start {}: {e}", self.binary.display()));
        Session { child }
    }

    /// The daemon's process on this state directory, if one runs.
    pub fn daemon_pid(&self) -> Option<i32> {
        let text = fs::read_to_string(self.state_dir().join("daemon.json")).ok()?;
        let record: serde_json::Value = serde_json::from_str(&text).ok()?;
        let pid = i32::try_from(record["pid"].as_i64()?).ok()?;
        self.processes().iter().any(|process| process.pid == pid).then_some(pid)
    }

    /// SIGKILL to the daemon, then waits until it is gone. Panics if none runs.
    #[track_caller]
    pub fn kill_daemon(&self) {
        let pid = self.daemon_pid().expect("a daemon runs");
        let process = self.processes().into_iter().find(|p| p.pid == pid).expect("the daemon is listed");
        assert!(process.kill(), "the daemon could be signalled");
        wait_for("the killed daemon to disappear", Duration::from_secs(5), || !process.is_alive());
    }

    /// Every process started from this environment: all carry its path on their command line or, for commands
    /// without one, in their environment.
    pub fn processes(&self) -> Vec<crate::Process> {
        let needle = self.dir.path().display().to_string();
        let mut found = processes_mentioning(&needle);
        let seen: BTreeSet<i32> = found.iter().map(|p| p.pid).collect();
        for process in processes_mentioning("offshoot") {
            let environment = fs::read(format!("/proc/{}/environ", process.pid)).unwrap_or_default();
            let ours = String::from_utf8_lossy(&environment).contains(&needle);
            if ours && !seen.contains(&process.pid) {
                found.push(process);
            }
        }
        found
    }

    /// Ends the test: destroys the VMs, stops the daemon, then observes that nothing is left.
    #[track_caller]
    pub fn finish(mut self) {
        let listed = self.run(&["list", "--json"]).success().json();
        for vm in listed["vms"].as_array().expect("`list --json` has `vms`") {
            let name = vm["name"].as_str().expect("a VM has a name").to_owned();
            self.run(&["destroy", &name, "--yes"]).success();
        }
        self.run(&["daemon", "stop", "--vms"]).success();
        self.assert_nothing_left();
        self.finished = true;
    }

    /// No process, socket, cgroup or VM directory may be left once the daemon has ended.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        wait_for("every process of the test to end", Duration::from_secs(10), || self.processes().is_empty());
        let sockets = sockets_below(&self.runtime_dir());
        assert!(sockets.is_empty(), "sockets are left: {sockets:?}");
        let vms = self.state_dir().join("vms");
        let left: Vec<_> =
            fs::read_dir(&vms).into_iter().flatten().filter_map(Result::ok).map(|e| e.path()).collect();
        assert!(left.is_empty(), "VM directories are left: {left:?}");
        let cgroups = cgroups_of(&self.state_dir());
        assert!(cgroups.is_empty(), "cgroups are left: {cgroups:?}");
    }
}

impl Drop for TestEnv {
    /// Only for a test that panicked: ends what it started, so that it cannot disturb others.
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        for round in 0.. {
            let processes = self.processes();
            if processes.is_empty() || round == 50 {
                break;
            }
            for process in &processes {
                process.kill();
            }
            #[expect(clippy::disallowed_methods, reason = "the interval of a poll with a bound")]
            std::thread::sleep(Duration::from_millis(20));
        }
        if std::thread::panicking() {
            let log = self.state_dir().join("daemon.log");
            if let Ok(text) = fs::read_to_string(&log) {
                let tail: Vec<&str> = text.lines().rev().take(40).collect();
                eprintln!("--- last lines of daemon.log");
                tail.iter().rev().for_each(|line| eprintln!("{line}"));
            }
        }
    }
}

fn default_images() -> PathBuf {
    let home = std::env::var_os("HOME").map(PathBuf::from).expect("HOME is set");
    std::env::var_os("XDG_CACHE_HOME")
        .map_or_else(|| home.join(".cache"), PathBuf::from)
        .join("offshoot/images")
}

fn sockets_below(dir: &Path) -> Vec<PathBuf> {
    use std::os::unix::fs::FileTypeExt;
    let mut found = Vec::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().filter_map(Result::ok) {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => pending.push(entry.path()),
                Ok(kind) if kind.is_socket() => found.push(entry.path()),
                _ => {}
            }
        }
    }
    found
}

/// Cgroups of this test's VMs, in any hierarchy. They are named by VM, and the daemon's log names every VM there
/// ever was.
fn cgroups_of(state_dir: &Path) -> Vec<PathBuf> {
    let log = fs::read_to_string(state_dir.join("daemon.log")).unwrap_or_default();
    let ids: BTreeSet<String> = log
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("vm=")?.parse::<VmId>().ok())
        .map(|id| id.simple())
        .collect();
    let mut found = Vec::new();
    let mut pending: Vec<(PathBuf, u8)> = vec![(PathBuf::from("/sys/fs/cgroup"), 0)];
    while let Some((dir, depth)) = pending.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().filter_map(Result::ok) {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let name = entry.file_name().to_string_lossy().into_owned();
            let owned = name.strip_prefix("offshoot-").and_then(|rest| rest.split('-').next());
            if owned.is_some_and(|id| ids.contains(id)) {
                found.push(entry.path());
            }
            if depth < 5 {
                pending.push((entry.path(), depth + 1));
            }
        }
    }
    found
}
