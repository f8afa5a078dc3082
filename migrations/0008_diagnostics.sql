-- What shards saw that bears on whether their verdicts can be trusted, and the judgement on an evaluation that has succeeded.

-- One object per condition of the shard; null from workers of before. They wrote `findings`, and nobody else does.
alter table shards add column signs jsonb;
-- {grade, findings, second_opinion}
alter table evaluations add column diagnostics jsonb;

-- `shards` counts the shards that raised a finding, where shards did; since then findings are drawn from all of them together.
create or replace view report.findings as
select e.id as evaluation_id, e.owner, m.name as model, e.created_at, 'model' as source, f.finding ->> 'code' as code,
    f.finding ->> 'sentence' as sentence, null::bigint as shards, coalesce(f.finding ->> 'weight', 'suspicious') as weight
from evaluations e
join models m on m.id = e.model_id
cross join lateral jsonb_array_elements(m.findings) f (finding)
union all
select e.id, e.owner, m.name, e.created_at, 'run', f.finding ->> 'code', min(f.finding ->> 'sentence'), count(distinct s.id),
    'suspicious'
from evaluations e
join models m on m.id = e.model_id
join shards s on s.evaluation_id = e.id and s.state = 'done'
cross join lateral jsonb_array_elements(s.findings) f (finding)
group by e.id, e.owner, m.name, e.created_at, f.finding ->> 'code'
union all
select e.id, e.owner, m.name, e.created_at, 'run', f.finding ->> 'code', f.finding ->> 'sentence', null, f.finding ->> 'weight'
from evaluations e
join models m on m.id = e.model_id
cross join lateral jsonb_array_elements(e.diagnostics -> 'findings') f (finding)
where not exists (select 1 from jsonb_array_elements(m.findings) of_model where of_model ->> 'code' = f.finding ->> 'code'
    and of_model -> 'evidence' = f.finding -> 'evidence');

-- The grade of each finished evaluation.
create view report.grades as
select e.id as evaluation_id, e.owner, e.model_id, m.name as model, e.dataset ->> 'name' as dataset, e.protocol_name as protocol,
    e.finished_at, coalesce(e.diagnostics ->> 'grade', 'not_assessed') as grade
from evaluations e
join models m on m.id = e.model_id
where e.state = 'succeeded';

do $$
begin
    if exists (select 1 from pg_roles where rolname = 'gauntlet_reader') then
        grant select on all tables in schema report to gauntlet_reader;
    end if;
end
$$;
