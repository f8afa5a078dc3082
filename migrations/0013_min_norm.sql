-- A condition without a budget has an accuracy only at some distance: shares of images that nothing broke compare nothing.
create or replace view report.comparisons as
select a.dataset, a.protocol, a.comparable, a.position, a.condition, a.model_id as model_a_id, a.model as model_a,
    b.model_id as model_b_id, b.model as model_b, a.accuracy as accuracy_a, b.accuracy as accuracy_b,
    a.accuracy - b.accuracy as difference
from report.accuracy a
join report.accuracy b on b.comparable = a.comparable and b.position = a.position and b.model_id <> a.model_id
where a.latest and b.latest and a.kind <> 'min_norm';

-- Models to be checked, and what the evaluations need that wait for each; null if none does.
create view report.unchecked as
select m.id as model_id, m.created_at, e.needs
from models m
left join evaluations e on e.model_id = m.id and e.state in ('queued', 'running')
where m.state = 'checking' and m.deleted_at is null;

-- As before; now also models to be checked, which may need as much as what waits for them (those that nothing waits for are
-- the business of the class whose `rather` is null). And what has begun on other hardware than the class `rather` has cannot
-- be left to it.
create or replace function report.wanted(class jsonb, rather jsonb default null) returns bigint language sql stable as $$
    select coalesce(sum(d.shards), 0)::bigint + (
        select count(distinct u.model_id) from report.unchecked u
        where case when u.needs is null then rather is null
            else public.meets(class, u.needs) and (rather is null or not public.meets(rather, u.needs)) end
    )
    from report.demand d
    where case d.state
        when 'running' then public.meets(coalesce(d.on_worker, '{}'), class)
        else public.meets(class, d.needs)
            and (rather is null or not public.meets(rather, d.needs)
                or (d.hardware is not null and d.hardware is distinct from rather ->> 'hardware'))
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
