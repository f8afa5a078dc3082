-- What happened to an evaluation, in order, for those who watch it. Triggers write it, in the transactions that make it
-- happen: nothing is told that was rolled back, and no statement of the queue can forget to tell.

create table events (
    -- Rises within an evaluation in the order of commits, because whoever writes holds the evaluation's row.
    id            bigint generated always as identity primary key,
    evaluation_id uuid not null references evaluations (id) on delete cascade,
    -- state, restart, progress, results, attempt_failed
    kind          text not null,
    data          jsonb not null,
    created_at    timestamptz not null default now()
);
create index events_of_evaluation on events (evaluation_id, id);

create function tell_evaluation() returns trigger language plpgsql as $$
begin
    if tg_op = 'INSERT' or new.state <> old.state then
        insert into events (evaluation_id, kind, data) values (new.id, 'state',
            jsonb_build_object('state', new.state, 'outcome', new.outcome));
    end if;
    if tg_op = 'UPDATE' then
        if new.generation <> old.generation then
            insert into events (evaluation_id, kind, data) values (new.id, 'restart',
                jsonb_build_object('generation', new.generation, 'batch_limit', new.batch_limit));
        end if;
        if (new.shards_done, new.shards_total) <> (old.shards_done, old.shards_total) then
            insert into events (evaluation_id, kind, data) values (new.id, 'progress',
                jsonb_build_object('shards', jsonb_build_object('done', new.shards_done, 'total', new.shards_total)));
        end if;
    end if;
    return null;
end $$;
create trigger tell_evaluation after insert or update on evaluations for each row execute function tell_evaluation();

create function tell_attempt() returns trigger language plpgsql as $$
begin
    insert into events (evaluation_id, kind, data) values (new.evaluation_id, 'attempt_failed',
        new.error || jsonb_build_object('shard', new.ordinal, 'final', new.state = 'failed'));
    return null;
end $$;
-- An attempt's number makes its error its own; a restart puts one error on many shards and is told once, above.
create trigger tell_attempt after update on shards for each row
    when (new.error is not null and new.error ? 'attempt' and new.error is distinct from old.error)
    execute function tell_attempt();

create function tell_results() returns trigger language plpgsql as $$
begin
    insert into events (evaluation_id, kind, data)
    select f.evaluation_id, 'results', jsonb_build_object('conditions', jsonb_agg(jsonb_build_object(
               'id', e.conditions -> f.condition ->> 'id', 'seed', f.seed, 'n', f.n, 'correct', f.correct)
               order by f.condition))
    from fresh f join evaluations e on e.id = f.evaluation_id group by f.evaluation_id, f.shard_id;
    return null;
end $$;
create trigger tell_results after insert on tallies referencing new table as fresh
    for each statement execute function tell_results();

-- Evaluations from before: where they stand.
insert into events (evaluation_id, kind, data)
select id, 'state', jsonb_build_object('state', state, 'outcome', outcome) from evaluations order by created_at, id;
