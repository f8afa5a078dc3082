-- Webhooks: what owners are told by HTTP, and how each telling went.

create table webhooks (
    id              uuid primary key,
    owner           text not null,
    url             text not null,
    -- Kinds of events, as in the table `events`.
    events          text[] not null check (cardinality(events) > 0),
    -- Only of this evaluation, only of evaluations of this model; of all if null.
    evaluation_id   uuid references evaluations (id) on delete cascade,
    model_id        uuid references models (id) on delete cascade,
    -- Signatures are made with it, so it cannot be a hash.
    secret          bytea not null,
    created_at      timestamptz not null default now(),
    -- Since when nothing has been delivered; null while things are well.
    failing_since   timestamptz,
    disabled_at     timestamptz,
    disabled_reason text,
    check ((disabled_at is null) = (disabled_reason is null))
);
create index webhooks_of_owner on webhooks (owner, created_at);

create table webhook_deliveries (
    -- The same at every attempt: receivers know a repetition by it.
    id              uuid primary key default gen_random_uuid(),
    webhook_id      uuid not null references webhooks (id) on delete cascade,
    -- Null for a test.
    event_id        bigint,
    -- What is sent: the event as it was, whatever becomes of it here.
    body            jsonb not null,
    state           text not null default 'waiting' check (state in ('waiting', 'delivered', 'failed')),
    attempts        integer not null default 0,
    -- When to try next; while an attempt is under way, when its sender is presumed dead.
    not_before      timestamptz not null default now(),
    -- Who sends it; null between attempts.
    token           uuid,
    response_status smallint,
    error           text,
    created_at      timestamptz not null default now(),
    attempted_at    timestamptz,
    -- However often something inserts it: one delivery of an event to a webhook.
    unique (webhook_id, event_id)
);
create index webhook_deliveries_due on webhook_deliveries (webhook_id, not_before) where state = 'waiting';
create index webhook_deliveries_log on webhook_deliveries (webhook_id, created_at desc, id desc);
create index webhook_deliveries_by_age on webhook_deliveries (created_at) where state <> 'waiting';

-- In the transaction of the event: what was committed is told, what was rolled back is not.
create function tell_webhooks() returns trigger language plpgsql as $$
begin
    insert into webhook_deliveries (webhook_id, event_id, body)
    select w.id, new.id, jsonb_build_object('type', 'evaluation.' || new.kind, 'timestamp', new.created_at,
               'data', jsonb_build_object('evaluation', e.id, 'model', e.model_id, 'event', new.id) || new.data)
    from evaluations e
    join webhooks w on w.owner = e.owner
    where e.id = new.evaluation_id and w.disabled_at is null and new.kind = any (w.events)
      and (w.evaluation_id is null or w.evaluation_id = e.id) and (w.model_id is null or w.model_id = e.model_id)
    on conflict do nothing;
    return null;
end $$;
create trigger tell_webhooks after insert on events for each row execute function tell_webhooks();
