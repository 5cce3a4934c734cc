//! The journal of an operation's saga: what was begun, what is done, what was taken back.
//!
//! ```text
//! (none) --begun--> Begun --done--> Done
//!                     \--undone-->  Undone  <--undone--/
//! ```
//! Each call may be repeated: a saga that resumes after a crash does not know how far its last write got.

use crate::{
    StoreError, Tx, View,
    row::{json, named, time, to_json},
};
use jiff::Timestamp;
use offshoot_types::{OperationId, OperationState};
use rusqlite::params;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepState {
    /// It may have acted, in part or in full.
    Begun,
    Done,
    /// Nothing of it is left.
    Undone,
}

impl StepState {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Begun => "begun",
            Self::Done => "done",
            Self::Undone => "undone",
        }
    }

    const fn may_become(self, to: Self) -> bool {
        match (self, to) {
            (Self::Begun, _) => true,
            (Self::Done, Self::Done | Self::Undone) => true,
            (Self::Undone, Self::Undone) => true,
            (Self::Done, Self::Begun) | (Self::Undone, Self::Begun | Self::Done) => false,
        }
    }
}
impl fmt::Display for StepState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Its place in the saga, from 0.
    pub position: u32,
    pub name: String,
    pub state: StepState,
    /// Whatever the step needs to be repeated or undone by another process.
    pub detail: Value,
    pub begun: Timestamp,
    pub updated: Timestamp,
}

impl View<'_> {
    /// The journal of one operation, in the order of the saga.
    pub fn steps(&self, operation: OperationId) -> Result<Vec<Step>, StoreError> {
        let sql = "SELECT position, name, state, detail, begun, updated FROM operation_steps
            WHERE operation = ?1 ORDER BY position";
        self.many("read a saga's journal", sql, params![operation.to_string()], |row| {
            Ok(Step {
                position: row.get("position")?,
                name: row.get("name")?,
                state: named(row, "state")?,
                detail: json(row, "detail")?,
                begun: time(row, "begun")?,
                updated: time(row, "updated")?,
            })
        })
    }
}

impl Tx<'_> {
    /// Journals that a step is about to act; the operation is `Running{name}` from here on. Call it, and await its
    /// answer, before acting.
    pub fn step_begun(
        &self,
        operation: OperationId,
        position: u32,
        name: &str,
        detail: &Value,
    ) -> Result<(), StoreError> {
        self.expect_unfinished(operation)?;
        let found = self.step(operation, position)?;
        if let Some((found_name, state)) = &found
            && (*state != StepState::Begun || found_name != name)
        {
            let found = format!("`{found_name}`, {state}");
            return Err(StoreError::StepOrder { operation, position, found, to: "begun" });
        }
        let sql = "INSERT INTO operation_steps (operation, position, name, state, detail, begun, updated)
            VALUES (?1, ?2, ?3, 'begun', ?4, ?5, ?5)
            ON CONFLICT (operation, position) DO UPDATE SET detail = excluded.detail, updated = excluded.updated";
        let params = params![operation.to_string(), position, name, to_json(detail), self.now_micros()];
        self.execute("journal a step as begun", sql, params)?;
        self.set_state(operation, &OperationState::Running { step: name.into() })
    }

    /// Journals that a step has acted. `detail`, if given, replaces the one it began with.
    pub fn step_done(
        &self,
        operation: OperationId,
        position: u32,
        detail: Option<&Value>,
    ) -> Result<(), StoreError> {
        self.step_becomes(operation, position, StepState::Done, detail)
    }

    /// Journals that nothing of a step is left.
    pub fn step_undone(
        &self,
        operation: OperationId,
        position: u32,
        detail: Option<&Value>,
    ) -> Result<(), StoreError> {
        self.step_becomes(operation, position, StepState::Undone, detail)
    }

    fn step_becomes(
        &self,
        operation: OperationId,
        position: u32,
        to: StepState,
        detail: Option<&Value>,
    ) -> Result<(), StoreError> {
        self.expect_unfinished(operation)?;
        let refused = |found: String| StoreError::StepOrder { operation, position, found, to: to.as_str() };
        match self.step(operation, position)? {
            Some((_, state)) if state.may_become(to) => {}
            Some((name, state)) => return Err(refused(format!("`{name}`, {state}"))),
            None => return Err(refused("not begun".into())),
        }
        let sql = "UPDATE operation_steps SET state = ?3, detail = coalesce(?4, detail), updated = ?5
            WHERE operation = ?1 AND position = ?2";
        let detail = detail.map(to_json);
        let params = params![operation.to_string(), position, to.as_str(), detail, self.now_micros()];
        self.execute("journal a step", sql, params).map(drop)
    }

    fn step(&self, operation: OperationId, position: u32) -> Result<Option<(String, StepState)>, StoreError> {
        let sql = "SELECT name, state FROM operation_steps WHERE operation = ?1 AND position = ?2";
        self.one("read a step", sql, params![operation.to_string(), position], |row| {
            Ok((row.get("name")?, named(row, "state")?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{Fixture, operation};
    use offshoot_types::{OperationKind, OperationOutcome};
    use serde_json::json;

    #[tokio::test]
    async fn a_journal_survives_a_restart_with_what_each_step_needs_to_be_undone() {
        let mut f = Fixture::new();
        let new = operation(OperationKind::Start, None);
        let id = new.id;
        f.store.begin_operation(new).await.unwrap();
        f.store.step_begun(id, 0, "disk", json!({ "path": "disk.qcow2" })).await.unwrap();
        f.store.step_done(id, 0, Some(json!({ "path": "disk.qcow2", "bytes": 7 }))).await.unwrap();
        f.store.step_begun(id, 1, "boot", Value::Null).await.unwrap();
        f.reopen().await;
        let steps = f.store.steps(id).await.unwrap();
        let seen: Vec<_> = steps.iter().map(|s| (s.position, s.name.as_str(), s.state)).collect();
        assert_eq!(seen, [(0, "disk", StepState::Done), (1, "boot", StepState::Begun)]);
        assert_eq!(steps[0].detail["bytes"], 7);
        let running = OperationState::Running { step: "boot".into() };
        assert_eq!(f.store.unfinished_operations().await.unwrap()[0].state, running);
    }

    #[tokio::test]
    async fn every_write_of_the_journal_may_be_repeated_but_not_taken_back() {
        let f = Fixture::new();
        let new = operation(OperationKind::Start, None);
        let id = new.id;
        f.store.begin_operation(new).await.unwrap();
        assert!(
            matches!(f.store.step_done(id, 0, None).await, Err(StoreError::StepOrder { .. })),
            "not begun"
        );
        for _ in 0..2 {
            f.store.step_begun(id, 0, "disk", Value::Null).await.unwrap();
        }
        for _ in 0..2 {
            f.store.step_done(id, 0, None).await.unwrap();
        }
        let redone = f.store.step_begun(id, 0, "disk", Value::Null).await.unwrap_err();
        assert!(redone.to_string().contains("`disk`, done"), "{redone}");
        for _ in 0..2 {
            f.store.step_undone(id, 0, None).await.unwrap();
        }
        assert!(matches!(f.store.step_done(id, 0, None).await, Err(StoreError::StepOrder { .. })));
        f.store.end_operation(id, OperationOutcome::Interrupted { undone: true }).await.unwrap();
        let late = f.store.step_begun(id, 1, "boot", Value::Null).await.unwrap_err();
        assert!(matches!(late, StoreError::OperationEnded { .. }), "{late}");
    }

    #[tokio::test]
    async fn a_step_begun_under_another_name_is_a_defect_not_a_repeat() {
        let f = Fixture::new();
        let new = operation(OperationKind::Start, None);
        let id = new.id;
        f.store.begin_operation(new).await.unwrap();
        f.store.step_begun(id, 0, "disk", Value::Null).await.unwrap();
        assert!(matches!(
            f.store.step_begun(id, 0, "boot", Value::Null).await,
            Err(StoreError::StepOrder { .. })
        ));
    }
}
