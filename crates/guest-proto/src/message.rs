//! Every message on the wire. Unknown fields are refused on both sides: a field nobody reads is a lie.
//!
//! Versioning: [`PROTOCOL_VERSION`] is exchanged in the handshake and must be equal. An image and a snapshot pin the agent
//! they were made with: those of another version are refused, and told so by [`other_version`].

mod code;
mod disk;
mod entry;
mod state;
mod survey;

pub use code::{
    CodeEvent, CodeFrame, CodeInput, ContextInfo, EXIT_STATUS, INTERPRETER_DIED, INTERPRETER_KILLED,
    Language, MAX_CONTEXTS, MAX_DISPLAY_ID, MAX_ENVIRONMENT, MAX_ERROR, MAX_PART, MAX_REPRESENTATIONS,
    MAX_VALUE, RunCode, TEXT_PLAIN, is_context_name,
};
pub use disk::{DiskRequest, DiskUse};
pub use entry::{
    ATTRIBUTE_PREFIX, Entry, EntryChange, EntryEvent, EntryItem, EntryOperation, EntryRequest,
    MAX_ATTRIBUTES, MAX_DEPTH, MAX_ENTRY_PATHS, Usage,
};
pub use state::{
    Entropy, Frozen, HookRun, InterpreterThawed, MAX_HOOKS, NewIdentity, Reseeded, Thaw, Thawed,
};
pub use survey::{
    ChangedPath, Contents, DiskEntry, DiskKind, MAX_PAGE, MAX_SURVEY_COMMAND, MAX_SURVEY_PATH, Paged,
    ProcessInfo, Stamp, SurveyRequest, path_order,
};

use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

pub const PROTOCOL_VERSION: u16 = 4;

const OTHER_VERSION: [&str; 2] = ["protocol version ", ": this agent speaks "];

/// What an agent says to a host of another version: these words are the same in all of them.
pub fn other_version(host: u16) -> String {
    let [of, agent] = OTHER_VERSION;
    format!("{of}{host}{agent}{PROTOCOL_VERSION}")
}

/// The version of the agent that said so to us.
pub fn version_of_other(said: &str) -> Option<u16> {
    let [of, agent] = OTHER_VERSION;
    said.strip_prefix(&format!("{of}{PROTOCOL_VERSION}{agent}"))?.parse().ok()
}

/// Largest encoded message. Bulk data is cut into chunks of [`CHUNK`].
pub const MAX_MESSAGE: usize = 512 * 1024;
/// Payload of one data chunk.
pub const CHUNK: usize = 128 * 1024;
/// Seconds between two heartbeats of the host.
pub const HEARTBEAT_SECONDS: u64 = 3;

/// First frame on a stream opened by the host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum HostOpen {
    /// The control stream, opened first: handshake, then heartbeats. Then [`ToGuest`] / [`FromGuest`].
    Control(HostHello),
    /// Run a process. Then [`ExecInput`] / [`ExecEvent`].
    Exec(ExecStart),
    /// Take up the streams of a process that runs or has lately ended. Then [`ExecInput`] / [`ExecEvent`].
    Attach(ExecAttach),
    /// List processes started by `Exec` that run or have lately ended. Answer: [`Reply<Vec<ExecSummary>>`].
    ListExecs,
    /// One file operation; see [`FileRequest`] for what follows.
    File(FileRequest),
    /// A TCP connection to a port inside the guest. Answer: [`Reply<()>`], then a [`crate::Tunnel`].
    Tcp { port: u16 },
    /// Answer: [`Reply<GuestInfo>`].
    Info,
    /// Sync and power off or restart. Answer: [`Reply<()>`] before the act.
    Shutdown(ShutdownKind),
    /// Have the disk hold what programs have written so far. Answer: [`Reply<()>`].
    Flush,
    /// Make all user processes stand still within the deadline. Answer: [`Reply<Frozen>`]; after an error they run.
    /// They stand still until `Unfreeze`, `GoOn` or `Thaw`, whatever becomes of the session.
    Freeze { deadline_ms: u32 },
    /// Let them run again. Answer: [`Reply<()>`], also where nothing was frozen.
    Unfreeze,
    /// The same for a state that was frozen, saved and restored, and goes on there only: the clock is set before they run,
    /// and nothing is renewed. Answer: [`Reply<()>`].
    GoOn { time: HostTime },
    /// Make a restored state a machine of its own, then let it run. Answer: [`Reply<Thawed>`]; after an error user
    /// processes stand still.
    Thaw(Thaw),
    /// Run code in a live interpreter. Then [`CodeInput`] / [`CodeEvent`].
    RunCode(RunCode),
    /// Answer: [`Reply<Vec<ContextInfo>>`].
    ListContexts,
    /// End an interpreter and all it has started. Answer: [`Reply<()>`].
    RemoveContext { context: String },
    /// The same, with a new interpreter of the same language, user and directory in its place. Answer: [`Reply<()>`].
    RestartContext { context: String },
    /// Have an interpreter ready for the user's first context of that language, and have it do once what its first code
    /// will need. Answer: [`Reply<()>`].
    PrepareInterpreter { language: Language, user: String },
    /// What the VM is made of; see [`SurveyRequest`] for what follows.
    Survey(SurveyRequest),
    /// One operation on files as a shell's user names them; see [`EntryRequest`] for what follows.
    Entry(EntryRequest),
    /// Answer: [`Reply<Usage>`].
    Usage,
    /// Of a guest whose disk is its memory; see [`DiskRequest`] for what follows.
    Disk(DiskRequest),
}

/// First frame on a stream opened by the guest. The host answers [`Reply<()>`], then a [`crate::Tunnel`]; unknown
/// services are refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestOpen {
    /// A service registered on the host for this VM.
    pub service: String,
}

/// `Ok`, or why not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Reply<T> {
    Ok(T),
    Err(GuestError),
}

/// A failure inside the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(deny_unknown_fields)]
#[error("{message}")]
pub struct GuestError {
    pub kind: GuestErrorKind,
    /// What failed, on what: `open /etc/shadow: permission denied`.
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestErrorKind {
    NotFound,
    AlreadyExists,
    PermissionDenied,
    NotADirectory,
    IsADirectory,
    NotEmpty,
    NoSpace,
    InvalidArgument,
    /// The program could not be executed.
    ExecFailed,
    ConnectionRefused,
    Unsupported,
    /// Too many streams, processes or watches.
    Exhausted,
    UnknownUser,
    Other,
}

// ---------------------------------------------------------------- control

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostHello {
    pub version: u16,
    /// The epoch token of this session, as sent by the resync layer: both must agree.
    pub epoch: [u8; 16],
    pub time: HostTime,
    /// Set once per start; later hellos of an adopted VM repeat it.
    pub hostname: String,
    pub generation: u64,
}

/// Wall clock of the host, nanoseconds since 1970 (UTC).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HostTime(pub u64);

impl HostTime {
    /// This machine's wall clock; one before 1970 says 1970.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum ToGuest {
    /// Every [`HEARTBEAT_SECONDS`]; the guest slews its clock and answers [`FromGuest::Heartbeat`].
    Heartbeat { sequence: u64, time: HostTime },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum FromGuest {
    Hello(GuestHello),
    /// The handshake is refused.
    Refused(GuestError),
    Heartbeat {
        sequence: u64,
        /// Guest clock minus host clock when the heartbeat arrived.
        clock_offset_ns: i64,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestHello {
    pub version: u16,
    pub epoch: [u8; 16],
    pub agent_version: String,
    /// The guest kernel's boot id: tells a reboot from a reconnect.
    pub boot_id: String,
    pub kernel_release: String,
    /// Milliseconds from kernel start to the agent being ready.
    pub ready_ms: u64,
    /// User processes stand still: they were frozen for a snapshot, by an earlier session or before this state was
    /// restored.
    pub frozen: bool,
}

// ---------------------------------------------------------------- exec

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecStart {
    /// Chosen by the host; a second start with the same id is refused.
    pub exec: [u8; 16],
    pub command: ExecCommand,
    pub env: BTreeMap<String, String>,
    pub cwd: Option<String>,
    pub user: String,
    pub pty: Option<PtySize>,
    pub stdin: bool,
    pub timeout_ms: Option<u64>,
    pub max_output: Option<u64>,
    pub limits: ResourceLimits,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum ExecCommand {
    Argv(Vec<String>),
    /// `/bin/bash -c SCRIPT`.
    Shell(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PtySize {
    pub rows: u16,
    pub cols: u16,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResourceLimits {
    pub open_files: Option<u64>,
    pub address_space: Option<u64>,
    pub file_size: Option<u64>,
    pub cpu_seconds: Option<u64>,
    pub processes: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecAttach {
    pub exec: [u8; 16],
    /// Replay output from these offsets; what the ring no longer holds is reported as [`ExecEvent::Lost`].
    pub stdout_offset: u64,
    pub stderr_offset: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecSummary {
    pub exec: [u8; 16],
    pub pid: u32,
    /// `None` while it runs.
    pub ended: Option<ExecEnd>,
    /// Bytes of output there have been so far, by stream: where whoever wants only what comes from now on attaches.
    pub stdout: u64,
    pub stderr: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum ExecInput {
    #[serde(with = "serde_bytes")]
    Stdin(Vec<u8>),
    StdinEnd,
    Resize(PtySize),
    /// To the process group of the foreground process.
    Signal(i32),
    /// SIGKILL to the whole tree.
    Kill,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum OutputStream {
    Stdout,
    Stderr,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum ExecEvent {
    Started {
        pid: u32,
    },
    Output {
        stream: OutputStream,
        /// Bytes of this stream before `data`.
        offset: u64,
        #[serde(with = "serde_bytes")]
        data: Vec<u8>,
    },
    /// Bytes up to `next_offset` were overwritten in the ring before anyone read them.
    Lost {
        stream: OutputStream,
        next_offset: u64,
    },
    /// The last event: the process is gone, its output was sent. Children that outlive it live on, as with ssh; after
    /// a timeout or `Kill` the whole tree is gone.
    Ended(ExecEnd),
    /// The last event: it never ran.
    Failed(GuestError),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecEnd {
    pub status: ExitKind,
    /// Output beyond `max_output` was dropped.
    pub truncated: bool,
    /// From before fork to the reaping of the process, as measured in the guest.
    pub wall_us: u64,
    pub user_us: u64,
    pub system_us: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum ExitKind {
    Code(i32),
    Signal(i32),
    TimedOut,
}

// ---------------------------------------------------------------- files

/// A file operation. Paths are absolute, resolved inside the guest's root as `user`; `..` and symlinks are
/// resolved by the guest kernel beneath the root and can never leave it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileRequest {
    pub user: String,
    pub operation: FileOperation,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum FileOperation {
    /// Answer: [`Reply<FileStat>`]. Does not follow a final symlink unless `follow`.
    Stat { path: String, follow: bool },
    /// Answer: `Reply<()>`, then [`ListItem`]s, the last being `End`.
    List { path: String },
    /// Answer: [`Reply<FileStat>`], then [`FileChunk`]s, the last being `End`.
    Read { path: String, offset: u64, length: Option<u64> },
    /// Answer: `Reply<()>` (ready); then the host sends [`FileChunk`]s; answer: [`Reply<FileStat>`] once the
    /// file was renamed into place. Aborting leaves the old file.
    Write { path: String, mode: Option<u32>, make_parents: bool, exclusive: bool },
    /// Answer: `Reply<()>`. With `parents`, existing directories are fine.
    MakeDirectory { path: String, parents: bool, mode: Option<u32> },
    /// Answer: `Reply<()>`.
    Rename { from: String, to: String },
    /// Answer: `Reply<()>`.
    Remove { path: String, recursive: bool },
    /// Answer: `Reply<()>`.
    Symlink { target: String, path: String },
    /// Answer: `Reply<()>`.
    SetMode { path: String, mode: u32 },
    /// Answer: `Reply<()>` (watching), then [`WatchEvent`]s until the stream is closed.
    Watch { path: String, recursive: bool },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileStat {
    pub kind: FileKind,
    pub size: u64,
    /// Permission bits, `0o7777`.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Nanoseconds since 1970.
    pub modified_ns: i64,
    pub symlink_target: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum FileKind {
    File,
    Directory,
    Symlink,
    Other,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum ListItem {
    /// Names that are not UTF-8 come with U+FFFD in place of the bad bytes and `lossy` set.
    Entry {
        name: String,
        lossy: bool,
        stat: FileStat,
    },
    End,
    Failed(GuestError),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum FileChunk {
    #[serde(with = "serde_bytes")]
    Data(Vec<u8>),
    /// All bytes were sent.
    End,
    /// The sender gave up: discard what came.
    Failed(GuestError),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WatchEvent {
    pub change: WatchChange,
    pub path: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum WatchChange {
    Created,
    Modified,
    Removed,
    Renamed,
    AttributesChanged,
    /// The kernel dropped events: look again.
    Overflow,
}

// ---------------------------------------------------------------- info

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestInfo {
    pub kernel_release: String,
    pub hostname: String,
    pub boot_id: String,
    pub uptime_ms: u64,
    pub memory_total: u64,
    pub memory_available: u64,
    pub load_1m: f64,
    pub disk_total: u64,
    pub disk_available: u64,
    pub processes: u32,
    pub time: HostTime,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum ShutdownKind {
    PowerOff,
    Reboot,
}
