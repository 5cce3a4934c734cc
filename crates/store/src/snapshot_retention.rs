//! Which snapshots nobody asked for, nobody needs and nobody will miss.

use crate::{
    Keep, SnapshotRecord, StoreError, View,
    retention::{DAY, HOUR, count_bound},
    snapshots::{COLUMNS, from_row},
};
use jiff::Timestamp;
use offshoot_types::SnapshotOrigin;
use rusqlite::params;
use std::time::Duration;

/// What to keep, of each VM, of the snapshots that were taken without being asked for. Manual ones and templates are
/// never let go by age or count, and neither is one with a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotRetention {
    pub auto: Keep,
    pub undo: Keep,
    pub fork: Keep,
    pub suspend: Keep,
    /// Those that no VM was moved to, or none runs from any more.
    pub rebase: Keep,
}

impl Default for SnapshotRetention {
    fn default() -> Self {
        let newest =
            |days: u32, count| Keep { max_age: Some(DAY.saturating_mul(days)), max_count: Some(count) };
        // Whoever is to go on from it does so within a minute.
        let rebase = Keep { max_age: Some(HOUR), max_count: Some(1) };
        Self { auto: newest(7, 20), undo: newest(7, 5), fork: newest(1, 2), suspend: newest(1, 1), rebase }
    }
}

impl View<'_> {
    /// Snapshots to remove under `keep`, oldest first: of an origin it bounds, without a name, needed by nobody and not
    /// just made by an operation that has not ended. Those of a destroyed VM and damaged ones go whatever their age. One
    /// that is still being written (`Volatile`) is left alone.
    pub fn snapshots_to_expire(
        &self,
        keep: &SnapshotRetention,
        now: Timestamp,
    ) -> Result<Vec<SnapshotRecord>, StoreError> {
        let mut expired = Vec::new();
        for (origin, keep) in [
            (SnapshotOrigin::Auto, keep.auto),
            (SnapshotOrigin::Undo, keep.undo),
            (SnapshotOrigin::Fork, keep.fork),
            (SnapshotOrigin::Suspend, keep.suspend),
            (SnapshotOrigin::Rebase, keep.rebase),
        ] {
            // The count is of all of that origin, needed ones included: keeping five means there are five.
            let sql = format!(
                "WITH ranked AS (SELECT id AS ranked_id,
                    row_number() OVER (PARTITION BY vm ORDER BY origin_since DESC) AS place
                    FROM snapshots WHERE origin = ?1)
                 SELECT {COLUMNS} FROM snapshots JOIN ranked ON ranked_id = id
                 WHERE name IS NULL AND state <> 'volatile'
                    AND (created < ?2 OR place > ?3 OR state = 'damaged'
                        OR EXISTS (SELECT 1 FROM vms WHERE vms.id = snapshots.vm AND vms.state = 'destroyed'))
                    AND NOT EXISTS (SELECT 1 FROM operations
                        WHERE operations.id = snapshots.operation AND phase <> 'ended')
                 ORDER BY taken"
            );
            let params = params![origin.as_str(), before(now, keep.max_age), count_bound(keep)];
            for snapshot in self.many("list expired snapshots", &sql, params, from_row)? {
                if self.snapshot_users(snapshot.id)?.is_empty() {
                    expired.push(snapshot);
                }
            }
        }
        expired.sort_by_key(|snapshot| snapshot.taken);
        Ok(expired)
    }

    /// What nobody sees or can use, newest first, needed or not: bases of destroyed VMs, and what forks ran from that could
    /// not be written.
    pub fn snapshots_left_over(&self) -> Result<Vec<SnapshotRecord>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM snapshots
             WHERE (origin = 'fork' AND state = 'damaged')
                OR (origin = 'rebase' AND state <> 'volatile'
                    AND EXISTS (SELECT 1 FROM vms WHERE vms.id = snapshots.vm AND vms.state = 'destroyed'))
             ORDER BY taken DESC"
        );
        self.many("list snapshots that are left over", &sql, params![], from_row)
    }
}

fn before(now: Timestamp, age: Option<Duration>) -> i64 {
    let age = age.and_then(|age| i64::try_from(age.as_micros()).ok());
    age.map_or(i64::MIN, |age| now.as_microsecond().saturating_sub(age))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NewSnapshot, fixture::Fixture};
    use jiff::SignedDuration;
    use offshoot_types::{Bytes, OperationKind, OperationOutcome, SnapshotId, VmState};

    const ALL: Keep = Keep { max_age: None, max_count: None };
    const KEEP_ALL: SnapshotRetention =
        SnapshotRetention { auto: ALL, undo: ALL, fork: ALL, suspend: ALL, rebase: ALL };

    async fn expired(f: &Fixture, keep: SnapshotRetention) -> Vec<SnapshotId> {
        let now = crate::Clock::now(&*f.clock);
        f.store.snapshots_to_expire(keep, now).await.unwrap().into_iter().map(|s| s.id).collect()
    }

    async fn durable(f: &Fixture, vm: offshoot_types::VmId, origin: SnapshotOrigin) -> SnapshotId {
        let id = f.take(vm, origin).await;
        f.store.snapshot_durable(id, serde_json::json!({}), Bytes(1)).await.unwrap();
        id
    }

    #[tokio::test]
    async fn the_oldest_of_each_kind_and_vm_go_by_count_and_what_is_asked_for_stays() {
        let f = Fixture::new();
        let ((a, _), (b, _)) = (f.stopped("a").await, f.stopped("b").await);
        let mut autos = Vec::new();
        for _ in 0..3 {
            autos.push(durable(&f, a, SnapshotOrigin::Auto).await);
            durable(&f, a, SnapshotOrigin::Manual).await;
            durable(&f, a, SnapshotOrigin::Template).await;
        }
        durable(&f, b, SnapshotOrigin::Auto).await;
        assert_eq!(expired(&f, KEEP_ALL).await, []);
        let two = Keep { max_age: None, max_count: Some(2) };
        assert_eq!(expired(&f, SnapshotRetention { auto: two, ..KEEP_ALL }).await, autos[..1]);
        let none = Keep { max_age: None, max_count: Some(0) };
        let all_kinds = SnapshotRetention { auto: none, undo: none, fork: none, suspend: none, rebase: none };
        assert_eq!(expired(&f, all_kinds).await.len(), 4, "of both VMs, of no other origin");
    }

    #[tokio::test]
    async fn what_is_old_goes_unless_it_is_named_needed_or_still_being_made() {
        let f = Fixture::new();
        let (vm, at) = f.stopped("a").await;
        let making = f.begun(OperationKind::Fork, vm).await;
        let fresh = f.to_take(vm, SnapshotOrigin::Fork).await;
        let being_made = fresh.id;
        f.store.add_snapshot(fresh, making, crate::fixture::actor()).await.unwrap();
        f.store.snapshot_durable(being_made, serde_json::json!({}), Bytes(1)).await.unwrap();
        let mut named = f.to_take(vm, SnapshotOrigin::Auto).await;
        named.name = Some("kept".parse().unwrap());
        let named = f.add(named).await.unwrap();
        f.store.snapshot_durable(named, serde_json::json!({}), Bytes(1)).await.unwrap();
        let needed = durable(&f, vm, SnapshotOrigin::Suspend).await;
        f.store.set_vm_memory(vm, Some(needed)).await.unwrap();
        let old = durable(&f, vm, SnapshotOrigin::Undo).await;
        let volatile = f.take(vm, SnapshotOrigin::Undo).await;
        f.clock.advance(SignedDuration::from_hours(24 * 30));
        assert_eq!(expired(&f, SnapshotRetention::default()).await, [old]);
        f.store.snapshot_damaged(volatile).await.unwrap();
        f.store.end_operation(making, OperationOutcome::Done).await.unwrap();
        f.store.set_vm_memory(vm, None).await.unwrap();
        assert_eq!(
            expired(&f, SnapshotRetention::default()).await,
            [being_made, needed, old, volatile],
            "oldest first"
        );
        f.remove(being_made).await.unwrap();
        let (next, _) = f.stopped("b").await;
        let young = durable(&f, vm, SnapshotOrigin::Auto).await;
        durable(&f, next, SnapshotOrigin::Auto).await;
        assert!(!expired(&f, SnapshotRetention::default()).await.contains(&young));
        f.go(vm, at, VmState::Destroyed).await.unwrap();
        let gone = expired(&f, SnapshotRetention::default()).await;
        assert!(gone.contains(&young) && !gone.contains(&named), "a destroyed VM keeps only what has a name");
    }

    #[tokio::test]
    async fn the_count_is_of_what_there_is_not_of_what_may_go() {
        let f = Fixture::new();
        let (vm, _) = f.stopped("a").await;
        let base = durable(&f, vm, SnapshotOrigin::Undo).await;
        let child = NewSnapshot { memory_base: Some(base), ..f.to_take(vm, SnapshotOrigin::Undo).await };
        let child = f.add(child).await.unwrap();
        f.store.snapshot_durable(child, serde_json::json!({}), Bytes(1)).await.unwrap();
        let one = Keep { max_age: None, max_count: Some(1) };
        let keep = SnapshotRetention { undo: one, ..KEEP_ALL };
        assert_eq!(expired(&f, keep).await, [], "the older one is needed, the newer one is the one to keep");
        f.remove(child).await.unwrap();
        assert_eq!(expired(&f, keep).await, []);
        assert_eq!(
            expired(&f, SnapshotRetention { undo: Keep { max_age: None, max_count: Some(0) }, ..KEEP_ALL })
                .await,
            [base]
        );
    }
}
