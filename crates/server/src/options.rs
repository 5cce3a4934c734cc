//! What a daemon is made from.

use crate::{
    LogFormat, Providers, ReadyPipe,
    e2b::Announce,
    listener::{Identify, Listen},
};
use offshoot_api::{socket::RuntimeBase, v1::DaemonMode};
use offshoot_engine::{Checkpoints, Deadlines, HistoryOptions, Limits, PoolOptions, PoolSize, Rebasing};
use offshoot_image::AgentBinary;
use offshoot_types::{Bytes, ProviderKind};
use std::{path::PathBuf, time::Duration};

/// How long an autostarted daemon stays with nothing to do.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// VMs one daemon defines at most, unless told otherwise.
const MAX_VMS: u64 = 10_000;

/// Everything [`serve`](crate::serve) needs.
#[derive(Debug)]
pub struct ServeOptions {
    /// Made (0700) if it is not there.
    pub state_dir: PathBuf,
    /// Where the sockets of state directories live.
    pub runtime: RuntimeBase,
    pub images_dir: PathBuf,
    /// The agent every VM boots with.
    pub agent: AgentBinary,
    pub providers: Providers,
    /// What runs a VM whose maker names none; without it the strongest does.
    pub provider: Option<ProviderKind>,
    pub mode: DaemonMode,
    /// TCP ports to listen on besides the Unix socket.
    pub listen: Vec<Listen>,
    /// Who is told with what clients of E2B reach the first of them; with it a key for them is made.
    pub announce: Option<Announce>,
    /// Of an autostarted daemon; an explicit one stays.
    pub idle_timeout: Duration,
    /// `None` leaves the process's subscriber alone.
    pub log: Option<LogFormat>,
    pub limits: Limits,
    pub deadlines: Deadlines,
    /// Off unless something else is said.
    pub pool: PoolOptions,
    /// When a VM that is idle goes on over a fresh base.
    pub rebasing: Rebasing,
    /// What is kept of what programs say.
    pub history: HistoryOptions,
    /// How long requests under way may take to end once the daemon is asked to.
    pub drain: Duration,
    /// Who is told that the daemon is ready, or why it is not.
    pub ready: ReadyPipe,
    /// Where a test may stop the engine between two lines; does nothing by default.
    pub checkpoints: Checkpoints,
    pub(crate) identify: Identify,
}

impl ServeOptions {
    /// Defaults for everything that has one.
    pub fn new(
        state_dir: PathBuf,
        images_dir: PathBuf,
        agent: AgentBinary,
        providers: Providers,
        mode: DaemonMode,
    ) -> Self {
        Self {
            state_dir,
            runtime: RuntimeBase::from_environment(),
            images_dir,
            agent,
            providers,
            provider: None,
            mode,
            listen: Vec::new(),
            announce: None,
            idle_timeout: IDLE_TIMEOUT,
            log: None,
            limits: host_limits(),
            deadlines: Deadlines::default(),
            pool: PoolOptions::default(),
            rebasing: Rebasing::default(),
            history: HistoryOptions::default(),
            drain: Duration::from_secs(10),
            ready: ReadyPipe::default(),
            checkpoints: Checkpoints::default(),
            identify: Identify::Kernel,
        }
    }

    /// Keeps so many VMs of each kind ready, none if 0; unless it is said, as many as were wanted lately.
    pub fn keep_pool(&mut self, size: Option<u32>) {
        self.pool = PoolOptions::of(match size {
            None => host_pool_size(),
            Some(0) => PoolSize::Off,
            Some(count) => PoolSize::Fixed(count),
        });
    }

    /// Keeps at most so much of what programs say in files; `None`: nothing of it anywhere, only how much it was.
    pub fn keep_output(&mut self, most: Option<Bytes>) {
        self.history.output = most;
    }

    /// Moves a VM to a fresh base once nothing was asked of it for so long; `None`: never.
    pub fn rebase_after(&mut self, idle: Option<Duration>) {
        self.rebasing.idle = idle;
    }
}

/// All of the host's memory may be promised to running VMs, and not a byte more: a guest that uses what it was
/// promised must not bring the host down. Disks are sparse and grow as guests write; a full disk is reported
/// when it happens.
pub fn host_limits() -> Limits {
    let memory = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| memory_total(&text));
    Limits { vms: MAX_VMS, memory: memory.unwrap_or(Bytes(u64::MAX)), ..Limits::UNBOUNDED }
}

/// Refilling a pool takes a CPU for a quarter of a second each time: more instances than twice the CPUs are never
/// ready when they are wanted.
fn host_pool_size() -> PoolSize {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    PoolSize::Adaptive { most: u32::try_from(cpus * 2).unwrap_or(u32::MAX).clamp(2, 16) }
}

fn memory_total(meminfo: &str) -> Option<Bytes> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(Bytes(kibibytes * 1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_memory_is_read_from_the_kernels_table() {
        let text = "MemTotal:       24589312 kB\nMemFree:        123 kB\n";
        assert_eq!(memory_total(text), Some(Bytes(24_589_312 * 1024)));
        assert_eq!(memory_total("MemFree: 1 kB\n"), None);
        assert!(host_limits().memory < Bytes(u64::MAX), "this host has a table");
    }
}
