-- API keys, of which none was ever made before: what each is good for, who made it, and with which key.
DROP TABLE keys;
CREATE TABLE keys (
    id      TEXT    NOT NULL PRIMARY KEY,
    owner   TEXT    NOT NULL,
    labels  TEXT    NOT NULL CHECK (json_valid(labels)),
    node    TEXT    NOT NULL,
    name    TEXT    NOT NULL,
    -- Never the secret itself.
    digest  BLOB    NOT NULL UNIQUE,
    limits  TEXT    NOT NULL CHECK (json_valid(limits)),
    maker   TEXT    NOT NULL CHECK (json_valid(maker)),
    -- Goes with it when that is removed, and counts for it.
    parent  TEXT    REFERENCES keys (id) ON DELETE CASCADE,
    created INTEGER NOT NULL,
    UNIQUE (owner, name)
) STRICT;
CREATE INDEX keys_by_parent ON keys (parent);
-- The key that a VM was made with. Outlives the key.
ALTER TABLE vms ADD COLUMN made_with TEXT;
CREATE INDEX vms_by_key ON vms (made_with) WHERE made_with IS NOT NULL;
