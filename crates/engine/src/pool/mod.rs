//! Templates and the warm pool: starts that do not wait for a kernel.
//!
//! ```text
//! first start of a VM that could have used one
//!   --> template: a VM of the daemon's boots, its interpreters answer once, its caches are dropped, a snapshot is taken
//!   --> instances: restored from the template one after the other, renewed, warmed by one exec      (while nobody waits)
//!
//! start of a VM that never ran --claim--> an instance is renewed as that VM; ONE transaction makes it the VM's
//!                              |-- none ready: the template is restored as that VM
//!                              '-- none either, or anything fails on the way: it boots
//! ```
//! Templates are snapshots, instances VMs, both of [`Owner::daemon`] and of the lifetime of a request: the memory ledger
//! counts them, a crash leaves nothing the next start does not remove, and nobody's lists show them. An instance belongs
//! to the pool alone until it is claimed: no driver, no queue, no exec of anybody's. One that was claimed never returns.
//!
//! [`Owner::daemon`]: offshoot_types::Owner::daemon

mod claim;
mod key;
mod member;
mod room;
mod shelf;
mod size;
mod task;
mod template;
mod view;

pub(crate) use claim::{Warm, bring_home, claim};
pub(crate) use key::Key;
pub(crate) use task::run;

pub use size::PoolSize;
pub use view::{PoolShelf, PoolTemplate, PoolView};

use crate::{snapshots::Source, sync::lock};
use member::Member;
use offshoot_types::{SnapshotId, VmId, VmSpec};
use shelf::{Shelf, Template};
use size::Pace;
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// Kinds of VMs that have a template; the one that was wanted least recently makes room for another.
const MOST_SHELVES: usize = 8;

/// How the pool behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolOptions {
    pub size: PoolSize,
    /// An adaptive pool loses one instance each time nobody wanted one for so long.
    pub shrink: Duration,
    /// An adaptive pool is empty once nobody wanted an instance for so long.
    pub drain: Duration,
    /// Nothing is made before no start, fork or other change of anybody's was under way for so long.
    pub quiet: Duration,
    /// After a failure nothing is made for so long; doubled with each further one.
    pub retry: Duration,
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self {
            size: PoolSize::Off,
            shrink: Duration::from_secs(60),
            drain: Duration::from_secs(10 * 60),
            quiet: Duration::from_millis(250),
            retry: Duration::from_secs(5),
        }
    }
}

impl PoolOptions {
    pub fn of(size: PoolSize) -> Self {
        Self { size, ..Self::default() }
    }

    fn pace(&self) -> Pace {
        Pace { shrink: self.shrink, drain: self.drain }
    }
}

#[derive(Debug)]
pub(crate) struct Pool {
    options: PoolOptions,
    state: Mutex<State>,
    /// Something changed that the task should look at.
    wake: Notify,
    discards: mpsc::UnboundedSender<VmId>,
    discarded: Mutex<Option<mpsc::UnboundedReceiver<VmId>>>,
    /// Cancelled when the engine ends: what is under way is taken back.
    closing: CancellationToken,
    /// Whether the task has ended, and everything of the pool with it.
    over: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct State {
    /// The one that was wanted last comes first.
    shelves: Vec<Shelf>,
    /// Templates of earlier daemons that nobody needs.
    superfluous: Vec<SnapshotId>,
    working: Option<Working>,
    /// Somebody needed the memory: nothing is made before.
    hold: Option<Instant>,
    /// When a change of somebody's was last seen under way.
    busy: Option<Instant>,
}

/// What the task is at.
#[derive(Debug, Clone)]
struct Working {
    key: Option<Key>,
    what: What,
    cancel: CancellationToken,
    /// Cancelled once nothing of it is under way any more.
    ended: CancellationToken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Building,
    Making,
    /// Cannot be cancelled, only awaited.
    Ending,
}

/// What the task is to do next.
#[derive(Debug)]
enum Next {
    /// Nothing until something changes, or this instant.
    Wait(Option<Instant>),
    Build(Key, Box<VmSpec>),
    Make(Key, SnapshotId),
    /// These are too many.
    End(Vec<Member>),
    /// A template that is worth nothing, or makes room for another.
    Forget(SnapshotId),
}

/// What a start finds.
#[derive(Debug)]
struct Offer {
    member: Option<Member>,
    template: Option<(SnapshotId, Option<Arc<Source>>)>,
    /// Why there is no instance.
    why: String,
}

impl Pool {
    pub fn new(options: PoolOptions) -> Self {
        let (discards, discarded) = mpsc::unbounded_channel();
        Self {
            options,
            state: Mutex::default(),
            wake: Notify::new(),
            discards,
            discarded: Mutex::new(Some(discarded)),
            closing: CancellationToken::new(),
            over: watch::Sender::new(false),
        }
    }

    pub fn is_on(&self) -> bool {
        self.options.size != PoolSize::Off && !self.closing.is_cancelled()
    }

    /// A start that could use an instance: takes one if there is one, and has the next ones made.
    fn want(&self, key: &Key, spec: &VmSpec) -> Offer {
        let mut state = lock(&self.state);
        let why = state.why_new(key);
        let (options, now) = (&self.options, Instant::now());
        let shelf = state.shelf(key, spec);
        let member = shelf.take();
        shelf.demand.wanted(options.size, options.pace(), member.is_some(), now);
        match member {
            Some(_) => shelf.claimed += 1,
            None => shelf.missed += 1,
        }
        let why = why.unwrap_or_else(|| shelf.why_none());
        let template = shelf.usable_template();
        state.busy = Some(now);
        drop(state);
        self.wake.notify_one();
        Offer { member, template, why }
    }

    /// Another one, after the one before could not be claimed.
    fn another(&self, key: &Key) -> Option<Member> {
        lock(&self.state).find(key).and_then(Shelf::take)
    }

    /// A claim did not succeed, or a template could not be restored.
    fn failed(&self, key: &Key, why: &str) {
        let retry = self.options.retry;
        if let Some(shelf) = lock(&self.state).find(key) {
            shelf.trouble.add(why, retry, Instant::now());
        }
    }

    /// Kept for those who restore from it next.
    fn keep_source(&self, key: &Key, source: &Arc<Source>) {
        if let Some(shelf) = lock(&self.state).find(key)
            && let Template::Ready { id, source: kept, .. } = &mut shelf.template
            && *id == source.snapshot.id
        {
            *kept = Some(source.clone());
        }
    }
}

impl State {
    fn find(&mut self, key: &Key) -> Option<&mut Shelf> {
        self.shelves.iter_mut().find(|shelf| shelf.key == *key)
    }

    /// The shelf of this key, which is in front from now on.
    fn shelf(&mut self, key: &Key, spec: &VmSpec) -> &mut Shelf {
        let at = self.shelves.iter().position(|shelf| shelf.key == *key);
        let shelf = match at {
            Some(at) => self.shelves.remove(at),
            None => Shelf::new(key.clone(), spec.clone()),
        };
        self.shelves.insert(0, shelf);
        &mut self.shelves[0]
    }

    /// Why there is nothing for a key that nobody wanted before.
    fn why_new(&self, key: &Key) -> Option<String> {
        if self.shelves.iter().any(|shelf| shelf.key == *key) {
            return None;
        }
        let nearest = self.shelves.iter().map(|shelf| shelf.key.differences(key)).min_by_key(Vec::len);
        Some(match nearest {
            None => "it was the first start that could have used the pool".into(),
            Some(differs) => format!("{}, as those of the pool have it", differs.join(" and ")),
        })
    }

    /// What there is to do now. `busy`: whether a change of somebody's is under way.
    fn next(&mut self, options: &PoolOptions, busy: bool, now: Instant) -> Next {
        if busy {
            self.busy = Some(now);
        }
        if let Some(id) = self.superfluous.pop() {
            return Next::Forget(id);
        }
        let mut until = Soonest::default();
        let mut surplus = Vec::new();
        for shelf in &mut self.shelves {
            let (target, changes) = shelf.demand.target(options.size, options.pace(), now);
            until.add(changes);
            surplus.extend(shelf.surplus(target));
            if target == 0 {
                shelf.let_go();
            }
        }
        if !surplus.is_empty() {
            return Next::End(surplus);
        }
        if let Some(shelf) = self.shelves.iter_mut().find(|shelf| shelf.trouble.is_hopeless())
            && let Some(id) = shelf.forget_template()
        {
            return Next::Forget(id);
        }
        if self.shelves.len() > MOST_SHELVES
            && let Some(mut last) = self.shelves.pop()
        {
            let members = last.surplus(0);
            return match last.forget_template() {
                // Ended by being dropped.
                Some(id) => Next::Forget(id),
                None => Next::End(members),
            };
        }
        let quiet = match (busy, self.busy) {
            (true, _) => return Next::Wait(until.0),
            (false, Some(busy)) => busy + options.quiet,
            (false, None) => now,
        };
        let not_before = self.hold.map_or(quiet, |hold| hold.max(quiet));
        for shelf in &self.shelves {
            let (target, _) = shelf.demand.target(options.size, options.pace(), now);
            if shelf.ready() >= target as usize {
                continue;
            }
            let from = shelf.trouble.until().map_or(not_before, |until| until.max(not_before));
            if from > now {
                until.add(Some(from));
                continue;
            }
            return match &shelf.template {
                Template::Absent => Next::Build(shelf.key.clone(), Box::new(shelf.spec.clone())),
                Template::Ready { id, .. } => Next::Make(shelf.key.clone(), *id),
            };
        }
        Next::Wait(until.0)
    }
}

#[derive(Debug, Default)]
struct Soonest(Option<Instant>);

impl Soonest {
    fn add(&mut self, at: Option<Instant>) {
        self.0 = match (self.0, at) {
            (Some(known), Some(at)) => Some(known.min(at)),
            (known, at) => known.or(at),
        };
    }
}
