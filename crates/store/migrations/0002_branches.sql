-- States that branch: disk layers, the tree of snapshots, transactions, live contexts.
-- "Before" and "after" are told by event ids, which only ever grow, never by times: a clock can be set back.

-- What was written to a data disk between two snapshots. A layer is a file; its parent is the layer it lies over.
CREATE TABLE layers (
    id        TEXT    NOT NULL PRIMARY KEY,
    owner     TEXT    NOT NULL,
    labels    TEXT    NOT NULL CHECK (json_valid(labels)),
    node      TEXT    NOT NULL,
    parent    TEXT    REFERENCES layers (id),
    image     TEXT    NOT NULL,
    -- Relative to the state directory.
    path      TEXT    NOT NULL UNIQUE,
    size_mib  INTEGER NOT NULL,
    -- The operation that made it: until that has ended, nobody else says that it is unused.
    operation TEXT,
    frozen    INTEGER NOT NULL DEFAULT 0 CHECK (frozen IN (0, 1)),
    created   INTEGER NOT NULL
) STRICT;
CREATE INDEX layers_parent ON layers (parent) WHERE parent IS NOT NULL;
CREATE INDEX layers_image ON layers (image);

-- The one disk a VM had until now is its first layer.
INSERT INTO layers (id, owner, labels, node, parent, image, path, size_mib, operation, frozen, created)
SELECT id, owner, '{}', node, NULL, image, 'vms/' || replace(id, '-', '') || '/disk.qcow2', disk_mib, NULL, 0, created
FROM vms WHERE state <> 'destroyed';

-- Nothing wrote this table yet.
DROP TABLE snapshots;
CREATE TABLE snapshots (
    id           TEXT    NOT NULL PRIMARY KEY,
    owner        TEXT    NOT NULL,
    labels       TEXT    NOT NULL CHECK (json_valid(labels)),
    node         TEXT    NOT NULL,
    vm           TEXT    NOT NULL REFERENCES vms (id),
    name         TEXT,
    origin       TEXT    NOT NULL,
    kind         TEXT    NOT NULL,
    state        TEXT    NOT NULL,
    -- History only: what depends on whose bytes is said by `memory_base` and by the layers' parents.
    parent       TEXT    REFERENCES snapshots (id),
    layer        TEXT    NOT NULL REFERENCES layers (id),
    -- Whose complete memory its own pages are a difference to.
    memory_base  TEXT    REFERENCES snapshots (id),
    quiesced     INTEGER NOT NULL CHECK (quiesced IN (0, 1)),
    note         TEXT,
    manifest     TEXT    NOT NULL CHECK (json_valid(manifest)),
    size         INTEGER NOT NULL,
    operation    TEXT    NOT NULL,
    -- The event that tells of it: its place in the order of all that happened.
    taken        INTEGER NOT NULL,
    -- The event since which it has its origin.
    origin_since INTEGER NOT NULL,
    created      INTEGER NOT NULL,
    CHECK (kind = 'full' OR memory_base IS NULL)
) STRICT;
CREATE UNIQUE INDEX snapshots_name ON snapshots (vm, name) WHERE name IS NOT NULL;
CREATE INDEX snapshots_vm ON snapshots (vm, taken);
CREATE INDEX snapshots_parent ON snapshots (parent) WHERE parent IS NOT NULL;
CREATE INDEX snapshots_layer ON snapshots (layer);
CREATE INDEX snapshots_memory_base ON snapshots (memory_base) WHERE memory_base IS NOT NULL;

-- The layer it writes to, the memory it continues from while it has no process, the parent of its next snapshot.
ALTER TABLE vms ADD COLUMN layer TEXT REFERENCES layers (id);
ALTER TABLE vms ADD COLUMN memory TEXT REFERENCES snapshots (id);
ALTER TABLE vms ADD COLUMN position TEXT REFERENCES snapshots (id);
ALTER TABLE vms ADD COLUMN policy TEXT NOT NULL DEFAULT '{"auto":"never","rollback_on_failure":false}'
    CHECK (json_valid(policy));
UPDATE vms SET layer = id WHERE state <> 'destroyed';
-- Two VMs that write to one layer destroy it.
CREATE UNIQUE INDEX vms_layer ON vms (layer) WHERE layer IS NOT NULL;
CREATE INDEX vms_memory ON vms (memory) WHERE memory IS NOT NULL;
CREATE INDEX vms_position ON vms (position) WHERE position IS NOT NULL;

-- Whose complete memory the process maps: its next checkpoint is a difference to it.
ALTER TABLE instances ADD COLUMN memory_base TEXT REFERENCES snapshots (id);

-- The event with which it began; how the process of an exec ended.
ALTER TABLE operations ADD COLUMN begun INTEGER NOT NULL DEFAULT 0;
ALTER TABLE operations ADD COLUMN exec_status TEXT CHECK (exec_status IS NULL OR json_valid(exec_status));

-- From which event to which the state of the VM did not hold an operation, because a rollback had taken it back. An undo
-- ends the span rather than deletes it: a snapshot from within still does not hold the operation.
CREATE TABLE undone_operations (
    operation TEXT    NOT NULL REFERENCES operations (id) ON DELETE CASCADE,
    undone_by TEXT    NOT NULL,
    since     INTEGER NOT NULL,
    until     INTEGER,
    PRIMARY KEY (operation, since)
) STRICT, WITHOUT ROWID;

CREATE TABLE transactions (
    id        TEXT    NOT NULL PRIMARY KEY,
    owner     TEXT    NOT NULL,
    labels    TEXT    NOT NULL CHECK (json_valid(labels)),
    node      TEXT    NOT NULL,
    vm        TEXT    NOT NULL REFERENCES vms (id),
    parent    TEXT    REFERENCES transactions (id) ON DELETE SET NULL,
    operation TEXT    NOT NULL REFERENCES operations (id) ON DELETE CASCADE,
    -- What it goes back to; gone once it has ended and nobody wants to undo it any more.
    snapshot  TEXT    NOT NULL,
    deadline  INTEGER NOT NULL,
    state     TEXT    NOT NULL CHECK (state IN ('open', 'rolling-back', 'committed', 'rolled-back')),
    end       TEXT    CHECK (end IS NULL OR json_valid(end)),
    begun     INTEGER NOT NULL,
    ended     INTEGER,
    -- Their order; times may be equal.
    event     INTEGER NOT NULL,
    CHECK ((end IS NULL) = (state IN ('open', 'rolling-back')))
) STRICT;
CREATE INDEX transactions_open ON transactions (vm, event) WHERE state IN ('open', 'rolling-back');
CREATE INDEX transactions_vm ON transactions (vm);
CREATE INDEX transactions_operation ON transactions (operation);
CREATE INDEX transactions_parent ON transactions (parent) WHERE parent IS NOT NULL;

-- Nothing wrote this table yet.
DROP TABLE contexts;
CREATE TABLE contexts (
    vm       TEXT    NOT NULL REFERENCES vms (id),
    name     TEXT    NOT NULL,
    owner    TEXT    NOT NULL,
    labels   TEXT    NOT NULL CHECK (json_valid(labels)),
    node     TEXT    NOT NULL,
    language TEXT    NOT NULL,
    created  INTEGER NOT NULL,
    PRIMARY KEY (vm, name)
) STRICT, WITHOUT ROWID;
