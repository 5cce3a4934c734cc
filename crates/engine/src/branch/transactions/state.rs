//! The states a transaction or a race goes by: kept at its beginning, gone back to at its end.
//!
//! Both are changes of the VM's driver like any other, in the order of its queue. They are part of what owns the VM, so
//! they are admitted while that begins or ends.

use crate::{
    ask::{SnapshotAsk, Target},
    branch::RollbackReport,
    core::{Authority, Core},
    manager::VmHandle,
};
use offshoot_types::{Failure, SnapshotId, SnapshotKind, SnapshotOrigin, TransactionId};
use std::sync::Arc;

/// What a state is kept for.
#[derive(Debug, Clone, Copy)]
pub(in crate::branch) struct Keeping {
    origin: SnapshotOrigin,
    note: &'static str,
    /// Whether a later daemon must be able to go back to it.
    durable: bool,
}

impl Keeping {
    /// A daemon that dies in the middle of a transaction leaves it to the next one to roll back.
    pub const BEGINNING: Self = Self::auto("the beginning of a transaction", true);
    pub const BEFORE_EXEC: Self = Self::auto("before an exec", false);
    pub const AFTER_FAILURE: Self = Self::auto("after an exec that failed", false);
    /// A race ends with its daemon, and then nobody goes back to it.
    pub const RACE: Self =
        Self { origin: SnapshotOrigin::Fork, note: "what the racers start from", durable: false };
    pub const WINNER: Self = Self::auto("the winner of a race", false);

    const fn auto(note: &'static str, durable: bool) -> Self {
        Self { origin: SnapshotOrigin::Auto, note, durable }
    }
}

/// Keeps a VM's present state. When this returns it can be gone back to, by a later daemon too if that is asked for.
pub(in crate::branch) async fn keep(
    core: &Arc<Core>,
    handle: &VmHandle,
    authority: Authority,
    within: Option<TransactionId>,
    keeping: Keeping,
) -> Result<SnapshotId, Failure> {
    let Keeping { origin, note, durable } = keeping;
    // Written by us and not by its operation, which then ends as soon as the VM runs on.
    let ask = SnapshotAsk::new(None, SnapshotKind::Full, origin, Some(note.into()), true);
    let (_, taken) = core.take_snapshot(handle, authority, None, within, ask).await?;
    if durable {
        core.persist(taken.snapshot).await?;
    } else {
        core.persist_later(taken.snapshot);
    }
    core.snapshots.count_unasked();
    Ok(taken.snapshot)
}

/// The VM continues from `to`; what it leaves is an undo snapshot. If that fails it runs on as it was. One whose process
/// was gone is started.
pub(in crate::branch) async fn go_back(
    core: &Arc<Core>,
    handle: &VmHandle,
    authority: Authority,
    within: TransactionId,
    to: SnapshotId,
) -> Result<RollbackReport, Failure> {
    core.roll_back(handle, authority, None, Some(within), Target::Snapshot(to)).await
}
