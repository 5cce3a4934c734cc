//! What a run expects: of each VM and each snapshot the content of its guest, as far as it is known.

use offshoot_types::{SnapshotId, VmStateName};
use std::collections::{BTreeMap, BTreeSet};

/// Files that guests are made to write.
pub const FILES: [&str; 3] = ["/workspace/a", "/workspace/b", "/etc/c"];

/// The values something may have; more than one once a command was cut off.
pub type Cell = BTreeSet<Option<String>>;

fn is(value: Option<String>) -> Cell {
    Cell::from([value])
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    pub files: BTreeMap<&'static str, Cell>,
    /// A variable of a live context.
    pub variable: Cell,
}

impl Content {
    /// Of a disk nobody has written to, and a guest that has just booted.
    pub fn fresh() -> Self {
        Self { files: FILES.map(|file| (file, is(None))).into(), variable: is(None) }
    }

    /// What is left of it without memory.
    pub fn booted(&self) -> Self {
        Self { variable: is(None), ..self.clone() }
    }

    pub fn forget_variable(&mut self) {
        self.variable = is(None);
    }

    /// The memory may have been lost, or not.
    pub fn may_forget_variable(&mut self) {
        self.variable.insert(None);
    }

    pub fn set_file(&mut self, file: &'static str, value: &str) {
        self.files.insert(file, is(Some(value.into())));
    }
    pub fn set_variable(&mut self, value: &str) {
        self.variable = is(Some(value.into()));
    }

    /// Either of both.
    pub fn or(&mut self, other: &Self) {
        for (file, cell) in &mut self.files {
            cell.extend(other.files[file].iter().cloned());
        }
        self.variable.extend(other.variable.iter().cloned());
    }

    /// What was found: an error if it cannot be, and from now on this.
    pub fn found_file(&mut self, file: &'static str, value: Option<String>) -> Result<(), String> {
        let cell = self.files.entry(file).or_default();
        found(cell, value).map_err(|error| format!("{file}: {error}"))
    }
    pub fn found_variable(&mut self, value: Option<String>) -> Result<(), String> {
        found(&mut self.variable, value).map_err(|error| format!("the variable: {error}"))
    }

    /// For the log.
    pub fn words(&self) -> String {
        let word = |cell: &Cell| {
            let values: Vec<_> = cell.iter().map(|value| value.as_deref().unwrap_or("-")).collect();
            values.join("|")
        };
        let files: Vec<_> = self.files.values().map(word).collect();
        format!("{} x={}", files.join(" "), word(&self.variable))
    }
}

fn found(cell: &mut Cell, value: Option<String>) -> Result<(), String> {
    if !cell.contains(&value) {
        return Err(format!("{value:?} instead of one of {cell:?}"));
    }
    *cell = is(value);
    Ok(())
}

#[derive(Debug, Clone)]
pub struct Machine {
    pub state: VmStateName,
    /// The parent of its next snapshot.
    pub position: Option<SnapshotId>,
    /// Where an undo goes.
    pub undo: Option<SnapshotId>,
    /// A destroy of it failed, and is tried again by itself.
    pub doomed: bool,
    pub content: Content,
}

#[derive(Debug, Clone)]
pub struct Kept {
    /// In the log instead of its id.
    pub ordinal: usize,
    pub vm: String,
    /// Somebody asked for it: only somebody who asks removes it.
    pub manual: bool,
    /// Kept for forks or to suspend to, rather than to be gone back to.
    pub passing: bool,
    /// Never written: forks run from it, nobody else can.
    pub damaged: bool,
    pub parent: Option<SnapshotId>,
    /// The guest stood still: only such a snapshot is forked.
    pub quiesced: bool,
    pub content: Content,
}

#[derive(Debug, Default)]
pub struct Model {
    pub vms: BTreeMap<String, Machine>,
    pub kept: BTreeMap<SnapshotId, Kept>,
    /// Snapshots that there ever were.
    pub ever: usize,
}

impl Model {
    /// Where a rollback goes that names no snapshot: the nearest above `position` that was kept to be gone back to. Those
    /// that are `gone` are passed over.
    pub fn newest(&self, position: Option<SnapshotId>, gone: &[SnapshotId]) -> Option<SnapshotId> {
        let (mut at, mut passing) = (position, None);
        while let Some((id, kept)) = at.and_then(|id| Some((id, self.kept.get(&id)?))) {
            match (kept.damaged || gone.contains(&id), kept.passing) {
                (true, _) => {}
                (false, false) => return Some(id),
                (false, true) => passing = passing.or(Some(id)),
            }
            at = kept.parent;
        }
        passing
    }
}
