//! The vocabulary of Offshoot: ids, validated specifications, states, commands and error codes.
//!
//! This crate performs no I/O, knows no transport and contains no async code. Every other crate speaks in
//! these words; wire formats (`offshoot-api`, `offshoot-guest-proto`) convert to and from them by `TryFrom`.

mod actor;
mod command;
mod error_code;
mod event;
mod exec;
mod ids;
mod image_ref;
mod isolation;
mod name;
mod operation;
mod size;
mod spec;
mod state;

pub use actor::Actor;
pub use command::{Action, Command, FileAccess, Target, VmRef};
pub use error_code::{ErrorCode, Failure};
pub use event::{Event, EventKind};
pub use exec::{ExecArgv, ExecLimits, ExecSpec, ExecStatus, PtySize};
pub use ids::{EventId, ExecId, ImageDigest, InvalidId, OperationId, RequestId, SnapshotId, VmId};
pub use image_ref::{ImageRef, InvalidImageRef};
pub use isolation::{IsolationClass, ProviderChoice, ProviderKind, UnknownIsolation, UnknownProvider};
pub use name::{InvalidName, Labels, NodeName, Owner, VmName};
pub use operation::{Operation, OperationKind, OperationOutcome, OperationState};
pub use size::{Bytes, CpuCount, DiskMib, InvalidSize, MemMib};
pub use spec::{Lifetime, VmSpec};
pub use state::{FailureReason, Generation, IllegalMove, VmState, VmStateName};
