//! Questions to the history. Every condition counts, and the total is of all that match, whatever the page holds.

use crate::{
    HistoryRecord, StoreError, View,
    history::{BYTES, COLUMNS, JOINED, from_row},
};
use jiff::Timestamp;
use offshoot_types::{AgentName, EventId, OperationId, Owner, TransactionId, VmId};
use rusqlite::{params_from_iter, types::Value};
use std::collections::BTreeSet;

/// Which runs; `None` and `false` mean any.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HistoryFilter {
    pub owner: Option<Owner>,
    pub vm: Option<VmId>,
    /// Of VMs whose names begin so.
    pub names_begin: Option<String>,
    pub agent: Option<AgentName>,
    pub transaction: Option<TransactionId>,
    /// Those that have ended without success.
    pub failures: bool,
    /// Those that were taken back, or those that were not.
    pub undone: Option<bool>,
    /// Begun at this time or later, by the clock of the host.
    pub since: Option<Timestamp>,
    /// Begun before this time.
    pub until: Option<Timestamp>,
    /// Only the page that goes on from here: before this one in the order of events. The total does not depend on it.
    pub before: Option<EventId>,
    /// With the bytes of the streams.
    pub output: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryPage {
    /// Newest first.
    pub entries: Vec<HistoryRecord>,
    /// How many match in all, on this page and on others.
    pub total: u64,
}

/// Conditions joined by AND, and their values.
#[derive(Default)]
struct Conditions {
    sql: Vec<&'static str>,
    values: Vec<Value>,
}

impl Conditions {
    fn add(&mut self, sql: &'static str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.sql.push(sql);
            self.values.push(value.into());
        }
    }
    fn only_if(&mut self, wanted: bool, sql: &'static str) {
        if wanted {
            self.sql.push(sql);
        }
    }
    fn joined(&self) -> String {
        if self.sql.is_empty() { "1".into() } else { self.sql.join(" AND ") }
    }
}

/// A place in the order as SQLite counts: what is beyond that is after everything.
fn place(event: EventId) -> i64 {
    i64::try_from(event.0).unwrap_or(i64::MAX)
}

impl HistoryFilter {
    fn conditions(&self) -> Conditions {
        let mut all = Conditions::default();
        all.add("h.owner = ?", self.owner.as_ref().map(|owner| owner.as_str().to_owned()));
        all.add("h.vm = ?", self.vm.map(|vm| vm.to_string()));
        all.add("h.agent = ?", self.agent.as_ref().map(|agent| agent.as_str().to_owned()));
        all.add("h.transaction_id = ?", self.transaction.map(|transaction| transaction.to_string()));
        // A name is of letters, digits, `-` and `_`, of which only the last means something to LIKE.
        all.add(
            r"h.vm_name LIKE replace(?, '_', '\_') || '%' ESCAPE '\'",
            self.names_begin.clone().filter(|begin| !begin.is_empty()),
        );
        all.only_if(self.failures, "h.failed = 1");
        let taken_back =
            "EXISTS (SELECT 1 FROM undone_operations u WHERE u.operation = h.operation AND u.until IS NULL)";
        let kept = "NOT EXISTS (SELECT 1 FROM undone_operations u WHERE u.operation = h.operation AND u.until IS NULL)";
        all.only_if(self.undone == Some(true), taken_back);
        all.only_if(self.undone == Some(false), kept);
        all.add("h.started >= ?", self.since.map(Timestamp::as_microsecond));
        all.add("h.started < ?", self.until.map(Timestamp::as_microsecond));
        all
    }
}

impl View<'_> {
    /// The newest `limit` runs that match, and how many there are in all, in one consistent state.
    pub fn history(&self, filter: &HistoryFilter, limit: u32) -> Result<HistoryPage, StoreError> {
        let mut all = filter.conditions();
        let sql = format!("SELECT count(*) FROM history h WHERE {}", all.joined());
        let total = self
            .one("count the history", &sql, params_from_iter(&all.values), |row| row.get(0))?
            .unwrap_or_default();
        all.add("h.begun < ?", filter.before.map(place));
        let bytes = if filter.output { BYTES } else { "" };
        let sql = format!(
            "SELECT {COLUMNS}{bytes} FROM history h {JOINED} WHERE {} ORDER BY h.begun DESC LIMIT {limit}",
            all.joined()
        );
        let read = |row: &rusqlite::Row<'_>| from_row(row, filter.output);
        let entries = self.many("read the history", &sql, params_from_iter(&all.values), read)?;
        Ok(HistoryPage { entries, total })
    }

    /// Those of these operations that are not, or no longer, in the history.
    pub fn not_in_history(&self, of: &BTreeSet<OperationId>) -> Result<Vec<OperationId>, StoreError> {
        let sql = "SELECT 1 FROM history WHERE operation = ?1";
        let mut gone = Vec::new();
        for id in of {
            if self.one("look into the history", sql, [id.to_string()], |_| Ok(()))?.is_none() {
                gone.push(*id);
            }
        }
        Ok(gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Clock, HistoryEnd, HistoryOutput, HistoryStream, KEPT_TEXT, KEPT_WHAT, Keep, NewHistory, Retention,
        Tx,
        fixture::{Fixture, operation},
    };
    use jiff::SignedDuration;
    use offshoot_types::{
        ErrorCode, ExecStatus, Failure, OperationKind, OperationOutcome, SnapshotOrigin, VmState,
    };
    use std::time::Duration;

    fn new(operation: OperationId, agent: Option<&str>) -> NewHistory {
        NewHistory {
            operation,
            agent: agent.map(|agent| agent.parse().unwrap()),
            what: "make test".into(),
            language: None,
            context: None,
            user: "root".into(),
            cwd: Some("/src".into()),
            transaction: None,
        }
    }

    async fn begun(f: &Fixture, vm: VmId, agent: Option<&str>) -> OperationId {
        let begun = operation(OperationKind::Exec, Some(vm));
        let (id, history) = (begun.id, new(begun.id, agent));
        let work = move |tx: &Tx<'_>| {
            tx.begin_operation(&begun)?;
            tx.begin_history(&history)
        };
        f.store.transaction(work).await.unwrap();
        id
    }

    async fn ended(f: &Fixture, id: OperationId, end: HistoryEnd, status: i32) {
        let work = move |tx: &Tx<'_>| {
            tx.put_history(id, &end)?;
            tx.exec_ended(id, ExecStatus::Exited(status))?;
            tx.end_operation(id, &OperationOutcome::Done)
        };
        f.store.transaction(work).await.unwrap();
    }

    async fn ran(f: &Fixture, vm: VmId, agent: Option<&str>, status: i32) -> OperationId {
        let id = begun(f, vm, agent).await;
        ended(f, id, HistoryEnd::default(), status).await;
        id
    }

    async fn ask(f: &Fixture, filter: HistoryFilter, limit: u32) -> (Vec<OperationId>, u64) {
        let page = f.store.read(move |view| view.history(&filter, limit)).await.unwrap();
        (page.entries.into_iter().map(|entry| entry.operation).collect(), page.total)
    }

    async fn entry(f: &Fixture, id: OperationId) -> HistoryRecord {
        f.store.read(move |view| view.history_entry(id)).await.unwrap().expect("it is in the history")
    }

    #[tokio::test]
    async fn a_run_is_there_from_its_beginning_and_ends_with_its_operation() {
        let mut f = Fixture::new();
        let (vm, _) = f.stopped("a").await;
        let id = begun(&f, vm, Some("planner")).await;
        let open = entry(&f, id).await;
        assert_eq!((open.vm, open.vm_name.as_str(), open.what.as_str()), (vm, "a", "make test"));
        assert_eq!(open.agent.as_ref().map(AgentName::as_str), Some("planner"));
        assert_eq!((open.ended, open.failed, open.duration(), open.output), (None, None, None, None));
        f.clock.advance(SignedDuration::from_secs(3));
        let stream = HistoryStream {
            bytes: 20_000,
            lost: 5,
            file: 19_000,
            hash: Some([7; 32]),
            head: vec![0; 9],
            tail: vec![255],
        };
        let output = HistoryOutput { truncated: true, stdout: stream, stderr: HistoryStream::default() };
        let end = HistoryEnd {
            wall: Some(Duration::from_micros(1_500)),
            output: Some(output.clone()),
            result: Some("é".repeat(KEPT_TEXT)),
            ..HistoryEnd::default()
        };
        ended(&f, id, end, 2).await;
        f.reopen().await;
        let whole = entry(&f, id).await;
        assert_eq!(
            (whole.status, whole.failed, whole.output.as_ref()),
            (Some(ExecStatus::Exited(2)), Some(true), Some(&output))
        );
        assert_eq!(whole.duration(), Some(Duration::from_micros(1_500)), "as the guest measured it");
        assert_eq!(whole.ended.unwrap().duration_since(whole.started), SignedDuration::from_secs(3));
        assert_eq!(whole.result.map(|text| text.len()), Some(KEPT_TEXT), "whole characters");
    }

    #[tokio::test]
    async fn whatever_way_an_operation_ends_its_history_does() {
        let f = Fixture::new();
        let (vm, _) = f.stopped("a").await;
        let failure = Failure::new(ErrorCode::Guest, "gone");
        for (outcome, failed) in [
            (OperationOutcome::Failed { failure }, true),
            (OperationOutcome::Interrupted { undone: false }, true),
        ] {
            let id = begun(&f, vm, None).await;
            f.store.end_operation(id, outcome.clone()).await.unwrap();
            let row = entry(&f, id).await;
            assert_eq!((row.failed, row.ended.is_some()), (Some(failed), true), "{outcome:?}");
        }
        let id = begun(&f, vm, None).await;
        ended(&f, id, HistoryEnd { interrupted: true, ..HistoryEnd::default() }, 0).await;
        assert_eq!(entry(&f, id).await.failed, Some(true), "what was interrupted did not succeed");
        // One that an earlier version began.
        let id = f.begun(OperationKind::Exec, vm).await;
        let end = HistoryEnd { output: Some(HistoryOutput::default()), ..HistoryEnd::default() };
        ended(&f, id, end, 0).await;
        assert_eq!(f.store.read(move |view| view.history_entry(id)).await.unwrap(), None);
    }

    #[tokio::test]
    async fn every_condition_counts_and_the_total_is_that_of_all_pages() {
        let f = Fixture::new();
        let ((a, _), (b, _)) = (f.stopped("a-1").await, f.stopped("a_1").await);
        let start = f.clock.now();
        let mut all = Vec::new();
        for turn in 0..12_i32 {
            let vm = if turn % 2 == 0 { a } else { b };
            let agent = (turn % 3 == 0).then_some("planner");
            all.push(ran(&f, vm, agent, turn % 4).await);
            // Of some the time is the same, and of one it is earlier than that of those before it.
            f.clock.advance(SignedDuration::from_secs(match turn {
                5 => -1,
                turn if turn % 2 == 0 => 0,
                _ => 1,
            }));
        }
        let newest =
            |which: &[usize]| -> Vec<OperationId> { which.iter().rev().map(|at| all[*at]).collect() };
        let any = HistoryFilter::default;
        let every: Vec<usize> = (0..12).collect();
        assert_eq!(ask(&f, any(), 100).await, (newest(&every), 12));
        let (mut seen, mut before) = (Vec::new(), None);
        loop {
            let filter = HistoryFilter { before, ..any() };
            let page = f.store.read(move |view| view.history(&filter, 5)).await.unwrap();
            assert_eq!(page.total, 12, "whatever the page");
            let Some(last) = page.entries.last() else { break };
            before = Some(last.begun);
            seen.extend(page.entries.iter().map(|entry| entry.operation));
        }
        assert_eq!(seen, newest(&every), "each once, equal times or not");
        assert_eq!(ask(&f, HistoryFilter { vm: Some(a), ..any() }, 2).await, (newest(&[8, 10]), 6));
        let planner = Some("planner".parse().unwrap());
        assert_eq!(ask(&f, HistoryFilter { agent: planner.clone(), ..any() }, 9).await.1, 4);
        let failures = HistoryFilter { failures: true, ..any() };
        assert_eq!(ask(&f, failures.clone(), 1).await, (newest(&[11]), 9));
        let both = HistoryFilter { vm: Some(b), agent: planner, ..failures };
        assert_eq!(ask(&f, both, 9).await, (newest(&[3, 9]), 2));
        let underscore = HistoryFilter { names_begin: Some("a_".into()), ..any() };
        assert_eq!(ask(&f, underscore, 9).await.1, 6, "it stands for itself");
        let from = HistoryFilter { since: Some(start + SignedDuration::from_secs(1)), ..any() };
        let to = HistoryFilter { until: Some(start + SignedDuration::from_secs(1)), ..any() };
        assert_eq!(ask(&f, from, 99).await.1 + ask(&f, to, 99).await.1, 12);
        let foreign = HistoryFilter { owner: Some("other".parse().unwrap()), ..any() };
        assert_eq!(ask(&f, foreign, 99).await, (Vec::new(), 0));
    }

    #[tokio::test]
    async fn what_was_taken_back_is_marked_and_its_states_are_those_around_it() {
        let f = Fixture::new();
        let (vm, _) = f.stopped("a").await;
        let unkept = ran(&f, vm, None, 0).await;
        let s = f.take(vm, SnapshotOrigin::Manual).await;
        let one = ran(&f, vm, None, 1).await;
        let two = ran(&f, vm, None, 0).await;
        let states = async |id| {
            let entry = entry(&f, id).await;
            (entry.before, entry.exact, entry.after)
        };
        assert_eq!(states(unkept).await, (None, false, Some(s)));
        assert_eq!(states(one).await, (Some(s), true, None));
        assert_eq!(states(two).await, (Some(s), false, None), "the first one changed it since");
        let by = f.begun(OperationKind::Rollback, vm).await;
        let left = f.take(vm, SnapshotOrigin::Undo).await;
        f.switch(vm, s, Some(left), by).await;
        assert_eq!(states(one).await.2, Some(left), "what the rollback left holds it");
        let three = ran(&f, vm, None, 0).await;
        assert_eq!(states(three).await, (Some(s), true, None), "what was taken back changed nothing");
        let later = f.take(vm, SnapshotOrigin::Manual).await;
        assert_eq!((states(three).await.2, states(two).await.2), (Some(later), Some(left)));
        assert_eq!((entry(&f, one).await.undone_by, entry(&f, three).await.undone_by), (Some(by), None));
        let undone = |undone| HistoryFilter { undone: Some(undone), ..HistoryFilter::default() };
        assert_eq!(ask(&f, undone(true), 9).await, (vec![two, one], 2));
        assert_eq!(ask(&f, undone(false), 9).await, (vec![three, unkept], 2));
        let fourth = ran(&f, vm, None, 0).await;
        assert_eq!(states(fourth).await.0, Some(later));
        f.remove(later).await.unwrap();
        assert_eq!(states(fourth).await, (Some(s), false, None), "the nearest that is still there");
    }

    #[tokio::test]
    async fn retention_lets_the_oldest_go_and_keeps_what_runs() {
        let f = Fixture::new();
        let (vm, at) = f.stopped("a").await;
        let runs = begun(&f, vm, None).await;
        let mut all = Vec::new();
        for _ in 0..4 {
            f.clock.advance(SignedDuration::from_hours(1));
            all.push(ran(&f, vm, None, 0).await);
        }
        f.go(vm, at, VmState::Destroyed).await.unwrap();
        let keep =
            |max_age, max_count| Retention { history: Keep { max_age, max_count }, ..Retention::default() };
        let any = HistoryFilter::default;
        f.store.prune(keep(Some(Duration::from_secs(7200 - 1)), None)).await.unwrap();
        assert_eq!(ask(&f, any(), 9).await, (vec![all[3], all[2], runs], 3));
        f.store.prune(keep(None, Some(1))).await.unwrap();
        assert_eq!(ask(&f, any(), 9).await, (vec![all[3], runs], 2), "of a VM that is gone as of any");
        let (last, known) = (all[3], BTreeSet::from([all[0], all[3]]));
        let gone = f.store.read(move |view| view.not_in_history(&known)).await.unwrap();
        assert_eq!(gone, [all[0]]);
        assert!(f.store.operation(all[0]).await.unwrap().is_some(), "its operation is kept by its own rule");
        f.clock.advance(SignedDuration::from_hours(24 * 40));
        f.store.prune(Retention { history: Keep::default(), ..Retention::default() }).await.unwrap();
        assert_eq!(f.store.read(move |view| view.history_entry(last)).await.unwrap(), None, "goes with it");
    }

    #[tokio::test]
    async fn a_long_command_is_cut_at_a_character_and_says_how_long_it_was() {
        let f = Fixture::new();
        let (vm, _) = f.stopped("a").await;
        let begun = operation(OperationKind::Exec, Some(vm));
        let (id, long) = (begun.id, "é".repeat(KEPT_WHAT));
        let history = NewHistory { what: format!("x{long}"), ..new(id, None) };
        let work = move |tx: &Tx<'_>| {
            tx.begin_operation(&begun)?;
            tx.begin_history(&history)
        };
        f.store.transaction(work).await.unwrap();
        let row = entry(&f, id).await;
        assert_eq!((row.what.len(), row.what_bytes), (KEPT_WHAT - 1, 2 * KEPT_WHAT as u64 + 1));
        let nobody = new(OperationId::new(), None);
        assert!(matches!(
            f.store.transaction(move |tx| tx.begin_history(&nobody)).await,
            Err(StoreError::NotFound { .. })
        ));
    }
}
