//! Mistakes in a configuration, found before they cost a run: each with what it would lead to and what to do.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::str::FromStr;

use serde::Serialize;
use sqlx::postgres::PgConnectOptions;

use super::source::existing_ancestor;
use super::{SandboxChoice, Settings, Sources};
use crate::protocol::{Device, LabelList};
use crate::store::frost::FrostFiles;

/// Something about a configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    pub setting: String,
    /// Where its value comes from.
    pub origin: String,
    /// What is wrong, and what to do about it.
    pub problem: String,
    /// Advice works as it is; anything else does not.
    pub advice: bool,
}

/// Everything that is wrong, and then everything that may not be meant. `variables` is the environment, for the
/// artifact store's own.
pub fn check(sources: &Sources, variables: &[(String, String)]) -> anyhow::Result<Vec<Problem>> {
    let misfits = sources.misfits()?;
    let mut found: Vec<Problem> = misfits
        .into_iter()
        .map(|m| Problem { origin: sources.origin(&m.setting), setting: m.setting, problem: m.problem, advice: false })
        .collect();
    if found.is_empty() {
        let settings = sources.settings();
        let mut report = Report { sources, found: &mut found };
        match settings {
            Ok(settings) => examine(&settings, variables, &mut report),
            Err(error) => report.wrong("database_url_file", format!("{error:#}")),
        }
    }
    found.sort_by_key(|problem| problem.advice);
    Ok(found)
}

struct Report<'a> {
    sources: &'a Sources,
    found: &'a mut Vec<Problem>,
}

impl Report<'_> {
    fn wrong(&mut self, setting: &str, problem: impl Into<String>) {
        self.add(setting, problem.into(), false);
    }

    fn advise(&mut self, setting: &str, problem: impl Into<String>) {
        self.add(setting, problem.into(), true);
    }

    fn add(&mut self, setting: &str, problem: String, advice: bool) {
        let origin = self.sources.origin(setting);
        self.found.push(Problem { setting: setting.into(), origin, problem, advice });
    }
}

fn examine(settings: &Settings, variables: &[(String, String)], report: &mut Report) {
    addresses(settings, report);
    times(settings, report);
    resources(settings, report);
    limits(settings, report);
    places(settings, report);
    artifacts(settings, variables, report);
}

fn addresses(settings: &Settings, report: &mut Report) {
    let listeners = [
        ("listen", Some(settings.listen)),
        ("metrics_listen", Some(settings.metrics_listen)),
        ("worker_metrics_listen", settings.worker_metrics_listen),
    ];
    let clash = |a: SocketAddr, b: SocketAddr| {
        a.port() == b.port()
            && a.port() != 0
            && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
    };
    for (i, (name, address)) in listeners.iter().enumerate() {
        for (other, earlier) in &listeners[..i] {
            if address.zip(*earlier).is_some_and(|(a, b)| clash(a, b)) {
                report.wrong(name, format!("the port is {other}'s too: choose another"));
            }
        }
        if *name != "listen" && address.is_some_and(|a| !a.ip().is_loopback()) {
            report.advise(name, "others can reach the metrics, which ask for no key: keep it inside a private network");
        }
    }
    if !settings.listen.ip().is_loopback() {
        report.advise("listen", "others can reach the API: it starts only once `gauntlet key create` has made a key");
    }
    if settings.webhook_private_addresses && !settings.listen.ip().is_loopback() {
        report.advise(
            "webhook_private_addresses",
            "whoever has a key can have this server send requests into its private network",
        );
    }
    if let Some(url) = settings.otlp_endpoint.as_deref().filter(|url| !url.is_empty())
        && !reqwest::Url::parse(url).is_ok_and(|url| ["http", "https"].contains(&url.scheme()))
    {
        report.wrong("otlp_endpoint", "is no URL of a collector: give one like http://localhost:4318");
    }
    if let Some(url) = &settings.database_url {
        let postgres = url.starts_with("postgres://") || url.starts_with("postgresql://");
        if !postgres || PgConnectOptions::from_str(url).is_err() {
            report.wrong(
                "database_url",
                "is no address of a Postgres: give one like postgres://user:password@host/database",
            );
        }
    }
}

fn times(settings: &Settings, report: &mut Report) {
    if settings.lease_seconds < 3 {
        report.wrong(
            "lease_seconds",
            "workers show that they live every third of it, and would lose their shards: give at least 3",
        );
    }
    if settings.no_progress_seconds < 10 {
        report.wrong(
            "no_progress_seconds",
            "loading a large model takes longer and would count as a hang: give at least 10",
        );
    }
    if settings.wall_seconds <= settings.no_progress_seconds {
        report
            .wrong("wall_seconds", "must be more than no_progress_seconds: shards aim at a minute, 14400 leaves room");
    } else if settings.wall_seconds < 600 {
        report.advise("wall_seconds", "a shard that is slower than planned is given up early: 14400 leaves room");
    }
    if !(1..=60).contains(&settings.webhook_timeout_seconds) {
        report.wrong("webhook_timeout_seconds", "must be 1 to 60: a receiver that works longer should answer first");
    }
    if settings.poll_milliseconds == 0 {
        report.wrong("poll_milliseconds", "idle workers would ask the database without a pause: give at least 50");
    }
}

fn resources(settings: &Settings, report: &mut Report) {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    match settings.threads {
        Some(0) => report.wrong("threads", "an evaluator needs at least 1"),
        Some(n) if n > cores => {
            report.advise("threads", format!("more than this machine's {cores} cores slow each other down"))
        }
        _ => {}
    }
    if settings.workers == 0 {
        report.advise("workers", "`gauntlet up` will run nothing: start `gauntlet worker` beside it, or give 1");
    }
    if settings.workers > 1 && settings.device == Some(Device::Cuda) {
        report.advise("workers", "they share one GPU: run `gauntlet worker` once per GPU, with CUDA_VISIBLE_DEVICES");
    }
    if settings.device == Some(Device::Cuda) && !Path::new("/dev/nvidia0").exists() {
        report.wrong("device", "this machine has no GPU (/dev/nvidia0): leave it unset, or give cpu");
    }
    if let Some(Err(problem)) = settings.labels.as_deref().map(LabelList::from_str) {
        report.wrong("labels", format!("{problem}: give NAME=VALUE pairs such as gpu=h100,zone=b"));
    }
    if settings.gpu_memory_bytes.is_some() && settings.device == Some(Device::Cpu) {
        report.wrong("gpu_memory_bytes", "the device is cpu: leave it unset");
    } else if settings.gpu_memory_bytes.is_some_and(|bytes| bytes < 1 << 30) {
        report.wrong("gpu_memory_bytes", "less than 1 GiB (1073741824): give bytes, or leave it unset");
    }
    if let Some(bytes) = settings.evaluator_memory_bytes {
        let whole =
            Settings { evaluator_memory_bytes: None, ..settings.clone() }.memory_for(1).map(|most| most / 3 * 4);
        if bytes < 1 << 30 {
            report.wrong("evaluator_memory_bytes", "libtorch alone needs about 1 GiB (1073741824): give more");
        } else if whole.is_some_and(|whole| bytes > whole) {
            report.wrong(
                "evaluator_memory_bytes",
                "more than this machine has: a large model would take the server with it",
            );
        }
    }
    if settings.database_connections < 4 {
        report.wrong(
            "database_connections",
            "requests, watchers and housekeeping would wait for each other: give at least 4",
        );
    }
    if settings.sandbox == SandboxChoice::Off {
        report.advise(
            "sandbox",
            "models run with their worker's rights: only for models that you trust as you do your own code",
        );
    }
}

fn limits(settings: &Settings, report: &mut Report) {
    if settings.max_model_bytes == 0 {
        report.wrong("max_model_bytes", "no model would be accepted: leave it unset for 20 GiB");
    }
    if settings.quotas.model_bytes != 0 && settings.quotas.model_bytes < settings.max_model_bytes {
        report.advise(
            "quotas.model_bytes",
            "less than max_model_bytes: the largest models would be refused only after their upload",
        );
    }
    if !(1..=720).contains(&settings.upload_hours) {
        report.wrong("upload_hours", "must be 1 to 720: uploads are gone on with within hours");
    }
    if settings.max_witness_bytes == 0 {
        report.wrong(
            "max_witness_bytes",
            "evaluations keep some witnesses unless told otherwise, and would be refused: leave it unset",
        );
    }
}

fn places(settings: &Settings, report: &mut Report) {
    if settings.data_dir.is_file() {
        report.wrong("data_dir", "is a file: name a directory");
    } else if existing_ancestor(&settings.data_dir).is_none_or(|folder| !writable(&folder)) {
        report.wrong(
            "data_dir",
            "cannot be written to by this account: name a directory of its own, or change the owner",
        );
    }
    if let Some(folder) = &settings.postgres_bin
        && let Some(missing) = ["postgres", "initdb", "pg_ctl"].iter().find(|name| !folder.join(name).is_file())
    {
        report.wrong("postgres_bin", format!("has no {missing}: name the folder that has it, or leave it unset"));
    }
    if let Some(binary) = &settings.evaluator
        && !std::fs::metadata(binary).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    {
        report.wrong("evaluator", "is no program: name a `gauntlet` binary that was built with the evaluator");
    }
    if settings.evaluator.is_none() && !cfg!(feature = "evaluator") {
        report.advise(
            "evaluator",
            "this binary has none: it serves the API, and its workers need the name of one that has",
        );
    }
    if let Some(folder) = &settings.frost
        && let Err(error) = FrostFiles::read(folder)
    {
        report.wrong("frost", format!("{error}: name the folder with frost1.png … frost5.jpg, or leave it unset"));
    }
}

/// Asks the kernel, which knows accounts, modes and read-only mounts.
fn writable(folder: &Path) -> bool {
    nix::unistd::access(folder, nix::unistd::AccessFlags::W_OK).is_ok()
}

fn artifacts(settings: &Settings, variables: &[(String, String)], report: &mut Report) {
    let location = settings.artifacts_location();
    let has = |name: &str| variables.iter().any(|(given, value)| given.eq_ignore_ascii_case(name) && !value.is_empty());
    let starts = |name: &str, with: &str| {
        variables.iter().any(|(given, value)| given.eq_ignore_ascii_case(name) && value.starts_with(with))
    };
    match location.split_once("://") {
        None if Path::new(&location).is_file() => report.wrong("artifacts", "is a file: name a directory"),
        None => {}
        Some(("s3", rest)) => {
            if rest.split('/').next().is_none_or(str::is_empty) {
                report.wrong("artifacts", "names no bucket: give s3://bucket or s3://bucket/prefix");
            }
            let halves = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];
            let given = halves.map(|name| has(name) || has(&format!("{name}_FILE")));
            if given[0] != given[1] {
                report.wrong("artifacts", format!("{} and {} belong together: set both or none", halves[0], halves[1]));
            }
            if starts("AWS_ENDPOINT_URL", "http://") && !starts("AWS_ALLOW_HTTP", "true") {
                report
                    .wrong("artifacts", "AWS_ENDPOINT_URL is not encrypted: set AWS_ALLOW_HTTP=true if that is meant");
            }
            if !has("AWS_REGION") && !has("AWS_DEFAULT_REGION") && !has("AWS_ENDPOINT_URL") {
                report.advise("artifacts", "no AWS_REGION is set: us-east-1 will be asked");
            }
        }
        Some((scheme, _)) => {
            report.wrong(
                "artifacts",
                format!("{scheme}:// is no artifact store: give a directory, or s3://bucket/prefix"),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(toml: &str, variables: &[(&str, &str)]) -> Vec<Problem> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("planted.toml");
        let here = folder.path().display();
        std::fs::write(&file, format!("data_dir = \"{here}/data\"\n{toml}")).unwrap();
        let variables: Vec<_> = variables.iter().map(|&(n, v)| (n.to_owned(), v.to_owned())).collect();
        check(&Sources::new(Some(&file)).unwrap(), &variables).unwrap()
    }

    fn errors(toml: &str, variables: &[(&str, &str)]) -> Vec<Problem> {
        found(toml, variables).into_iter().filter(|p| !p.advice).collect()
    }

    #[test]
    fn the_defaults_have_no_mistake() {
        assert_eq!(errors("", &[]), []);
    }

    #[test]
    fn planted_mistakes_are_named_with_their_source_and_what_to_do() {
        let plants: [(&str, &str, &str); 32] = [
            ("lissen = '127.0.0.1:1'", "lissen", "did you mean listen?"),
            ("quotas.model_byte = 5", "quotas.model_byte", "did you mean quotas.model_bytes?"),
            ("workers = 'two'", "workers", "expected u32"),
            ("listen = 'localhost'", "listen", "socket address"),
            ("sandbox = 'none'", "sandbox", "required"),
            ("metrics_listen = '0.0.0.0:8080'", "metrics_listen", "listen's too"),
            ("worker_metrics_listen = '127.0.0.1:9464'", "worker_metrics_listen", "metrics_listen's too"),
            ("otlp_endpoint = 'localhost:4318'", "otlp_endpoint", "http://localhost:4318"),
            ("database_url = 'mysql://h/d'", "database_url", "postgres://user"),
            ("database_url_file = '/nowhere/secret'", "database_url_file", "/nowhere/secret"),
            ("lease_seconds = 1", "lease_seconds", "at least 3"),
            ("no_progress_seconds = 0", "no_progress_seconds", "at least 10"),
            ("wall_seconds = 600", "wall_seconds", "14400"),
            ("webhook_timeout_seconds = 0", "webhook_timeout_seconds", "1 to 60"),
            ("poll_milliseconds = 0", "poll_milliseconds", "at least 50"),
            ("threads = 0", "threads", "at least 1"),
            ("labels = 'gpu'", "labels", "gpu=h100,zone=b"),
            ("labels = 'gpu=h 100'", "labels", "1 to 63"),
            ("gpu_memory_bytes = 40", "gpu_memory_bytes", "1073741824"),
            ("gpu_memory_bytes = 42949672960\ndevice = 'cpu'", "gpu_memory_bytes", "leave it unset"),
            ("evaluator_memory_bytes = 1000000", "evaluator_memory_bytes", "1073741824"),
            ("evaluator_memory_bytes = 1000000000000000", "evaluator_memory_bytes", "more than this machine has"),
            ("database_connections = 1", "database_connections", "at least 4"),
            ("max_model_bytes = 0", "max_model_bytes", "20 GiB"),
            ("upload_hours = 0", "upload_hours", "1 to 720"),
            ("max_witness_bytes = 0", "max_witness_bytes", "leave it unset"),
            ("postgres_bin = '/nowhere'", "postgres_bin", "has no postgres"),
            ("evaluator = '/etc/passwd'", "evaluator", "built with the evaluator"),
            ("frost = '/nowhere'", "frost", "frost1.png"),
            ("artifacts = 'gs://bucket'", "artifacts", "s3://bucket/prefix"),
            ("artifacts = 's3:///prefix'", "artifacts", "names no bucket"),
            ("artifacts = '/etc/passwd'", "artifacts", "name a directory"),
        ];
        for (toml, setting, fix) in plants {
            let found = errors(toml, &[]);
            assert_eq!(found.len(), 1, "{toml}: {found:?}");
            let Problem { setting: named, origin, problem, .. } = &found[0];
            assert!(named == setting && problem.contains(fix), "{toml}: {found:?}");
            assert!(origin.ends_with("planted.toml"), "{toml}: {origin}");
        }
    }

    #[test]
    fn mistakes_are_all_told_at_once_and_advice_comes_last() {
        let all = found("threads = 0\nsandbox = 'off'\nlisten = '0.0.0.0:80'\nlease_seconds = 0", &[]);
        // A build without the evaluator has advice of its own.
        let names: Vec<_> =
            all.iter().map(|p| (p.setting.as_str(), p.advice)).filter(|(name, _)| *name != "evaluator").collect();
        assert_eq!(names, [("lease_seconds", false), ("threads", false), ("listen", true), ("sandbox", true)]);
    }

    #[test]
    fn a_bucket_needs_both_halves_of_its_key_and_a_word_for_plain_http() {
        let bucket = "artifacts = 's3://bucket'";
        let half = errors(bucket, &[("AWS_ACCESS_KEY_ID", "a")]);
        assert!(half.len() == 1 && half[0].problem.contains("AWS_SECRET_ACCESS_KEY"), "{half:?}");
        let keys = [("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY_FILE", "/run/secret")];
        assert_eq!(errors(bucket, &keys), []);
        let plain = errors(bucket, &[keys[0], keys[1], ("AWS_ENDPOINT_URL", "http://localhost:9000")]);
        assert!(plain.len() == 1 && plain[0].problem.contains("AWS_ALLOW_HTTP"), "{plain:?}");
    }

    #[test]
    fn a_secret_is_read_from_its_file_and_covered_when_shown() {
        let folder = tempfile::tempdir().unwrap();
        let secret = folder.path().join("url");
        std::fs::write(&secret, "postgres://me:hunter2@db/gauntlet?password=hunter3\n").unwrap();
        let file = folder.path().join("some.toml");
        std::fs::write(&file, format!("database_url_file = {:?}", secret)).unwrap();
        let settings = Settings::load(Some(&file)).unwrap();
        assert_eq!(settings.database_url.as_deref(), Some("postgres://me:hunter2@db/gauntlet?password=hunter3"));
        assert_eq!(settings.without_secrets().database_url.as_deref(), Some("postgres://me:***@db/gauntlet"));
        std::fs::write(&file, format!("database_url_file = {:?}\ndatabase_url = 'postgres://b'", secret)).unwrap();
        assert!(Settings::load(Some(&file)).is_err_and(|e| e.to_string().contains("keep one")));
    }
}
