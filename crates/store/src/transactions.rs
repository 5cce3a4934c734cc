//! Transactions: spans of changes to one VM that are kept or undone as a whole, and the savepoints within them.
//!
//! ```text
//! begin --> Open --commit--------------------------> Committed
//!             \--rolling_back--> RollingBack --ended--> RolledBack     (tried again until it has succeeded)
//! ```
//! They nest as a stack: only the innermost open one can have a savepoint, and what ends one ends all within it.

use crate::{
    StoreError, Tx, View, VmRecord,
    note::Subject,
    row::{json, named, parsed, parsed_option, time, time_option, to_json},
};
use jiff::Timestamp;
use offshoot_types::{
    Actor, EventKind, Labels, NodeName, OperationId, Owner, SnapshotId, TransactionEnd, TransactionId,
    TransactionState, VmId,
};
use rusqlite::{Row, params};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTransaction {
    pub id: TransactionId,
    pub owner: Owner,
    pub node: NodeName,
    pub vm: VmId,
    /// Of a savepoint: the innermost open transaction of its VM.
    pub parent: Option<TransactionId>,
    pub operation: OperationId,
    /// What it goes back to.
    pub snapshot: SnapshotId,
    /// When it is rolled back if it has not ended by itself.
    pub deadline: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransactionRecord {
    pub id: TransactionId,
    pub owner: Owner,
    pub labels: Labels,
    pub node: NodeName,
    pub vm: VmId,
    pub parent: Option<TransactionId>,
    pub operation: OperationId,
    pub snapshot: SnapshotId,
    pub deadline: Timestamp,
    pub state: TransactionState,
    /// `None` while it owns its VM.
    pub end: Option<TransactionEnd>,
    pub begun: Timestamp,
    pub ended: Option<Timestamp>,
}

const COLUMNS: &str =
    "id, owner, labels, node, vm, parent, operation, snapshot, deadline, state, end, begun, ended";

fn from_row(row: &Row<'_>) -> Result<TransactionRecord, rusqlite::Error> {
    let end: Option<String> = row.get("end")?;
    Ok(TransactionRecord {
        id: parsed(row, "id")?,
        owner: parsed(row, "owner")?,
        labels: json(row, "labels")?,
        node: parsed(row, "node")?,
        vm: parsed(row, "vm")?,
        parent: parsed_option(row, "parent")?,
        operation: parsed(row, "operation")?,
        snapshot: parsed(row, "snapshot")?,
        deadline: time(row, "deadline")?,
        state: named(row, "state")?,
        end: end.map(|_| json(row, "end")).transpose()?,
        begun: time(row, "begun")?,
        ended: time_option(row, "ended")?,
    })
}

impl View<'_> {
    pub fn transaction(&self, id: TransactionId) -> Result<Option<TransactionRecord>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM transactions WHERE id = ?1");
        self.one("read a transaction", &sql, params![id.to_string()], from_row)
    }

    /// The transactions that own a VM, outermost first; those that are being rolled back still do.
    pub fn open_transactions(&self, vm: VmId) -> Result<Vec<TransactionRecord>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM transactions WHERE vm = ?1 AND end IS NULL ORDER BY event");
        self.many("list a VM's open transactions", &sql, params![vm.to_string()], from_row)
    }

    /// Those of all VMs, each outermost first: what a starting daemon must roll back.
    pub fn all_open_transactions(&self) -> Result<Vec<TransactionRecord>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM transactions WHERE end IS NULL ORDER BY event");
        self.many("list open transactions", &sql, [], from_row)
    }

    /// All transactions of a VM, oldest first.
    pub fn transactions(&self, vm: VmId) -> Result<Vec<TransactionRecord>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM transactions WHERE vm = ?1 ORDER BY event");
        self.many("list a VM's transactions", &sql, params![vm.to_string()], from_row)
    }

    fn expect_transaction(&self, id: TransactionId) -> Result<TransactionRecord, StoreError> {
        self.transaction(id)?.ok_or_else(|| StoreError::NotFound { what: "transaction", id: id.to_string() })
    }
}

impl Tx<'_> {
    /// Opens a transaction, or a savepoint within the innermost open one. From here on it owns its VM. Repeating it changes
    /// nothing.
    pub fn begin_transaction(&self, new: &NewTransaction) -> Result<(), StoreError> {
        if let Some(found) = self.transaction(new.id)? {
            let same = (found.vm, found.snapshot, found.parent) == (new.vm, new.snapshot, new.parent);
            let detail = format!("{} is recorded already, as another", new.id);
            return if same { Ok(()) } else { Err(StoreError::Invalid { what: "transaction", detail }) };
        }
        let vm = self.expect_vm(new.vm)?;
        self.expect_usable_snapshot(new.snapshot)?;
        let innermost = self.open_transactions(new.vm)?.into_iter().next_back();
        match (innermost, new.parent) {
            (None, None) => {}
            (Some(open), Some(parent)) if open.id == parent && open.state == TransactionState::Open => {}
            (Some(open), _) => {
                let (transaction, deadline) = (open.id, open.deadline);
                return Err(StoreError::InTransaction { vm: new.vm, transaction, deadline });
            }
            (None, Some(parent)) => {
                self.expect_transaction(parent)?;
                return Err(StoreError::TransactionEnded { transaction: parent });
            }
        }
        let actor = self.actor_of(new.operation)?;
        let kind = EventKind::TransactionBegun { transaction: new.id };
        let detail = format!("on `{}`, from snapshot {}, until {}", vm.name, new.snapshot, new.deadline);
        let subject = Subject { vm: &vm, operation: Some(new.operation), actor: &actor };
        let event = self.note(&subject, kind, "transaction-begun", new.id.to_string(), detail)?;
        let sql =
            "INSERT INTO transactions (id, owner, labels, node, vm, parent, operation, snapshot, deadline,
                state, begun, event)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, 'open', ?10, ?11)";
        let params = params![
            new.id.to_string(),
            new.owner.as_str(),
            to_json(&Labels::new()),
            new.node.as_str(),
            new.vm.to_string(),
            new.parent.map(|parent| parent.to_string()),
            new.operation.to_string(),
            new.snapshot.to_string(),
            new.deadline.as_microsecond(),
            self.now_micros(),
            event.0,
        ];
        self.execute("record a transaction", sql, params).map(drop)
    }

    /// It, and every savepoint within it, is to be rolled back from here on, whatever happens in between. Repeating it
    /// changes nothing.
    pub fn transaction_rolling_back(&self, id: TransactionId) -> Result<(), StoreError> {
        let transaction = self.expect_transaction(id)?;
        if transaction.end.is_some() {
            return Err(StoreError::TransactionEnded { transaction: id });
        }
        for within in self.innermost_first(&transaction)? {
            let sql = "UPDATE transactions SET state = 'rolling-back' WHERE id = ?1";
            self.execute("begin to roll a transaction back", sql, params![within.id.to_string()])?;
        }
        Ok(())
    }

    /// Ends it, and first every savepoint within it, in the same way. Repeating it with the same end changes nothing. One
    /// that is being rolled back cannot be committed any more.
    pub fn end_transaction(&self, id: TransactionId, end: &TransactionEnd) -> Result<(), StoreError> {
        let transaction = self.expect_transaction(id)?;
        match &transaction.end {
            Some(found) if found == end => return Ok(()),
            Some(_) => return Err(StoreError::TransactionEnded { transaction: id }),
            None => {}
        }
        if transaction.state == TransactionState::RollingBack && *end == TransactionEnd::Committed {
            let detail = format!("{id} is being rolled back");
            return Err(StoreError::Invalid { what: "transaction", detail });
        }
        let vm = self.expect_vm(transaction.vm)?;
        for within in self.innermost_first(&transaction)? {
            self.close_transaction(&vm, &within, end)?;
        }
        Ok(())
    }

    /// Ends all of a VM, innermost first.
    pub(crate) fn end_transactions_of(&self, vm: &VmRecord, end: &TransactionEnd) -> Result<(), StoreError> {
        for transaction in self.open_transactions(vm.id)?.iter().rev() {
            self.close_transaction(vm, transaction, end)?;
        }
        Ok(())
    }

    /// A transaction and those within it, innermost first.
    fn innermost_first(&self, outer: &TransactionRecord) -> Result<Vec<TransactionRecord>, StoreError> {
        let mut open = self.open_transactions(outer.vm)?;
        let from = open.iter().position(|transaction| transaction.id == outer.id).unwrap_or(open.len());
        let mut within = open.split_off(from);
        within.reverse();
        Ok(within)
    }

    fn close_transaction(
        &self,
        vm: &VmRecord,
        transaction: &TransactionRecord,
        end: &TransactionEnd,
    ) -> Result<(), StoreError> {
        let (state, detail) = match end {
            TransactionEnd::Committed => ("committed", "committed".to_owned()),
            TransactionEnd::RolledBack { cause } => ("rolled-back", format!("rolled back: {cause}")),
        };
        let sql = "UPDATE transactions SET state = ?2, end = ?3, ended = ?4 WHERE id = ?1";
        let params = params![transaction.id.to_string(), state, to_json(end), self.now_micros()];
        self.execute("end a transaction", sql, params)?;
        let actor = self.actor_of(transaction.operation)?;
        let kind = EventKind::TransactionEnded { transaction: transaction.id, end: end.clone() };
        let subject = Subject { vm, operation: Some(transaction.operation), actor: &actor };
        self.note(&subject, kind, "transaction-ended", transaction.id.to_string(), detail).map(drop)
    }

    fn actor_of(&self, operation: OperationId) -> Result<Actor, StoreError> {
        let found = self.operation(operation)?.map(|operation| operation.actor);
        found.ok_or_else(|| StoreError::NotFound { what: "operation", id: operation.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Retention, fixture::Fixture};
    use jiff::SignedDuration;
    use offshoot_types::{
        ErrorCode, OperationKind, OperationOutcome, RollbackCause, SnapshotOrigin, VmState,
    };

    const CRASHED: TransactionEnd = TransactionEnd::RolledBack { cause: RollbackCause::GuestCrashed };

    async fn new(f: &Fixture, vm: VmId, parent: Option<TransactionId>) -> NewTransaction {
        NewTransaction {
            id: TransactionId::new(),
            owner: Owner::default(),
            node: NodeName::default(),
            vm,
            parent,
            operation: f.begun(OperationKind::Transaction, vm).await,
            snapshot: f.take(vm, SnapshotOrigin::Auto).await,
            deadline: Timestamp::from_second(1_700_000_100).unwrap(),
        }
    }

    async fn begin(f: &Fixture, vm: VmId, parent: Option<TransactionId>) -> TransactionId {
        let new = new(f, vm, parent).await;
        let id = new.id;
        for _ in 0..2 {
            f.store.begin_transaction(new.clone()).await.unwrap();
        }
        id
    }

    async fn state(f: &Fixture, id: TransactionId) -> TransactionState {
        f.store.transaction_record(id).await.unwrap().unwrap().state
    }

    #[tokio::test]
    async fn an_open_transaction_owns_its_vm_and_only_the_innermost_has_savepoints() {
        let mut f = Fixture::new();
        let ((a, _), (b, _)) = (f.stopped("a").await, f.stopped("b").await);
        let outer = begin(&f, a, None).await;
        let other = new(&f, a, None).await;
        let refused = f.store.begin_transaction(other).await.unwrap_err();
        assert_eq!(refused.code(), ErrorCode::InTransaction);
        assert_eq!(
            refused.to_string(),
            format!("transaction {outer} owns VM {a} until it ends, 2023-11-14T22:15:00Z at the latest")
        );
        let inner = begin(&f, a, Some(outer)).await;
        let beside = new(&f, a, Some(outer)).await;
        let refused = f.store.begin_transaction(beside).await.unwrap_err();
        assert!(matches!(refused, StoreError::InTransaction { transaction, .. } if transaction == inner));
        let elsewhere = begin(&f, b, None).await;
        f.reopen().await;
        let open: Vec<_> = f.store.open_transactions(a).await.unwrap().into_iter().map(|t| t.id).collect();
        assert_eq!(open, [outer, inner], "outermost first");
        let all: Vec<_> = f.store.all_open_transactions().await.unwrap().into_iter().map(|t| t.id).collect();
        assert_eq!(all, [outer, inner, elsewhere]);

        f.store.end_transaction(inner, TransactionEnd::Committed).await.unwrap();
        let late = new(&f, a, Some(inner)).await;
        assert!(matches!(
            f.store.begin_transaction(late.clone()).await,
            Err(StoreError::InTransaction { transaction, .. }) if transaction == outer
        ));
        f.store.end_transaction(outer, CRASHED).await.unwrap();
        let ended = f.store.begin_transaction(late).await.unwrap_err();
        assert!(
            matches!(ended, StoreError::TransactionEnded { transaction } if transaction == inner),
            "{ended}"
        );
    }

    #[tokio::test]
    async fn what_ends_one_ends_all_within_it_once_and_in_order() {
        let f = Fixture::new();
        let (vm, _) = f.stopped("a").await;
        let outer = begin(&f, vm, None).await;
        let inner = begin(&f, vm, Some(outer)).await;
        let (event, audit) = (*f.store.last_event().borrow(), f.store.audit_head().await.unwrap());
        for _ in 0..2 {
            f.store.end_transaction(outer, CRASHED).await.unwrap();
        }
        let kinds: Vec<_> =
            f.store.events(event, 9).await.unwrap().events.into_iter().map(|event| event.kind).collect();
        let ended = |transaction| EventKind::TransactionEnded { transaction, end: CRASHED };
        assert_eq!(kinds, [ended(inner), ended(outer)]);
        assert_eq!(
            f.store.audit(audit.seq, 9).await.unwrap()[1].entry.detail,
            "rolled back: the guest crashed"
        );
        let record = f.store.transaction_record(outer).await.unwrap().unwrap();
        assert_eq!((record.state, record.end), (TransactionState::RolledBack, Some(CRASHED)));
        assert!(record.ended.is_some());
        let otherwise = f.store.end_transaction(outer, TransactionEnd::Committed).await.unwrap_err();
        assert!(matches!(otherwise, StoreError::TransactionEnded { .. }), "{otherwise}");
        assert_eq!(f.store.open_transactions(vm).await.unwrap(), []);
    }

    #[tokio::test]
    async fn one_that_is_to_be_rolled_back_still_owns_its_vm_and_is_never_committed() {
        let mut f = Fixture::new();
        let (vm, _) = f.stopped("a").await;
        let outer = begin(&f, vm, None).await;
        let inner = begin(&f, vm, Some(outer)).await;
        for _ in 0..2 {
            f.store.transaction_rolling_back(outer).await.unwrap();
        }
        f.reopen().await;
        assert_eq!(state(&f, inner).await, TransactionState::RollingBack);
        assert_eq!(f.store.all_open_transactions().await.unwrap().len(), 2);
        let within = new(&f, vm, Some(inner)).await;
        assert!(matches!(f.store.begin_transaction(within).await, Err(StoreError::InTransaction { .. })));
        let commit = f.store.end_transaction(outer, TransactionEnd::Committed).await.unwrap_err();
        assert!(matches!(commit, StoreError::Invalid { what: "transaction", .. }), "{commit}");
        f.store.end_transaction(outer, CRASHED).await.unwrap();
        let again = f.store.transaction_rolling_back(outer).await.unwrap_err();
        assert!(matches!(again, StoreError::TransactionEnded { .. }), "{again}");
    }

    #[tokio::test]
    async fn a_savepoint_ends_alone() {
        let f = Fixture::new();
        let (vm, _) = f.stopped("a").await;
        let outer = begin(&f, vm, None).await;
        let inner = begin(&f, vm, Some(outer)).await;
        f.store.end_transaction(inner, CRASHED).await.unwrap();
        assert_eq!(state(&f, outer).await, TransactionState::Open);
        begin(&f, vm, Some(outer)).await;
    }

    #[tokio::test]
    async fn the_end_of_a_vm_ends_its_transactions_and_history_goes_when_their_operations_do() {
        let f = Fixture::new();
        let (vm, at) = f.stopped("a").await;
        let outer = begin(&f, vm, None).await;
        let inner = begin(&f, vm, Some(outer)).await;
        let operations = f.store.unfinished_operations().await.unwrap();
        for operation in operations {
            f.store.end_operation(operation.id, OperationOutcome::Done).await.unwrap();
        }
        f.clock.advance(SignedDuration::from_hours(24 * 365));
        let pruned = f.store.prune(Retention::default()).await.unwrap();
        assert_eq!(pruned.operations, 1, "the create; what owns a VM stays with its operation");
        f.go(vm, at, VmState::Destroyed).await.unwrap();
        assert_eq!(f.store.all_open_transactions().await.unwrap(), []);
        for snapshot in f.store.snapshots(Some(vm)).await.unwrap() {
            f.remove(snapshot.id).await.unwrap();
        }
        let pruned = f.store.prune(Retention::default()).await.unwrap();
        assert_eq!((pruned.operations, pruned.vms), (2, 1));
        assert_eq!(f.store.transaction_record(inner).await.unwrap(), None);
    }
}
