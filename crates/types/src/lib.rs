//! The vocabulary of Offshoot: ids, validated specifications, states, commands and error codes.
//!
//! This crate performs no I/O, knows no transport and contains no async code. Every other crate speaks in
//! these words; wire formats (`offshoot-api`, `offshoot-guest-proto`) convert to and from them by `TryFrom`.

mod actor;
mod agent;
mod command;
mod context;
mod error_code;
mod event;
mod exec;
mod ids;
mod image_ref;
mod isolation;
mod key;
mod life;
mod name;
mod operation;
mod size;
mod snapshot;
mod spec;
mod start;
mod state;
mod thaw;
mod transaction;

pub use actor::Actor;
pub use agent::{AgentName, InvalidAgent};
pub use command::{Action, Command, FileAccess, Target, VmRef};
pub use context::{ContextCode, InvalidLanguage, Language};
pub use error_code::{ErrorCode, Failure};
pub use event::{Event, EventKind};
pub use exec::{ExecArgv, ExecLimits, ExecSpec, ExecStatus, PtySize};
pub use ids::{
    EventId, ExecId, ImageDigest, InvalidId, KeyId, LayerId, OperationId, RequestId, SnapshotId,
    TransactionId, VmId,
};
pub use image_ref::{ImageRef, InvalidImageRef};
pub use isolation::{IsolationClass, ProviderChoice, ProviderKind, UnknownIsolation, UnknownProvider};
pub use key::{InvalidPrefix, KeyLimits, Scope, Scopes, Stronger, UnknownScope, VmPrefix};
pub use life::{Life, LifeChange, OnTimeout, TimeLimit, UnknownWord, Wake};
pub use name::{
    ContextName, Environment, InvalidName, KeyName, Labels, NodeName, Owner, SnapshotName, VmName,
};
pub use operation::{Operation, OperationKind, OperationOutcome, OperationState};
pub use size::{Bytes, CpuCount, DiskMib, InvalidSize, MemMib};
pub use snapshot::{
    AutoSnapshot, ForkSource, InvalidSnapshotRef, RollbackTo, SnapshotKind, SnapshotOrigin, SnapshotPolicy,
    SnapshotPolicyChange, SnapshotRef, SnapshotState, UnknownAutoSnapshot,
};
pub use spec::{Lifetime, VmSpec};
pub use start::{LastStart, StartedFrom};
pub use state::{FailureReason, Generation, IllegalMove, VmState, VmStateName};
pub use thaw::{Attestations, Interpreter, Reseeded, ThawHook};
pub use transaction::{RollbackCause, TransactionEnd, TransactionState, TrySpec};
