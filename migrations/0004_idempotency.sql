-- Answers to requests that carried an Idempotency-Key, so that a request sent twice is carried out once.

create table idempotency_keys (
    owner       text not null,
    key         text not null,
    -- SHA-256 of what was asked for: the same key for something else is a mistake.
    fingerprint bytea not null,
    -- The id that the request's object gets, however often the request is started over.
    object      uuid not null,
    -- Who carries it out. Whoever has not answered in time is presumed dead.
    token       uuid not null,
    claimed_at  timestamptz not null default now(),
    -- The answer; null while it is being worked out.
    status      smallint,
    headers     jsonb,
    body        bytea,
    created_at  timestamptz not null default now(),
    primary key (owner, key),
    check ((status is null) = (body is null))
);
create index idempotency_keys_by_age on idempotency_keys (created_at);
