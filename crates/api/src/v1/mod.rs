//! Version 1 of the wire format.
//!
//! A field may be added to an answer at any time, and to a request if leaving it out keeps its old meaning;
//! anything else is a new version beside this one.

mod context;
mod daemon;
mod diff;
mod error;
mod event;
mod exec;
mod files;
mod fork;
mod frame;
mod history;
mod image;
mod invalid;
mod key;
mod operation;
mod page;
mod pool;
mod preview;
mod race;
mod rollback;
mod run;
mod schema;
mod settings;
mod snapshot;
mod thaw;
mod transaction;
mod try_session;
mod vm;

pub use context::{CodeInput, CodeMessage, CodeRequest, ContextList, LiveContext, MAX_CODE_MESSAGE};
pub use daemon::{Alive, Daemon, DaemonMode, DaemonRecord, Health, StartReport, StopDaemon, Stopping};
pub use diff::{
    DEFAULT_DIFFERENCES, Diff, DiffCounts, DiffKind, DiffRequest, DiffSubject, Difference, DiskKind,
    FileDifference, FileDifferences, FileFacts, LookedAt, MAX_DIFFERENCES, NewDiff, PackageDifference,
    PackageDifferences, PackageManager, ProcessDifference, ProcessDifferences, bytes_of, text_of,
};
pub use error::ErrorBody;
pub use event::{Event, EventDetail, EventPage, EventQuery};
pub use exec::{
    AttachQuery, CollectRequest, CommandLine, ExecLimits, ExecList, ExecRequest, ExecResult, ExecStateName,
    ExecSummary, ExitStatus, NewCollect, Output, PtySize, Stream,
};
pub use files::{
    DirectoryEntry, DirectoryList, FileKind, FileStat, ListQuery, MakeDirectory, ReadQuery, RemoveFile,
    RenameFile, SetMode, StatQuery, Symlink, WriteQuery, absolute_path,
};
pub use fork::{ForkRequest, Forked, ForkedVm, MAX_FORKS, NewForks};
pub use frame::{
    ClientMessage, Durations, Ended, InvalidFrame, Lost, ProgressState, ServerMessage, Started, StepProgress,
    decode_output, decode_stdin, encode_output, encode_stdin,
};
pub use history::{
    HistoryEntry, HistoryKind, HistoryList, HistoryOutput, HistoryQuery, HistoryStateName, NewReplay, Replay,
    ReplayRequest, SameAsRecorded, StreamQuery, VmBefore,
};
pub use image::{Image, ImageFile, ImageList, ImageVerified};
pub use invalid::InvalidField;
pub use key::{CreateKey, Key, KeyCreated, KeyList, KeysRemoved, NewKey};
pub use operation::{Operation, OperationList, OperationQuery, OperationStateName, OutcomeName, Problem};
pub use page::{MAX_PAGE, PageQuery};
pub use pool::{LastStart, Pool, PoolShelf};
pub use preview::{CreatePreview, NewPreview, Preview};
pub use race::{
    MAX_RACERS, NewRace, RaceMessage, RaceOutcome, RaceRequest, RacerScore, decode_race_output,
    encode_race_output,
};
pub use rollback::{RollbackRequest, RolledBack};
pub use run::{NewFile, NewRun, RunFile, RunRequest};
pub use settings::{Life, SetLife, SetSnapshotPolicy, SnapshotPolicy};
pub use snapshot::{
    EXPORT_HASH_HEADER, ImportQuery, Imported, NewSnapshot, RemoveSnapshotQuery, Snapshot, SnapshotList,
    SnapshotVerified, SnapshotsRemoved, TakeSnapshot,
};
pub use thaw::{Attestations, Interpreter, Reseeded, ThawHook};
pub use transaction::{
    BeginTransaction, DEFAULT_DEADLINE, RollbackCauseName, Transaction, TransactionEnd, TransactionList,
};
pub use try_session::{
    TryInput, TryMessage, TryOutcome, TryPart, TryRequest, decode_try_output, encode_try_output,
};
pub use vm::{
    Change, Changed, CreateVm, DEFAULT_CPUS, DEFAULT_DISK, DEFAULT_GRACE, DescribeVm, DestroyQuery, Guest,
    GuestHealth, NewVm, TcpQuery, Usage, Vm, VmFailure, VmList, VmSettings, WaitOutcome, WaitQuery,
};

/// Longest a request may make the server wait; callers that want to wait longer ask again.
pub const MAX_WAIT_MS: u64 = 60_000;
/// Largest JSON body of a request, and largest text frame of a WebSocket.
pub const MAX_JSON: usize = 1024 * 1024;
/// Largest binary frame of a WebSocket, its leading byte included.
pub const MAX_FRAME: usize = 256 * 1024 + 1;
/// Text frame that ends one direction of a TCP stream; its bytes are binary frames.
pub const TCP_END: &str = "end";
/// Header that carries the request id, on every response.
pub const REQUEST_ID_HEADER: &str = "x-request-id";
/// Header of a request that is made from within an open transaction: the transaction's id.
pub const TRANSACTION_HEADER: &str = "offshoot-transaction";
/// Header of a request on whose behalf it is made, as its caller says: 1 to 128 visible ASCII characters, for the history.
pub const AGENT_HEADER: &str = "offshoot-agent";
/// Header of a request that is to be carried out once however often it is sent: 1 to [`MAX_IDEMPOTENCY_KEY`] visible
/// ASCII characters, new for each request that is meant anew.
pub const IDEMPOTENCY_KEY_HEADER: &str = "idempotency-key";
/// Most characters of an idempotency key.
pub const MAX_IDEMPOTENCY_KEY: usize = 255;
/// Header of an answer that was given before, to a request with the same idempotency key: `true`.
pub const REPLAYED_HEADER: &str = "idempotency-replayed";
/// Header of a request that is not to wake a suspended VM: `1`. It is refused instead.
pub const NO_WAKE_HEADER: &str = "offshoot-no-wake";
/// Environment variable with the number of a descriptor on which a starting daemon writes one line, a
/// `StartReport` as JSON.
pub const READY_FD: &str = "OFFSHOOT_READY_FD";
/// Header of what a program said: how many bytes of that stream are kept, from the beginning.
pub const KEPT_HEADER: &str = "x-offshoot-kept-bytes";
/// Header of what a program said: how many bytes there were.
pub const TOTAL_HEADER: &str = "x-offshoot-total-bytes";
/// Header of a file download: the file's `FileStat` as JSON.
pub const FILE_STAT_HEADER: &str = "x-offshoot-file-stat";
