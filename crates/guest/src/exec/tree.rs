//! All processes of one exec, as something that can be killed as a whole: a cgroup of its own.
//!
//! ```text
//! /sys/fs/cgroup/offshoot/user/<exec>      made before the process, which is born in it
//!                                          killed as a whole, whatever it forked or setsid-ed
//!                                          removed when empty; with surviving daemons, once those are gone
//! ```

use crate::{cgroup, kernel::Kernel, sys::Birth};
use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{AtFlags, Mode, OFlags, mkdirat, openat, unlinkat},
    io::Errno,
};
use std::{fmt, io, path::PathBuf, sync::Mutex, sync::PoisonError};

/// Makes trees. In the VM: cgroups; in unit tests on a host: process groups.
pub trait Trees: fmt::Debug + Send + Sync {
    /// A new, empty tree; `name` is unique among those alive. `processes` caps processes and threads in it.
    fn create(&self, name: &str, processes: Option<u64>) -> io::Result<Box<dyn Tree>>;

    /// Removes trees that could not be removed when their exec ended. Called when orphans were reaped.
    fn collect(&self);
}

pub trait Tree: fmt::Debug + Send + Sync {
    /// How a process comes to be in it.
    fn birth(&self) -> Birth<'_>;

    /// SIGKILL to every process in the tree. `leader` is the process that was started.
    fn kill(&self, leader: i32) -> io::Result<()>;

    /// Whether any process is left.
    fn is_populated(&self, leader: i32) -> io::Result<bool>;
}

/// Trees as cgroups below one directory.
#[derive(Debug)]
pub struct Cgroups {
    shared: std::sync::Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    kernel: Kernel,
    path: PathBuf,
    directory: OwnedFd,
    /// Names of cgroups whose exec is over but which are not empty.
    lingering: Mutex<Vec<String>>,
}

impl Cgroups {
    /// Where user processes live. The agent itself stays in the root cgroup, out of reach of every limit.
    pub const USER: &str = "/sys/fs/cgroup/offshoot/user";
    /// Live interpreters, apart from the rest: after a restore they are reseeded before anything else runs.
    pub const CONTEXTS: &str = "/sys/fs/cgroup/offshoot/contexts";
    /// What thaw hooks start, and what they leave behind.
    pub const HOOKS: &str = "/sys/fs/cgroup/offshoot/hooks";
    /// All of them together.
    pub const TOP: &str = "/sys/fs/cgroup/offshoot";
    pub const ALL: [&str; 3] = [Self::CONTEXTS, Self::HOOKS, Self::USER];

    /// Makes one of these cgroups, with process counting on below it.
    pub fn set_up(kernel: Kernel, path: &str) -> io::Result<Self> {
        std::fs::create_dir_all(path)?;
        if kernel == Kernel::Linux {
            for parent in ["/sys/fs/cgroup", "/sys/fs/cgroup/offshoot", path] {
                std::fs::write(format!("{parent}/cgroup.subtree_control"), "+pids")?;
            }
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = openat(rustix::fs::CWD, path, flags, Mode::empty())?;
        let shared = Shared { kernel, path: path.into(), directory, lingering: Mutex::default() };
        Ok(Self { shared: std::sync::Arc::new(shared) })
    }
}

impl Trees for Cgroups {
    fn create(&self, name: &str, processes: Option<u64>) -> io::Result<Box<dyn Tree>> {
        mkdirat(&self.shared.directory, name, Mode::from_raw_mode(0o755))?;
        let cgroup = Cgroup::open(name, &self.shared)?;
        if let Some(limit) = processes {
            write_file(&cgroup.directory, "pids.max", limit.to_string().as_bytes())?;
        }
        Ok(Box::new(cgroup))
    }

    fn collect(&self) {
        let mut lingering = self.shared.lingering.lock().unwrap_or_else(PoisonError::into_inner);
        lingering.retain(|name| is_in_use(self.shared.remove(name)));
    }
}

impl Shared {
    fn remove(&self, name: &str) -> Result<(), Errno> {
        unlinkat(&self.directory, name, AtFlags::REMOVEDIR)
    }
}

/// gVisor's kernel says of a cgroup with processes that it is not empty.
fn is_in_use(removed: Result<(), Errno>) -> bool {
    matches!(removed, Err(Errno::BUSY | Errno::NOTEMPTY))
}

#[derive(Debug)]
struct Cgroup {
    directory: OwnedFd,
    /// By which a process moves here, on a kernel where none is born here.
    procs: Option<OwnedFd>,
    name: String,
    shared: std::sync::Arc<Shared>,
}

impl Cgroup {
    fn path(&self) -> PathBuf {
        self.shared.path.join(&self.name)
    }

    fn open(name: &str, shared: &std::sync::Arc<Shared>) -> io::Result<Self> {
        // Not O_PATH: `CLONE_INTO_CGROUP` wants an open directory.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = openat(&shared.directory, name, flags, Mode::empty()).and_then(|directory| {
            let procs =
                || openat(&directory, "cgroup.procs", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
            let procs = (shared.kernel == Kernel::Gvisor).then(procs).transpose()?;
            Ok((directory, procs))
        });
        match opened {
            Ok((directory, procs)) => {
                Ok(Self { directory, procs, name: name.to_owned(), shared: std::sync::Arc::clone(shared) })
            }
            Err(errno) => {
                // Nothing is in it yet, so this cannot be refused; the first failure is the one to tell.
                let _later = shared.remove(name);
                Err(errno.into())
            }
        }
    }
}

impl Tree for Cgroup {
    fn birth(&self) -> Birth<'_> {
        match &self.procs {
            None => Birth::In(self.directory.as_fd()),
            Some(procs) => Birth::Moves(procs.as_fd()),
        }
    }

    fn kill(&self, _leader: i32) -> io::Result<()> {
        cgroup::kill(self.shared.kernel, &self.path())
    }

    fn is_populated(&self, _leader: i32) -> io::Result<bool> {
        cgroup::is_populated(self.shared.kernel, &self.path())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if is_in_use(self.shared.remove(&self.name)) {
            let mut lingering = self.shared.lingering.lock().unwrap_or_else(PoisonError::into_inner);
            lingering.push(std::mem::take(&mut self.name));
        }
    }
}

fn write_file(directory: &OwnedFd, name: &str, data: &[u8]) -> io::Result<()> {
    let file = openat(directory, name, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, data)?;
    Ok(())
}

/// Trees as process groups: enough for tests on a host whose cgroups are not ours.
#[cfg(test)]
#[derive(Debug)]
pub struct ProcessGroups;

#[cfg(test)]
impl Trees for ProcessGroups {
    fn create(&self, _name: &str, _processes: Option<u64>) -> io::Result<Box<dyn Tree>> {
        Ok(Box::new(Self))
    }
    fn collect(&self) {}
}

#[cfg(test)]
impl Tree for ProcessGroups {
    fn birth(&self) -> Birth<'_> {
        Birth::Beside
    }
    fn kill(&self, leader: i32) -> io::Result<()> {
        let group = rustix::process::Pid::from_raw(leader).unwrap();
        Ok(rustix::process::kill_process_group(group, rustix::process::Signal::KILL)?)
    }
    fn is_populated(&self, leader: i32) -> io::Result<bool> {
        let group = rustix::process::Pid::from_raw(leader).unwrap();
        Ok(rustix::process::test_kill_process_group(group) != Err(Errno::SRCH))
    }
}
