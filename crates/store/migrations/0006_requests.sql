-- Requests that were sent with an idempotency key: what each was, and what it answered.
CREATE TABLE requests (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,
    -- As the caller knows it, and as the operations name it that it began.
    id          TEXT    NOT NULL UNIQUE,
    owner       TEXT    NOT NULL,
    -- Whose key it is: one caller's keys mean nothing to another, who may not be allowed to see the answer.
    caller      TEXT    NOT NULL,
    key         TEXT    NOT NULL,
    fingerprint BLOB    NOT NULL CHECK (length(fingerprint) = 32),
    -- Of a body that was too large to be looked at before the request was begun.
    content     BLOB    CHECK (content IS NULL OR length(content) = 32),
    created     INTEGER NOT NULL,
    -- Without one it is under way, or its daemon ended in its middle.
    outcome     TEXT    CHECK (outcome IN ('answered', 'failed', 'not-kept')),
    status      INTEGER,
    media_type  TEXT,
    body        BLOB,
    failure     TEXT    CHECK (failure IS NULL OR json_valid(failure)),
    UNIQUE (caller, key)
) STRICT;
CREATE INDEX requests_of_owner ON requests (owner, seq);
CREATE INDEX requests_by_age ON requests (created);
ALTER TABLE operations ADD COLUMN request TEXT;
CREATE INDEX operations_of_request ON operations (request) WHERE request IS NOT NULL;
