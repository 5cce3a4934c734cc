//! The engine: one host's VMs, from request to observed effect.
//!
//! ```text
//!                       Engine (handle)                     the only way in: Authorized<Command>
//!                          |  journal first (store)
//!                          v
//!   Manager: names, ledger, one queue per VM                synchronous, behind one short lock
//!      |            |            |
//!   Driver a     Driver b     Driver c                      one task per VM, the only writer of its row
//!      |  admission -> saga (steps, undo) -> provider, guest link
//!      v
//!   store (row + event + audit in one transaction) -> watch (views) -> callers wait by generation
//! ```
//! Start reconciles record and world; the reaper destroys what nobody wants; shutdown drains and leaves VMs
//! running with their keepers. This crate knows no HTTP, no hypervisor and no SQL.

mod accept;
mod admission;
mod ask;
mod branch;
mod capture;
mod console;
mod core;
mod diff;
mod driver;
mod engine;
mod error;
mod events;
mod exec;
mod execs;
mod guest_access;
mod history;
mod host_key;
mod images;
mod kept_disk;
mod keys;
mod layers;
mod link;
mod machine;
mod manager;
mod operations;
mod options;
mod placement;
mod pool;
mod processes;
mod pump;
mod reaper;
mod rebase;
mod reconcile;
mod request;
mod request_vm;
mod requests;
mod rest;
mod saga;
mod session;
mod settings;
mod shared;
mod snapshots;
mod startup;
mod state_dir;
mod strays;
mod sync;
mod tasks;
mod trace;
mod unwritten;
mod view;
mod work;

pub use branch::{
    CodeEvent, CodeSession, ContextHome, ContextView, ForkReport, ForkSettings, ForkedVm, ImportOptions,
    ImportReport, RaceEnd, RaceEvent, RaceSession, RollbackReport, SnapshotView, TransactionView, TryEnd,
    TryEvent, TrySession, Verification,
};
pub use console::{Console, Follow};
pub use diff::{
    DiffOptions, DiffReport, Differences, Entry, EntryKind, FileChange, LookedAt, PackageChange,
    PackageManager, ProcessChange, Subject,
};
pub use engine::{AttachFrom, Engine, OnShutdown, OperationPage, ShutdownReport, VmCondition};
pub use error::{StartError, guest_failure};
pub use events::EventStream;
pub use guest_access::GuestAccess;
pub use history::{HistoryBytes, HistoryEntry, HistoryOptions, Rerun, RerunKind};
pub use host_key::HostKey;
pub use images::{BootFiles, Images, StoredImages};
pub use keys::{KeyView, MadeKey};
pub use offshoot_store::{
    Clock, HistoryFilter, HistoryOutput, HistoryPage, HistoryRecord, HistoryStream, Idempotency, Keep,
    Limits, MAX_ANSWER, NewRequest, RequestOutcome, SystemClock,
};
pub use options::{Deadlines, Options};
pub use pool::{PoolOptions, PoolShelf, PoolSize, PoolTemplate, PoolView};
pub use processes::ProcessSelector;
pub use rebase::Rebasing;
pub use request_vm::RequestVm;
pub use requests::{Claim, Earlier, Ending, RequestClaim, Standing};
#[doc(hidden)]
pub use saga::steps_of;
pub use saga::{Checkpoint, Checkpoints, Fault, Phase};
pub use session::{
    ExecEnd, ExecEvent, ExecEvents, ExecInput, ExecSession, OnDrop, OutputStream, SessionClosed,
};
pub use snapshots::{Export, Merging};
pub use state_dir::{LockError, StateDirLock};
pub use trace::TraceEvent;
pub use view::{Census, ExecState, ExecView, GuestHealth, GuestView, ProviderView, VmView};
