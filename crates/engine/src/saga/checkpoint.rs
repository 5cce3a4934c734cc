//! Where a test may stand between two lines of a saga: to crash there, to hang there, to fail or repeat what
//! was just done. In production nobody stands there.

use futures::future::BoxFuture;
use offshoot_types::{Failure, OperationKind};
use std::{fmt, sync::Arc};

/// A place in a saga.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Checkpoint {
    pub kind: OperationKind,
    pub step: &'static str,
    pub phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Not even the intention is written down.
    BeforeJournal,
    /// The step is journaled, nothing of it was done.
    BeforeAct,
    AfterAct,
    BeforeUndo,
    AfterUndo,
}

impl Phase {
    pub const ALL: [Self; 5] =
        [Self::BeforeJournal, Self::BeforeAct, Self::AfterAct, Self::BeforeUndo, Self::AfterUndo];
}

/// What happens at a checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    Continue,
    /// The step (or its undo) counts as failed, whatever it did.
    Fail(Failure),
    /// What was just done is done once more. Only after an act or an undo.
    Repeat,
}

type Visit = dyn Fn(Checkpoint) -> BoxFuture<'static, Fault> + Send + Sync;

/// Visits every checkpoint. A visit that never resolves hangs the step, as a stuck system call would.
#[derive(Clone, Default)]
pub struct Checkpoints(Option<Arc<Visit>>);

impl Checkpoints {
    pub fn new(visit: impl Fn(Checkpoint) -> BoxFuture<'static, Fault> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(visit)))
    }

    pub(crate) async fn visit(&self, checkpoint: Checkpoint) -> Fault {
        match &self.0 {
            None => Fault::Continue,
            Some(visit) => visit(checkpoint).await,
        }
    }
}
impl fmt::Debug for Checkpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Checkpoints(visited)" } else { "Checkpoints" })
    }
}
