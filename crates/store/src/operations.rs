//! Operations: journaled with their decision before anything is done, closed with their outcome.
//!
//! ```text
//! begin --> Pending ---> Running{step} ---> Ended{Done | Failed | Interrupted}
//!    \--> Waiting --release--^
//! ```

use crate::{
    AuditDecision, AuditEntry, NewEvent, StoreError, Tx, View,
    row::{json, named, parsed, parsed_option, time, to_json, to_name},
};
use offshoot_types::{
    Actor, EventKind, Labels, NodeName, Operation, OperationId, OperationKind, OperationOutcome,
    OperationState, Owner, RequestId, VmId, VmName,
};
use rusqlite::{Row, params};
use serde::Serialize;

/// An operation to be begun, with the decision that allowed it.
#[derive(Debug, Clone)]
pub struct NewOperation {
    pub id: OperationId,
    pub kind: OperationKind,
    pub owner: Owner,
    pub labels: Labels,
    pub node: NodeName,
    pub vm: Option<VmId>,
    pub actor: Actor,
    pub reason: String,
    /// Begins as `Waiting` for this instead of `Pending`.
    pub obligation: Option<String>,
    pub idempotency: Option<Idempotency>,
    /// The request with an idempotency key in whose name it is done.
    pub request: Option<RequestId>,
    pub audit: AuditEntry,
}

/// A caller's key for one request: the same key with the same request is the same operation, for as long as the
/// operation is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idempotency {
    key: String,
    request: [u8; 32],
}

impl Idempotency {
    pub const MAX_KEY: usize = 255;

    /// `request` is whatever makes two requests the same to the caller: usually the wire type.
    pub fn new(key: impl Into<String>, request: &impl Serialize) -> Result<Self, StoreError> {
        let key = key.into();
        let invalid = |detail: String| StoreError::Invalid { what: "request key", detail };
        if key.is_empty() || key.len() > Self::MAX_KEY || key.chars().any(char::is_control) {
            return Err(invalid(format!("use 1 to {} bytes of printable text", Self::MAX_KEY)));
        }
        let request = serde_json::to_vec(request).map_err(|error| invalid(error.to_string()))?;
        Ok(Self { key, request: *blake3::hash(&request).as_bytes() })
    }
    pub fn key(&self) -> &str {
        &self.key
    }
}

/// What [`Tx::begin_operation`] found or made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Begun {
    New(Operation),
    /// The same request was made before; this is its operation as it stands now.
    Repeated(Operation),
}

impl Begun {
    pub const fn operation(&self) -> &Operation {
        match self {
            Self::New(operation) | Self::Repeated(operation) => operation,
        }
    }
    pub fn into_operation(self) -> Operation {
        match self {
            Self::New(operation) | Self::Repeated(operation) => operation,
        }
    }
}

/// Which operations to list; `None` means any.
#[derive(Debug, Clone, Default)]
pub struct OperationFilter {
    pub owner: Option<Owner>,
    pub vm: Option<VmId>,
    /// Only operations begun before this one, for paging backwards.
    pub before: Option<OperationId>,
}

pub(crate) const COLUMNS: &str =
    "id, kind, vm, actor, reason, state, created, updated, (SELECT undone_by FROM undone_operations
     WHERE operation = operations.id AND until IS NULL) AS undone_by";

pub(crate) fn from_row(row: &Row<'_>) -> Result<Operation, rusqlite::Error> {
    Ok(Operation {
        id: parsed(row, "id")?,
        kind: named(row, "kind")?,
        vm: parsed_option(row, "vm")?,
        actor: json(row, "actor")?,
        reason: row.get("reason")?,
        state: json(row, "state")?,
        undone_by: parsed_option(row, "undone_by")?,
        created: time(row, "created")?,
        updated: time(row, "updated")?,
    })
}

const fn phase(state: &OperationState) -> &'static str {
    match state {
        OperationState::Pending => "pending",
        OperationState::Waiting { .. } => "waiting",
        OperationState::Running { .. } => "running",
        OperationState::Ended { .. } => "ended",
    }
}

impl View<'_> {
    pub fn operation(&self, id: OperationId) -> Result<Option<Operation>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM operations WHERE id = ?1");
        self.one("read an operation", &sql, params![id.to_string()], from_row)
    }

    /// The newest `limit` operations that match, newest first.
    pub fn operations(&self, filter: &OperationFilter, limit: u32) -> Result<Vec<Operation>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM operations
             WHERE (?1 IS NULL OR owner = ?1) AND (?2 IS NULL OR vm = ?2) AND (?3 IS NULL OR id < ?3)
             ORDER BY id DESC LIMIT ?4"
        );
        let params = params![
            filter.owner.as_ref().map(Owner::as_str),
            filter.vm.map(|vm| vm.to_string()),
            filter.before.map(|id| id.to_string()),
            limit,
        ];
        self.many("list operations", &sql, params, from_row)
    }

    /// Operations without an outcome, oldest first: what a starting daemon must complete or take back.
    pub fn unfinished_operations(&self) -> Result<Vec<Operation>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM operations WHERE phase <> 'ended' ORDER BY id");
        self.many("list unfinished operations", &sql, [], from_row)
    }

    pub(crate) fn expect_unfinished(&self, id: OperationId) -> Result<Operation, StoreError> {
        match self.operation(id)? {
            None => Err(StoreError::NotFound { what: "operation", id: id.to_string() }),
            Some(Operation { state: OperationState::Ended { .. }, .. }) => {
                Err(StoreError::OperationEnded { operation: id })
            }
            Some(operation) => Ok(operation),
        }
    }
}

impl Tx<'_> {
    /// Records an operation and the decision that allowed it. Its VM, if it names one, must exist.
    pub fn begin_operation(&self, operation: &NewOperation) -> Result<Begun, StoreError> {
        if let Some(first) = self.repeated(operation)? {
            return Ok(Begun::Repeated(first));
        }
        if let Some(vm) = operation.vm {
            self.expect_vm(vm)?;
        }
        self.insert_operation(operation).map(Begun::New)
    }

    /// Lets a `Waiting` operation go ahead. Repeating it changes nothing.
    pub fn release_operation(&self, id: OperationId) -> Result<(), StoreError> {
        match self.expect_unfinished(id)?.state {
            OperationState::Waiting { .. } => self.set_state(id, &OperationState::Pending),
            OperationState::Pending | OperationState::Running { .. } | OperationState::Ended { .. } => Ok(()),
        }
    }

    /// Closes an operation. Repeating it with the same outcome changes nothing.
    pub fn end_operation(&self, id: OperationId, outcome: &OperationOutcome) -> Result<(), StoreError> {
        let ended = OperationState::Ended { outcome: outcome.clone() };
        if self.operation(id)?.is_some_and(|operation| operation.state == ended) {
            return Ok(());
        }
        let operation = self.expect_unfinished(id)?;
        self.set_state(id, &ended)?;
        let (owner, name) = self.whose(&operation)?;
        let event = self.emit(&NewEvent {
            owner,
            vm: operation.vm.zip(name),
            operation: Some(id),
            actor: operation.actor.clone(),
            kind: EventKind::OperationEnded { kind: operation.kind, outcome: outcome.clone() },
        })?;
        self.end_history(&operation, outcome, event)?;
        let target = operation.vm.map_or_else(|| "daemon".to_owned(), |vm| vm.to_string());
        let detail = match outcome {
            OperationOutcome::Done => format!("{}: done", operation.kind),
            OperationOutcome::Failed { failure } => {
                format!("{}: failed, {}: {failure}", operation.kind, failure.code)
            }
            OperationOutcome::Interrupted { undone: true } => {
                format!("{}: interrupted, undone", operation.kind)
            }
            OperationOutcome::Interrupted { undone: false } => {
                format!("{}: interrupted, completed", operation.kind)
            }
        };
        self.append_audit(
            &AuditEntry {
                actor: operation.actor,
                action: "operation-ended".into(),
                target,
                decision: AuditDecision::Recorded,
                rules: Vec::new(),
                revision: String::new(),
                detail,
            },
            Some(id),
        )?;
        Ok(())
    }

    pub(crate) fn set_state(&self, id: OperationId, state: &OperationState) -> Result<(), StoreError> {
        let sql = "UPDATE operations SET phase = ?2, state = ?3, updated = ?4 WHERE id = ?1";
        let params = params![id.to_string(), phase(state), to_json(state), self.now_micros()];
        self.execute("update an operation", sql, params).map(drop)
    }

    /// The operation that an equal request with the same key began, if any.
    pub(crate) fn repeated(&self, operation: &NewOperation) -> Result<Option<Operation>, StoreError> {
        let Some(Idempotency { key, request }) = &operation.idempotency else { return Ok(None) };
        let sql =
            format!("SELECT {COLUMNS}, request_digest FROM operations WHERE owner = ?1 AND request_key = ?2");
        let first = self.one("find a request key", &sql, params![operation.owner.as_str(), key], |row| {
            Ok((from_row(row)?, row.get::<_, [u8; 32]>("request_digest")?))
        })?;
        match first {
            None => Ok(None),
            Some((first, digest)) if digest == *request && first.kind == operation.kind => Ok(Some(first)),
            Some((first, _)) => Err(StoreError::KeyReused { key: key.clone(), operation: first.id }),
        }
    }

    pub(crate) fn insert_operation(&self, new: &NewOperation) -> Result<Operation, StoreError> {
        let state = match &new.obligation {
            None => OperationState::Pending,
            Some(obligation) => OperationState::Waiting { obligation: obligation.clone() },
        };
        let sql = "INSERT INTO operations (id, owner, labels, node, kind, vm, actor, reason, phase, state,
                request_key, request_digest, created, updated, request)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?13, ?14)";
        let params = params![
            new.id.to_string(),
            new.owner.as_str(),
            to_json(&new.labels),
            new.node.as_str(),
            to_name(&new.kind),
            new.vm.map(|vm| vm.to_string()),
            to_json(&new.actor),
            new.reason,
            phase(&state),
            to_json(&state),
            new.idempotency.as_ref().map(|idempotency| &idempotency.key),
            new.idempotency.as_ref().map(|idempotency| idempotency.request),
            self.now_micros(),
            new.request.map(|request| request.to_string()),
        ];
        self.execute("record an operation", sql, params)?;
        self.append_audit(&new.audit, Some(new.id))?;
        let operation = Operation {
            id: new.id,
            kind: new.kind,
            vm: new.vm,
            actor: new.actor.clone(),
            reason: new.reason.clone(),
            state,
            undone_by: None,
            created: self.now(),
            updated: self.now(),
        };
        let (_, name) = self.whose(&operation)?;
        let event = self.emit(&NewEvent {
            owner: new.owner.clone(),
            vm: new.vm.zip(name),
            operation: Some(new.id),
            actor: new.actor.clone(),
            kind: EventKind::OperationStarted { kind: new.kind },
        })?;
        let sql = "UPDATE operations SET begun = ?2 WHERE id = ?1";
        self.execute("place an operation in order", sql, params![new.id.to_string(), event.0])?;
        Ok(operation)
    }

    /// The owner of an operation's events, and the name of its VM.
    fn whose(&self, operation: &Operation) -> Result<(Owner, Option<VmName>), StoreError> {
        let sql = "SELECT operations.owner AS owner, vms.name AS name FROM operations
            LEFT JOIN vms ON vms.id = operations.vm WHERE operations.id = ?1";
        let found = self.one("find an operation's owner", sql, params![operation.id.to_string()], |row| {
            Ok((parsed(row, "owner")?, parsed_option(row, "name")?))
        })?;
        found.ok_or_else(|| StoreError::NotFound { what: "operation", id: operation.id.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{Fixture, new_vm, operation};
    use offshoot_types::{ErrorCode, EventId, Failure};

    fn keyed(operation: NewOperation, key: &str, request: &str) -> NewOperation {
        NewOperation { idempotency: Some(Idempotency::new(key, &request).unwrap()), ..operation }
    }

    #[tokio::test]
    async fn a_repeated_create_returns_the_first_operation_and_makes_nothing() {
        let f = Fixture::new();
        let (one, two) = (new_vm("a"), new_vm("a"));
        let first = keyed(operation(OperationKind::Create, Some(one.id)), "k1", "create a");
        let first = f.store.create_vm(first, one.clone()).await.unwrap().into_operation();
        f.store.end_operation(first.id, OperationOutcome::Done).await.unwrap();
        let again = keyed(operation(OperationKind::Create, Some(two.id)), "k1", "create a");
        let again = f.store.create_vm(again, two.clone()).await.unwrap();
        let Begun::Repeated(again) = again else { panic!("{again:?}") };
        assert_eq!((again.id, again.vm), (first.id, Some(one.id)));
        assert_eq!(again.state, OperationState::Ended { outcome: OperationOutcome::Done });
        assert_eq!(f.store.vms().await.unwrap().len(), 1);

        let other = keyed(operation(OperationKind::Create, Some(two.id)), "k1", "create b");
        let reused = f.store.create_vm(other, two).await.unwrap_err();
        assert!(
            matches!(&reused, StoreError::KeyReused { operation, .. } if *operation == first.id),
            "{reused}"
        );
        let kind = keyed(operation(OperationKind::Stop, Some(one.id)), "k1", "create a");
        assert!(matches!(f.store.begin_operation(kind).await, Err(StoreError::KeyReused { .. })));
    }

    #[test]
    fn a_request_key_is_bounded_printable_text() {
        for bad in ["", "a\nb", &"k".repeat(256)] {
            assert!(Idempotency::new(bad, &()).is_err(), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn an_operation_lives_from_begin_to_end_with_event_and_audit_at_both() {
        let f = Fixture::new();
        let (vm, _) = f.stopped("a").await;
        let (since, audit) = (*f.store.last_event().borrow(), f.store.audit_head().await.unwrap());
        let new = operation(OperationKind::Start, Some(vm));
        let begun = f.store.begin_operation(new.clone()).await.unwrap().into_operation();
        assert_eq!(begun, f.store.operation(new.id).await.unwrap().unwrap());
        f.clock.advance(jiff::SignedDuration::from_secs(1));
        let outcome = OperationOutcome::Failed { failure: Failure::new(ErrorCode::Backend, "no boot") };
        f.store.end_operation(new.id, outcome.clone()).await.unwrap();
        f.store.end_operation(new.id, outcome.clone()).await.unwrap();
        let other = f.store.end_operation(new.id, OperationOutcome::Done).await.unwrap_err();
        assert!(matches!(other, StoreError::OperationEnded { .. }), "an outcome is final: {other}");
        let ended = f.store.operation(new.id).await.unwrap().unwrap();
        assert_eq!(ended.state, OperationState::Ended { outcome: outcome.clone() });
        assert!(ended.updated > ended.created);
        let kinds: Vec<_> =
            f.store.events(since, 9).await.unwrap().events.into_iter().map(|e| e.kind).collect();
        let kind = OperationKind::Start;
        assert_eq!(
            kinds,
            [EventKind::OperationStarted { kind }, EventKind::OperationEnded { kind, outcome }]
        );
        let actions: Vec<_> = f
            .store
            .audit(audit.seq, 9)
            .await
            .unwrap()
            .into_iter()
            .map(|row| (row.entry.action, row.operation))
            .collect();
        assert_eq!(actions, [("start".into(), Some(new.id)), ("operation-ended".into(), Some(new.id))]);
    }

    #[tokio::test]
    async fn an_operation_on_a_vm_that_is_not_there_is_not_begun() {
        let f = Fixture::new();
        let refused = f.store.begin_operation(operation(OperationKind::Start, Some(VmId::new()))).await;
        assert!(matches!(refused, Err(StoreError::NotFound { what: "VM", .. })));
        assert_eq!(f.store.events(EventId(0), 9).await.unwrap().events, []);
        assert_eq!(f.store.audit_head().await.unwrap(), crate::AuditHead::EMPTY);
    }

    #[tokio::test]
    async fn an_operation_with_an_obligation_waits_until_released() {
        let f = Fixture::new();
        let new =
            NewOperation { obligation: Some("approval".into()), ..operation(OperationKind::Exec, None) };
        let begun = f.store.begin_operation(new.clone()).await.unwrap().into_operation();
        assert_eq!(begun.state, OperationState::Waiting { obligation: "approval".into() });
        f.store.release_operation(new.id).await.unwrap();
        f.store.release_operation(new.id).await.unwrap();
        assert_eq!(f.store.operation(new.id).await.unwrap().unwrap().state, OperationState::Pending);
    }

    #[tokio::test]
    async fn operations_are_listed_newest_first_by_vm_and_by_page_and_the_unfinished_oldest_first() {
        let f = Fixture::new();
        let (vm, _) = f.stopped("a").await;
        let mut ids = Vec::new();
        for _ in 0..5 {
            let new = operation(OperationKind::Exec, Some(vm));
            ids.push(new.id);
            f.store.begin_operation(new).await.unwrap();
        }
        f.store.end_operation(ids[1], OperationOutcome::Done).await.unwrap();
        let filter = OperationFilter { vm: Some(vm), before: Some(ids[3]), owner: None };
        let page: Vec<_> = f.store.operations(filter, 2).await.unwrap().into_iter().map(|o| o.id).collect();
        assert_eq!(page, [ids[2], ids[1]]);
        let nobody = OperationFilter { owner: Some("nobody".parse().unwrap()), ..OperationFilter::default() };
        assert_eq!(f.store.operations(nobody, 9).await.unwrap(), []);
        let unfinished: Vec<_> =
            f.store.unfinished_operations().await.unwrap().into_iter().map(|o| o.id).collect();
        assert_eq!(unfinished[1..], [ids[0], ids[2], ids[3], ids[4]], "after the create of the VM itself");
    }
}
