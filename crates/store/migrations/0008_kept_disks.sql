-- What a VM whose disk is its memory had written when it was stopped: the archive that holds it.
ALTER TABLE vms ADD COLUMN kept_disk TEXT CHECK (kept_disk IS NULL OR json_valid(kept_disk));
