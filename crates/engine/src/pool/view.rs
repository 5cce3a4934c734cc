//! The pool as callers see it.

use super::{Key, Pool, PoolSize, State, What, shelf::Template};
use crate::sync::lock;
use offshoot_types::{CpuCount, DiskMib, ImageDigest, IsolationClass, MemMib, ProviderKind, SnapshotId};
use tokio::time::Instant;

/// All of the warm pool as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolView {
    pub size: PoolSize,
    /// What was wanted last comes first; none before the first start that could have used one.
    pub shelves: Vec<PoolShelf>,
}

/// What is kept for VMs of one image in one size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolShelf {
    pub image: ImageDigest,
    pub memory: MemMib,
    pub cpus: CpuCount,
    pub disk: DiskMib,
    pub provider: ProviderKind,
    pub isolation: IsolationClass,
    pub template: PoolTemplate,
    /// Instances that can be claimed.
    pub ready: u32,
    /// How many there are to be.
    pub target: u32,
    /// Whether one is being made.
    pub making: bool,
    /// Starts that got an instance, and that found none, since the daemon started.
    pub claimed: u64,
    pub missed: u64,
    /// What went wrong last, until something went well.
    pub trouble: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolTemplate {
    Absent,
    Building,
    Ready(SnapshotId),
}

impl Pool {
    pub fn view(&self) -> PoolView {
        let state = lock(&self.state);
        let now = Instant::now();
        let shelves = state.shelves.iter().map(|shelf| {
            let Key { image, memory, cpus, disk, provider, isolation } = shelf.key.clone();
            let building = state.is_at(&shelf.key, What::Building);
            let template = match &shelf.template {
                Template::Ready { id, .. } => PoolTemplate::Ready(*id),
                Template::Absent if building => PoolTemplate::Building,
                Template::Absent => PoolTemplate::Absent,
            };
            PoolShelf {
                image,
                memory,
                cpus,
                disk,
                provider,
                isolation,
                template,
                ready: u32::try_from(shelf.ready()).unwrap_or(u32::MAX),
                target: shelf.demand.target(self.options.size, self.options.pace(), now).0,
                making: state.is_at(&shelf.key, What::Making),
                claimed: shelf.claimed,
                missed: shelf.missed,
                trouble: shelf.trouble.why().map(Into::into),
            }
        });
        PoolView { size: self.options.size, shelves: shelves.collect() }
    }
}

impl State {
    fn is_at(&self, key: &Key, what: What) -> bool {
        self.working.as_ref().is_some_and(|working| working.key.as_ref() == Some(key) && working.what == what)
    }
}
