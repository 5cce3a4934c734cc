//! Forgetting, in small transactions, what nobody needs any more. What a running system refers to is never
//! touched: unfinished operations, VMs that exist, the newest link of the audit chain.

use crate::{
    AuditDecision, AuditEntry, AuditHead, StoreError, Tx,
    audit_chain::{Attestation, PRUNED},
    row::{hash, to_json},
};
use offshoot_types::Actor;
use rusqlite::params;
use std::time::Duration;

/// What to keep of one kind of row: those younger than `max_age` and among the newest `max_count`. `None` means
/// without bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Keep {
    pub max_age: Option<Duration>,
    pub max_count: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    pub events: Keep,
    /// Ended ones; with an operation goes the memory of its request key.
    pub operations: Keep,
    pub audit: Keep,
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

impl Default for Retention {
    fn default() -> Self {
        Self {
            events: Keep { max_age: Some(DAY.saturating_mul(30)), max_count: Some(100_000) },
            operations: Keep { max_age: Some(DAY.saturating_mul(30)), max_count: Some(100_000) },
            audit: Keep { max_age: Some(DAY.saturating_mul(400)), max_count: None },
        }
    }
}

/// How many rows went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pruned {
    pub events: u64,
    pub operations: u64,
    pub vms: u64,
    pub audit: u64,
}

impl Pruned {
    pub(crate) fn add(&mut self, other: Self) {
        self.events += other.events;
        self.operations += other.operations;
        self.vms += other.vms;
        self.audit += other.audit;
    }
}

/// Rows of one kind removed per transaction: a few milliseconds for which other writers wait.
const BATCH: u32 = 500;

/// The audit rows to go, fixed before the first batch: each batch appends a row itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AuditCut(u64);

impl Tx<'_> {
    fn before(&self, keep: Keep) -> i64 {
        let age = keep.max_age.and_then(|age| i64::try_from(age.as_micros()).ok());
        age.map_or(i64::MIN, |age| self.now_micros().saturating_sub(age))
    }

    pub(crate) fn audit_cut(&self, keep: Keep) -> Result<AuditCut, StoreError> {
        let head = self.audit_head()?;
        let by_count = keep.max_count.map_or(0, |count| head.seq.saturating_sub(count));
        // Up to the first row young enough: the clock may have gone back, the chain is cut from its front only.
        let sql = "SELECT coalesce((SELECT min(seq) FROM audit WHERE at >= ?1), ?2) - 1";
        let by_age = match keep.max_age {
            None => Some(0),
            Some(_) => {
                let params = params![self.before(keep), head.seq.saturating_add(1)];
                self.one("find old audit rows", sql, params, |row| row.get::<_, u64>(0))?
            }
        };
        // The last row stays: the next one is chained to it.
        Ok(AuditCut(by_count.max(by_age.unwrap_or(0)).min(head.seq.saturating_sub(1))))
    }

    /// Removes one batch of each kind; all zero once nothing is left to remove.
    pub(crate) fn prune_batch(&self, retention: &Retention, cut: AuditCut) -> Result<Pruned, StoreError> {
        Ok(Pruned {
            events: self.prune_events(retention.events)?,
            operations: self.prune_operations(retention.operations)?,
            vms: self.prune_vms()?,
            audit: self.prune_audit(cut)?,
        })
    }

    fn prune_events(&self, keep: Keep) -> Result<u64, StoreError> {
        // Removed from the front only, so that readers can tell what they missed by one number.
        let sql = "SELECT max(id) FROM (SELECT id FROM events
            WHERE id <= max(
                coalesce((SELECT min(id) FROM events WHERE at >= ?1),
                    (SELECT coalesce(max(id), 0) + 1 FROM events)) - 1,
                coalesce((SELECT id FROM events ORDER BY id DESC LIMIT 1 OFFSET ?2), 0))
            ORDER BY id LIMIT ?3)";
        let params = params![self.before(keep), count_bound(keep), BATCH];
        let through = self.one("find old events", sql, params, |row| row.get::<_, Option<u64>>(0))?;
        let Some(through) = through.flatten() else { return Ok(0) };
        let removed = self.execute("prune events", "DELETE FROM events WHERE id <= ?1", params![through])?;
        self.execute("note pruned events", "UPDATE events_pruned SET through = ?1", params![through])?;
        Ok(removed as u64)
    }

    fn prune_operations(&self, keep: Keep) -> Result<u64, StoreError> {
        let sql = "DELETE FROM operations WHERE id IN (
            SELECT id FROM operations WHERE phase = 'ended' AND (updated < ?1 OR id <= coalesce(
                (SELECT id FROM operations WHERE phase = 'ended' ORDER BY id DESC LIMIT 1 OFFSET ?2), ''))
            ORDER BY id LIMIT ?3)";
        let params = params![self.before(keep), count_bound(keep), BATCH];
        Ok(self.execute("prune operations", sql, params)? as u64)
    }

    fn prune_vms(&self) -> Result<u64, StoreError> {
        let sql = "DELETE FROM vms WHERE id IN (SELECT id FROM vms WHERE state = 'destroyed'
            AND NOT EXISTS (SELECT 1 FROM operations WHERE operations.vm = vms.id)
            AND NOT EXISTS (SELECT 1 FROM instances WHERE instances.vm = vms.id)
            AND NOT EXISTS (SELECT 1 FROM snapshots WHERE snapshots.vm = vms.id)
            AND NOT EXISTS (SELECT 1 FROM contexts WHERE contexts.vm = vms.id) LIMIT ?1)";
        Ok(self.execute("prune destroyed VMs", sql, params![BATCH])? as u64)
    }

    fn prune_audit(&self, AuditCut(cut): AuditCut) -> Result<u64, StoreError> {
        let before = self.audit_checkpoint()?;
        let through = cut.min(before.seq.saturating_add(u64::from(BATCH)));
        let sql = "SELECT seq, hash FROM audit WHERE seq = ?1";
        let last = self.one("find the audit row to cut at", sql, params![through], |row| {
            Ok(AuditHead { seq: row.get("seq")?, hash: hash(row, "hash")? })
        })?;
        let Some(checkpoint) = last else { return Ok(0) };
        let removed =
            self.execute("prune the audit", "DELETE FROM audit WHERE seq <= ?1", params![through])?;
        let sql = "UPDATE audit_checkpoint SET seq = ?1, hash = ?2";
        self.execute("set the audit checkpoint", sql, params![checkpoint.seq, checkpoint.hash])?;
        self.append_audit(
            &AuditEntry {
                actor: Actor::Daemon,
                action: PRUNED.into(),
                target: "audit".into(),
                decision: AuditDecision::Recorded,
                rules: Vec::new(),
                revision: String::new(),
                detail: to_json(&Attestation::of(&checkpoint)),
            },
            None,
        )?;
        Ok(removed as u64)
    }
}

fn count_bound(keep: Keep) -> i64 {
    keep.max_count.and_then(|count| i64::try_from(count).ok()).unwrap_or(i64::MAX)
}
