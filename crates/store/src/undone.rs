//! History keeps what was undone, and says so.
//!
//! An operation is part of a state if it began before the state was kept and had not been taken back by then. Told by
//! the order of events, this holds for a rollback, for the undo of a rollback, and for the undo of that.

use crate::{
    SnapshotRecord, StoreError, Tx, View,
    row::{parsed, time, to_json},
};
use jiff::Timestamp;
use offshoot_types::{EventId, ExecStatus, OperationId, SnapshotId, SnapshotState, VmId};
use rusqlite::params;
use std::collections::BTreeMap;

/// Operations that change what is in a VM.
const CHANGES: &str = "kind IN ('exec', 'write-files', 'context', 'transaction', 'race')";

impl View<'_> {
    /// The operations of a VM that its present state does not hold, each with the one that took it back.
    pub fn undone(&self, vm: VmId) -> Result<BTreeMap<OperationId, OperationId>, StoreError> {
        let sql =
            "SELECT operation, undone_by FROM undone_operations JOIN operations ON operations.id = operation
            WHERE operations.vm = ?1 AND until IS NULL";
        let undone = self.many("list undone operations", sql, params![vm.to_string()], |row| {
            Ok((parsed(row, "operation")?, parsed(row, "undone_by")?))
        })?;
        Ok(undone.into_iter().collect())
    }

    /// The most recent exec of a VM that failed and was not undone, and when it began. It failed if it could not be
    /// carried out, or if [`Tx::exec_ended`] was told another status than success.
    pub fn last_failed_exec(&self, vm: VmId) -> Result<Option<(OperationId, Timestamp)>, StoreError> {
        Ok(self.failed_exec(vm)?.map(|(id, created, _)| (id, created)))
    }

    fn failed_exec(&self, vm: VmId) -> Result<Option<(OperationId, Timestamp, EventId)>, StoreError> {
        let sql = "SELECT id, created, begun FROM operations
            WHERE vm = ?1 AND kind IN ('exec', 'context')
                AND NOT EXISTS (SELECT 1 FROM undone_operations WHERE operation = operations.id AND until IS NULL)
                AND coalesce(exec_status <> ?2, state ->> '$.outcome.outcome' = 'failed')
            ORDER BY begun DESC LIMIT 1";
        let params = params![vm.to_string(), to_json(&ExecStatus::Exited(0))];
        self.one("find the last failed exec", sql, params, |row| {
            Ok((parsed(row, "id")?, time(row, "created")?, EventId(row.get("begun")?)))
        })
    }

    /// The newest state a VM went through before its most recent failed exec began; without a failed exec, the newest
    /// one. States it has left by a rollback are not among them: one of them may be the failed one.
    pub fn last_good(&self, vm: VmId) -> Result<Option<SnapshotRecord>, StoreError> {
        let before = self.failed_exec(vm)?.map_or(EventId(u64::MAX), |(_, _, begun)| begun);
        let mut at = self.expect_vm(vm)?.position;
        while let Some(id) = at {
            let snapshot = self.expect_snapshot(id)?;
            if snapshot.taken < before && snapshot.state != SnapshotState::Damaged {
                return Ok(Some(snapshot));
            }
            at = snapshot.parent;
        }
        Ok(None)
    }

    /// The place in the order of events up to which a VM's own operations are part of a snapshot. A snapshot of another
    /// VM (the winner of a race, what a fork was made from) holds those up to the nearest one before it that is of this
    /// VM, or none.
    fn holds_up_to(&self, vm: VmId, snapshot: SnapshotId) -> Result<EventId, StoreError> {
        let mut at = Some(snapshot);
        while let Some(id) = at {
            let snapshot = self.expect_snapshot(id)?;
            if snapshot.vm == vm {
                return Ok(snapshot.taken);
            }
            at = snapshot.parent;
        }
        Ok(EventId(0))
    }
}

impl Tx<'_> {
    /// Notes how the process of an exec ended.
    pub fn exec_ended(&self, operation: OperationId, status: ExecStatus) -> Result<(), StoreError> {
        let sql = "UPDATE operations SET exec_status = ?2 WHERE id = ?1";
        match self.execute("note an exec's status", sql, params![operation.to_string(), to_json(&status)])? {
            0 => Err(StoreError::NotFound { what: "operation", id: operation.to_string() }),
            _ => Ok(()),
        }
    }

    /// Marks what the state `to` does not hold as undone by `by`, and what it does hold as undone no more. Returns the
    /// operations newly marked, oldest first. Call it in the transaction of the switch to `to`.
    pub fn mark_undone(
        &self,
        vm: VmId,
        to: SnapshotId,
        by: OperationId,
    ) -> Result<Vec<OperationId>, StoreError> {
        let up_to = self.holds_up_to(vm, to)?;
        // After all that was kept so far, before all that will be.
        let now = self.last_event()?.0 + 1;
        let (vm, by) = (vm.to_string(), by.to_string());
        let held = "begun <= ?2 AND NOT EXISTS (SELECT 1 FROM undone_operations AS span
            WHERE span.operation = operations.id AND since <= ?2 AND (until IS NULL OR until > ?2))";
        let sql = format!(
            "UPDATE undone_operations SET until = ?3 WHERE until IS NULL
                AND operation IN (SELECT id FROM operations WHERE vm = ?1 AND {held})"
        );
        self.execute("take back marks of undone operations", &sql, params![vm, up_to.0, now])?;
        let sql = format!(
            "SELECT id FROM operations WHERE vm = ?1 AND NOT ({held}) AND id <> ?3 AND {CHANGES}
                AND NOT EXISTS (SELECT 1 FROM undone_operations WHERE operation = id AND until IS NULL)
             ORDER BY begun"
        );
        let marked: Vec<OperationId> =
            self.many("find undone operations", &sql, params![vm, up_to.0, by], |row| parsed(row, "id"))?;
        for operation in &marked {
            let sql = "INSERT INTO undone_operations (operation, undone_by, since) VALUES (?1, ?2, ?3)";
            self.execute("mark an undone operation", sql, params![operation.to_string(), by, now])?;
        }
        Ok(marked)
    }
}
