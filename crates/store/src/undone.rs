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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::Fixture;
    use jiff::SignedDuration;
    use offshoot_types::{ErrorCode, Failure, OperationKind, OperationOutcome, SnapshotOrigin};

    async fn exec(f: &Fixture, vm: VmId, status: i32) -> OperationId {
        let id = f.begun(OperationKind::Exec, vm).await;
        let ended = move |tx: &Tx<'_>| tx.exec_ended(id, ExecStatus::Exited(status));
        f.store.transaction(ended).await.unwrap();
        f.store.end_operation(id, OperationOutcome::Done).await.unwrap();
        id
    }

    async fn undone(f: &Fixture, vm: VmId) -> Vec<OperationId> {
        f.store.undone(vm).await.unwrap().into_keys().collect()
    }

    async fn rollback(f: &Fixture, vm: VmId, to: SnapshotId) -> SnapshotId {
        let by = f.begun(OperationKind::Rollback, vm).await;
        let left = f.take(vm, SnapshotOrigin::Undo).await;
        f.switch(vm, to, Some(left), by).await;
        left
    }

    async fn good(f: &Fixture, vm: VmId) -> Option<SnapshotId> {
        f.store.read(move |view| view.last_good(vm)).await.unwrap().map(|snapshot| snapshot.id)
    }

    async fn failed(f: &Fixture, vm: VmId) -> Option<OperationId> {
        f.store.read(move |view| view.last_failed_exec(vm)).await.unwrap().map(|(id, _)| id)
    }

    /// Also if the clock stands still or goes back: events tell the order.
    #[tokio::test]
    async fn a_rollback_marks_what_it_takes_back_and_undo_and_redo_tell_it_truly() {
        let f = Fixture::new();
        let (vm, _) = f.stopped("a").await;
        let before = exec(&f, vm, 0).await;
        let s = f.take(vm, SnapshotOrigin::Manual).await;
        let one = exec(&f, vm, 0).await;
        f.clock.advance(SignedDuration::from_hours(-1));
        let left_one = rollback(&f, vm, s).await;
        assert_eq!(undone(&f, vm).await, [one]);
        let two = exec(&f, vm, 0).await;
        let left_two = rollback(&f, vm, left_one).await;
        assert_eq!(
            undone(&f, vm).await,
            [two],
            "undone: the first one is back, the second one is not part of it"
        );
        let left_three = rollback(&f, vm, left_two).await;
        assert_eq!(undone(&f, vm).await, [one], "redone");
        rollback(&f, vm, left_three).await;
        assert_eq!(undone(&f, vm).await, [two]);
        rollback(&f, vm, s).await;
        assert_eq!(undone(&f, vm).await, [one, two]);
        let by = f.store.undone(vm).await.unwrap();
        assert_ne!(by[&one], by[&two], "each with what took it back");
        assert!(f.store.operation(before).await.unwrap().is_some(), "nothing is deleted");
        assert!(!undone(&f, vm).await.contains(&before));
    }

    #[tokio::test]
    async fn the_winner_of_a_race_holds_what_was_done_before_the_race() {
        let f = Fixture::new();
        let ((vm, _), (racer, _)) = (f.stopped("a").await, f.stopped("a-1").await);
        let before = exec(&f, vm, 0).await;
        let start = f.take(vm, SnapshotOrigin::Fork).await;
        let won = crate::NewSnapshot { parent: Some(start), ..f.to_take(racer, SnapshotOrigin::Fork).await };
        let won = f.add(won).await.unwrap();
        let after = exec(&f, vm, 0).await;
        f.switch(vm, won, None, f.begun(OperationKind::Race, vm).await).await;
        assert_eq!(undone(&f, vm).await, [after]);
        assert!(f.store.undone(racer).await.unwrap().is_empty());
        assert!(f.store.operation(before).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn the_last_good_state_is_before_the_failure_and_never_one_that_was_left() {
        let f = Fixture::new();
        let (vm, _) = f.stopped("a").await;
        assert_eq!(good(&f, vm).await, None);
        let first = f.take(vm, SnapshotOrigin::Manual).await;
        assert_eq!(good(&f, vm).await, Some(first), "nothing failed: the newest");
        exec(&f, vm, 0).await;
        assert_eq!(failed(&f, vm).await, None);
        let second = f.take(vm, SnapshotOrigin::Auto).await;
        let failing = exec(&f, vm, 1).await;
        assert_eq!(failed(&f, vm).await, Some(failing));
        f.take(vm, SnapshotOrigin::Auto).await;
        assert_eq!(good(&f, vm).await, Some(second), "not the one that was taken of what the failure left");

        rollback(&f, vm, second).await;
        assert_eq!(failed(&f, vm).await, None, "it was taken back");
        let again = f.begun(OperationKind::Exec, vm).await;
        let failure = Failure::new(ErrorCode::Guest, "gone");
        f.store.end_operation(again, OperationOutcome::Failed { failure }).await.unwrap();
        assert_eq!(failed(&f, vm).await, Some(again));
        assert_eq!(good(&f, vm).await, Some(second), "what the rollback left is newer, and failed");
        f.store.snapshot_damaged(second).await.unwrap();
        assert_eq!(good(&f, vm).await, Some(first));
    }

    #[tokio::test]
    async fn an_exec_that_is_not_recorded_has_no_status() {
        let f = Fixture::new();
        let nobody = OperationId::new();
        let ended = move |tx: &Tx<'_>| tx.exec_ended(nobody, ExecStatus::TimedOut);
        assert!(matches!(f.store.transaction(ended).await, Err(StoreError::NotFound { .. })));
    }
}
