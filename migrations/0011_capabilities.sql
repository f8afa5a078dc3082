-- What workers offer and evaluations need, and the request that an evaluation came with.

-- {device, gpu_memory_bytes, labels}; workers of before offer nothing in particular.
alter table workers add column capabilities jsonb not null default '{}';
-- The same keys, each of which may be absent.
alter table evaluations add column needs jsonb not null default '{}';
-- The x-request-id of the submission.
alter table evaluations add column request_id text;

-- Whether a worker with these capabilities may run what has these needs.
create function meets(capabilities jsonb, needs jsonb) returns boolean language sql immutable parallel safe as $$
    select (needs ->> 'device' is null or coalesce(needs ->> 'device' = capabilities ->> 'device', false))
        and coalesce((capabilities ->> 'gpu_memory_bytes')::bigint, 0) >= coalesce((needs ->> 'gpu_memory_bytes')::bigint, 0)
        and coalesce(capabilities -> 'labels', '{}') @> coalesce(needs -> 'labels', '{}')
$$;

create or replace view report.workers as
select id as worker_id, host, platform ->> 'device' as device, platform ->> 'hardware' as hardware,
    platform ->> 'libtorch' as libtorch, version, started_at, seen_at, draining, seen_at > now() - interval '30 seconds' as alive,
    (capabilities ->> 'gpu_memory_bytes')::bigint as gpu_memory_bytes, coalesce(capabilities -> 'labels', '{}') as labels
from workers;

-- What is asked of workers, by what it needs: shards that a free worker could take now, and those that run (`on_worker`: what
-- the worker that has them offers). Device and hardware are those of an evaluation that has begun.
create view report.demand as
select case s.state when 'running' then 'running' else 'runnable' end as state, e.needs, e.profile ->> 'device' as device,
    e.profile ->> 'hardware' as hardware, w.capabilities as on_worker, count(*) as shards
from shards s
join evaluations e on e.id = s.evaluation_id
join models m on m.id = e.model_id
left join workers w on w.id = s.worker_id and s.state = 'running'
where s.state = 'running'
    or (s.state = 'queued' and s.not_before <= now() and e.state in ('queued', 'running') and m.state = 'ready')
group by 1, 2, 3, 4, 5;

-- Shards for one class of workers, for its autoscaler: what such a worker could take, unless one of the class `rather` could,
-- and what workers with all that the class offers have in hand (a label of its own tells them from others). A class is
-- {device, gpu_memory_bytes, labels}, and `hardware` where it is of one kind.
create function report.wanted(class jsonb, rather jsonb default null) returns bigint language sql stable as $$
    select coalesce(sum(d.shards), 0)::bigint from report.demand d
    where case d.state
        when 'running' then public.meets(coalesce(d.on_worker, '{}'), class)
        else public.meets(class, d.needs) and (rather is null or not public.meets(rather, d.needs))
            and coalesce(d.device = class ->> 'device', true)
            and (class ->> 'hardware' is null or coalesce(d.hardware = class ->> 'hardware', true))
        end
$$;

do $$
begin
    if exists (select 1 from pg_roles where rolname = 'gauntlet_reader') then
        grant select on all tables in schema report to gauntlet_reader;
    end if;
end
$$;
