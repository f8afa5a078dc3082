//! Databases of every version come forward with what is in them, and a backup is as good as what it was made of.

mod common;

use std::path::Path;
use std::process::Command;

use common::bench::{capabilities, import, platform};
use common::postgres::fresh_database;
use common::world::{World, digits_spec, repository};
use gauntlet::dataset::Catalogue;
use gauntlet::protocol::{Pictures, Protocol};
use gauntlet::queue::{self, Claimant};
use gauntlet::store::{Artifacts, evaluations, events, keys, models, pool, report, retention, shards, webhooks};
use serde_json::{Value, json};
use sqlx::PgPool;
use sqlx::migrate::Migrator;
use sqlx::types::Json;
use uuid::Uuid;

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

const MODEL: Uuid = Uuid::from_u128(1);
const FINISHED: Uuid = Uuid::from_u128(2);
const WAITING: Uuid = Uuid::from_u128(3);

async fn run(pool: &PgPool, sql: &'static str) {
    sqlx::query(sql).execute(pool).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
}

/// Puts into a database of this version what could be in it.
async fn fill(pool: &PgPool, version: i64) {
    let folder = tempfile::tempdir().unwrap();
    let artifacts = Artifacts::local(folder.path()).unwrap();
    let manifest = import(&Catalogue::new(artifacts.store()), "tiny", 40, 3).await;
    let protocol = Protocol::from_toml("name = \"p\"\n[clean]", &[]).unwrap();
    let conditions = protocol.conditions_for(&manifest.scene(Pictures::Procedural)).unwrap();
    sqlx::query(
        "insert into models (id, owner, name, identity, sha256, bytes, spec, state, probe)
         values ($1, 'alice', 'net', 'identity', 'hash', 7, $2, 'ready', '{\"seconds_per_forward\": 0.001}')",
    )
    .bind(MODEL)
    .bind(json!({"format": "torchscript", "input": [1, 2, 2], "classes": 3, "stochastic": false}))
    .execute(pool)
    .await
    .unwrap();
    for (id, state) in [(FINISHED, "succeeded"), (WAITING, "queued")] {
        sqlx::query(
            "insert into evaluations (id, owner, model_id, dataset, dataset_hash, first_image, images, protocol_name, protocol,
                 conditions, seeds, witnesses, state, outcome, planned, shards_total, shards_done, finished_at)
             values ($1, 'alice', $2, $3, $4, 0, 40, 'p', $5, $6, '{0}', '\"none\"', $7,
                 case when $7 = 'succeeded' then '{\"code\": \"completed\", \"detail\": \"…\", \"actor\": \"worker\"}'::jsonb end,
                 true, 1, case when $7 = 'succeeded' then 1 else 0 end, case when $7 = 'succeeded' then now() end)",
        )
        .bind(id)
        .bind(MODEL)
        .bind(Json(&manifest))
        .bind(manifest.hash.to_string())
        .bind(Json(&protocol))
        .bind(Json(&conditions))
        .bind(state)
        .execute(pool)
        .await
        .unwrap();
        sqlx::query(
            "insert into shards (evaluation_id, ordinal, conditions, seed, first_image, images, state, verdicts_key, seconds)
             values ($1, 0, '{0}', 0, 0, 40, case when $2 = 'succeeded' then 'done' else 'queued' end,
                 case when $2 = 'succeeded' then 'verdicts/x' end, 1)",
        )
        .bind(id)
        .bind(state)
        .execute(pool)
        .await
        .unwrap();
    }
    run(pool, "insert into tallies select id, 0, evaluation_id, 0, 40, 30, '{\"clean\": 10}', 40, 0 from shards where state = 'done'").await;
    run(pool, "insert into protocols (id, owner, name, version, document) select gen_random_uuid(), 'alice', 'p', 1, protocol from evaluations limit 1").await;
    run(pool, "insert into workers (id, host, pid, platform, version) values (gen_random_uuid(), 'host', 1, '{\"device\": \"cpu\", \"hardware\": \"AVX2\", \"libtorch\": \"2.11.0\"}', '0.1.0')").await;
    if version >= 3 {
        run(pool, "insert into api_keys (id, owner, scopes, secret_hash) values ('key', 'alice', '{read}', 'hash')")
            .await;
    }
    if version >= 4 {
        run(pool, "insert into idempotency_keys (owner, key, fingerprint, object, token, status, headers, body) values ('alice', 'k', 'f', gen_random_uuid(), gen_random_uuid(), 200, '[]', '{}')").await;
    }
    if version >= 9 {
        run(pool, "insert into webhooks (id, owner, url, events, secret) values (gen_random_uuid(), 'alice', 'https://example.com/', '{state}', 'secret')").await;
    }
    if version >= 10 {
        run(pool, "insert into retention (owner, witness_days) values ('alice', 5)").await;
        run(pool, "insert into uploads (id, owner, bytes) values (gen_random_uuid(), 'alice', 5)").await;
    }
}

/// What a user of the database sees, without times.
async fn seen(pool: &PgPool) -> Value {
    let finished = evaluations::get(pool, FINISHED).await.unwrap().unwrap();
    let mut table = json!(report::table(pool, &finished).await.unwrap());
    let provenance = table["provenance"].as_object_mut().unwrap();
    provenance.retain(|key, _| !key.ends_with("_at"));
    provenance["dataset"]["created_at"].take();
    let model = models::get(pool, Some("alice"), MODEL).await.unwrap().unwrap();
    // From the version on that has events, filling it makes others as well.
    let told = events::after(pool, FINISHED, 0, true).await.unwrap();
    let last = told.into_iter().rfind(|event| event.kind == "state").unwrap();
    let view: Vec<(f64, String)> =
        sqlx::query_as("select accuracy, condition from report.accuracy").fetch_all(pool).await.unwrap();
    let shards: Vec<String> =
        shards::list(pool, FINISHED, 0, 10).await.unwrap().into_iter().map(|shard| shard.state).collect();
    json!({
        "table": table, "model": model.name, "event": [last.kind, last.data], "view": view, "shards": shards,
        "shared": finished.shared,
    })
}

#[tokio::test]
async fn a_database_of_every_version_comes_forward_with_what_is_in_it() {
    let versions: Vec<i64> = MIGRATIONS.iter().map(|migration| migration.version).collect();
    let mut before: Option<Value> = None;
    for &version in &versions {
        let (url, _guard) = fresh_database().await;
        let pool = pool::connect(&url, 4).await.unwrap();
        MIGRATIONS.run_to(version, &pool).await.unwrap();
        assert_eq!(pool::is_migrated(&pool).await.unwrap(), Some(&version) == versions.last());
        fill(&pool, version).await;
        pool::migrate(&pool).await.unwrap();
        assert!(pool::is_migrated(&pool).await.unwrap());
        let now = seen(&pool).await;
        assert_eq!(now["table"]["conditions"][0]["correct"], 30, "version {version}");
        if let Some(before) = &before {
            assert_eq!(now, *before, "version {version}");
        }
        before = Some(now);
        assert_eq!(keys::list(&pool).await.unwrap().len(), usize::from(version >= 3));
        assert_eq!(webhooks::list(&pool, None).await.unwrap().len(), usize::from(version >= 9));
        assert_eq!(retention::list(&pool).await.unwrap().len(), usize::from(version >= 10));
        // And work goes on where it stood.
        let (platform, capabilities) = (platform(), capabilities());
        let claimant =
            Claimant { worker: Uuid::new_v4(), platform: &platform, capabilities: &capabilities, prefers: None };
        let claimed = queue::claim(&pool, &claimant, common::bench::LEASE).await.unwrap().unwrap();
        assert_eq!(claimed.evaluation.id, WAITING);
        pool.close().await;
    }
}

/// A program of the Postgres installation.
fn postgres(program: &str) -> Command {
    let newest = || {
        let mut found: Vec<_> =
            std::fs::read_dir("/usr/lib/postgresql").ok()?.flatten().map(|e| e.path().join("bin")).collect();
        found.sort();
        found.pop().map(|folder| folder.join(program)).filter(|path| path.exists())
    };
    Command::new(newest().unwrap_or_else(|| program.into()))
}

fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_restored_elsewhere_gives_the_same_table_and_its_evidence_holds() {
    if postgres("pg_dump").arg("--version").output().is_err() {
        eprintln!("there is no pg_dump: backups were not tried");
        return;
    }
    let world = World::new().await;
    world.import_digits().await;
    let model = world.add_model(&repository("models/digits/standard.pt"), &digits_spec()).await;
    let text = "name = 'p'\n[clean]\n[[attack]]\nattack = 'pgd'\nnorm = 'linf'\nepsilon = 0.1\nsteps = 3";
    let id = world.submit(model.id, &Protocol::from_toml(text, &[]).unwrap(), 1297, 16, &[0]).await;
    let worker = world.worker();
    let ended = world.until_ended(id).await;
    drop(worker);
    let table = report::table(&world.pool, &ended).await.unwrap();
    // Rows first: what they name is then surely among the files.
    let elsewhere = tempfile::tempdir().unwrap();
    let dump = elsewhere.path().join("gauntlet.dump");
    succeed(postgres("pg_dump").args(["--format=custom", "--file"]).arg(&dump).arg(&world.url));
    copy(&world.data.path().join("artifacts"), &elsewhere.path().join("artifacts"));
    // The first installation is lost.
    let old = world.data.path().join("artifacts");
    std::fs::remove_dir_all(&old).unwrap();
    let (url, _guard) = fresh_database().await;
    succeed(postgres("pg_restore").args(["--clean", "--if-exists", "--no-owner", "--dbname"]).arg(&url).arg(&dump));
    let restored = pool::connect(&url, 4).await.unwrap();
    pool::migrate(&restored).await.unwrap();
    let again = evaluations::get(&restored, id).await.unwrap().unwrap();
    assert_eq!(json!(report::table(&restored, &again).await.unwrap()), json!(table));
    let verified = Command::new(env!("CARGO_BIN_EXE_gauntlet"))
        .args(["verify", &id.to_string(), "--format", "json", "--data-dir"])
        .arg(elsewhere.path())
        .env("DATABASE_URL", &url)
        .env("GAUNTLET_THREADS", "1")
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&verified.stdout).unwrap();
    assert!(verified.status.success() && report["witnesses_confirmed"].as_u64() > Some(0), "{report}");
}

/// As `rsync -a` does.
fn copy(from: &Path, to: &Path) {
    succeed(Command::new("cp").arg("-a").arg(from).arg(to));
}
