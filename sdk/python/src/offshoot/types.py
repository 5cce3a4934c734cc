"""The documents of the API, made from openapi/v1.json: do not edit."""

from typing import Literal, TypeAlias, TypedDict

from typing_extensions import NotRequired


class Alive(TypedDict):
    """
    What somebody without a key is told.
    """

    status: str


BTreeMap: TypeAlias = dict[str, str]


class BeginTransaction(TypedDict):
    """
    Begin a transaction, or a savepoint within the one that is open.
    """

    deadline_ms: NotRequired[int | None]
    parent: NotRequired[str]


class Change(TypedDict):
    """
    Options of `start`, `stop`, `restart`, `pause` and `resume`.
    """

    grace_ms: NotRequired[int | None]
    wait: NotRequired[bool | None]


class ClientMessage1(TypedDict):
    """
    No more stdin.
    """

    type: Literal['stdin-end']


class ClientMessage2(TypedDict):
    """
    New size of the pseudo-terminal.
    """

    cols: int
    rows: int
    type: Literal['resize']


class ClientMessage3(TypedDict):
    """
    To the foreground process group.
    """

    signal: int
    type: Literal['signal']


class ClientMessage4(TypedDict):
    """
    SIGKILL to the whole process tree.
    """

    type: Literal['kill']


class ClientMessage5(TypedDict):
    """
    Let the process run on without us; otherwise it is killed when the socket closes. Not on `/v1/run`.
    """

    type: Literal['detach']


ClientMessage: TypeAlias = (
    ClientMessage1 | ClientMessage2 | ClientMessage3 | ClientMessage4 | ClientMessage5
)


class CodeInput1(TypedDict):
    """
    Text frames from the client, after the request.
    """

    type: Literal['interrupt']


CodeInput: TypeAlias = CodeInput1


class CodeMessage1(TypedDict):
    """
    The interpreter has the code.
    """

    count: NotRequired[int]
    created: bool
    event: Literal['started']
    language: Literal['python', 'javascript', 'bash']
    pid: int


class CodeMessage2(TypedDict):
    """
    Shown by the code on its way: figures, and what it says to display.
    """

    event: Literal['display']
    id: NotRequired[str | None]
    mime: dict[str, str]
    update: bool


class CodeMessage3(TypedDict):
    """
    Of the last expression, if it has one worth showing; by MIME type, `text/plain` always among them.
    """

    event: Literal['value']
    mime: dict[str, str]


class CodeMessage4(TypedDict):
    """
    The code ended with an uncaught error.
    """

    event: Literal['error']
    message: str
    name: str
    traceback: str


class CodeMessage5(TypedDict):
    """
    The last message.
    """

    event: Literal['ended']
    interrupted: bool
    wall_us: int


class CodeRequest(TypedDict):
    """
    First text frame: code for a context, which is made on first use.
    """

    code: str
    context: str
    context_env: NotRequired[dict[str, str]]
    cwd: NotRequired[str | None]
    env: NotRequired[dict[str, str]]
    existing: NotRequired[bool]
    language: NotRequired[str | None]
    timeout_ms: NotRequired[int | None]
    user: NotRequired[str | None]


class CommandLine(TypedDict):
    """
    A program and its arguments, or a script; exactly one of the two.
    """

    argv: NotRequired[list[str] | None]
    shell: NotRequired[str | None]


class CreateKey(TypedDict):
    """
    What a new key is to be good for. Whatever is absent is as whoever makes it has it.
    """

    max_vms: NotRequired[int | None]
    name: NotRequired[str | None]
    provider: NotRequired[str | None]
    rate: NotRequired[int | None]
    scopes: NotRequired[list[str] | None]
    ttl_ms: NotRequired[int | None]
    vm_prefix: NotRequired[str | None]


class CreatePreview(TypedDict):
    """
    Make a link to a program in a VM.
    """

    origin: NotRequired[str | None]
    path: NotRequired[str | None]
    port: int


DaemonMode: TypeAlias = Literal['autostarted', 'explicit']


class DaemonRecord(TypedDict):
    """
    Who serves a state directory: the content of its `daemon.json`.
    """

    listen: NotRequired[list[str]]
    mode: DaemonMode
    pid: int
    socket: str
    started: str
    state_dir: str
    version: str


class DescribeVm(TypedDict):
    """
    Change what a VM is found by, and what its processes find in their environment. What is absent stays.
    """

    env: NotRequired[BTreeMap | None]
    labels: NotRequired[BTreeMap | None]


class DiffCounts(TypedDict):
    """
    How many there are.
    """

    added: int
    left_out: int
    modified: int
    more: int
    removed: int
    unknown: NotRequired[str | None]


DiffKind: TypeAlias = Literal['files', 'packages', 'processes']


DiffRequest = TypedDict(
    'DiffRequest',
    {
        'from': NotRequired[str | None],
        'kinds': NotRequired[list[DiffKind]],
        'limit': NotRequired[int | None],
        'to': str,
    },
)


Difference: TypeAlias = Literal['added', 'modified', 'removed']


DiskKind: TypeAlias = Literal[
    'file', 'directory', 'symlink', 'fifo', 'socket', 'char-device', 'block-device'
]


class Durations(TypedDict):
    """
    How long things took, as the daemon saw it; `guest_*` as measured inside the guest.
    """

    boot_ms: NotRequired[int | None]
    create_ms: NotRequired[int | None]
    exec_ms: int
    guest_system_us: int
    guest_user_us: int
    guest_wall_us: int


class ErrorBody(TypedDict):
    """
    What every failed request answers, whatever the route.
    """

    cause: NotRequired[str | None]
    code: Literal[
        'invalid_argument',
        'method_not_allowed',
        'too_large',
        'unsupported_media_type',
        'key_reused',
        'already_done',
        'outcome_unknown',
        'not_found',
        'already_exists',
        'wrong_state',
        'stale_generation',
        'busy',
        'in_transaction',
        'in_use',
        'snapshot',
        'thaw',
        'unauthenticated',
        'rate_limited',
        'denied',
        'timeout',
        'no_resource',
        'unavailable',
        'backend',
        'image',
        'guest',
        'exec_failed',
        'unsupported',
        'interrupted',
        'internal',
    ]
    hint: NotRequired[str | None]
    message: str
    request_id: str
    retryable: bool


class Event2(TypedDict):
    event: Literal['operation-started']
    kind: str


class Event4(TypedDict):
    event: Literal['guest-health']
    responsive: bool


class Event5(TypedDict):
    event: Literal['snapshot-taken']
    name: NotRequired[str | None]
    origin: Literal['manual', 'auto', 'undo', 'fork', 'suspend', 'template', 'rebase']
    snapshot: str


class Event6(TypedDict):
    """
    It became durable or damaged, or is kept for another reason than before.
    """

    event: Literal['snapshot-changed']
    origin: Literal['manual', 'auto', 'undo', 'fork', 'suspend', 'template', 'rebase']
    snapshot: str
    state: Literal['volatile', 'durable', 'damaged']


class Event7(TypedDict):
    event: Literal['snapshot-removed']
    snapshot: str


class Event8(TypedDict):
    """
    The VM continues from a snapshot; `undo` holds what it left.
    """

    event: Literal['rolled-back']
    generation: int
    to: str
    undo: NotRequired[str]


class Event9(TypedDict):
    """
    The VM goes on as it was, in a process whose memory is a difference to that of this snapshot.
    """

    event: Literal['rebased']
    generation: int
    onto: str


Event10 = TypedDict(
    'Event10',
    {
        'event': Literal['forked'],
        'from': str,
    },
)


class Event11(TypedDict):
    event: Literal['transaction-begun']
    transaction: str


class Event13(TypedDict):
    event: Literal['warning']
    message: str


class Event14(TypedDict):
    actor: str
    at: str
    id: int
    operation: NotRequired[str]
    owner: str
    vm: NotRequired[str]
    vm_name: NotRequired[str | None]


class Event16(Event2, Event14):
    pass


class Event18(Event4, Event14):
    pass


class Event19(Event5, Event14):
    pass


class Event20(Event6, Event14):
    pass


class Event21(Event7, Event14):
    pass


class Event22(Event8, Event14):
    pass


class Event23(Event9, Event14):
    pass


class Event24(Event10, Event14):
    pass


class Event25(Event11, Event14):
    pass


class Event27(Event13, Event14):
    pass


class EventDetail2(TypedDict):
    event: Literal['operation-started']
    kind: str


class EventDetail4(TypedDict):
    event: Literal['guest-health']
    responsive: bool


class EventDetail5(TypedDict):
    event: Literal['snapshot-taken']
    name: NotRequired[str | None]
    origin: Literal['manual', 'auto', 'undo', 'fork', 'suspend', 'template', 'rebase']
    snapshot: str


class EventDetail6(TypedDict):
    """
    It became durable or damaged, or is kept for another reason than before.
    """

    event: Literal['snapshot-changed']
    origin: Literal['manual', 'auto', 'undo', 'fork', 'suspend', 'template', 'rebase']
    snapshot: str
    state: Literal['volatile', 'durable', 'damaged']


class EventDetail7(TypedDict):
    event: Literal['snapshot-removed']
    snapshot: str


class EventDetail8(TypedDict):
    """
    The VM continues from a snapshot; `undo` holds what it left.
    """

    event: Literal['rolled-back']
    generation: int
    to: str
    undo: NotRequired[str]


class EventDetail9(TypedDict):
    """
    The VM goes on as it was, in a process whose memory is a difference to that of this snapshot.
    """

    event: Literal['rebased']
    generation: int
    onto: str


EventDetail10 = TypedDict(
    'EventDetail10',
    {
        'event': Literal['forked'],
        'from': str,
    },
)


class EventDetail11(TypedDict):
    event: Literal['transaction-begun']
    transaction: str


class EventDetail13(TypedDict):
    event: Literal['warning']
    message: str


class ExecLimits(TypedDict):
    max_address_space_bytes: NotRequired[int | None]
    max_cpu_seconds: NotRequired[int | None]
    max_file_size_bytes: NotRequired[int | None]
    max_open_files: NotRequired[int | None]
    max_output_bytes: NotRequired[int | None]
    max_processes: NotRequired[int | None]
    timeout_ms: NotRequired[int | None]


ExecStateName: TypeAlias = Literal['running', 'ended', 'failed', 'interrupted']


class ExitStatus1(TypedDict):
    """
    How a process ended.
    """

    code: int
    kind: Literal['exited']


class ExitStatus2(TypedDict):
    """
    How a process ended.
    """

    kind: Literal['signaled']
    signal: int


class ExitStatus3(TypedDict):
    """
    Killed, with its whole tree, because its time was up.
    """

    kind: Literal['timed-out']


ExitStatus: TypeAlias = ExitStatus1 | ExitStatus2 | ExitStatus3


class FileFacts(TypedDict):
    device: NotRequired[int | None]
    gid: int
    kind: DiskKind
    mode: int
    size: int
    target: NotRequired[str | None]
    target_base64: NotRequired[str | None]
    uid: int


FileKind: TypeAlias = Literal['file', 'directory', 'symlink', 'other']


class FileStat(TypedDict):
    """
    Metadata of a file inside a VM. Guest data: never trusted.
    """

    gid: int
    kind: FileKind
    mode: int
    modified_ns: int
    size: int
    symlink_target: NotRequired[str | None]
    uid: int


class ForkRequest(TypedDict):
    """
    Make VMs that continue from a VM's present state or from a snapshot.
    """

    count: NotRequired[int | None]
    name: NotRequired[str | None]
    source: str


GuestHealth: TypeAlias = Literal['responsive', 'silent', 'reconnecting']


class Health(TypedDict):
    """
    Answered from memory, without touching disk or guests: the cheapest round trip there is.
    """

    pid: int
    status: str
    version: str


HistoryKind: TypeAlias = Literal['exec', 'code']


HistoryStateName: TypeAlias = Literal['running', 'ended', 'failed', 'interrupted']


class Image(TypedDict):
    created: NotRequired[str]
    default_memory_mib: int
    digest: str
    kernel: NotRequired[str | None]
    size_bytes: int
    tags: list[str]


class ImageFile(TypedDict):
    name: str
    sha256: str
    size_bytes: int


class ImageList(TypedDict):
    images: list[Image]
    next_cursor: NotRequired[str | None]


class ImageVerified(TypedDict):
    """
    Every part was read in full and matches its digest.
    """

    digest: str
    parts: list[ImageFile]


class Key(TypedDict):
    """
    One key, without its secret. A limit that is absent is none.
    """

    created: str
    expires: NotRequired[str]
    id: str
    max_vms: NotRequired[int | None]
    name: str
    parent: NotRequired[str]
    provider: NotRequired[str | None]
    rate: NotRequired[int | None]
    scopes: list[str]
    vm_prefix: NotRequired[str | None]


class KeyCreated(Key):
    """
    A new key.
    """

    key: str


class KeyList(TypedDict):
    keys: list[Key]
    next_cursor: NotRequired[str | None]


class KeysRemoved(TypedDict):
    removed: list[str]


LastStart = TypedDict(
    'LastStart',
    {
        'from': Literal['pool', 'template', 'snapshot', 'boot'],
        'not_pooled': NotRequired[str | None],
    },
)


class Life(TypedDict):
    """
    When a VM rests by itself, and how long it may run. Nothing of it holds for a VM that is destroyed with its request.
    """

    deadline: NotRequired[str]
    idle_suspend_ms: NotRequired[int | None]
    on_timeout: Literal['suspend', 'stop', 'destroy']
    timeout_ms: NotRequired[int | None]
    wake: Literal['auto', 'always', 'never']


class LiveContext(TypedDict):
    """
    An interpreter that lives in a VM.
    """

    age_ms: int
    busy: bool
    context: str
    cwd: NotRequired[str | None]
    language: Literal['python', 'javascript', 'bash']
    pid: NotRequired[int | None]
    user: NotRequired[str | None]


LookedAt: TypeAlias = Literal['running', 'memory', 'disk']


class MakeDirectory(TypedDict):
    mode: NotRequired[int | None]
    parents: NotRequired[bool]
    path: str
    user: NotRequired[str | None]


OperationStateName: TypeAlias = Literal['pending', 'waiting', 'running', 'ended']


OutcomeName: TypeAlias = Literal['done', 'failed', 'interrupted']


class Output1(TypedDict):
    """
    Bytes of a program: text if they are UTF-8, else base64.
    """

    data: str
    encoding: Literal['utf8']


class Output2(TypedDict):
    """
    Bytes of a program: text if they are UTF-8, else base64.
    """

    data: str
    encoding: Literal['base64']


Output: TypeAlias = Output1 | Output2


PackageManager: TypeAlias = Literal['dpkg', 'pip']


class PoolShelf(TypedDict):
    """
    What is kept for VMs of one image in one size.
    """

    claimed: int
    cpus: int
    disk_mib: int
    image_digest: str
    isolation: Literal['hardware-vm', 'emulated-vm', 'user-space-kernel']
    making: bool
    memory_mib: int
    missed: int
    provider: Literal['qemu', 'gvisor', 'firecracker', 'cloud-hypervisor', 'fake']
    ready: int
    target: int
    template: NotRequired[str]
    trouble: NotRequired[str | None]


class Preview(TypedDict):
    """
    A link to a program in a VM.
    """

    expires: str
    origin: str
    session_ms: int
    url: str


class Problem(TypedDict):
    """
    A failure as it was recorded.
    """

    cause: NotRequired[str | None]
    code: Literal[
        'invalid_argument',
        'method_not_allowed',
        'too_large',
        'unsupported_media_type',
        'key_reused',
        'already_done',
        'outcome_unknown',
        'not_found',
        'already_exists',
        'wrong_state',
        'stale_generation',
        'busy',
        'in_transaction',
        'in_use',
        'snapshot',
        'thaw',
        'unauthenticated',
        'rate_limited',
        'denied',
        'timeout',
        'no_resource',
        'unavailable',
        'backend',
        'image',
        'guest',
        'exec_failed',
        'unsupported',
        'interrupted',
        'internal',
    ]
    hint: NotRequired[str | None]
    message: str


ProcessDifference = TypedDict(
    'ProcessDifference',
    {
        'command': str,
        'command_base64': NotRequired[str | None],
        'difference': Difference,
        'from': int,
        'to': int,
        'user': str,
    },
)


class ProcessDifferences(DiffCounts):
    changes: list[ProcessDifference]


ProgressState: TypeAlias = Literal['begun', 'done']


class PtySize(TypedDict):
    cols: int
    rows: int


class RaceMessage1(TypedDict):
    """
    The fork runs.
    """

    event: Literal['started']
    name: str
    racer: int


class RaceMessage3(TypedDict):
    """
    Its command is over, all output was sent.
    """

    event: Literal['finished']
    racer: int
    status: ExitStatus
    truncated: bool


class RaceMessage4(TypedDict):
    """
    Its command did not run, or how it ended cannot be known; the others go on.
    """

    event: Literal['gave-up']
    problem: Problem
    racer: int


class RaceMessage5(TypedDict):
    """
    Text frames from the server. Racers are counted from 1.
    """

    event: Literal['scored']
    racer: int
    score: float


class RaceMessage7(TypedDict):
    """
    The last message: there was no race, and the VM is as it was.
    """

    error: ErrorBody
    event: Literal['failed']


class RacerScore(TypedDict):
    racer: int
    score: float


class RemoveFile(TypedDict):
    path: str
    recursive: NotRequired[bool]
    user: NotRequired[str | None]


RenameFile = TypedDict(
    'RenameFile',
    {
        'from': str,
        'to': str,
        'user': NotRequired[str | None],
    },
)


class ReplayRequest(TypedDict):
    """
    Run something again, in a fork of the state from before it.
    """

    env: NotRequired[dict[str, str]]
    keep: NotRequired[str | None]


class Reseeded1(TypedDict):
    """
    With fresh entropy of the host.
    """

    reseeded: Literal['yes']


class Reseeded2(TypedDict):
    """
    It was never shared: the host's kernel provides it.
    """

    reseeded: Literal['host-provided']


class Reseeded3(TypedDict):
    reason: str
    reseeded: Literal['no']


Reseeded: TypeAlias = Reseeded1 | Reseeded2 | Reseeded3


RollbackCauseName: TypeAlias = Literal[
    'asked',
    'failed',
    'check-failed',
    'deadline',
    'denied',
    'guest-crashed',
    'caller-left',
    'daemon-died',
]


class RollbackRequest(TypedDict):
    """
    Let a VM continue from an earlier state. What it leaves is kept; `undo` goes back to it.
    """

    last_good: NotRequired[bool]
    snapshot: NotRequired[str | None]


class RunFile(TypedDict):
    """
    A small file that the process needs; larger ones are uploaded into a VM that is created for it.
    """

    content: Output
    mode: NotRequired[int | None]
    path: str


class SameAsRecorded(TypedDict):
    """
    Whether it went as the first time. Absent: nobody can tell.
    """

    exit: NotRequired[bool | None]
    stderr: NotRequired[bool | None]
    stdout: NotRequired[bool | None]


class ServerMessage4(TypedDict):
    """
    The last message: this side gave the process up, or another caller attached to it; it runs on.
    """

    event: Literal['detached']


class ServerMessage6(TypedDict):
    """
    The last message: it did not run, or can no longer be followed.
    """

    error: ErrorBody
    event: Literal['failed']


class SetLife(TypedDict):
    """
    What is to be another than before; of a new VM, than no limits, `auto` and `suspend`.
    """

    idle_suspend_ms: NotRequired[int | None]
    on_timeout: NotRequired[str | None]
    timeout_ms: NotRequired[int | None]
    wake: NotRequired[str | None]


class SetMode(TypedDict):
    mode: int
    path: str
    user: NotRequired[str | None]


class SetSnapshotPolicy(TypedDict):
    """
    What is to be another than before; of a new VM, than `never` and no rollback.
    """

    auto_rollback: NotRequired[bool | None]
    mode: NotRequired[str | None]


class Snapshot(TypedDict):
    """
    A state of a VM that was kept.
    """

    created: str
    current: bool
    id: str
    kind: Literal['full', 'disk-only']
    memory_mib: int
    name: NotRequired[str | None]
    note: NotRequired[str | None]
    operation: NotRequired[str]
    origin: Literal['manual', 'auto', 'undo', 'fork', 'suspend', 'template', 'rebase']
    parent: NotRequired[str]
    paused_us: NotRequired[int | None]
    quiesced: bool
    size_bytes: int
    state: Literal['volatile', 'durable', 'damaged']
    vm: str
    vm_name: str


class SnapshotList(TypedDict):
    next_cursor: NotRequired[str | None]
    snapshots: list[Snapshot]


class SnapshotPolicy(TypedDict):
    """
    When snapshots of a VM are taken without being asked for, and what a failed exec does.
    """

    auto_rollback: bool
    mode: Literal['never', 'before-exec', 'on-failure', 'before-risky']


class SnapshotVerified(TypedDict):
    """
    What reading every byte of a snapshot found.
    """

    bytes: int
    faults: list[str]
    parts: list[str]
    snapshot: str


class SnapshotsRemoved(TypedDict):
    removed: list[str]


class Started(TypedDict):
    """
    The process runs.
    """

    exec: str
    guest_kernel: NotRequired[str | None]
    isolation: Literal['hardware-vm', 'emulated-vm', 'user-space-kernel']
    operation: str
    pid: int
    provider: Literal['qemu', 'gvisor', 'firecracker', 'cloud-hypervisor', 'fake']
    vm: str
    vm_name: str


class StepProgress(TypedDict):
    """
    One step towards the process.
    """

    duration_ms: NotRequired[int | None]
    state: ProgressState
    step: str


class StopDaemon(TypedDict):
    """
    End the daemon. VMs live on unless `vms`.
    """

    handover: NotRequired[bool]
    vms: NotRequired[bool]


class Stopping(TypedDict):
    """
    The daemon ends once open requests have drained; its lock is free when it has.
    """

    pid: int


Stream: TypeAlias = Literal['stdout', 'stderr']


class Symlink(TypedDict):
    path: str
    target: str
    user: NotRequired[str | None]


class TakeSnapshot(TypedDict):
    """
    Keep a VM's present state.
    """

    disk_only: NotRequired[bool]
    name: NotRequired[str | None]
    note: NotRequired[str | None]


class ThawHook(TypedDict):
    name: str
    status: int


class TransactionEnd(TypedDict):
    """
    How a transaction ended.
    """

    cause: NotRequired[RollbackCauseName | None]
    committed: bool
    reason: NotRequired[str | None]
    status: NotRequired[int | None]


class TryInput1(TypedDict):
    """
    No more stdin.
    """

    type: Literal['stdin-end']


class TryInput2(TypedDict):
    """
    To the command's foreground process group.
    """

    signal: int
    type: Literal['signal']


class TryInput3(TypedDict):
    """
    SIGKILL to the command's whole process tree.
    """

    type: Literal['kill']


class TryInput4(TypedDict):
    """
    Give up: roll back, then say so with `ended`.
    """

    type: Literal['roll-back']


TryInput: TypeAlias = TryInput1 | TryInput2 | TryInput3 | TryInput4


class TryMessage1(TypedDict):
    """
    The snapshot is there: whatever happens now can be undone.
    """

    event: Literal['begun']
    snapshot: str
    transaction: str


class TryMessage7(TypedDict):
    """
    The last message: it did not begin, or what became of it can no longer be told.
    """

    error: ErrorBody
    event: Literal['failed']


class TryOutcome(TypedDict):
    end: TransactionEnd
    status: NotRequired[ExitStatus | None]
    transaction: str


TryPart: TypeAlias = Literal['command', 'check']


class Usage(TypedDict):
    """
    Measured figures of the VM's processes, at most half a second old.
    """

    cpu_ms: int
    own_memory_bytes: NotRequired[int | None]
    pss_bytes: int
    rss_bytes: int


class VmBefore(TypedDict):
    """
    The state of the VM that is kept from before something was run.
    """

    exact: bool
    snapshot: str


class VmFailure(TypedDict):
    """
    Where a failed VM stands.
    """

    reason: str
    step: str


class CodeMessage6(TypedDict):
    """
    The last message: it did not run, or how it ended cannot be told.
    """

    error: ErrorBody
    event: Literal['failed']


CodeMessage: TypeAlias = (
    CodeMessage1
    | CodeMessage2
    | CodeMessage3
    | CodeMessage4
    | CodeMessage5
    | CodeMessage6
)


class ContextList(TypedDict):
    contexts: list[LiveContext]
    next_cursor: NotRequired[str | None]


class CreateVm(TypedDict):
    """
    Define a VM.
    """

    cpus: NotRequired[int | None]
    disk_mib: NotRequired[int | None]
    env: NotRequired[BTreeMap]
    image: NotRequired[str | None]
    isolation: NotRequired[str | None]
    labels: NotRequired[BTreeMap]
    life: NotRequired[SetLife | None]
    memory_mib: NotRequired[int | None]
    name: str
    provider: NotRequired[str | None]
    snapshot_policy: NotRequired[SetSnapshotPolicy | None]
    start: NotRequired[bool]
    wait: NotRequired[bool | None]


class DiffSubject(TypedDict):
    """
    One of the two states.
    """

    looked_at: NotRequired[LookedAt | None]
    name: str
    snapshot: NotRequired[str]
    vm: str


class DirectoryEntry(TypedDict):
    lossy: bool
    name: str
    stat: FileStat


class DirectoryList(TypedDict):
    entries: list[DirectoryEntry]
    next_cursor: NotRequired[str | None]
    truncated: bool


class Ended(TypedDict):
    """
    The process has ended.
    """

    durations: Durations
    guest_kernel: NotRequired[str | None]
    isolation: Literal['hardware-vm', 'emulated-vm', 'user-space-kernel']
    provider: Literal['qemu', 'gvisor', 'firecracker', 'cloud-hypervisor', 'fake']
    status: ExitStatus
    truncated: bool


Event1 = TypedDict(
    'Event1',
    {
        'event': Literal['state-changed'],
        'failure': NotRequired[VmFailure | None],
        'from': NotRequired[
            Literal[
                'creating',
                'stopped',
                'starting',
                'running',
                'paused',
                'suspending',
                'suspended',
                'stopping',
                'migrating',
                'failed',
                'destroyed',
            ]
        ],
        'generation': int,
        'reason': str,
        'to': Literal[
            'creating',
            'stopped',
            'starting',
            'running',
            'paused',
            'suspending',
            'suspended',
            'stopping',
            'migrating',
            'failed',
            'destroyed',
        ],
    },
)


class Event3(TypedDict):
    event: Literal['operation-ended']
    kind: str
    outcome: OutcomeName
    problem: NotRequired[Problem | None]


class Event12(TypedDict):
    end: TransactionEnd
    event: Literal['transaction-ended']
    transaction: str


class Event15(Event1, Event14):
    pass


class Event17(Event3, Event14):
    pass


class Event26(Event12, Event14):
    pass


Event: TypeAlias = (
    Event15
    | Event16
    | Event17
    | Event18
    | Event19
    | Event20
    | Event21
    | Event22
    | Event23
    | Event24
    | Event25
    | Event26
    | Event27
)


EventDetail1 = TypedDict(
    'EventDetail1',
    {
        'event': Literal['state-changed'],
        'failure': NotRequired[VmFailure | None],
        'from': NotRequired[
            Literal[
                'creating',
                'stopped',
                'starting',
                'running',
                'paused',
                'suspending',
                'suspended',
                'stopping',
                'migrating',
                'failed',
                'destroyed',
            ]
        ],
        'generation': int,
        'reason': str,
        'to': Literal[
            'creating',
            'stopped',
            'starting',
            'running',
            'paused',
            'suspending',
            'suspended',
            'stopping',
            'migrating',
            'failed',
            'destroyed',
        ],
    },
)


class EventDetail3(TypedDict):
    event: Literal['operation-ended']
    kind: str
    outcome: OutcomeName
    problem: NotRequired[Problem | None]


class EventDetail12(TypedDict):
    end: TransactionEnd
    event: Literal['transaction-ended']
    transaction: str


EventDetail: TypeAlias = (
    EventDetail1
    | EventDetail2
    | EventDetail3
    | EventDetail4
    | EventDetail5
    | EventDetail6
    | EventDetail7
    | EventDetail8
    | EventDetail9
    | EventDetail10
    | EventDetail11
    | EventDetail12
    | EventDetail13
)


class EventPage(TypedDict):
    events: list[Event]
    next_after: int


class ExecRequest(TypedDict):
    """
    A process to run. Exactly one of `argv` and `shell` is set.
    """

    argv: NotRequired[list[str] | None]
    cwd: NotRequired[str | None]
    env: NotRequired[dict[str, str]]
    limits: NotRequired[ExecLimits]
    pty: NotRequired[PtySize | None]
    shell: NotRequired[str | None]
    stdin: NotRequired[bool]
    user: NotRequired[str | None]


class ExecResult(TypedDict):
    exec: str
    exec_ms: int
    operation: str
    status: ExitStatus
    stderr: Output
    stdout: Output
    truncated: bool


class ExecSummary(TypedDict):
    """
    A process that runs or has lately ended.
    """

    command: list[str]
    exec: str
    operation: str
    pid: NotRequired[int | None]
    problem: NotRequired[Problem | None]
    started: str
    state: ExecStateName
    status: NotRequired[ExitStatus | None]
    user: str


FileDifference = TypedDict(
    'FileDifference',
    {
        'difference': Difference,
        'from': NotRequired[FileFacts | None],
        'path': str,
        'path_base64': NotRequired[str | None],
        'to': NotRequired[FileFacts | None],
    },
)


class FileDifferences(DiffCounts):
    changes: list[FileDifference]


class Guest(TypedDict):
    """
    What the agent inside said of itself. Guest data: never trusted.
    """

    agent_version: str
    health: GuestHealth
    kernel: str
    ready_ms: int


class HistoryOutput(TypedDict):
    """
    What is known of one stream.
    """

    bytes: int
    hash: NotRequired[str | None]
    head: NotRequired[Output | None]
    kept_bytes: NotRequired[int | None]
    lost_bytes: NotRequired[int]
    tail: NotRequired[Output | None]


class Imported(TypedDict):
    """
    What an export became.
    """

    hash: str
    name: str
    snapshot: Snapshot
    vm: str


class Interpreter(TypedDict):
    context: str
    language: Literal['python', 'javascript', 'bash']
    random: Reseeded


class Lost(TypedDict):
    """
    Output that was overwritten before anyone read it.
    """

    bytes: int
    stream: Stream


class Operation(TypedDict):
    actor: str
    created: str
    id: str
    kind: str
    obligation: NotRequired[str | None]
    outcome: NotRequired[OutcomeName | None]
    problem: NotRequired[Problem | None]
    reason: str
    state: OperationStateName
    step: NotRequired[str | None]
    undone: NotRequired[bool | None]
    undone_by: NotRequired[str]
    updated: str
    vm: NotRequired[str]


class OperationList(TypedDict):
    next_cursor: NotRequired[str | None]
    operations: list[Operation]


PackageDifference = TypedDict(
    'PackageDifference',
    {
        'difference': Difference,
        'from': NotRequired[str | None],
        'manager': PackageManager,
        'name': str,
        'to': NotRequired[str | None],
    },
)


class PackageDifferences(DiffCounts):
    changes: list[PackageDifference]


class Pool(TypedDict):
    """
    The warm pool: instances that a VM which never ran becomes when it is started.
    """

    fixed: bool
    most: int
    shelves: list[PoolShelf]
    vms: list[str]


class RaceMessage2(TypedDict):
    """
    Output that was overwritten before anyone read it.
    """

    bytes: int
    event: Literal['lost']
    racer: int
    stream: Stream


class RaceOutcome(TypedDict):
    generation: int
    scores: list[RacerScore]
    undo: NotRequired[str]
    winner: NotRequired[int | None]


class RaceRequest(TypedDict):
    """
    First text frame.
    """

    count: int
    exec: ExecRequest
    score: NotRequired[CommandLine | None]


class RunRequest(TypedDict):
    """
    First text frame on `/v1/run`.
    """

    cpus: NotRequired[int | None]
    disk_mib: NotRequired[int | None]
    exec: ExecRequest
    files: NotRequired[list[RunFile]]
    image: NotRequired[str | None]
    isolation: NotRequired[str | None]
    keep: NotRequired[bool]
    labels: NotRequired[BTreeMap]
    life: NotRequired[SetLife | None]
    memory_mib: NotRequired[int | None]
    name: NotRequired[str | None]
    provider: NotRequired[str | None]
    snapshot_policy: NotRequired[SetSnapshotPolicy | None]


class ServerMessage1(StepProgress):
    """
    Text frames from the server.
    """

    event: Literal['progress']


class ServerMessage2(Started):
    """
    Text frames from the server.
    """

    event: Literal['started']


class ServerMessage3(Lost):
    """
    Text frames from the server.
    """

    event: Literal['lost']


class ServerMessage5(Ended):
    """
    The process and its tree are gone, all output was sent. On `/v1/run` the socket closes once the VM is
    gone too, or a `failed` follows; else it closes at once.
    """

    event: Literal['ended']


ServerMessage: TypeAlias = (
    ServerMessage1
    | ServerMessage2
    | ServerMessage3
    | ServerMessage4
    | ServerMessage5
    | ServerMessage6
)


class Transaction(TypedDict):
    begun: str
    deadline: str
    end: NotRequired[TransactionEnd | None]
    ended: NotRequired[str]
    id: str
    parent: NotRequired[str]
    snapshot: str
    state: Literal['open', 'committed', 'rolled-back', 'rolling-back']
    vm: str
    vm_name: str


class TransactionList(TypedDict):
    next_cursor: NotRequired[str | None]
    transactions: list[Transaction]


class TryMessage2(TypedDict):
    """
    Text frames from the server.
    """

    event: Literal['started']
    part: TryPart
    pid: int


class TryMessage3(TypedDict):
    """
    Output that was overwritten before anyone read it.
    """

    bytes: int
    event: Literal['lost']
    part: TryPart
    stream: Stream


class TryMessage4(TypedDict):
    """
    The process and its tree are gone, all output was sent.
    """

    event: Literal['part-ended']
    part: TryPart
    status: ExitStatus
    truncated: bool


class TryMessage5(TypedDict):
    """
    The process did not run, or how it ended cannot be known.
    """

    event: Literal['part-failed']
    part: TryPart
    problem: Problem


class TryMessage6(TryOutcome):
    """
    The last message: kept, or undone and why.
    """

    event: Literal['ended']


TryMessage: TypeAlias = (
    TryMessage1
    | TryMessage2
    | TryMessage3
    | TryMessage4
    | TryMessage5
    | TryMessage6
    | TryMessage7
)


class TryRequest(TypedDict):
    """
    First text frame: what to run, and when it counts as having worked.
    """

    check: NotRequired[CommandLine | None]
    exec: ExecRequest
    timeout_ms: NotRequired[int | None]


class Attestations(TypedDict):
    """
    What was renewed in a restored guest, as it says itself. No fork is handed out without it.
    """

    clock_offset_ns: int
    connections_dropped: int
    hooks: list[ThawHook]
    hostname: str
    interpreters: list[Interpreter]
    kernel_random: Reseeded
    machine_id: str
    processes_not_reseeded: int
    ssh_host_keys: list[str]
    took_us: int


class CollectRequest(TypedDict):
    """
    Run a process and collect what it prints.
    """

    exec: ExecRequest
    input: NotRequired[str | None]


class Daemon(DaemonRecord):
    """
    The daemon and what keeps it busy.
    """

    connections: int
    execs: int
    images_dir: str
    live_vms: int
    operations: int
    pool: NotRequired[Pool]
    vms: int


Diff = TypedDict(
    'Diff',
    {
        'differs': bool,
        'files': NotRequired[FileDifferences | None],
        'from': DiffSubject,
        'packages': NotRequired[PackageDifferences | None],
        'processes': NotRequired[ProcessDifferences | None],
        'to': DiffSubject,
    },
)


class ExecList(TypedDict):
    execs: list[ExecSummary]
    next_cursor: NotRequired[str | None]


class ForkedVm(TypedDict):
    attestations: NotRequired[Attestations | None]
    generation: int
    name: str
    vm: str


class HistoryEntry(TypedDict):
    """
    One process, or one piece of code.
    """

    actor: str
    agent: NotRequired[str | None]
    before: NotRequired[VmBefore | None]
    context: NotRequired[str | None]
    cwd: NotRequired[str | None]
    duration_us: NotRequired[int | None]
    ended: NotRequired[str]
    error: NotRequired[str | None]
    exit: NotRequired[ExitStatus | None]
    id: str
    interrupted: NotRequired[bool]
    kind: HistoryKind
    language: NotRequired[str | None]
    problem: NotRequired[Problem | None]
    result: NotRequired[str | None]
    snapshot_after: NotRequired[str]
    started: str
    state: HistoryStateName
    stderr: NotRequired[HistoryOutput | None]
    stdout: NotRequired[HistoryOutput | None]
    succeeded: NotRequired[bool | None]
    transaction: NotRequired[str]
    truncated: NotRequired[bool]
    undone_by: NotRequired[str]
    user: str
    vm: str
    vm_name: str
    what: str
    what_bytes: int


class HistoryList(TypedDict):
    entries: list[HistoryEntry]
    next_cursor: NotRequired[str | None]
    total: int


class RaceMessage6(RaceOutcome):
    """
    The last message.
    """

    event: Literal['ended']


RaceMessage: TypeAlias = (
    RaceMessage1
    | RaceMessage2
    | RaceMessage3
    | RaceMessage4
    | RaceMessage5
    | RaceMessage6
    | RaceMessage7
)


Replay = TypedDict(
    'Replay',
    {
        'entry': HistoryEntry,
        'from': VmBefore,
        'kept': bool,
        'missing_env': NotRequired[list[str]],
        'missing_input': NotRequired[bool],
        'of': str,
        'same': SameAsRecorded,
    },
)


class RolledBack(TypedDict):
    """
    The VM continues from `to`.
    """

    attestations: NotRequired[Attestations | None]
    generation: int
    operation: str
    to: str
    undo: NotRequired[str]
    undone: list[str]
    vm: str
    warning: NotRequired[str | None]


class Vm(TypedDict):
    """
    A virtual machine.
    """

    attestations: NotRequired[Attestations | None]
    cpus: int
    created: str
    disk_mib: int
    ephemeral: bool
    failure: NotRequired[VmFailure | None]
    generation: int
    guest: NotRequired[Guest | None]
    id: str
    image: str
    image_digest: str
    isolation: Literal['hardware-vm', 'emulated-vm', 'user-space-kernel']
    labels: NotRequired[BTreeMap]
    last_start: NotRequired[LastStart | None]
    life: Life
    memory_mib: int
    name: str
    node: str
    operation: NotRequired[str]
    owner: str
    position: NotRequired[str]
    provider: Literal['qemu', 'gvisor', 'firecracker', 'cloud-hypervisor', 'fake']
    snapshot_policy: SnapshotPolicy
    snapshots: NotRequired[int | None]
    started_at: NotRequired[str]
    state: Literal[
        'creating',
        'stopped',
        'starting',
        'running',
        'paused',
        'suspending',
        'suspended',
        'stopping',
        'migrating',
        'failed',
        'destroyed',
    ]
    suspended_to: NotRequired[str]
    transaction: NotRequired[Transaction | None]
    updated: str
    usage: NotRequired[Usage | None]


class VmList(TypedDict):
    next_cursor: NotRequired[str | None]
    vms: list[Vm]


class WaitOutcome(TypedDict):
    reached: bool
    vm: Vm


class Changed(TypedDict):
    """
    What a change came to. With status 202 the operation has not ended: ask `/v1/operations/{id}?wait_ms=`.
    """

    operation: Operation
    snapshots_kept: NotRequired[list[str] | None]
    vm: NotRequired[Vm | None]


class Forked(TypedDict):
    """
    All of them run, and each has said what was renewed in it.
    """

    forks: list[ForkedVm]
    operation: str
    paused_us: NotRequired[int | None]
    snapshot: str
