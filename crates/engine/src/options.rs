//! What an engine is made from. Everything ambient (clock, paths, providers) is handed in here.

use crate::{HistoryOptions, Images, Merging, PoolOptions, Rebasing, saga::Checkpoints};
use offshoot_policy::Policy;
use offshoot_provider::Provider;
use offshoot_store::{Clock, Limits};
use offshoot_types::{NodeName, ProviderKind};
use std::{path::PathBuf, sync::Arc, time::Duration};

/// Everything [`Engine::start`](crate::Engine::start) needs.
#[derive(Debug, Clone)]
pub struct Options {
    /// Short directory for sockets, private to this state directory; made (0700) if it is not there.
    pub runtime_dir: PathBuf,
    /// Usually a [`StoredImages`](crate::StoredImages).
    pub images: Arc<dyn Images>,
    /// In order of preference among equal isolation classes. A provider that is not listed cannot be named.
    pub providers: Vec<Arc<dyn Provider>>,
    /// What runs a VM whose maker names none; without it the strongest does.
    pub provider: Option<ProviderKind>,
    /// Asked again when a VM has moved since a command was judged.
    pub policy: Policy,
    /// What all VMs together may take; checked in the transaction that promises it.
    pub limits: Limits,
    pub deadlines: Deadlines,
    /// The warm pool; off unless something else is said.
    pub pool: PoolOptions,
    /// When a VM that is idle goes on over a fresh base.
    pub rebasing: Rebasing,
    /// When layers of disks that nobody names any more become one.
    pub merging: Merging,
    /// What is kept of what programs say, and for how long it is told what was run.
    pub history: HistoryOptions,
    /// The wall clock of every row and event.
    pub clock: Arc<dyn Clock>,
    pub node: NodeName,
    /// Where a test may stop the engine between two lines; does nothing by default.
    pub checkpoints: Checkpoints,
}

/// How long each change may take before it is given up and undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// Reserving, directories and the data disk.
    pub create: Duration,
    /// From the start of the VMM to the guest agent's handshake.
    pub boot: Duration,
    /// Checks and bookkeeping around a boot.
    pub start_overhead: Duration,
    /// Beyond the caller's grace: VMM quit, TERM, KILL and their observation.
    pub stop: Duration,
    pub destroy: Duration,
    pub pause: Duration,
    /// Taking a VM's state, without writing it.
    pub snapshot: Duration,
    /// Writing the memory of a VM that is suspended.
    pub write: Duration,
    /// One attempt to have a guest's processes go on.
    pub freeze: Duration,
    /// From a restored guest's handshake to its confirmation that it was renewed.
    pub thaw: Duration,
    /// One attempt to reach the guest again after its channel was lost.
    pub reconnect: Duration,
    /// How long a silent guest may overrun an exec's timeout before the host gives it up.
    pub exec_backstop: Duration,
    /// How long [`Engine::shutdown`](crate::Engine::shutdown) waits for running operations.
    pub drain: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            create: Duration::from_secs(60),
            boot: Duration::from_secs(60),
            start_overhead: Duration::from_secs(30),
            stop: Duration::from_secs(15),
            destroy: Duration::from_secs(30),
            pause: Duration::from_secs(10),
            snapshot: Duration::from_secs(30),
            write: Duration::from_secs(600),
            freeze: Duration::from_secs(2),
            thaw: Duration::from_secs(15),
            reconnect: Duration::from_secs(10),
            exec_backstop: Duration::from_secs(1),
            drain: Duration::from_secs(20),
        }
    }
}
