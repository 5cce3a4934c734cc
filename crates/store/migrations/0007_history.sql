-- One row for each process and each piece of code that was run in a VM: the operation that it is, told at more length.
-- `begun` is the operation's place in the order of events, which is the order of a history whatever a clock does.
CREATE TABLE history (
    operation   TEXT    NOT NULL PRIMARY KEY REFERENCES operations (id) ON DELETE CASCADE,
    owner       TEXT    NOT NULL,
    labels      TEXT    NOT NULL CHECK (json_valid(labels)),
    node        TEXT    NOT NULL,
    kind        TEXT    NOT NULL,
    vm          TEXT    NOT NULL,
    -- Then; the VM may be gone, and its name another's.
    vm_name     TEXT    NOT NULL,
    -- On whose behalf the caller said it acts. Nobody checked that.
    agent       TEXT,
    begun       INTEGER NOT NULL,
    started     INTEGER NOT NULL,
    -- NULL while it runs; `ended_at` is the event that told of it.
    ended       INTEGER,
    ended_at    INTEGER,
    failed      INTEGER CHECK (failed IN (0, 1)),
    -- As measured in the guest, in microseconds.
    wall        INTEGER,
    language    TEXT,
    context     TEXT,
    user        TEXT    NOT NULL,
    cwd         TEXT,
    transaction_id TEXT,
    -- The nearest state before it that is kept, and whether nothing had changed the VM since.
    snapshot    TEXT,
    exact       INTEGER NOT NULL CHECK (exact IN (0, 1)),
    -- Of code: that it was interrupted, the error it raised, the value it ended in; the last two are cut.
    interrupted INTEGER NOT NULL DEFAULT 0 CHECK (interrupted IN (0, 1)),
    error       TEXT,
    result      TEXT,
    -- The command line or the code, cut; how long it was, in bytes.
    what_bytes  INTEGER NOT NULL,
    what        TEXT    NOT NULL,
    CHECK ((ended IS NULL) = (failed IS NULL) AND (ended IS NULL) = (ended_at IS NULL))
) STRICT;
-- In order, and with what else a question may narrow it down by, so that counting reads no row.
CREATE UNIQUE INDEX history_order ON history (begun);
CREATE INDEX history_of_owner ON history (owner, begun, started, failed);
CREATE INDEX history_of_vm ON history (vm, owner, begun, started, failed);
CREATE INDEX history_of_agent ON history (owner, agent, begun, started, failed) WHERE agent IS NOT NULL;
CREATE INDEX history_of_failures ON history (owner, begun, started) WHERE failed = 1;
CREATE INDEX history_from_snapshot ON history (snapshot) WHERE snapshot IS NOT NULL;

-- What a program said. Without a row, nobody knows.
CREATE TABLE history_output (
    operation    TEXT    NOT NULL PRIMARY KEY REFERENCES history (operation) ON DELETE CASCADE,
    -- The guest dropped what was beyond the caller's own limit.
    truncated    INTEGER NOT NULL CHECK (truncated IN (0, 1)),
    -- How much there was of each stream; how much of that nobody read; how much is in a file, from the beginning.
    stdout_bytes INTEGER NOT NULL,
    stdout_lost  INTEGER NOT NULL,
    stdout_file  INTEGER NOT NULL,
    stderr_bytes INTEGER NOT NULL,
    stderr_lost  INTEGER NOT NULL,
    stderr_file  INTEGER NOT NULL,
    -- BLAKE3 of the whole stream, if all of it was read.
    stdout_hash  BLOB    CHECK (stdout_hash IS NULL OR length(stdout_hash) = 32),
    stderr_hash  BLOB    CHECK (stderr_hash IS NULL OR length(stderr_hash) = 32),
    -- Its beginning, and its end where that is beyond the beginning.
    stdout_head  BLOB    NOT NULL,
    stdout_tail  BLOB    NOT NULL,
    stderr_head  BLOB    NOT NULL,
    stderr_tail  BLOB    NOT NULL
) STRICT;

-- What changed a VM since an event.
CREATE INDEX operations_in_order ON operations (vm, begun);
