//! `gauntlet run`: evaluate a model file here and now, without server or database.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::context;
use super::dataset::Reading;
use super::hash::hash_file;
use super::images::Images;
use super::show::{self, Format};
use crate::config::Settings;
use crate::dataset::{Part, Preset, Shape};
use crate::protocol::report::{Table, Tally, columns, cpu_time, row};
use crate::protocol::{
    Condition, Finding, Format as ModelFormat, ModelSpec, NumericProfile, Observed, Pictures, Preprocessing, Protocol,
    Signs, builtin, diagnose, plan, sample,
};
use crate::store::Artifacts;
use crate::store::evidence::{self, VerdictRow};
use crate::wire::{BatchWish, CpuTime, Reply, Request, ShardRequest};
use crate::worker::{Child, ChildError, ChildOptions, validate};

#[derive(Debug, Args)]
pub struct RunArguments {
    /// A TorchScript file.
    model: PathBuf,
    /// The name of an imported dataset, or a path to read from: images, or a published corrupted set.
    #[arg(long)]
    dataset: String,
    #[command(flatten)]
    reading: Reading,
    /// The name of a built-in protocol, or a TOML file.
    #[arg(long, default_value = "pgd-grid")]
    protocol: String,
    /// Sets a protocol value: `steps=10`, `attack.linf.epsilon=[0.1,0.2]`. May be repeated.
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = setting)]
    settings: Vec<(String, String)>,
    /// A JSON file with the model's spec; else it comes from the flags below, the dataset and the probe.
    #[arg(long, conflicts_with_all = ["mean", "std", "stochastic"])]
    spec: Option<PathBuf>,
    /// Per-channel mean that the model expects to be subtracted, e.g. 0.485,0.456,0.406.
    #[arg(long, value_delimiter = ',', requires = "std")]
    mean: Option<Vec<f64>>,
    /// Per-channel standard deviation that the model expects to be divided by.
    #[arg(long, value_delimiter = ',', requires = "mean")]
    std: Option<Vec<f64>>,
    /// Two forward passes of one image may differ.
    #[arg(long)]
    stochastic: bool,
    /// Which default budgets apply, if the dataset does not say.
    #[arg(long, value_enum)]
    preset: Option<Preset>,
    /// Evaluate this many images [default: to the end of the dataset].
    #[arg(long, value_name = "N")]
    images: Option<u32>,
    /// Start at this image.
    #[arg(long, value_name = "K", default_value_t = 0)]
    offset: u32,
    /// May be repeated: every seed is a run of its own.
    #[arg(long = "seed", value_name = "S", default_values_t = [0])]
    seeds: Vec<i64>,
    /// A JSON file with the numeric profile to compute under, as a table's `provenance.profile` has it: equal profiles give
    /// equal verdicts.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["batch", "threads"])]
    profile: Option<PathBuf>,
    /// Images per kernel launch [default: what a calibration finds best].
    #[arg(long, value_name = "B", value_parser = clap::value_parser!(u32).range(1..=65536))]
    batch: Option<u32>,
    /// CPU threads [default: what a calibration finds best].
    #[arg(long, value_name = "T", value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: Option<u32>,
    /// Also write every verdict to this file (.parquet or .csv).
    #[arg(long, value_name = "FILE")]
    verdicts: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

pub fn setting(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write name=value")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

pub async fn run(arguments: RunArguments, settings: &Settings) -> anyhow::Result<()> {
    let distinct: std::collections::HashSet<i64> = arguments.seeds.iter().copied().collect();
    anyhow::ensure!(distinct.len() == arguments.seeds.len(), "--seed: the same seed twice is the same run twice");
    if let Some(path) = &arguments.verdicts {
        verdict_format(path)?;
    }
    let images = Images::open(&arguments.dataset, &arguments.reading, settings).await?;
    let protocol = named_protocol(&arguments.protocol, &arguments.settings)?;
    let artifacts = (!protocol.corruption.is_empty()).then(|| context::artifacts(settings)).transpose()?;
    let pictures = match &artifacts {
        Some(artifacts) => context::frost_pictures(settings, artifacts).await?,
        None => Pictures::Procedural,
    };
    let scene = images.scene(arguments.preset, pictures);
    let conditions = protocol.conditions_for(&scene)?;
    let mut options = context::child_options(settings, 1)?;
    options.threads = arguments.threads.unwrap_or(options.threads);
    options.choose_threads &= arguments.threads.is_none();
    let slice = Slice::of(&arguments, images.len())?;
    let mut session = Session::open(&arguments, &options, &images, &slice).await?;
    if let Some(problem) = conditions.iter().find_map(|condition| condition.unsuited(&session.spec)) {
        bail!("{problem}");
    }
    let Evaluated { tallies, rows, signs, time } =
        session.evaluate(&images, &slice, &protocol, &conditions, &arguments.seeds, artifacts.as_ref()).await?;

    let per_seed = |c: usize| -> Vec<(i64, Tally)> {
        arguments.seeds.iter().zip(&tallies).map(|(&seed, tallies)| (seed, tallies[c].clone())).collect()
    };
    let table_rows: Vec<_> = conditions.iter().enumerate().map(|(i, c)| row(c, &per_seed(i))).collect();
    let mut totals = vec![Tally::default(); conditions.len()];
    for of_seed in &tallies {
        totals.iter_mut().zip(of_seed).for_each(|(total, tally)| total.add(tally));
    }
    let observed = Observed {
        conditions: &conditions,
        tallies: &totals,
        signs: &signs,
        seeds: arguments.seeds.len(),
        stochastic: session.spec.stochastic,
        complete: true,
    };
    let table = Table {
        evaluation: "local".into(),
        complete: true,
        columns: columns(&table_rows, protocol.aggregate),
        conditions: table_rows,
        diagnostics: diagnose(&session.findings, &observed),
        provenance: json!({
            "software": {"gauntlet": env!("CARGO_PKG_VERSION")},
            "model": {"file": arguments.model, "sha256": session.sha256, "spec": session.spec},
            "dataset": {"name": arguments.dataset, "hash": images.hash().await?, "first_image": slice.first, "images": slice.count},
            "protocol": protocol, "protocol_hash": protocol.hash(),
            "seeds": arguments.seeds, "profile": session.profile, "sandbox": session.child.sandbox,
            "cpu_time": cpu_time(time.total, time.corruption),
        }),
    };
    if let Some(path) = &arguments.verdicts {
        write_verdicts(path, &rows)?;
    }
    match arguments.format {
        Format::Json => show::print_json(&table),
        Format::Table => {
            print!("{}", show::table(&table));
            Ok(())
        }
    }
}

/// A protocol by its file or its built-in name, with these values set.
pub fn named_protocol(name: &str, settings: &[(String, String)]) -> anyhow::Result<Protocol> {
    if Path::new(name).is_file() {
        let text = std::fs::read_to_string(name).with_context(|| name.to_owned())?;
        return Protocol::from_toml(&text, settings).with_context(|| name.to_owned());
    }
    let Some(named) = builtin(name) else {
        let known: Vec<String> = crate::protocol::builtins().into_iter().map(|p| p.name).collect();
        bail!("{name} is neither a file nor a built-in protocol ({})", known.join(", "));
    };
    Ok(Protocol::from_value(serde_json::to_value(named)?, settings)?)
}

enum VerdictFormat {
    Parquet,
    Csv,
}

fn verdict_format(path: &Path) -> anyhow::Result<VerdictFormat> {
    match path.extension().and_then(|e| e.to_str()) {
        Some("parquet") => Ok(VerdictFormat::Parquet),
        Some("csv") => Ok(VerdictFormat::Csv),
        _ => bail!("--verdicts {}: name a .parquet or .csv file", path.display()),
    }
}

fn write_verdicts(path: &Path, rows: &[VerdictRow]) -> anyhow::Result<()> {
    let bytes = match verdict_format(path)? {
        VerdictFormat::Parquet => evidence::to_parquet(rows)?,
        VerdictFormat::Csv => evidence::to_csv(rows)?,
    };
    std::fs::write(path, bytes).with_context(|| path.display().to_string())
}

/// The evaluated range of images.
struct Slice {
    first: u32,
    count: u32,
}

impl Slice {
    fn of(arguments: &RunArguments, length: u32) -> anyhow::Result<Self> {
        let first = arguments.offset;
        anyhow::ensure!(first < length, "--offset {first}: the dataset has {length} images");
        let count = arguments.images.unwrap_or(length - first);
        anyhow::ensure!(
            count > 0 && count <= length - first,
            "--images {count}: {} follow image {first}",
            length - first
        );
        Ok(Self { first, count })
    }
}

/// A child with the model loaded and probed.
struct Session {
    child: Child,
    spec: ModelSpec,
    sha256: String,
    profile: NumericProfile,
    findings: Vec<Finding>,
}

impl Session {
    async fn open(
        arguments: &RunArguments,
        options: &ChildOptions,
        images: &Images,
        slice: &Slice,
    ) -> anyhow::Result<Self> {
        let file = std::path::absolute(&arguments.model)?;
        let sha256 = tokio::task::spawn_blocking({
            let file = file.clone();
            move || hash_file(&file)
        })
        .await??;
        let mut spec = spec(arguments, images)?;
        let sample = images.read(images.parts()[0], slice.first, slice.count.min(16)).await?;
        let wish = arguments.batch.map_or(BatchWish::Free, BatchWish::Exactly);
        let fixed = arguments.profile.as_deref().map(profile).transpose()?;
        let mut guessed = false;
        loop {
            spec.validate()?;
            let mut child = Child::start(options, Some(&file)).await?;
            let probed = async {
                let (profile, _) = child.load(&spec, fixed.as_ref(), wish).await?;
                Ok((profile, child.ask(Request::Probe, &sample.pixels, |_| {}).await?))
            };
            match probed.await {
                Ok((profile, (Reply::Probed { findings, .. }, _))) => {
                    return Ok(Self { child, spec, sha256, profile, findings });
                }
                Ok(_) => bail!("the evaluator gave an unexpected answer"),
                // The dataset's class count was a guess; the model's own answer is better.
                Err(ChildError::Rejected { code, found })
                    if code == "wrong_class_count"
                        && !guessed
                        && arguments.spec.is_none()
                        && arguments.reading.classes.is_none() =>
                {
                    guessed = true;
                    match classes_in(&found).filter(|&k| k >= images.classes()) {
                        Some(classes) => spec.classes = classes,
                        None => bail!("the model is rejected ({code}): {found}"),
                    }
                }
                Err(ChildError::Rejected { code, found }) => bail!("the model is rejected ({code}): {found}"),
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn evaluate(
        &mut self,
        images: &Images,
        slice: &Slice,
        protocol: &Protocol,
        conditions: &[Condition],
        seeds: &[i64],
        artifacts: Option<&Artifacts>,
    ) -> anyhow::Result<Evaluated> {
        let groups = plan::groups(conditions, self.spec.stochastic);
        let total = u64::from(slice.count) * conditions.len() as u64 * seeds.len() as u64;
        let bar = if std::io::stderr().is_terminal() { ProgressBar::new(total) } else { ProgressBar::hidden() };
        bar.set_style(ProgressStyle::with_template(
            "{msg:24} {wide_bar} {human_pos}/{human_len} verdicts, {eta} left",
        )?);
        let mut tallies = vec![vec![Tally::default(); conditions.len()]; seeds.len()];
        let (mut rows, mut spent) = (Vec::new(), CpuTime::default());
        let mut signs = vec![Signs::default(); conditions.len()];
        for (s, &seed) in seeds.iter().enumerate() {
            let sampled = sample(seed, slice.first..slice.first + slice.count, protocol.second_opinion);
            for group in &groups {
                let most = plan::most_images(images.shape().bytes() as u64, group.len());
                let chunk = most.min(slice.count.into()) as u32;
                let cells: Vec<Condition> = group.iter().map(|&i| conditions[i].clone()).collect();
                let part = Part::of_group(&cells);
                if let Some(artifacts) = artifacts {
                    self.child.provide_frost(&cells, artifacts).await?;
                }
                bar.set_message(cells.last().map_or(String::new(), |c| c.id.clone()));
                for first in (slice.first..slice.first + slice.count).step_by(chunk as usize) {
                    let batch = images.read(part, first, chunk.min(slice.first + slice.count - first)).await?;
                    let here = first..first + batch.labels.len() as u32;
                    let request = Request::Shard(ShardRequest {
                        conditions: cells.clone(),
                        seed,
                        rule: protocol.verdict,
                        first_image: first,
                        labels: batch.labels.clone(),
                        witness_images: 0,
                        second_opinion: sampled.iter().copied().filter(|image| here.contains(image)).collect(),
                        checkpoint_milliseconds: 0,
                        checkpoint_bytes: 0,
                    });
                    let before = bar.position();
                    let answer = self
                        .child
                        .ask(request, &batch.pixels, |now| bar.set_position(before + u64::from(now.verdicts)))
                        .await?;
                    let (Reply::Done { verdicts, witnesses, signs: seen, time }, payload) = answer else {
                        bail!("the evaluator gave an unexpected answer")
                    };
                    let claims = validate::Claims {
                        verdicts: &verdicts,
                        witnesses: &witnesses,
                        payload: &payload,
                        signs: &seen,
                        time,
                    };
                    if let Err(problem) = validate::results(&cells, &batch, &self.spec, 0, &claims) {
                        bail!(ChildError::Garbage(problem));
                    }
                    bar.set_position(before + (batch.labels.len() * cells.len()) as u64);
                    spent.total += time.total;
                    spent.corruption += time.corruption;
                    for ((&i, verdicts), seen) in group.iter().zip(verdicts).zip(&seen) {
                        signs[i].add(seen);
                        tallies[s][i].add(&Tally::of(&conditions[i], &verdicts));
                        let condition = &conditions[i].id;
                        rows.extend(verdicts.into_iter().map(|verdict| VerdictRow {
                            condition: condition.clone(),
                            seed,
                            verdict,
                        }));
                    }
                }
            }
        }
        bar.finish_and_clear();
        Ok(Evaluated { tallies, rows, signs, time: spent })
    }
}

/// What all runs together came to.
struct Evaluated {
    /// Per seed, per condition.
    tallies: Vec<Vec<Tally>>,
    rows: Vec<VerdictRow>,
    /// Per condition.
    signs: Vec<Signs>,
    time: CpuTime,
}

fn spec(arguments: &RunArguments, images: &Images) -> anyhow::Result<ModelSpec> {
    if let Some(path) = &arguments.spec {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        return serde_json::from_str(&text).with_context(|| path.display().to_string());
    }
    let Shape { channels, height, width } = images.shape();
    let preprocessing =
        arguments.mean.clone().zip(arguments.std.clone()).map(|(mean, std)| Preprocessing { mean, std });
    Ok(ModelSpec {
        format: ModelFormat::Torchscript,
        input: [channels, height, width],
        classes: arguments.reading.classes.unwrap_or(images.classes()),
        preprocessing,
        stochastic: arguments.stochastic,
    })
}

fn profile(path: &Path) -> anyhow::Result<NumericProfile> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    serde_json::from_str(&text).with_context(|| format!("{} is no numeric profile", path.display()))
}

/// The class count in `logits have shape [n, K], expected …`.
fn classes_in(found: &str) -> Option<u32> {
    let (_, rest) = found.split_once('[')?;
    rest.split(']').next()?.split(',').nth(1)?.trim().parse().ok()
}
