-- Commits and claims are what the queue does all the time: less hangs on them.

-- Commits a shard: its result, its counts, the evaluation's progress, and the news of both. Nothing happens, and nulls are returned,
-- if the lease is somebody else's, or if this may be the last result or the evaluation was stopped and `may_be_last` is false.
-- Unless it may be the last, the transaction does not wait for the disk with the evaluation locked: its caller waits.
create function commit_shard(
    the_evaluation uuid, the_shard bigint, the_token uuid, the_verdicts text, the_witnesses text, the_signs jsonb,
    the_seconds float8, the_sandbox jsonb, the_cpu_seconds float8, the_corruption_seconds float8, the_counts jsonb,
    may_be_last boolean, out done integer, out age float8
) language plpgsql as $$
declare
    e record;
    the_seed bigint;
begin
    -- The evaluation before the shard, as everywhere.
    select shards_done, shards_total, conditions, created_at into e from evaluations
    where id = the_evaluation and (may_be_last or (state in ('queued', 'running') and shards_done + 1 < shards_total))
    for no key update;
    if not found then
        return;
    end if;
    update shards set state = 'done', lease_token = null, lease_expires_at = null, progress = 0, error = null,
        verdicts_key = the_verdicts, witnesses_key = the_witnesses, signs = the_signs, seconds = the_seconds,
        sandbox = the_sandbox, cpu_seconds = the_cpu_seconds, corruption_seconds = the_corruption_seconds, finished_at = now()
    where id = the_shard and evaluation_id = the_evaluation and lease_token = the_token and state = 'running'
    returning seed into the_seed;
    if not found then
        return;
    end if;
    insert into tallies (shard_id, evaluation_id, seed, condition, n, correct, broken, forwards, backwards)
    select the_shard, the_evaluation, the_seed, t.* from jsonb_to_recordset(the_counts)
    as t (condition integer, n bigint, correct bigint, broken jsonb, forwards bigint, backwards bigint);
    update evaluations set shards_done = shards_done + 1, version = version + 1 where id = the_evaluation;
    done := e.shards_done + 1;
    age := extract(epoch from now() - e.created_at);
    insert into events (evaluation_id, kind, data) values
        (the_evaluation, 'results', jsonb_build_object('conditions', (
            select jsonb_agg(jsonb_build_object('id', e.conditions -> t.condition ->> 'id', 'seed', the_seed, 'n', t.n,
                       'correct', t.correct) order by t.condition)
            from jsonb_to_recordset(the_counts) as t (condition integer, n bigint, correct bigint)))),
        (the_evaluation, 'progress', jsonb_build_object('shards', jsonb_build_object('done', done, 'total', e.shards_total)));
    if not may_be_last then
        perform set_config('synchronous_commit', 'off', true);
    end if;
end $$;

-- What commits tell, they tell themselves; the triggers that remain need not look at them.
drop trigger tell_results on tallies;
drop function tell_results();
drop trigger tell_evaluation on evaluations;
create trigger tell_evaluation after insert or update of state, generation, shards_total on evaluations
    for each row execute function tell_evaluation();

-- As before, looked at only where an error is set or cleared.
drop trigger tell_attempt on shards;
create or replace function tell_attempt() returns trigger language plpgsql as $$
begin
    -- An attempt's number makes its error its own; a restart puts one error on many shards and is told once, above.
    if new.error ? 'attempt' then
        insert into events (evaluation_id, kind, data) values (new.evaluation_id, 'attempt_failed',
            new.error || jsonb_build_object('shard', new.ordinal, 'final', new.state = 'failed'));
    end if;
    return null;
end $$;
create trigger tell_attempt after update of error on shards for each row
    when (new.error is distinct from old.error) execute function tell_attempt();

-- As before, once for all events of a statement, and at no cost where nobody has a webhook.
drop trigger tell_webhooks on events;
create or replace function tell_webhooks() returns trigger language plpgsql as $$
begin
    if not exists (select from webhooks where disabled_at is null) then
        return null;
    end if;
    -- A webhook that is being deleted at this moment is waited for and then left out: an event must not fail with it.
    insert into webhook_deliveries (webhook_id, event_id, body)
    select w.id, f.id, jsonb_build_object('type', 'evaluation.' || f.kind, 'timestamp', f.created_at,
               'data', jsonb_build_object('evaluation', e.id, 'model', e.model_id, 'event', f.id) || f.data)
    from fresh f
    join evaluations e on e.id = f.evaluation_id
    join webhooks w on w.owner = e.owner
    where w.disabled_at is null and f.kind = any (w.events)
      and (w.evaluation_id is null or w.evaluation_id = e.id) and (w.model_id is null or w.model_id = e.model_id)
    order by f.id
    for key share of w
    on conflict do nothing;
    return null;
end $$;
create trigger tell_webhooks after insert on events referencing new table as fresh
    for each statement execute function tell_webhooks();

-- Whose turn it is can be told from this index alone, and counting a shard changes nothing in it.
drop index evaluations_open;
create index evaluations_open on evaluations (priority desc, created_at) include (id, owner, model_id)
    where state in ('queued', 'running');

-- Who has what in hand. Without the time that a lease ends at, which every heartbeat changes.
drop index shards_running;
create index shards_running on shards (evaluation_id) where state = 'running';

-- Room to write a row's next version beside it, with which no index has to be told of it.
alter table evaluations set (fillfactor = 70);
alter table shards set (fillfactor = 90);
