//! The stage cache: what a finished stage of a build produced, found again by a digest of all its inputs.
//!
//! ```text
//! absent --(stage runs)--> pending --(image published)--> spent
//! ```
//! A pending record keeps its blobs alive, so an interrupted build goes on where it was. A spent one is only a hint:
//! its blobs live as long as some image names them.

use super::{
    FileLock, Scratch, Store, StoreError,
    error::{At, IoAt},
};
use crate::{BlobDigest, Cancel, Part};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{collections::BTreeMap, fs, path::PathBuf};

/// Names a stage together with everything its result depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct StageKey(BlobDigest);

impl StageKey {
    /// `version` changes when the code of the stage changes what it makes.
    pub(crate) fn new(stage: &str, version: u32, inputs: &impl Serialize) -> Self {
        let bytes = serde_json::to_vec(&(stage, version, inputs)).expect("inputs are plain data");
        Self(BlobDigest::of(&bytes))
    }

    pub(crate) fn digest(&self) -> BlobDigest {
        self.0
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum StageState {
    Pending,
    Spent,
}

/// The result of a stage: blobs by role, and facts the manifest will tell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StageRecord {
    pub(super) state: StageState,
    pub(super) blobs: BTreeMap<String, Part>,
    facts: serde_json::Value,
}

impl StageRecord {
    pub(crate) fn new<'a>(blobs: impl IntoIterator<Item = (&'a str, Part)>, facts: &impl Serialize) -> Self {
        Self {
            state: StageState::Pending,
            blobs: blobs.into_iter().map(|(role, part)| (role.into(), part)).collect(),
            facts: serde_json::to_value(facts).expect("facts are plain data"),
        }
    }

    pub(crate) fn blob(&self, role: &str) -> Option<Part> {
        self.blobs.get(role).copied()
    }

    pub(crate) fn facts<T: DeserializeOwned>(&self) -> Option<T> {
        T::deserialize(&self.facts).ok()
    }
}

impl Store {
    fn stage_path(&self, key: &StageKey) -> PathBuf {
        self.root.join("stages").join(format!("{}.json", key.0.hex()))
    }

    fn stage_lock_path(&self, key: &StageKey) -> PathBuf {
        self.root.join("stages").join(format!("{}.lock", key.0.hex()))
    }

    /// `None` while another build is at this stage.
    pub(crate) fn try_lock_stage(&self, key: &StageKey) -> Result<Option<FileLock>, StoreError> {
        let path = self.stage_lock_path(key);
        FileLock::try_exclusive(&path).at(At::Lock, &path)
    }

    /// Only the holder runs the stage; another build of the same thing waits here and then finds the result. `None`
    /// means cancelled.
    pub(crate) fn lock_stage(&self, key: &StageKey, cancel: &Cancel) -> Result<Option<FileLock>, StoreError> {
        let path = self.stage_lock_path(key);
        FileLock::exclusive_unless(&path, cancel).at(At::Lock, &path)
    }

    /// The stage's result, if it is there and every blob of it is good.
    pub(crate) fn finished_stage(&self, key: &StageKey) -> Option<StageRecord> {
        let record: StageRecord = serde_json::from_slice(&fs::read(self.stage_path(key)).ok()?).ok()?;
        record.blobs.values().all(|part| self.holds(*part)).then_some(record)
    }

    pub(crate) fn finish_stage(
        &self,
        scratch: &Scratch,
        key: &StageKey,
        record: &StageRecord,
    ) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec(record).expect("a record is plain data");
        self.write_atomically(scratch, &self.stage_path(key), &bytes)
    }

    /// The image that needed the stage is published: its blobs stay as long as images name them.
    pub(crate) fn spend_stage(&self, scratch: &Scratch, key: &StageKey) -> Result<(), StoreError> {
        match self.finished_stage(key) {
            Some(record) => {
                self.finish_stage(scratch, key, &StageRecord { state: StageState::Spent, ..record })
            }
            None => Ok(()),
        }
    }
}
