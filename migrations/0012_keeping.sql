-- Who submits a model again wants it kept.
alter table models add column used_at timestamptz not null default now();
update models set used_at = created_at;

-- A webhook that is being deleted at this moment is waited for and then left out: an event must not fail with it.
create or replace function tell_webhooks() returns trigger language plpgsql as $$
begin
    insert into webhook_deliveries (webhook_id, event_id, body)
    select w.id, new.id, jsonb_build_object('type', 'evaluation.' || new.kind, 'timestamp', new.created_at,
               'data', jsonb_build_object('evaluation', e.id, 'model', e.model_id, 'event', new.id) || new.data)
    from evaluations e
    join webhooks w on w.owner = e.owner
    where e.id = new.evaluation_id and w.disabled_at is null and new.kind = any (w.events)
      and (w.evaluation_id is null or w.evaluation_id = e.id) and (w.model_id is null or w.model_id = e.model_id)
    for key share of w
    on conflict do nothing;
    return null;
end $$;
