-- What kept models away from the machines they ran on.

-- "off", {"enforced": …}, or {"unavailable": why}: such a worker takes no work.
alter table workers add column sandbox jsonb not null default '"off"';

-- Of the attempt that committed; null for those committed before this was recorded, which ran without a sandbox.
alter table shards add column sandbox jsonb;
