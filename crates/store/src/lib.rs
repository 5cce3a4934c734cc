//! The durable record: VMs, operations, saga steps, instances, events and the audit chain, in one SQLite file.
//!
//! ```text
//!  callers --transaction(|tx| ..)--> bounded queue --> writer thread: BEGIN
//!     ^                                                  SAVEPOINT  job 1   (its own failure undoes only itself)
//!     |                                                  SAVEPOINT  job 2
//!     +------------- answered after --------------------- COMMIT + fsync, once for the whole group
//!
//!  callers --read(|view| ..)--> pool of read-only connections: never wait for the writer
//! ```
//! What a caller was told is on disk, unless it asked to be told [early](Store::transaction_early). Every change of a VM's state writes its row, an event and an audit row in
//! one transaction. SQL exists in this crate only; [`Tx`] and [`View`] speak in domain types.
//!
//! The caller holds the lock that makes this process the only daemon of the state directory.

mod audit;
mod audit_chain;
mod blocking;
mod clock;
mod contexts;
mod database;
mod early;
mod error;
mod events;
pub mod fault;
mod history;
mod history_query;
mod instances;
mod keys;
mod layers;
mod ledger;
mod migrations;
mod moves;
mod note;
mod operations;
mod readers;
mod rebase;
mod requests;
mod retention;
mod row;
mod snapshot_removal;
mod snapshot_retention;
mod snapshots;
mod steps;
mod store;
mod switch;
mod transactions;
mod tx;
mod undone;
mod vms;
mod writer;

#[cfg(test)]
mod durability_test;
#[cfg(test)]
mod fixture;
#[cfg(test)]
mod model_test;
#[cfg(test)]
mod upgrade_test;
#[cfg(test)]
mod upkeep_test;

pub use audit::{AuditDecision, AuditEntry, AuditRow};
pub use audit_chain::{AuditFault, AuditHead, AuditReport, AuditVerdict};
pub use blocking::{block_in_place, blocking};
pub use clock::{Clock, SystemClock};
pub use contexts::ContextRecord;
pub use early::Durable;
pub use error::{OpenError, StoreError};
pub use events::{EventPage, NewEvent};
pub use history::{
    HistoryEnd, HistoryOutput, HistoryRecord, HistoryStream, KEPT_END, KEPT_TEXT, KEPT_WHAT, NewHistory,
};
pub use history_query::{HistoryFilter, HistoryPage};
pub use instances::{InstanceRow, NewInstance};
pub use keys::{KeyRecord, NewKey};
pub use layers::{LayerRecord, NewLayer};
pub use ledger::{LedgerExceeded, LedgerResource, LedgerUse, Limits};
pub use moves::Move;
pub use operations::{Begun, Idempotency, NewOperation, OperationFilter};
pub use rebase::Rebase;
pub use requests::{Claimed, MAX_ANSWER, NewRequest, RequestOutcome, RequestRecord};
pub use retention::{Keep, Pruned, Retention};
pub use snapshot_removal::SnapshotUser;
pub use snapshot_retention::SnapshotRetention;
pub use snapshots::{NewSnapshot, SnapshotRecord};
pub use steps::{Step, StepState};
pub use store::{Options, Store};
pub use switch::Switch;
pub use transactions::{NewTransaction, TransactionRecord};
pub use tx::{Tx, View};
pub use vms::{KeptDisk, NewVm, VmRecord};
