//! The processes of one VM that run or have lately ended, and the way to the pump of each.

use crate::{
    ExecInput, ExecState, ExecView,
    session::{self, Door, Sink},
    sync::lock,
};
use offshoot_types::ExecId;
use std::{collections::BTreeMap, sync::Mutex};
use tokio::sync::mpsc;

/// Ended processes that are still listed.
const KEEP_ENDED: usize = 64;
/// Callers that may want to take over one process's streams at the same moment.
const TAKEOVER_DEPTH: usize = 4;

#[derive(Debug, Default)]
pub(crate) struct Execs {
    entries: Mutex<BTreeMap<ExecId, Entry>>,
}

#[derive(Debug)]
struct Entry {
    view: ExecView,
    ways: Ways,
}

/// The ways to a pump; nobody is at their other ends once the process has ended.
#[derive(Debug, Clone)]
pub(crate) struct Ways {
    pub takeover: mpsc::Sender<Takeover>,
    /// For those who have no session of it.
    pub input: ExecInput,
}

/// The pump's ends of them.
#[derive(Debug)]
pub(crate) struct WaysIn {
    pub takeovers: mpsc::Receiver<Takeover>,
    pub door: Door,
}

pub(crate) fn ways() -> (Ways, WaysIn) {
    let (takeover, takeovers) = mpsc::channel(TAKEOVER_DEPTH);
    let (input, door) = session::door();
    (Ways { takeover, input }, WaysIn { takeovers, door })
}

/// Another caller wants the streams, from these offsets.
#[derive(Debug)]
pub(crate) struct Takeover {
    pub sink: Sink,
    pub stdout: u64,
    pub stderr: u64,
}

impl Execs {
    pub fn insert(&self, view: ExecView, ways: Ways) {
        insert(&mut lock(&self.entries), view, ways);
    }

    pub fn update(&self, exec: ExecId, change: impl FnOnce(&mut ExecView)) {
        if let Some(entry) = lock(&self.entries).get_mut(&exec) {
            change(&mut entry.view);
        }
    }

    /// As `insert`, unless it is there and runs: then its ways are answered, and `ways` lead nowhere.
    pub fn insert_unless_running(&self, view: ExecView, ways: Ways) -> Option<Ways> {
        let mut entries = lock(&self.entries);
        let running = |entry: &&Entry| entry.view.state == ExecState::Running;
        if let Some(entry) = entries.get(&view.id).filter(running) {
            return Some(entry.ways.clone());
        }
        insert(&mut entries, view, ways);
        None
    }

    pub fn get(&self, exec: ExecId) -> Option<(ExecView, Ways)> {
        lock(&self.entries).get(&exec).map(|entry| (entry.view.clone(), entry.ways.clone()))
    }

    /// Newest first.
    pub fn list(&self) -> Vec<ExecView> {
        lock(&self.entries).values().rev().map(|entry| entry.view.clone()).collect()
    }

    pub fn running(&self) -> usize {
        lock(&self.entries).values().filter(|entry| entry.view.state == ExecState::Running).count()
    }
}

fn insert(entries: &mut BTreeMap<ExecId, Entry>, view: ExecView, ways: Ways) {
    entries.insert(view.id, Entry { view, ways });
    // Ids are in order of creation, so the first ended ones are the oldest.
    let ended: Vec<ExecId> =
        entries.values().filter(|e| e.view.state != ExecState::Running).map(|e| e.view.id).collect();
    for id in ended.iter().take(ended.len().saturating_sub(KEEP_ENDED)) {
        entries.remove(id);
    }
}
