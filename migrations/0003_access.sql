-- Access keys, and results that their owners share.

create table api_keys (
    -- The public half: what listings show and clients send before the secret half.
    id           text primary key,
    owner        text not null,
    label        text not null default '',
    scopes       text[] not null check (scopes <@ array['read', 'submit', 'admin'] and cardinality(scopes) > 0),
    -- SHA-256 of the secret half, which is random and long and kept nowhere.
    secret_hash  bytea not null,
    created_at   timestamptz not null default now(),
    expires_at   timestamptz,
    revoked_at   timestamptz,
    last_used_at timestamptz
);

-- Whoever holds a key may read a shared evaluation and its results.
alter table evaluations add column shared boolean not null default false;
create index evaluations_by_day on evaluations (owner, created_at);
create index models_by_owner on models (owner, created_at desc, id desc) where deleted_at is null;
