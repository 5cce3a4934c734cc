//! Which snapshots nobody asked for, nobody needs and nobody will miss.

use crate::{
    Keep, SnapshotRecord, StoreError, View,
    retention::{DAY, count_bound},
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
}

impl Default for SnapshotRetention {
    fn default() -> Self {
        let newest =
            |days: u32, count| Keep { max_age: Some(DAY.saturating_mul(days)), max_count: Some(count) };
        Self { auto: newest(7, 20), undo: newest(7, 5), fork: newest(1, 2), suspend: newest(1, 1) }
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
}

fn before(now: Timestamp, age: Option<Duration>) -> i64 {
    let age = age.and_then(|age| i64::try_from(age.as_micros()).ok());
    age.map_or(i64::MIN, |age| now.as_microsecond().saturating_sub(age))
}
