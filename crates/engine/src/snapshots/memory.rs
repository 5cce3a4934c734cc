//! Complete memories of snapshots, shared by everyone who restores from them.

use crate::sync::lock;
use offshoot_provider::memory::{Base, Delta};
use offshoot_types::SnapshotId;
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, Weak},
};

/// Memories kept although nobody restores from them now: the last ones used. A VM that maps one keeps it by itself.
const KEPT: usize = 3;

#[derive(Debug, Default)]
pub(super) struct Memories {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    bases: HashMap<SnapshotId, Weak<Base>>,
    deltas: HashMap<SnapshotId, Weak<Delta>>,
    /// The most recent last.
    kept: VecDeque<(SnapshotId, Kept)>,
}

#[derive(Debug)]
enum Kept {
    Base { _held: Arc<Base> },
    Delta { _held: Arc<Delta> },
}

impl Memories {
    pub fn base(&self, id: SnapshotId) -> Option<Arc<Base>> {
        lock(&self.known).bases.get(&id).and_then(Weak::upgrade)
    }

    pub fn delta(&self, id: SnapshotId) -> Option<Arc<Delta>> {
        lock(&self.known).deltas.get(&id).and_then(Weak::upgrade)
    }

    pub fn keep_base(&self, id: SnapshotId, base: &Arc<Base>) {
        let mut known = lock(&self.known);
        known.bases.insert(id, Arc::downgrade(base));
        known.keep(id, Kept::Base { _held: base.clone() });
    }

    pub fn keep_delta(&self, id: SnapshotId, delta: &Arc<Delta>) {
        let mut known = lock(&self.known);
        known.deltas.insert(id, Arc::downgrade(delta));
        known.keep(id, Kept::Delta { _held: delta.clone() });
    }

    /// The pages of a snapshot are against another one from now on; its complete memory is what it was.
    pub fn replace_delta(&self, id: SnapshotId, delta: &Arc<Delta>) {
        lock(&self.known).kept.retain(|(kept, what)| *kept != id || matches!(what, Kept::Base { .. }));
        self.keep_delta(id, delta);
    }

    pub fn forget(&self, id: SnapshotId) {
        let mut known = lock(&self.known);
        known.bases.remove(&id);
        known.deltas.remove(&id);
        known.kept.retain(|(kept, _)| *kept != id);
    }
}

impl Known {
    fn keep(&mut self, id: SnapshotId, what: Kept) {
        let same = |other: &Kept| std::mem::discriminant(other) == std::mem::discriminant(&what);
        self.kept.retain(|(kept, other)| *kept != id || !same(other));
        self.kept.push_back((id, what));
        while self.kept.len() > KEPT {
            self.kept.pop_front();
        }
        self.bases.retain(|_, base| base.strong_count() > 0);
        self.deltas.retain(|_, delta| delta.strong_count() > 0);
    }
}
