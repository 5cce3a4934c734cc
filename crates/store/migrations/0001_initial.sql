-- Times are microseconds since the Unix epoch. Ids are UUIDs in their dashed form: later ones sort later.
-- Every thing somebody can own has `owner`, `labels` (a JSON object) and `node`.

CREATE TABLE vms (
    id           TEXT    NOT NULL PRIMARY KEY,
    owner        TEXT    NOT NULL,
    labels       TEXT    NOT NULL CHECK (json_valid(labels)),
    node         TEXT    NOT NULL,
    name         TEXT    NOT NULL,
    spec         TEXT    NOT NULL CHECK (json_valid(spec)),
    image        TEXT    NOT NULL,
    memory_mib   INTEGER NOT NULL,
    cpus         INTEGER NOT NULL,
    disk_mib     INTEGER NOT NULL,
    -- Of the latest instance; before the first one, what admission chose.
    provider     TEXT    NOT NULL,
    isolation    TEXT    NOT NULL,
    state        TEXT    NOT NULL,
    failure      TEXT,
    generation   INTEGER NOT NULL CHECK (generation > 0),
    created      INTEGER NOT NULL,
    updated      INTEGER NOT NULL,
    started      INTEGER,
    CHECK ((state = 'failed') = (failure IS NOT NULL))
) STRICT;
-- A destroyed VM keeps its row while operations refer to it, but not its name.
CREATE UNIQUE INDEX vms_name_of_active ON vms (owner, name) WHERE state <> 'destroyed';
CREATE INDEX vms_image ON vms (image) WHERE state <> 'destroyed';

CREATE TABLE operations (
    id             TEXT    NOT NULL PRIMARY KEY,
    owner          TEXT    NOT NULL,
    labels         TEXT    NOT NULL CHECK (json_valid(labels)),
    node           TEXT    NOT NULL,
    kind           TEXT    NOT NULL,
    vm             TEXT    REFERENCES vms (id),
    actor          TEXT    NOT NULL CHECK (json_valid(actor)),
    reason         TEXT    NOT NULL,
    phase          TEXT    NOT NULL CHECK (phase IN ('pending', 'waiting', 'running', 'ended')),
    state          TEXT    NOT NULL CHECK (json_valid(state)),
    request_key    TEXT,
    request_digest BLOB,
    created        INTEGER NOT NULL,
    updated        INTEGER NOT NULL,
    CHECK ((request_key IS NULL) = (request_digest IS NULL))
) STRICT;
CREATE UNIQUE INDEX operations_request_key ON operations (owner, request_key) WHERE request_key IS NOT NULL;
CREATE INDEX operations_unfinished ON operations (id) WHERE phase <> 'ended';
CREATE INDEX operations_vm ON operations (vm, id);

-- The journal of sagas: a step is written as begun before it acts.
CREATE TABLE operation_steps (
    operation TEXT    NOT NULL REFERENCES operations (id) ON DELETE CASCADE,
    position  INTEGER NOT NULL,
    name      TEXT    NOT NULL,
    state     TEXT    NOT NULL CHECK (state IN ('begun', 'done', 'undone')),
    detail    TEXT    NOT NULL CHECK (json_valid(detail)),
    begun     INTEGER NOT NULL,
    updated   INTEGER NOT NULL,
    PRIMARY KEY (operation, position)
) STRICT, WITHOUT ROWID;

-- What finds a VMM process again. A row exists from before the process does until after it was seen gone.
CREATE TABLE instances (
    vm         TEXT    NOT NULL REFERENCES vms (id),
    generation INTEGER NOT NULL,
    provider   TEXT    NOT NULL,
    isolation  TEXT    NOT NULL,
    record     TEXT    NOT NULL CHECK (json_valid(record)),
    recorded   INTEGER NOT NULL,
    PRIMARY KEY (vm, generation)
) STRICT, WITHOUT ROWID;

-- AUTOINCREMENT: an id is never used again, not even after the newest rows were pruned.
CREATE TABLE events (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    at        INTEGER NOT NULL,
    owner     TEXT    NOT NULL,
    vm        TEXT,
    vm_name   TEXT,
    operation TEXT,
    actor     TEXT    NOT NULL CHECK (json_valid(actor)),
    kind      TEXT    NOT NULL CHECK (json_valid(kind))
) STRICT;
-- The newest event that pruning removed: whoever asks for events after an older one has missed some.
CREATE TABLE events_pruned (
    only_row INTEGER NOT NULL PRIMARY KEY CHECK (only_row = 1),
    through  INTEGER NOT NULL
) STRICT;
INSERT INTO events_pruned VALUES (1, 0);

-- A chain: each row's hash covers its own fields and the hash of the row before.
CREATE TABLE audit (
    seq       INTEGER NOT NULL PRIMARY KEY,
    at        INTEGER NOT NULL,
    actor     TEXT    NOT NULL,
    action    TEXT    NOT NULL,
    target    TEXT    NOT NULL,
    decision  TEXT    NOT NULL,
    rules     TEXT    NOT NULL CHECK (json_valid(rules)),
    revision  TEXT    NOT NULL,
    operation TEXT,
    detail    TEXT    NOT NULL,
    prev_hash BLOB    NOT NULL CHECK (length(prev_hash) = 32),
    hash      BLOB    NOT NULL CHECK (length(hash) = 32)
) STRICT;
CREATE TRIGGER audit_is_never_edited BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'audit rows are never edited'); END;
-- Where the chain ends, so that a missing tail is noticed.
CREATE TABLE audit_head (
    only_row INTEGER NOT NULL PRIMARY KEY CHECK (only_row = 1),
    seq      INTEGER NOT NULL,
    hash     BLOB    NOT NULL CHECK (length(hash) = 32)
) STRICT;
INSERT INTO audit_head VALUES (1, 0, zeroblob(32));
-- Where the chain begins after pruning; a row of the chain attests it.
CREATE TABLE audit_checkpoint (
    only_row INTEGER NOT NULL PRIMARY KEY CHECK (only_row = 1),
    seq      INTEGER NOT NULL,
    hash     BLOB    NOT NULL CHECK (length(hash) = 32)
) STRICT;
INSERT INTO audit_checkpoint VALUES (1, 0, zeroblob(32));

-- Ownership of things whose content lives elsewhere. Nothing writes these yet; their owner, labels and node
-- cannot be added later without inventing them for rows that exist.
CREATE TABLE images (
    digest  TEXT    NOT NULL,
    owner   TEXT    NOT NULL,
    labels  TEXT    NOT NULL CHECK (json_valid(labels)),
    node    TEXT    NOT NULL,
    created INTEGER NOT NULL,
    PRIMARY KEY (digest, owner, node)
) STRICT, WITHOUT ROWID;

CREATE TABLE snapshots (
    id       TEXT    NOT NULL PRIMARY KEY,
    owner    TEXT    NOT NULL,
    labels   TEXT    NOT NULL CHECK (json_valid(labels)),
    node     TEXT    NOT NULL,
    vm       TEXT    NOT NULL REFERENCES vms (id),
    name     TEXT    NOT NULL,
    parent   TEXT    REFERENCES snapshots (id),
    manifest TEXT    NOT NULL CHECK (json_valid(manifest)),
    created  INTEGER NOT NULL,
    UNIQUE (vm, name)
) STRICT;

CREATE TABLE contexts (
    id      TEXT    NOT NULL PRIMARY KEY,
    owner   TEXT    NOT NULL,
    labels  TEXT    NOT NULL CHECK (json_valid(labels)),
    node    TEXT    NOT NULL,
    vm      TEXT    NOT NULL REFERENCES vms (id),
    spec    TEXT    NOT NULL CHECK (json_valid(spec)),
    created INTEGER NOT NULL
) STRICT;

CREATE TABLE keys (
    id      TEXT    NOT NULL PRIMARY KEY,
    owner   TEXT    NOT NULL,
    labels  TEXT    NOT NULL CHECK (json_valid(labels)),
    node    TEXT    NOT NULL,
    name    TEXT    NOT NULL,
    -- Never the secret itself.
    digest  BLOB    NOT NULL,
    scopes  TEXT    NOT NULL CHECK (json_valid(scopes)),
    created INTEGER NOT NULL,
    UNIQUE (owner, name)
) STRICT;
