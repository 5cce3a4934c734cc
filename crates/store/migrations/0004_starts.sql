-- What a VM's latest process was begun from, and why not from the warm pool.
ALTER TABLE vms ADD COLUMN last_start TEXT CHECK (last_start IS NULL OR json_valid(last_start));
