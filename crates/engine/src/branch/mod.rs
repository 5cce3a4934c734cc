//! State that branches: snapshots, forks, rollbacks, transactions, races, live contexts.
//!
//! ```text
//!            snapshot            fork                      rollback / undo
//!   VM a ------o-------o------------------------> a   a --o------x   (left behind: an undo snapshot)
//!              |       '--- VM a-1, a-2 (new identity)     '-----------> a
//!              '----------- a snapshot is a node of a tree; each has a parent
//! ```
//! Each module here is one verb of the [`Engine`](crate::Engine); what it does to one VM is a saga of that VM's driver.

mod code_session;
mod contexts;
mod forks;
mod portable;
mod race;
mod rollbacks;
mod snapshots;
pub(crate) mod temporary;
pub(crate) mod transactions;
mod try_exec;
mod views;

pub use code_session::{CodeEvent, CodeSession};
pub use contexts::{ContextHome, ContextView};
pub use forks::ForkSettings;
pub use portable::{ImportOptions, ImportReport};
pub use race::{RaceEnd, RaceEvent, RaceSession};
pub use transactions::TransactionView;
pub use try_exec::{TryEnd, TryEvent, TrySession};
pub use views::{ForkReport, ForkedVm, RollbackReport, SnapshotView, Verification};
