//! The processes of one VM that run or have lately ended, and the way to the pump of each.

use crate::{ExecState, ExecView, session::Sink, sync::lock};
use offshoot_types::ExecId;
use std::{collections::BTreeMap, sync::Mutex};
use tokio::sync::mpsc;

/// Ended processes that are still listed.
const KEEP_ENDED: usize = 64;
/// Callers that may want to take over one process's streams at the same moment.
pub(crate) const TAKEOVER_DEPTH: usize = 4;

#[derive(Debug, Default)]
pub(crate) struct Execs {
    entries: Mutex<BTreeMap<ExecId, Entry>>,
}

#[derive(Debug)]
struct Entry {
    view: ExecView,
    /// To the pump, while it runs.
    takeover: mpsc::Sender<Takeover>,
}

/// Another caller wants the streams, from these offsets.
#[derive(Debug)]
pub(crate) struct Takeover {
    pub sink: Sink,
    pub stdout: u64,
    pub stderr: u64,
}

impl Execs {
    pub fn insert(&self, view: ExecView, takeover: mpsc::Sender<Takeover>) {
        let mut entries = lock(&self.entries);
        entries.insert(view.id, Entry { view, takeover });
        // Ids are in order of creation, so the first ended ones are the oldest.
        let ended: Vec<ExecId> =
            entries.values().filter(|e| e.view.state != ExecState::Running).map(|e| e.view.id).collect();
        for id in ended.iter().take(ended.len().saturating_sub(KEEP_ENDED)) {
            entries.remove(id);
        }
    }

    pub fn update(&self, exec: ExecId, change: impl FnOnce(&mut ExecView)) {
        if let Some(entry) = lock(&self.entries).get_mut(&exec) {
            change(&mut entry.view);
        }
    }

    pub fn get(&self, exec: ExecId) -> Option<(ExecView, mpsc::Sender<Takeover>)> {
        lock(&self.entries).get(&exec).map(|entry| (entry.view.clone(), entry.takeover.clone()))
    }

    /// Newest first.
    pub fn list(&self) -> Vec<ExecView> {
        lock(&self.entries).values().rev().map(|entry| entry.view.clone()).collect()
    }

    pub fn running(&self) -> usize {
        lock(&self.entries).values().filter(|entry| entry.view.state == ExecState::Running).count()
    }
}
