-- When a VM rests by itself and when its time is up; when that is for the present run; whether it was suspended by itself.
ALTER TABLE vms ADD COLUMN life TEXT NOT NULL
    DEFAULT '{"idle_suspend":null,"wake":"auto","timeout":null,"on_timeout":"suspend"}' CHECK (json_valid(life));
ALTER TABLE vms ADD COLUMN deadline INTEGER;
ALTER TABLE vms ADD COLUMN slept INTEGER NOT NULL DEFAULT 0 CHECK (slept IN (0, 1));
