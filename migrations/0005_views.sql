-- What dashboards and autoscalers read: views in a schema of their own, and a role that can read nothing else.
-- Columns may be added to these views; existing ones keep their names and meaning.

create schema report;

create view report.evaluations as
select e.id as evaluation_id, e.owner, e.model_id, m.name as model, e.dataset ->> 'name' as dataset, e.protocol_name as protocol,
    e.images, cardinality(e.seeds) as seeds, e.priority, e.state, e.outcome ->> 'code' as outcome,
    e.profile ->> 'device' as device, e.profile ->> 'hardware' as hardware, (e.profile ->> 'batch')::integer as batch,
    e.generation, e.shards_total, e.shards_done, e.created_at, e.started_at, e.finished_at,
    extract(epoch from e.started_at - e.created_at)::float8 as waited_seconds,
    extract(epoch from e.finished_at - e.started_at)::float8 as ran_seconds
from evaluations e
join models m on m.id = e.model_id;

-- One row per evaluation and condition with results. The interval is Wilson's, 95 %; several seeds do not narrow it,
-- because they see the same images. Rows of equal `comparable` come from the same images under the same parameters;
-- `latest` marks the newest finished evaluation of a model among those.
create view report.accuracy as
with latest as (
    select distinct on (model_id, dataset_hash, first_image, images, seeds, protocol) id
    from evaluations
    where state = 'succeeded'
    order by model_id, dataset_hash, first_image, images, seeds, protocol, finished_at desc
)
select e.id as evaluation_id, e.owner, e.model_id, m.name as model, e.dataset ->> 'name' as dataset, e.protocol_name as protocol,
    e.state, e.created_at, e.finished_at,
    md5(concat_ws('|', e.dataset_hash, e.first_image, e.images, e.seeds, e.protocol)) as comparable,
    e.id in (select id from latest) as latest,
    t.condition as position, c.cell ->> 'id' as condition, c.cell ->> 'kind' as kind,
    c.cell ->> 'attack' as attack, c.cell ->> 'norm' as norm, (c.cell ->> 'epsilon')::float8 as epsilon,
    c.cell ->> 'type' as corruption, (c.cell ->> 'severity')::integer as severity,
    t.n, t.correct, s.share as accuracy,
    greatest(0, (s.share + s.zz / (2 * s.images) - w.half) / (1 + s.zz / s.images)) as accuracy_low,
    least(1, (s.share + s.zz / (2 * s.images) + w.half) / (1 + s.zz / s.images)) as accuracy_high,
    t.forwards, t.backwards
from evaluations e
join models m on m.id = e.model_id
cross join lateral (
    select condition, sum(n)::bigint as n, sum(correct)::bigint as correct, count(distinct seed) as seeds,
        sum(forwards)::bigint as forwards, sum(backwards)::bigint as backwards
    from tallies
    where evaluation_id = e.id
    group by condition
    having sum(n) > 0
) t
cross join lateral (select e.conditions -> t.condition as cell) c
cross join lateral (
    select t.correct::float8 / t.n as share, t.n::float8 / t.seeds as images, 3.841458820694124::float8 as zz
) s
cross join lateral (
    select sqrt(s.zz * s.share * (1 - s.share) / s.images + s.zz * s.zz / (4 * s.images * s.images)) as half
) w;

-- One row per finished evaluation: the means that tables print under `columns`. `overall` only where the protocol asks for
-- VOneNet's aggregate and all three parts were measured.
create view report.standings as
select a.evaluation_id, a.owner, a.model_id, a.model, a.dataset, a.protocol, a.comparable, a.latest, a.finished_at,
    avg(a.accuracy) filter (where a.kind = 'clean') as clean,
    avg(a.accuracy) filter (where a.kind = 'attack') as white_box,
    avg(a.accuracy) filter (where a.kind = 'corruption') as corruption,
    case when e.protocol ->> 'aggregate' = 'vonenet' then
        (avg(a.accuracy) filter (where a.kind = 'clean') + avg(a.accuracy) filter (where a.kind = 'attack')
         + avg(a.accuracy) filter (where a.kind = 'corruption')) / 3
    end as overall
from report.accuracy a
join evaluations e on e.id = a.evaluation_id
where a.state = 'succeeded'
group by a.evaluation_id, a.owner, a.model_id, a.model, a.dataset, a.protocol, a.comparable, a.latest, a.finished_at, e.protocol;

-- Two models on the same images under the same parameters, from the newest finished evaluation of each.
create view report.comparisons as
select a.dataset, a.protocol, a.comparable, a.position, a.condition, a.model_id as model_a_id, a.model as model_a,
    b.model_id as model_b_id, b.model as model_b, a.accuracy as accuracy_a, b.accuracy as accuracy_b,
    a.accuracy - b.accuracy as difference
from report.accuracy a
join report.accuracy b on b.comparable = a.comparable and b.position = a.position and b.model_id <> a.model_id
where a.latest and b.latest;

-- What a reader of an evaluation must know: findings of its model, and of its committed shards (`shards` counts those).
create view report.findings as
select e.id as evaluation_id, e.owner, m.name as model, e.created_at, 'model' as source, f.finding ->> 'code' as code,
    f.finding ->> 'sentence' as sentence, null::bigint as shards
from evaluations e
join models m on m.id = e.model_id
cross join lateral jsonb_array_elements(m.findings) f (finding)
union all
select e.id, e.owner, m.name, e.created_at, 'run', f.finding ->> 'code', min(f.finding ->> 'sentence'), count(distinct s.id)
from evaluations e
join models m on m.id = e.model_id
join shards s on s.evaluation_id = e.id and s.state = 'done'
cross join lateral jsonb_array_elements(s.findings) f (finding)
group by e.id, e.owner, m.name, e.created_at, f.finding ->> 'code';

-- What committed shards took. Attempts that came to nothing left no time behind; `attempts` counts them.
create view report.usage as
select s.id as shard_id, e.id as evaluation_id, e.owner, m.name as model, e.protocol_name as protocol,
    e.profile ->> 'device' as device, e.profile ->> 'hardware' as hardware, s.finished_at, s.seconds, s.attempts,
    s.images * cardinality(s.conditions) as verdicts
from shards s
join evaluations e on e.id = s.evaluation_id
join models m on m.id = e.model_id
where s.state = 'done';

-- What is left to do, by evaluation. A shard is expected to take as long as the evaluation's committed ones did on average;
-- before the first, the minute that shards are cut for.
create view report.forecast as
select e.id as evaluation_id, e.owner, m.name as model, e.priority, e.state, e.created_at, s.left_over as shards_left,
    coalesce(s.mean_seconds, 60) as seconds_per_shard, s.left_over * coalesce(s.mean_seconds, 60) as worker_seconds
from evaluations e
join models m on m.id = e.model_id
cross join lateral (
    select count(*) filter (where state in ('queued', 'running')) as left_over,
        avg(seconds) filter (where state = 'done') as mean_seconds
    from shards
    where evaluation_id = e.id
) s
where e.state in ('queued', 'running') and e.planned;

create view report.workers as
select id as worker_id, host, platform ->> 'device' as device, platform ->> 'hardware' as hardware,
    platform ->> 'libtorch' as libtorch, version, started_at, seen_at, draining, seen_at > now() - interval '30 seconds' as alive
from workers;

-- One row: what a free worker could take now, and what workers have in hand. Autoscalers read it; they want
-- `shards + running + checks`, because a worker whose shard is not counted would be scaled away under it.
create view report.runnable as
select count(*) as shards, count(distinct e.id) as evaluations,
    (select count(*) from shards where state = 'running') as running,
    (select count(*) from models where state = 'checking' and deleted_at is null) as checks
from shards s
join evaluations e on e.id = s.evaluation_id
join models m on m.id = e.model_id
where s.state = 'queued' and s.not_before <= now() and e.state in ('queued', 'running') and m.state = 'ready';

-- A role without a login: `create role grafana login password '…' in role gauntlet_reader`. Where this connection may not
-- make roles, an administrator makes it before the migration, or grants as below after it.
do $$
begin
    create role gauntlet_reader nologin;
exception
    when duplicate_object or unique_violation then null;
    when insufficient_privilege then raise notice 'the role gauntlet_reader was not made: no right to make roles';
end
$$;

do $$
begin
    if exists (select 1 from pg_roles where rolname = 'gauntlet_reader') then
        grant usage on schema report to gauntlet_reader;
        grant select on all tables in schema report to gauntlet_reader;
    end if;
end
$$;
