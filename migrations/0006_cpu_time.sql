-- Processor seconds of the attempt that committed, in its evaluator: all of them, and those spent on corrupting images.
alter table shards add column cpu_seconds double precision, add column corruption_seconds double precision;
