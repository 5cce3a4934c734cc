//! Reading every byte of a snapshot again, whoever vouches for it.

use crate::{Verification, core::Core};
use offshoot_store::SnapshotRecord;
use offshoot_types::{Bytes, Failure, SnapshotState};

impl Core {
    /// What is missing or differs is told and written down: nothing continues from a damaged snapshot.
    pub async fn verify(&self, snapshot: &SnapshotRecord) -> Result<Verification, Failure> {
        let id = snapshot.id;
        if let Some(volatile) = self.snapshots.volatile(id) {
            volatile.written().await?;
        }
        // What is replaced or removed meanwhile would look damaged.
        let _reading = self.snapshots.uses.read(id).await;
        let mut found = Verification { snapshot: id, parts: Vec::new(), bytes: Bytes(0), faults: Vec::new() };
        let current = self.store.read(move |view| view.snapshot(id)).await?;
        let current = current.ok_or_else(|| super::not_found(id))?;
        let manifest = match self.manifest(&current).await {
            Ok(manifest) => manifest,
            Err(failure) => {
                found.faults.push(failure.message);
                return Ok(found);
            }
        };
        let lengths = manifest.layers.iter().map(|layer| layer.part.length);
        let lengths = lengths.chain(manifest.device_state.iter().map(|part| part.length));
        found.bytes = Bytes(lengths.chain(manifest.ram_delta.iter().map(|part| part.length)).sum());
        for (path, verified) in self.verify_parts(id, manifest, None).await? {
            let path = path.strip_prefix(&self.layout.state).unwrap_or(&path);
            found.parts.push(path.display().to_string());
            if let Err(error) = verified {
                found.faults.push(crate::link::chain(&error));
            }
        }
        if let Some(fault) = found.faults.first().filter(|_| current.state != SnapshotState::Damaged) {
            let _told = self.found_damaged(id, fault).await;
        }
        Ok(found)
    }
}
