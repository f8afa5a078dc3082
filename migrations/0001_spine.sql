-- Models, evaluations, the lease queue and tallies.

create table models (
    id              uuid primary key,
    owner           text not null,
    name            text not null,
    -- SHA-256 of artifact bytes + spec: what makes two submissions the same model.
    identity        text not null,
    -- SHA-256 of the artifact bytes: where they lie in the artifact store.
    sha256          text not null,
    bytes           bigint not null,
    spec            jsonb not null,
    state           text not null default 'checking' check (state in ('checking', 'ready', 'rejected')),
    -- {code, found} when rejected.
    rejection       jsonb,
    findings        jsonb not null default '[]',
    -- What the probe measured; seconds_per_forward feeds the planner.
    probe           jsonb,
    check_token     uuid,
    check_expires_at timestamptz,
    check_attempts  integer not null default 0,
    created_at      timestamptz not null default now(),
    checked_at      timestamptz,
    deleted_at      timestamptz,
    version         bigint not null default 1,
    check ((state = 'rejected') = (rejection is not null))
);
create unique index models_one_per_owner on models (owner, identity) where deleted_at is null;
create index models_to_check on models (created_at) where state = 'checking' and deleted_at is null;

create table protocols (
    id         uuid primary key,
    owner      text not null,
    name       text not null,
    version    integer not null,
    document   jsonb not null,
    created_at timestamptz not null default now(),
    unique (owner, name, version)
);

create table evaluations (
    id                  uuid primary key,
    owner               text not null,
    model_id            uuid not null references models (id),
    -- The manifest as it was at submission.
    dataset             jsonb not null,
    dataset_hash        text not null,
    first_image         integer not null check (first_image >= 0),
    images              integer not null check (images > 0),
    -- The resolved document and the cells it came to.
    protocol_name       text not null,
    protocol            jsonb not null,
    conditions          jsonb not null,
    seeds               bigint[] not null check (cardinality(seeds) > 0),
    witnesses           jsonb not null,
    priority            integer not null default 0,
    state               text not null default 'queued'
                        check (state in ('queued', 'running', 'cancelling', 'succeeded', 'failed', 'cancelled')),
    -- {code, detail, actor} of a terminal state.
    outcome             jsonb,
    -- Fixed by the first shard that starts.
    profile             jsonb,
    -- Largest kernel batch the next profile may take; halved after an out-of-memory.
    batch_limit         integer,
    -- Counts restarts under a smaller profile; results of an older generation are refused.
    generation          integer not null default 0,
    planned             boolean not null default false,
    shards_total        integer not null default 0,
    shards_done         integer not null default 0,
    created_at          timestamptz not null default now(),
    started_at          timestamptz,
    cancel_requested_at timestamptz,
    finished_at         timestamptz,
    version             bigint not null default 1,
    check ((state in ('succeeded', 'failed', 'cancelled')) = (outcome is not null)),
    check ((state in ('succeeded', 'failed', 'cancelled')) = (finished_at is not null))
);
create index evaluations_listing on evaluations (owner, created_at desc, id desc);
create index evaluations_open on evaluations (priority desc, created_at) where state in ('queued', 'running', 'cancelling');
create index evaluations_by_model on evaluations (model_id);

create table workers (
    id         uuid primary key,
    host       text not null,
    pid        integer not null,
    -- {device, hardware, libtorch}
    platform   jsonb not null,
    version    text not null,
    started_at timestamptz not null default now(),
    seen_at    timestamptz not null default now(),
    draining   boolean not null default false
);

create table shards (
    id               bigint generated always as identity primary key,
    evaluation_id    uuid not null references evaluations (id) on delete cascade,
    ordinal          integer not null,
    -- Indices into the evaluation's conditions.
    conditions       integer[] not null,
    seed             bigint not null,
    first_image      integer not null,
    images           integer not null check (images > 0),
    state            text not null default 'queued' check (state in ('queued', 'running', 'done', 'failed', 'cancelled')),
    attempts         integer not null default 0,
    not_before       timestamptz not null default now(),
    worker_id        uuid,
    -- The fencing token: whoever does not hold it cannot commit.
    lease_token      uuid,
    lease_expires_at timestamptz,
    -- Verdicts reached by the running attempt, of images × conditions.
    progress         integer not null default 0,
    -- {code, detail} of the last failed attempt.
    error            jsonb,
    verdicts_key     text,
    witnesses_key    text,
    findings         jsonb not null default '[]',
    -- Seconds of the attempt that committed.
    seconds          double precision,
    started_at       timestamptz,
    finished_at      timestamptz,
    unique (evaluation_id, ordinal),
    check ((state = 'running') = (lease_token is not null)),
    check ((state = 'running') = (lease_expires_at is not null)),
    check (state <> 'done' or verdicts_key is not null)
);
create index shards_queued on shards (evaluation_id, ordinal) where state = 'queued';
create index shards_running on shards (lease_expires_at) where state = 'running';

-- Counts per shard and condition. The key makes a second commit of a shard impossible.
create table tallies (
    shard_id      bigint not null references shards (id) on delete cascade,
    condition     integer not null,
    evaluation_id uuid not null references evaluations (id) on delete cascade,
    seed          bigint not null,
    n             bigint not null,
    correct       bigint not null check (correct between 0 and n),
    broken        jsonb not null,
    forwards      bigint not null,
    backwards     bigint not null,
    primary key (shard_id, condition)
);
create index tallies_by_evaluation on tallies (evaluation_id);
