//! Events: what happened, in order, written by the transaction that made it happen.

use crate::{
    StoreError, Tx, View,
    row::{json, parsed, parsed_option, time, to_json},
};
use offshoot_types::{Actor, Event, EventId, EventKind, OperationId, Owner, VmId, VmName};
use rusqlite::params;

/// An event to be written; state changes and operations write their own.
#[derive(Debug, Clone)]
pub struct NewEvent {
    pub owner: Owner,
    pub vm: Option<(VmId, VmName)>,
    pub operation: Option<OperationId>,
    pub actor: Actor,
    pub kind: EventKind,
}

/// A stretch of events, oldest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventPage {
    pub events: Vec<Event>,
    /// Ask for the next stretch after this one.
    pub last: EventId,
    /// Events after the one asked for were pruned: what the reader derived from events is incomplete, and it must
    /// read the rows afresh.
    pub missed: bool,
}

impl View<'_> {
    pub fn events(&self, after: EventId, limit: u32) -> Result<EventPage, StoreError> {
        let sql = "SELECT id, at, owner, vm, vm_name, operation, actor, kind FROM events
            WHERE id > ?1 ORDER BY id LIMIT ?2";
        // Ids are at most i64::MAX, so an `after` above it is after everything.
        let bound = i64::try_from(after.0).unwrap_or(i64::MAX);
        let events = self.many("read events", sql, params![bound, limit], |row| {
            Ok(Event {
                id: EventId(row.get("id")?),
                at: time(row, "at")?,
                owner: parsed(row, "owner")?,
                vm: parsed_option(row, "vm")?,
                vm_name: parsed_option(row, "vm_name")?,
                operation: parsed_option(row, "operation")?,
                actor: json(row, "actor")?,
                kind: json(row, "kind")?,
            })
        })?;
        let pruned = self.events_pruned_through()?;
        let last = events.last().map_or(after.max(pruned), |event| event.id);
        Ok(EventPage { events, last, missed: after < pruned })
    }

    /// Whether this operation removed a snapshot.
    pub fn has_removed_snapshots(&self, operation: OperationId) -> Result<bool, StoreError> {
        let sql = "SELECT 1 FROM events WHERE operation = ?1 AND json_extract(kind, '$.event') = 'snapshot-removed'";
        let found = self.one("look for removed snapshots", sql, [operation.to_string()], |_| Ok(()))?;
        Ok(found.is_some())
    }

    /// The newest event ever written; `EventId(0)` before the first.
    pub fn last_event(&self) -> Result<EventId, StoreError> {
        let sql = "SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'events'), 0)";
        let last = self.one("find the last event", sql, [], |row| row.get(0).map(EventId))?;
        Ok(last.unwrap_or(EventId(0)))
    }

    pub(crate) fn events_pruned_through(&self) -> Result<EventId, StoreError> {
        let sql = "SELECT through FROM events_pruned";
        let pruned = self.one("find the pruned events", sql, [], |row| row.get(0).map(EventId))?;
        Ok(pruned.unwrap_or(EventId(0)))
    }
}

impl Tx<'_> {
    /// Writes an event that belongs to no state change: guest health, a warning.
    pub fn emit(&self, event: &NewEvent) -> Result<EventId, StoreError> {
        let sql = "INSERT INTO events (at, owner, vm, vm_name, operation, actor, kind)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) RETURNING id";
        let params = params![
            self.now_micros(),
            event.owner.as_str(),
            event.vm.as_ref().map(|(id, _)| id.to_string()),
            event.vm.as_ref().map(|(_, name)| name.as_str()),
            event.operation.map(|id| id.to_string()),
            to_json(&event.actor),
            to_json(&event.kind),
        ];
        let mut statement =
            self.connection.prepare_cached(sql).map_err(|e| self.fault("write an event", e))?;
        let id = statement
            .query_row(params, |row| row.get(0).map(EventId))
            .map_err(|error| self.fault("write an event", error))?;
        self.wrote_event(id);
        Ok(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{Fixture, actor};
    use std::time::Duration;
    use tokio::task::JoinSet;

    fn warning(message: &str) -> NewEvent {
        let kind = EventKind::Warning { message: message.into() };
        NewEvent { owner: Owner::default(), vm: None, operation: None, actor: actor(), kind }
    }

    #[tokio::test]
    async fn events_are_paged_in_order_and_ids_continue_after_a_restart() {
        let mut f = Fixture::new();
        let mut ids = Vec::new();
        for n in 0..5 {
            ids.push(f.store.emit(warning(&n.to_string())).await.unwrap());
        }
        assert!(ids.is_sorted_by(|a, b| a < b));
        let page = f.store.events(ids[1], 2).await.unwrap();
        assert_eq!(page.events.iter().map(|e| e.id).collect::<Vec<_>>(), ids[2..4]);
        assert_eq!((page.last, page.missed), (ids[3], false));
        let end = f.store.events(EventId(u64::MAX), 2).await.unwrap();
        assert_eq!((end.events.len(), end.last), (0, EventId(u64::MAX)));
        f.reopen().await;
        assert_eq!(*f.store.last_event().borrow(), ids[4]);
        assert!(f.store.emit(warning("after")).await.unwrap() > ids[4]);
    }

    #[tokio::test]
    async fn a_waiting_reader_is_woken_by_a_commit_and_then_sees_it() {
        let f = Fixture::new();
        let store = f.store.clone();
        let mut waiting = JoinSet::new();
        waiting.spawn(async move {
            let id = store.wait_for_event(EventId(0)).await.unwrap();
            (id, store.events(EventId(0), 9).await.unwrap().events.len())
        });
        tokio::task::yield_now().await;
        let written = f.store.emit(warning("now")).await.unwrap();
        let seen = tokio::time::timeout(Duration::from_secs(20), waiting.join_next()).await.unwrap();
        assert_eq!(seen.unwrap().unwrap(), (written, 1));
    }

    #[tokio::test]
    async fn the_event_of_a_refused_transaction_is_neither_stored_nor_announced() {
        let f = Fixture::new();
        let refused: Result<(), _> = f
            .store
            .transaction(|tx| {
                tx.emit(&warning("never"))?;
                Err(StoreError::Invalid { what: "test", detail: "no".into() })
            })
            .await;
        assert!(refused.is_err());
        assert_eq!(*f.store.last_event().borrow(), EventId(0));
        assert_eq!(f.store.events(EventId(0), 9).await.unwrap().events, []);
    }
}
