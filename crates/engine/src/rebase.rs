//! When a VM that is idle goes on over a fresh base.
//!
//! Pages count as a process's own from its start: a VM that booted has all it ever touched, and each snapshot of it copies
//! all of that. Over a base it has only what it wrote since.
//!
//! ```text
//! idle for `idle` --own memory above the bound?--> base: a snapshot, written while the VM runs on
//!                                                    | durable, and nothing under way for `QUIET`
//!                                                    v
//!                                          the VM goes on over it (`saga::rebase`)
//!                                                    | the old process has ended
//!                                                    v
//!                                          the base before, if nobody else needs it, becomes part of this one
//! ```
//! Nobody waits for any of it: what is asked meanwhile is done first, and a base that came to nothing is removed.

use crate::{
    ask::SnapshotAsk,
    capture::snapshot_id,
    core::{Authority, Core},
    driver::Driver,
    saga::Input,
    tasks::TaskKind,
    trace::Scope,
};
use offshoot_store::{SnapshotUser, StoreError};
use offshoot_types::{
    Actor, Bytes, ErrorCode, Failure, Lifetime, OperationKind, OperationOutcome, Owner, SnapshotId,
    SnapshotKind, SnapshotOrigin, SnapshotState, VmId, VmStateName,
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// Once a base is durable: nothing may have begun for so long.
const QUIET: Duration = Duration::from_millis(500);
/// A base that could not be used by then holds too much that is old.
const STALE: Duration = Duration::from_secs(120);
/// After an attempt that failed for another reason than a request that came first; after such a one it is the span of
/// idleness. Twice as long after each further attempt in vain, up to [`DOUBLINGS`] times: each writes a base, and stops
/// the VM for a moment.
const AFTER_FAILURE: Duration = Duration::from_secs(5 * 60);
const DOUBLINGS: u32 = 5;
/// Between two looks at a VM of which nothing is asked: its programs may write all the same.
const LOOK: Duration = Duration::from_secs(10 * 60);

/// When a VM goes on over a fresh base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rebasing {
    /// When nothing was asked of it for so long; `None`: never.
    pub idle: Option<Duration>,
    /// And more than this of its memory is its process's own. If others map the same base as it does, then also more than
    /// that base takes up: it is shared no longer.
    pub own_memory: Bytes,
}

impl Rebasing {
    pub const OFF: Self = Self { idle: None, own_memory: Bytes(0) };
}

impl Default for Rebasing {
    fn default() -> Self {
        // Longer than somebody who works with it thinks: the first code after it is translated anew under emulation. Of
        // so much a snapshot stands still for 40 ms.
        Self { idle: Some(Duration::from_secs(30)), own_memory: Bytes(32 << 20) }
    }
}

/// How far a VM is on its way to a fresh base.
#[derive(Debug, Default)]
pub(crate) struct Moving {
    /// Taken, and perhaps written by now.
    base: Option<(SnapshotId, Instant)>,
    /// When its memory was looked at last.
    looked: Option<Instant>,
    not_before: Option<Instant>,
    /// Attempts that came to nothing since the last that did not.
    in_vain: u32,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    Look,
    Move(SnapshotId),
    /// It did not come to that.
    Forget(SnapshotId),
}

impl Driver {
    /// Resolves when something is to be done for a fresh base.
    pub fn to_rebase(&self) -> impl Future<Output = Due> + use<> {
        let (machine, options) = (&self.machine, self.core.options.rebasing);
        let row = &machine.row;
        let lives = row.state.name() == VmStateName::Running && row.spec.lifetime == Lifetime::Kept;
        let own = machine.own_instance().is_some() && !machine.has_strangers();
        let idle = options.idle.filter(|_| lives && own && row.owner != Owner::daemon());
        let Moving { base, looked, not_before, .. } = self.rebasing;
        let volatile = base.and_then(|(id, _)| self.core.snapshots.volatile(id));
        let work = machine.shared.work.clone();
        async move {
            match (base, idle) {
                (Some((id, taken)), Some(_)) => {
                    if let Some(volatile) = volatile {
                        // If it could not be written the move finds no base.
                        drop(volatile.written().await);
                    }
                    match tokio::time::timeout_at(taken + STALE, work.idle_for(QUIET)).await {
                        Ok(()) => Due::Move(id),
                        Err(_elapsed) => Due::Forget(id),
                    }
                }
                (Some((id, _)), None) => Due::Forget(id),
                (None, Some(span)) => {
                    if let Some(not_before) = not_before {
                        tokio::time::sleep_until(not_before).await;
                    }
                    if let Some(looked) = looked {
                        tokio::select! {
                            () = work.used_after(looked) => {}
                            () = tokio::time::sleep_until(looked + LOOK) => {}
                        }
                    }
                    work.idle_for(span).await;
                    Due::Look
                }
                (None, None) => std::future::pending().await,
            }
        }
    }

    /// Does it. Whatever fails leaves the VM as it was, and is tried again after a while.
    pub async fn rebase(&mut self, due: Due) {
        let done = match due {
            Due::Look => self.look_at_memory().await,
            Due::Move(base) => {
                self.rebasing.base = None;
                self.go_on_over(base).await
            }
            Due::Forget(base) => {
                self.rebasing.base = None;
                self.core.forget_base(base);
                Ok(())
            }
        };
        // Its own work is no use of the VM.
        self.rebasing.looked = Some(Instant::now());
        let again = match done {
            Ok(()) => {
                if matches!(due, Due::Move(_)) {
                    self.rebasing.in_vain = 0;
                }
                return;
            }
            // Somebody came first: that is what they may.
            Err(failure) if failure.code == ErrorCode::Interrupted => {
                self.core.options.rebasing.idle.unwrap_or_default()
            }
            Err(failure) => {
                self.unsettled(&failure);
                AFTER_FAILURE
            }
        };
        let doublings = self.rebasing.in_vain.min(DOUBLINGS);
        self.rebasing.in_vain = self.rebasing.in_vain.saturating_add(1);
        self.rebasing.not_before = Some(Instant::now() + again * 2_u32.pow(doublings));
    }

    async fn look_at_memory(&mut self) -> Result<(), Failure> {
        if !self.is_worth_it().await? {
            return Ok(());
        }
        let ask = Arc::new(SnapshotAsk::new(None, SnapshotKind::Full, SnapshotOrigin::Rebase, None, false));
        let (kind, reason) = (OperationKind::Snapshot, "as the base its memory is to be moved to");
        let taken = self.by_itself(kind, &Authority::Daemon, reason.into(), Input::Snapshot(ask)).await?;
        self.rebasing.base = Some((snapshot_id(taken), Instant::now()));
        Ok(())
    }

    /// Whether enough of its memory is its process's own, and the ledger has room for two of it.
    async fn is_worth_it(&self) -> Result<bool, Failure> {
        let machine = &self.machine;
        let (Some(own), Some(dialer)) = (machine.own_instance(), machine.shared.dialer()) else {
            return Ok(false);
        };
        let usage = dialer.usage().await.map_err(|error| machine.vmm_failure("measuring", &error))?;
        let Some(own_memory) = usage.own_memory else { return Ok(false) };
        let (vm, base) = (machine.id(), own.memory_base);
        let (shared, ledger) = self
            .core
            .store
            .read(move |view| {
                let Some(base) = base else { return Ok((Bytes(0), view.ledger()?)) };
                let others = |user: &SnapshotUser| matches!(user, SnapshotUser::MemoryOf { vm: other, .. } if *other != vm);
                let of = view.snapshot(base)?;
                let is_shared = of.as_ref().is_some_and(|of| of.origin == SnapshotOrigin::Template)
                    || view.snapshot_users(base)?.iter().any(others);
                let size = of.filter(|_| is_shared).map_or(Bytes(0), |of| of.size);
                Ok((size, view.ledger()?))
            })
            .await?;
        let bound = self.core.options.rebasing.own_memory.max(shared);
        let room = self.core.options.limits.memory.0.saturating_sub(ledger.memory.0);
        Ok(own_memory > bound && room >= machine.row.spec.memory.bytes().0)
    }

    async fn go_on_over(&mut self, base: SnapshotId) -> Result<(), Failure> {
        let reason = "it was idle, and each snapshot of it copied all it ever wrote";
        let moved =
            self.by_itself(OperationKind::Rebase, &Authority::Daemon, reason.into(), Input::Rebase(base));
        let moved = moved.await;
        if moved.is_err() {
            self.core.forget_base(base);
        }
        moved.map(drop)
    }
}

impl Core {
    /// Removes a base that no VM goes on over.
    fn forget_base(self: &Arc<Self>, base: SnapshotId) {
        self.let_bases_go(vec![base]);
    }

    /// Bases of a VM that only the one after them needs become part of that: else a VM that is moved again and again had
    /// as many files as moves.
    pub fn join_bases(self: &Arc<Self>, vm: VmId) {
        let core = self.clone();
        self.tasks.spawn(TaskKind::Persister, Scope::default(), async move {
            let read = core.store.read(move |view| {
                let bases = view.snapshots(Some(vm))?.into_iter();
                let mut joined = Vec::new();
                for base in bases.filter(|one| one.origin == SnapshotOrigin::Rebase) {
                    let users = view.snapshot_users(base.id)?;
                    let one_child =
                        matches!(users.as_slice(), [SnapshotUser::Child(_) | SnapshotUser::Base { .. }]);
                    if base.state == SnapshotState::Durable && one_child {
                        joined.push(base.id);
                    }
                }
                Ok::<_, StoreError>(joined)
            });
            match read.await {
                Ok(joined) => core.let_bases_go(joined),
                Err(error) => core.store_failed("look for bases that are to be joined", &error),
            }
        });
    }

    fn let_bases_go(self: &Arc<Self>, bases: Vec<SnapshotId>) {
        if bases.is_empty() {
            return;
        }
        let core = self.clone();
        self.tasks.spawn(TaskKind::Persister, Scope::default(), async move {
            for base in bases {
                core.let_base_go(base).await;
            }
            core.collect_layers().await;
        });
    }

    /// One that stays for now is removed by its age.
    async fn let_base_go(&self, base: SnapshotId) {
        let there = self.store.read(move |view| view.snapshot(base)).await;
        if !matches!(there, Ok(Some(_))) {
            return;
        }
        let (kind, reason) = (OperationKind::RemoveSnapshot, format!("base {base} is not needed by itself"));
        let new = self.new_operation(&Authority::Daemon, kind, None, &Owner::daemon(), reason);
        let ticket = match self.store.begin_operation(new).await {
            Ok(begun) => self.opened(begun.into_operation()),
            Err(error) => return self.store_failed("begin to remove a base", &error),
        };
        let outcome = match self.prune_snapshot(base, ticket.id(), &Actor::Daemon).await {
            Ok(_) => OperationOutcome::Done,
            Err(failure) => OperationOutcome::Failed { failure },
        };
        self.close(ticket, outcome).await;
    }
}
