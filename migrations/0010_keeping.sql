-- What is kept and for how long: uploads in pieces, logs of attempts, retention.

-- A model's file that arrives in pieces, over several requests.
create table uploads (
    id         uuid primary key,
    owner      text not null,
    -- What it will have in the end; counts against the owner's storage from the beginning.
    bytes      bigint not null check (bytes > 0),
    -- What the whole must have, if its sender said so.
    sha256     text,
    received   bigint not null default 0 check (received between 0 and bytes),
    created_at timestamptz not null default now(),
    grown_at   timestamptz not null default now()
);
create index uploads_of_owner on uploads (owner, created_at);
create index uploads_by_age on uploads (grown_at);

create table upload_parts (
    upload_id uuid not null references uploads (id) on delete cascade,
    start     bigint not null,
    bytes     bigint not null check (bytes > 0),
    -- Where they lie in the artifact store.
    key       text not null,
    primary key (upload_id, start)
);

-- Attempts at shards that have ended, each with its log.
create table shard_attempts (
    shard_id      bigint not null references shards (id) on delete cascade,
    -- The lease's: a name that no other attempt has.
    token         uuid not null,
    evaluation_id uuid not null references evaluations (id) on delete cascade,
    attempt       integer not null,
    worker_id     uuid,
    -- committed, failed, stopped
    outcome       text not null,
    started_at    timestamptz,
    finished_at   timestamptz not null default now(),
    -- Where the log lies in the artifact store; null once it has expired.
    log_key       text,
    log_bytes     integer not null,
    primary key (shard_id, token)
);
create index shard_attempts_of_evaluation on shard_attempts (evaluation_id);

-- Per owner, where it differs from the installation's: days; 0 is for ever.
create table retention (
    owner        text primary key,
    model_days   integer check (model_days >= 0),
    witness_days integer check (witness_days >= 0),
    log_days     integer check (log_days >= 0)
);

-- When stored witnesses were deleted because their time was up. Verdicts and tables stay.
alter table evaluations add column witnesses_expired_at timestamptz;

create index idempotency_keys_by_object on idempotency_keys (object);
create index evaluations_by_end on evaluations (finished_at) where finished_at is not null;

-- When deleted evaluations had been accepted: deleting one gives no place of the day's quota back.
create table deleted_evaluations (
    owner      text not null,
    created_at timestamptz not null
);
create index deleted_evaluations_by_day on deleted_evaluations (owner, created_at);
