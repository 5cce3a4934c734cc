//! Replacing what a durable snapshot is made of by something that says the same.
//!
//! ```text
//! .merged-<id>/      the new files; those that stay are linked, not copied      written, flushed
//! <id> <-> .merged-<id>                                                         exchanged, at once
//! record             of all of them in one transaction                          what counts
//! .merged-<id>/      now the old files                                          removed
//! ```
//! A crash in between leaves files and record that may disagree; [`Core::settle_merges`] goes by the record.

use super::{
    Manifest,
    manifest::{DEVICE_STATE, FILE, RAM_DELTA},
    persist::{allocated, blocking, flush, memory_failure, write_file},
    remove::{entries, id_of},
    uses::Alone,
};
use crate::{
    core::Core,
    machine::io_failure,
    saga::create::remove_tree,
    state_dir::{MERGED_SNAPSHOT, make_private_dir},
    trace::{Scope, TraceEvent},
};
use offshoot_provider::memory::Delta;
use offshoot_store::{SnapshotRecord, StoreError, Tx};
use offshoot_types::{Bytes, Failure, SnapshotId};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

/// What a snapshot is to be made of.
pub(super) struct Restage {
    pub snapshot: SnapshotRecord,
    /// As it is now; what is staged makes it what it is to be.
    pub manifest: Manifest,
    /// Instead of the present pages.
    pub delta: Option<Arc<Delta>>,
}

/// Its files lie beside the present ones, complete.
#[derive(Debug, Clone)]
pub(super) struct Staged {
    pub id: SnapshotId,
    pub manifest: Value,
    pub size: Bytes,
}

impl Core {
    /// Writes the files that are to take the place of a snapshot's, and flushes them. Nobody sees them yet.
    pub(super) async fn stage(&self, restage: Restage) -> Result<Staged, Failure> {
        let id = restage.snapshot.id;
        let (now, beside) = (self.layout.snapshot(id), self.layout.merged_snapshot(id));
        let key = self.host_key().await?;
        let (mut manifest, size, delta) = (restage.manifest, restage.snapshot.size, restage.delta);
        let written = blocking({
            let beside = beside.clone();
            move || {
                remove_tree(&beside)?;
                make_private_dir(&beside).map_err(|error| io_failure("make directory", &beside, &error))?;
                let mut size = size.0;
                for (name, part) in [(DEVICE_STATE, &manifest.device_state), (RAM_DELTA, &manifest.ram_delta)]
                {
                    if part.is_some() && (name != RAM_DELTA || delta.is_none()) {
                        let to = beside.join(name);
                        fs::hard_link(now.join(name), &to)
                            .map_err(|error| io_failure("link", &to, &error))?;
                    }
                }
                if let Some(delta) = &delta {
                    let path = beside.join(RAM_DELTA);
                    let part = delta.write(&path).map_err(|error| memory_failure(&path, &error))?;
                    manifest.ram_delta = Some(part);
                    size = size.saturating_sub(allocated(&now.join(RAM_DELTA))?) + allocated(&path)?;
                }
                Ok((manifest, size))
            }
        });
        let (manifest, size) = written.await?;
        let signed = manifest.sign(key)?;
        blocking(move || {
            write_file(&beside.join(FILE), &signed)?;
            flush(&beside)
        })
        .await?;
        Ok(Staged { id, manifest: manifest.as_value()?, size: Bytes(size) })
    }

    /// Puts what was staged in its place and writes it down with `write`, or leaves everything as it was. The caller has
    /// the snapshots alone.
    pub(super) async fn put_in_place(
        &self,
        _alone: &Alone,
        staged: Vec<Staged>,
        write: impl Fn(&Tx<'_>, &[Staged]) -> Result<(), StoreError> + Send + 'static,
    ) -> Result<(), Failure> {
        let ids: Vec<SnapshotId> = staged.iter().map(|staged| staged.id).collect();
        let pairs: Vec<(PathBuf, PathBuf)> =
            ids.iter().map(|id| (self.layout.snapshot(*id), self.layout.merged_snapshot(*id))).collect();
        let all = self.layout.snapshots();
        blocking({
            let (pairs, all) = (pairs.clone(), all.clone());
            move || {
                for (done, (now, beside)) in pairs.iter().enumerate() {
                    if let Err(failure) = exchange(now, beside) {
                        put_back(&pairs[..done]);
                        return Err(failure);
                    }
                }
                flush(&all).inspect_err(|_| put_back(&pairs))
            }
        })
        .await?;
        let written = self.store.transaction(move |tx| write(tx, &staged)).await;
        if let Err(error) = written {
            blocking(move || {
                put_back(&pairs);
                flush(&all)
            })
            .await?;
            return Err(error.into());
        }
        Ok(())
    }

    /// Removes what was staged and not put in place, or what it took the place of.
    pub(super) async fn unstage(&self, ids: &[SnapshotId]) {
        for id in ids {
            let path = self.layout.merged_snapshot(*id);
            let removed = blocking({
                let path = path.clone();
                move || remove_tree(&path)
            });
            if let Err(failure) = removed.await {
                // The next start removes it.
                let path = path.display().to_string();
                TraceEvent::NotCollected { path: &path, error: &failure.message }.emit(&Scope::default());
            }
        }
    }

    /// Before anything is read of any snapshot: what a daemon that died was putting in place is there if the record says
    /// so, and else what was there before.
    pub async fn settle_merges(&self) -> Result<(), StoreError> {
        for path in entries(self.layout.snapshots()) {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let Some(id) = name.strip_prefix(MERGED_SNAPSHOT).and_then(id_of) else { continue };
            let Some(record) = self.store.read(move |view| view.snapshot(id)).await? else { continue };
            let now = self.layout.snapshot(id);
            // What the record knows is in one of the two; if it is in neither, nothing is moved, and the damage is told
            // when somebody reads it.
            if Manifest::is_of(&now.join(FILE), &record.manifest)
                || !Manifest::is_of(&path.join(FILE), &record.manifest)
            {
                continue;
            }
            // An import has nothing yet whose place is taken.
            let placed = match now.exists() {
                true => exchange(&now, &path),
                false => fs::rename(&path, &now).map_err(|error| io_failure("rename", &path, &error)),
            };
            if let Err(failure) = placed {
                let path = path.display().to_string();
                TraceEvent::NotCollected { path: &path, error: &failure.message }.emit(&Scope::default());
            }
        }
        Ok(())
    }
}

fn exchange(one: &Path, other: &Path) -> Result<(), Failure> {
    renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)
        .map_err(|error| io_failure("exchange", one, &error.into()))
}

/// As it was before. What cannot be exchanged back is by the next start, which goes by the record.
fn put_back(pairs: &[(PathBuf, PathBuf)]) {
    for (now, beside) in pairs.iter().rev() {
        if let Err(failure) = exchange(now, beside) {
            let path = now.display().to_string();
            TraceEvent::NotCollected { path: &path, error: &failure.message }.emit(&Scope::default());
        }
    }
}
