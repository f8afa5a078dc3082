//! Hostile models, submitted like any other, on real workers.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use common::torchscript::{write_model, write_model_that_loads_with};
use common::world::{World, digits_spec, repository};
use gauntlet::store::evaluations::State;
use gauntlet::store::models::{self, Model};
use gauntlet::store::{report, workers};
use sha2::{Digest, Sha256};

/// A folder with a file that every account may read and write.
fn bait() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let file = folder.path().join("bait");
    fs::write(&file, "0123456789abcdef").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
    (folder, file)
}

/// What a model does, and whether its attempt shows (`true`) or fails in silence.
fn attempts(folder: &Path, bait: &Path, dataset: &Path) -> Vec<(&'static str, String, bool)> {
    let read =
        |file: &str, size: u32| format!("stolen = torch.from_file(\"{file}\", False, {size}, dtype=0)\nprint(stolen)");
    let (bait, folder) = (bait.display(), folder.display());
    vec![
        ("reads the password file", read("/etc/passwd", 16), true),
        ("reads a file open to all", read(&bait.to_string(), 16), true),
        ("reads the dataset", read(&dataset.display().to_string(), 16), true),
        ("reads the memory of others", read("/proc/1/maps", 16), true),
        (
            "overwrites a file in place",
            format!("t = torch.from_file(\"{bait}\", True, 16, dtype=0)\nt0 = torch.zero_(t)\nprint(t0)"),
            true,
        ),
        (
            "makes a file by mapping it",
            format!("t = torch.from_file(\"{folder}/new\", True, 16, dtype=0)\nt0 = torch.zero_(t)\nprint(t0)"),
            true,
        ),
        ("saves a file", format!("torch.save(x, \"{folder}/saved\")"), false),
        ("saves over a file", format!("torch.save(x, \"{bait}\")"), false),
        ("forges frames", (0..16).map(|fd| format!("torch.save(x, \"/proc/self/fd/{fd}\")\n")).collect(), false),
    ]
}

async fn submit(world: &World, name: &str, write: impl FnOnce(&Path)) -> Model {
    let path = world.data.path().join(format!("{}.pt", name.replace(' ', "-")));
    write(&path);
    world.add_model(&path, &digits_spec()).await
}

#[tokio::test]
async fn a_model_that_reads_or_writes_files_fails_and_leaves_everything_as_it_was() {
    let world = World::new().await;
    world.import_digits().await;
    let (folder, file) = bait();
    let dataset = largest_file(&world.data.path().join("artifacts/datasets"));
    let before = fs::read(&dataset).unwrap();
    let mut hostile = Vec::new();
    for (name, body, shows) in attempts(folder.path(), &file, &dataset) {
        hostile.push((name, submit(&world, name, |path| write_model(path, &body)).await, shows));
        let name = format!("at load {name}");
        let model =
            submit(&world, &name, |path| write_model_that_loads_with(path, &body.replace("x,", "torch.ones([3]),")))
                .await;
        hostile.push(("while it loads", model, shows));
    }
    let decent = world.add_model(&repository("models/digits/standard.pt"), &digits_spec()).await;
    let _worker = world.worker();
    for (name, model, shows) in hostile {
        let model = world.until_checked(model.id).await;
        if shows {
            let rejection = model.rejection.unwrap_or_else(|| panic!("the model that {name} is {}", model.state)).0;
            let refused =
                ["Permission denied", "Operation not permitted"].iter().any(|why| rejection.found.contains(why));
            assert!(refused, "{name}: {rejection:?}");
        }
    }
    assert_eq!(world.until_checked(decent.id).await.state, "ready");
    assert_eq!(fs::read(&file).unwrap(), b"0123456789abcdef");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    assert_eq!(fs::read(&dataset).unwrap(), before);
    for model in fs::read_dir(world.data.path().join("artifacts/models")).unwrap() {
        let model = model.unwrap();
        let hash = hex::encode(Sha256::digest(fs::read(model.path()).unwrap()));
        assert_eq!(model.file_name().to_str(), Some(hash.as_str()));
    }
}

/// Without the sandbox every attempt works: they are real, and the switch is too.
#[tokio::test]
async fn without_the_sandbox_the_same_models_do_their_harm() {
    let world = World::new().await;
    world.import_digits().await;
    let (folder, file) = bait();
    let dataset = largest_file(&world.data.path().join("artifacts/datasets"));
    let mut models = Vec::new();
    for (name, body, _) in attempts(folder.path(), &file, &dataset) {
        // The one fails in any case; the other would destroy its own file in the artifact store.
        if !["reads the memory of others", "forges frames"].contains(&name) {
            models.push((name, submit(&world, name, |path| write_model(path, &body)).await));
        }
    }
    let _worker = world.worker_with(&[("GAUNTLET_SANDBOX", "off")]);
    for (name, model) in models {
        let model = world.until_checked(model.id).await;
        assert_eq!(model.state, "ready", "{name}: {:?}", model.rejection);
    }
    assert_ne!(fs::read(&file).unwrap(), b"0123456789abcdef");
    assert!(folder.path().join("new").exists() && folder.path().join("saved").exists());
    assert_eq!(workers::unconfined(&world.pool).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_model_that_hangs_hoards_or_babbles_is_stopped_and_others_go_on() {
    let world = World::new().await;
    world.import_digits().await;
    let bodies = [
        ("hangs", "i = 0\nwhile torch.lt(i, 1000000000000):\n  i = torch.add(i, 1)", "no_progress"),
        (
            "hoards memory",
            "hoard = torch.zeros([1000000000])\nh0 = torch.add_(hoard, 1)\nprint(torch.sum(hoard))",
            "out_of_memory",
        ),
        (
            "hoards by and by",
            "hoard = torch.ones([10000000])\nwhile True:\n  hoard = torch.cat([hoard, hoard])\n  print(torch.sum(hoard))",
            "out_of_memory",
        ),
        ("answers with NaN", "x = torch.mul(x, float(\"nan\"))", "non_finite"),
        ("answers too much", "return torch.zeros([100, 100000])", "wrong"),
    ];
    let mut hostile = Vec::new();
    for (name, body, code) in bodies {
        hostile.push((name, submit(&world, name, |path| write_model(path, body)).await, code));
    }
    let babbler = submit(&world, "babbles", |path| {
        write_model(path, "for i in range(20000):\n  print(\"a line that says nothing, again and again, at length\")")
    })
    .await;
    // Somebody else's, on the same worker, in the middle of all this.
    let decent = world.add_model(&repository("models/digits/standard.pt"), &digits_spec()).await;
    let id = world.submit(decent.id, &gauntlet::protocol::builtin("clean").unwrap(), 0, 32, &[0]).await;
    for table in ["models", "evaluations"] {
        let key = if table == "models" { decent.id } else { id };
        let sql = format!("update {table} set owner = 'neighbour' where id = $1");
        sqlx::query(sqlx::AssertSqlSafe(sql)).bind(key).execute(&world.pool).await.unwrap();
    }
    let _worker =
        world.worker_with(&[("GAUNTLET_NO_PROGRESS_SECONDS", "4"), ("GAUNTLET_EVALUATOR_MEMORY_BYTES", "1500000000")]);
    assert_eq!(world.until_checked(decent.id).await.state, "ready");
    assert_eq!(world.until_checked(babbler.id).await.state, "ready");
    for (name, model, code) in hostile {
        let model = world.until_checked(model.id).await;
        let rejection = model.rejection.unwrap_or_else(|| panic!("the model that {name} is {}", model.state)).0;
        assert!(rejection.code.starts_with(code), "{name}: {rejection:?}");
    }
    let evaluation = world.until_ended(id).await;
    assert_eq!(evaluation.state, State::Succeeded, "{:?}", evaluation.outcome);
    let provenance = report::table(&world.pool, &evaluation).await.unwrap().provenance;
    assert!(provenance["sandbox"]["enforced"]["landlock_abi"].as_u64() >= Some(2), "{provenance}");
    let decent = models::get(&world.pool, None, decent.id).await.unwrap().unwrap();
    assert_eq!(decent.rejection, None);
}

fn largest_file(folder: &Path) -> PathBuf {
    let mut folders = vec![folder.to_owned()];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let metadata = entry.metadata().unwrap();
            if metadata.is_dir() { folders.push(entry.path()) } else { files.push((metadata.len(), entry.path())) }
        }
    }
    files.into_iter().max().unwrap().1
}
