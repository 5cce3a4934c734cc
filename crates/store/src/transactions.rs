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
        for within in self.from_inside(&transaction)? {
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
        for within in self.from_inside(&transaction)? {
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
    fn from_inside(&self, outer: &TransactionRecord) -> Result<Vec<TransactionRecord>, StoreError> {
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
