//! Programs of the image that are to run at each thaw, as root, before any user process does.

use crate::{
    exec::{Command, Launch, Trees},
    fault::{Context, fault},
    reaper::Reaper,
    users::User,
};
use offshoot_guest_proto::message::{
    ExecCommand, ExecStart, GuestError, GuestErrorKind, HookRun, MAX_HOOKS, ResourceLimits,
};
use rustix::{
    fd::AsFd,
    fs::{Mode, OFlags},
};
use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::{fs::PermissionsExt as _, process::ExitStatusExt as _},
    path::PathBuf,
    process::ExitStatus,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// For one hook; then it is killed.
const PATIENCE: Duration = Duration::from_secs(10);
/// For a killed one to be reaped.
const DEATH: Duration = Duration::from_secs(5);
/// As shells say it.
const CANNOT_RUN: i32 = 126;
const BY_SIGNAL: i32 = 128;

#[derive(Debug)]
pub struct Hooks {
    reaper: Arc<Reaper>,
    trees: Arc<dyn Trees>,
    directory: PathBuf,
    patience: Duration,
    runs: AtomicU64,
}

impl Hooks {
    pub fn new(reaper: Arc<Reaper>, trees: Arc<dyn Trees>, directory: PathBuf) -> Self {
        Self { reaper, trees, directory, patience: PATIENCE, runs: AtomicU64::new(0) }
    }

    /// Runs each executable file, by name, one after the other. That one fails is reported, and does not keep the
    /// others from running.
    pub async fn run(&self) -> Result<Vec<HookRun>, GuestError> {
        let mut runs = Vec::new();
        for (name, path) in self.find()? {
            let status = self.run_one(&path).await?;
            runs.push(HookRun { name, status });
        }
        Ok(runs)
    }

    fn find(&self) -> Result<Vec<(String, String)>, GuestError> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).context("list", self.directory.display()),
        };
        let mut found = Vec::new();
        for entry in entries {
            let path = entry.context("list", self.directory.display())?.path();
            let executable = fs::metadata(&path)
                .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0);
            let name = path.file_name().and_then(|name| name.to_str());
            if let (true, Some(name), Some(text)) = (executable, name, path.to_str())
                && !name.chars().any(char::is_control)
            {
                found.push((name.to_owned(), text.to_owned()));
            }
        }
        if found.len() > MAX_HOOKS {
            let message =
                format!("{}: {} hooks, more than {MAX_HOOKS}", self.directory.display(), found.len());
            return Err(fault(GuestErrorKind::Exhausted, message));
        }
        found.sort();
        Ok(found)
    }

    async fn run_one(&self, path: &str) -> Result<i32, GuestError> {
        let identity = crate::sys::FileIdentity {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            groups: vec![],
        };
        let user = User { name: "root".into(), home: "/root".into(), shell: "/bin/sh".into(), identity };
        let start = ExecStart {
            exec: [0; 16],
            command: ExecCommand::Argv(vec![path.to_owned()]),
            env: BTreeMap::new(),
            cwd: Some("/".into()),
            user: user.name.clone(),
            pty: None,
            stdin: false,
            timeout_ms: None,
            max_output: None,
            limits: ResourceLimits::default(),
        };
        let command = Command::resolve(&start, &user)?;
        let number = self.runs.fetch_add(1, Ordering::Relaxed);
        self.trees.collect();
        let tree = self.trees.create(&number.to_string(), None).context("make cgroup of hook", path)?;
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .context("open", "/dev/null")?;
        // What it says goes to the console, with the agent's own words.
        let console = rustix::io::fcntl_dupfd_cloexec(io::stderr(), 3).context("open", "the console")?;
        let launch = Launch {
            command: &command,
            identity: &user.identity,
            stdin: null.as_fd(),
            stdout: console.as_fd(),
            stderr: console.as_fd(),
            extra: &[],
            terminal: false,
            birth: tree.birth(),
        };
        let launched = self.reaper.expecting(|| match launch.start() {
            Ok(pid) => Ok((pid, ())),
            Err(error) => {
                crate::console::warn(format_args!("hook {path}: {error}"));
                Err(io::ErrorKind::Other.into())
            }
        });
        let Ok((mut exit, pid, ())) = launched else { return Ok(CANNOT_RUN) };
        let exit = match tokio::time::timeout(self.patience, &mut exit).await {
            Ok(exit) => exit,
            Err(_late) => {
                tree.kill(pid).context("kill hook", path)?;
                let gone = tokio::time::timeout(DEATH, exit).await;
                gone.map_err(|_| fault(GuestErrorKind::Other, format!("hook {path}: cannot be killed")))?
            }
        };
        // The reaper lives as long as the runtime.
        let exit = exit.map_err(|_| fault(GuestErrorKind::Other, format!("hook {path}: lost")))?;
        let status = ExitStatus::from_raw(exit.reaped.status);
        Ok(status.code().unwrap_or_else(|| BY_SIGNAL + status.signal().unwrap_or(0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{exec::ProcessGroups, reaper::CHILDREN};

    fn hooks(directory: &tempfile::TempDir, patience: Duration) -> Hooks {
        let reaper = Reaper::start().unwrap();
        Hooks { patience, ..Hooks::new(reaper, Arc::new(ProcessGroups), directory.path().into()) }
    }

    fn write(directory: &tempfile::TempDir, name: &str, text: &str, mode: u32) {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[tokio::test]
    async fn hooks_run_by_name_and_each_tells_its_status() {
        let _one = CHILDREN.lock().await;
        let directory = tempfile::tempdir().unwrap();
        write(&directory, "20-fails", "#!/bin/sh\nexit 3\n", 0o755);
        write(&directory, "10-works", "#!/bin/sh\nexit 0\n", 0o755);
        write(&directory, "30-killed", "#!/bin/sh\nkill -9 $$\n", 0o755);
        write(&directory, "40-broken", "#!/nonexistent\n", 0o755);
        write(&directory, "README", "not a program", 0o644);
        let runs = hooks(&directory, PATIENCE).run().await.unwrap();
        let runs: Vec<_> = runs.iter().map(|run| (run.name.as_str(), run.status)).collect();
        assert_eq!(runs, [("10-works", 0), ("20-fails", 3), ("30-killed", 137), ("40-broken", 126)]);
    }

    #[tokio::test]
    async fn a_hook_that_takes_too_long_is_killed() {
        let _one = CHILDREN.lock().await;
        let directory = tempfile::tempdir().unwrap();
        write(&directory, "hangs", "#!/bin/sh\nsleep 60\n", 0o755);
        let runs = hooks(&directory, Duration::from_millis(50)).run().await.unwrap();
        assert_eq!(runs, [HookRun { name: "hangs".into(), status: 137 }]);
    }

    #[tokio::test]
    async fn no_directory_means_no_hooks_and_nothing_is_spawned() {
        let gone = tempfile::tempdir().unwrap();
        let hooks = hooks(&gone, PATIENCE);
        drop(gone);
        assert_eq!(hooks.run().await.unwrap(), []);
    }
}
