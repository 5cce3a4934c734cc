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
    /// What was run in VMs, once it has ended; a row also goes with its operation.
    pub history: Keep,
    pub audit: Keep,
}

pub(crate) const HOUR: Duration = Duration::from_secs(60 * 60);
pub(crate) const DAY: Duration = HOUR.saturating_mul(24);

impl Default for Retention {
    fn default() -> Self {
        Self {
            events: Keep { max_age: Some(DAY.saturating_mul(30)), max_count: Some(100_000) },
            operations: Keep { max_age: Some(DAY.saturating_mul(30)), max_count: Some(100_000) },
            history: Keep { max_age: Some(DAY.saturating_mul(30)), max_count: Some(100_000) },
            audit: Keep { max_age: Some(DAY.saturating_mul(400)), max_count: None },
        }
    }
}

/// How many rows went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pruned {
    pub events: u64,
    pub operations: u64,
    pub history: u64,
    pub vms: u64,
    pub audit: u64,
    pub requests: u64,
}

impl Pruned {
    pub(crate) fn add(&mut self, other: Self) {
        self.events += other.events;
        self.operations += other.operations;
        self.history += other.history;
        self.vms += other.vms;
        self.audit += other.audit;
        self.requests += other.requests;
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
            history: self.prune_history(retention.history)?,
            vms: self.prune_vms()?,
            audit: self.prune_audit(cut)?,
            requests: self.prune_requests(BATCH)?,
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
            SELECT id FROM operations WHERE phase = 'ended' AND NOT EXISTS (
                SELECT 1 FROM transactions WHERE transactions.operation = operations.id AND end IS NULL)
            AND (updated < ?1 OR id <= coalesce(
                (SELECT id FROM operations WHERE phase = 'ended' ORDER BY id DESC LIMIT 1 OFFSET ?2), ''))
            ORDER BY id LIMIT ?3)";
        let params = params![self.before(keep), count_bound(keep), BATCH];
        Ok(self.execute("prune operations", sql, params)? as u64)
    }

    fn prune_history(&self, keep: Keep) -> Result<u64, StoreError> {
        let sql = "DELETE FROM history WHERE operation IN (
            SELECT operation FROM history WHERE ended IS NOT NULL AND (ended < ?1
                OR begun <= coalesce((SELECT begun FROM history ORDER BY begun DESC LIMIT 1 OFFSET ?2), -1))
            ORDER BY begun LIMIT ?3)";
        let params = params![self.before(keep), count_bound(keep), BATCH];
        Ok(self.execute("prune the history", sql, params)? as u64)
    }

    fn prune_vms(&self) -> Result<u64, StoreError> {
        let sql = "DELETE FROM vms WHERE id IN (SELECT id FROM vms WHERE state = 'destroyed'
            AND NOT EXISTS (SELECT 1 FROM operations WHERE operations.vm = vms.id)
            AND NOT EXISTS (SELECT 1 FROM instances WHERE instances.vm = vms.id)
            AND NOT EXISTS (SELECT 1 FROM snapshots WHERE snapshots.vm = vms.id)
            AND NOT EXISTS (SELECT 1 FROM transactions WHERE transactions.vm = vms.id)
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

pub(crate) fn count_bound(keep: Keep) -> i64 {
    keep.max_count.and_then(|count| i64::try_from(count).ok()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        AuditVerdict,
        fixture::{Fixture, entry, operation},
    };
    use jiff::SignedDuration;
    use offshoot_types::{EventId, OperationKind, OperationOutcome, VmState};

    const ALL: Keep = Keep { max_age: None, max_count: None };
    const KEEP_ALL: Retention = Retention { events: ALL, operations: ALL, history: ALL, audit: ALL };

    fn newest(count: u64) -> Keep {
        Keep { max_age: None, max_count: Some(count) }
    }
    fn younger(age: Duration) -> Keep {
        Keep { max_age: Some(age), max_count: None }
    }

    #[tokio::test]
    async fn nothing_goes_that_is_to_be_kept() {
        let f = Fixture::new();
        f.stopped("a").await;
        f.clock.advance(SignedDuration::from_hours(24));
        assert_eq!(f.store.prune(KEEP_ALL).await.unwrap(), Pruned::default());
        assert_eq!(f.store.prune(Retention::default()).await.unwrap(), Pruned::default());
    }

    #[tokio::test]
    async fn a_reader_of_events_learns_that_it_missed_some_and_ids_are_not_used_again() {
        let f = Fixture::new();
        f.stopped("a").await;
        let last = *f.store.last_event().borrow();
        let pruned = f.store.prune(Retention { events: newest(1), ..KEEP_ALL }).await.unwrap();
        assert_eq!(pruned.events, last.0 - 1);
        let page = f.store.events(EventId(0), 9).await.unwrap();
        assert_eq!((page.events.len(), page.last, page.missed), (1, last, true));
        assert!(!f.store.events(EventId(last.0 - 1), 9).await.unwrap().missed);
        f.store.prune(Retention { events: newest(0), ..KEEP_ALL }).await.unwrap();
        let page = f.store.events(EventId(0), 9).await.unwrap();
        assert_eq!(
            (page.events.len(), page.last, page.missed),
            (0, last, true),
            "readers go on from the end"
        );
        f.stopped("b").await;
        assert_eq!(f.store.events(last, 1).await.unwrap().events[0].id, EventId(last.0 + 1));
    }

    #[tokio::test]
    async fn old_ended_operations_go_with_their_steps_and_destroyed_vms_but_unfinished_ones_stay() {
        let f = Fixture::new();
        let (vm, at) = f.stopped("a").await;
        let create = f.store.unfinished_operations().await.unwrap()[0].id;
        f.store.step_begun(create, 0, "disk", serde_json::Value::Null).await.unwrap();
        let waiting = operation(OperationKind::Exec, None);
        f.store.begin_operation(waiting.clone()).await.unwrap();
        f.store.end_operation(create, OperationOutcome::Done).await.unwrap();
        f.go(vm, at, VmState::Destroyed).await.unwrap();
        f.clock.advance(SignedDuration::from_hours(2));
        let young = operation(OperationKind::Exec, None);
        f.store.begin_operation(young.clone()).await.unwrap();
        f.store.end_operation(young.id, OperationOutcome::Done).await.unwrap();

        let hour = Duration::from_secs(3600);
        let pruned = f.store.prune(Retention { operations: younger(hour), ..KEEP_ALL }).await.unwrap();
        assert_eq!(pruned, Pruned { operations: 1, vms: 1, ..Pruned::default() });
        assert_eq!(f.store.vm(vm).await.unwrap(), None);
        assert_eq!(f.store.steps(create).await.unwrap(), []);
        assert!(f.store.operation(waiting.id).await.unwrap().is_some());
        assert!(f.store.operation(young.id).await.unwrap().is_some());
        let verdict = f.store.audit_verify(None).await.unwrap();
        assert!(matches!(verdict, AuditVerdict::Intact(_)), "the audit keeps what they were: {verdict:?}");
    }

    #[tokio::test]
    async fn the_audit_stays_verifiable_across_pruning_again_and_again() {
        let f = Fixture::new();
        let mut anchors = Vec::new();
        for round in 0_u64..3 {
            for n in 0..1200 {
                let last = f.store.transaction(move |tx| tx.audit_entry(&entry(&format!("{round}-{n}"))));
                if n % 400 == 0 {
                    anchors.push(last.await.unwrap());
                } else {
                    last.await.unwrap();
                }
            }
            let pruned = f.store.prune(Retention { audit: newest(100), ..KEEP_ALL }).await.unwrap();
            assert!(pruned.audit > 1000, "in several batches: {pruned:?}");
            let head = f.store.audit_head().await.unwrap();
            let verdict = f.store.audit_verify(Some(head)).await.unwrap();
            let AuditVerdict::Intact(report) = verdict else { panic!("{verdict:?}") };
            assert_eq!(report.rows + report.pruned_through, head.seq);
            assert!((100..110).contains(&report.rows), "{report:?}");
            let verdict = f.store.audit_verify(Some(anchors[0])).await.unwrap();
            let AuditVerdict::Intact(report) = verdict else { panic!("{verdict:?}") };
            assert!(!report.anchor_checked, "an anchor older than what was kept proves nothing, and says so");
        }
    }

    #[tokio::test]
    async fn the_last_audit_row_is_never_pruned() {
        let f = Fixture::new();
        f.store.audit_entry(entry("only")).await.unwrap();
        f.clock.advance(SignedDuration::from_hours(1));
        let none =
            Retention { audit: Keep { max_age: Some(Duration::ZERO), max_count: Some(0) }, ..KEEP_ALL };
        assert_eq!(f.store.prune(none).await.unwrap().audit, 0);
        assert!(matches!(f.store.audit_verify(None).await.unwrap(), AuditVerdict::Intact(_)));
    }
}
