//! `gauntlet verify`: look at an evaluation's evidence again, in a new process.

mod report;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io::IsTerminal;

use anyhow::{Context, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use uuid::Uuid;

use super::context;
use super::hash::hash_file;
use super::show::{self, Format};
use crate::config::Settings;
use crate::dataset::{Catalogue, Part};
use crate::protocol::report::Tally;
use crate::protocol::{Condition, ConditionKind, Verdict};
use crate::store::Artifacts;
use crate::store::evaluations::{self, Evaluation};
use crate::store::evidence::{self, VerdictRow, WitnessSet};
use crate::store::models::{self, Model};
use crate::store::shards::{self, DoneShard};
use crate::wire::{BatchWish, Examination, Reply, Request, ShardRequest};
use crate::worker::Child;
use report::Report;

#[derive(Debug, Args)]
pub struct VerifyArguments {
    /// The evaluation's id.
    id: Uuid,
    /// Examine stored witnesses only; regenerate nothing.
    #[arg(long)]
    stored_only: bool,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

pub async fn run(arguments: VerifyArguments, settings: &Settings) -> anyhow::Result<()> {
    let pool = context::database(settings, 2).await?;
    let evaluation = evaluations::get(&pool, arguments.id).await?.context("there is no such evaluation")?;
    let model = models::get_even_deleted(&pool, evaluation.model_id).await?.context("its model is gone")?;
    let shards = shards::done(&pool, evaluation.id).await?;
    let profile = match &evaluation.profile {
        Some(profile) if !shards.is_empty() => profile.0.clone(),
        _ => bail!("the evaluation has no results yet"),
    };
    let artifacts = context::artifacts(settings)?;
    let file = artifacts.model_file(&model.sha256).await.context("the model's bytes are gone")?;
    let catalogue = Catalogue::new(artifacts.store());
    let mut report = Report::new(evaluation.id, model.spec.stochastic);
    let bytes = file.clone();
    let sha256 = tokio::task::spawn_blocking(move || hash_file(&bytes)).await??;
    if sha256 != model.sha256 {
        report.problems.push(format!("the model's bytes have SHA-256 {sha256}, not {}", model.sha256));
    }
    if let Err(problem) = catalogue.verify(&evaluation.dataset).await {
        report.problems.push(problem.to_string());
    }

    let mut options = context::child_options(settings, 1)?;
    options.device = profile.platform.device;
    let mut child = Child::start(&options, Some(&file)).await?;
    child
        .load(&model.spec, Some(&profile), BatchWish::Free)
        .await
        .context("this machine cannot take the evaluation's numeric profile")?;

    let mut verifier = Verifier {
        evaluation: &evaluation,
        model: &model,
        artifacts,
        catalogue,
        child,
        counted: BTreeMap::new(),
        report,
    };
    let bar =
        if std::io::stderr().is_terminal() { ProgressBar::new(shards.len() as u64) } else { ProgressBar::hidden() };
    bar.set_style(ProgressStyle::with_template("Verifying {wide_bar} {pos}/{len} shards, {eta} left")?);
    for shard in &shards {
        verifier.shard(shard, arguments.stored_only).await?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    verifier.compare_counts(evaluations::tallies(&pool, evaluation.id).await?);
    let report = verifier.report;
    match arguments.format {
        Format::Json => show::print_json(&report)?,
        Format::Table => print!("{report}"),
    }
    if report.holds() { Ok(()) } else { bail!("the evidence does not hold") }
}

struct Verifier<'a> {
    evaluation: &'a Evaluation,
    model: &'a Model,
    artifacts: Artifacts,
    catalogue: Catalogue,
    child: Child,
    /// What the verdict files add up to, by condition and seed.
    counted: BTreeMap<(usize, i64), Tally>,
    report: Report,
}

impl Verifier<'_> {
    async fn shard(&mut self, shard: &DoneShard, stored_only: bool) -> anyhow::Result<()> {
        let verdicts = evidence::from_parquet(self.artifacts.get(&shard.verdicts_key).await?)?;
        self.count(shard, &verdicts);
        let sets = match &shard.witnesses_key {
            Some(key) => evidence::from_safetensors(&self.artifacts.get(key).await?)?,
            None => Vec::new(),
        };
        let mut stored: HashSet<(&str, u32)> = HashSet::new();
        for set in &sets {
            self.witnesses(set, &verdicts).await?;
            stored.extend(set.images.iter().map(|&image| (set.condition.as_str(), image)));
        }
        let unproven =
            |row: &&VerdictRow| !row.verdict.robust && !stored.contains(&(row.condition.as_str(), row.verdict.image));
        if !stored_only && verdicts.iter().any(|row| unproven(&row)) {
            self.regenerate(shard, &verdicts).await?;
        }
        Ok(())
    }

    fn count(&mut self, shard: &DoneShard, verdicts: &[VerdictRow]) {
        for &condition in &shard.conditions {
            let Some(cell) = self.evaluation.conditions.get(condition as usize) else { continue };
            let of_it = verdicts.iter().filter(|row| row.condition == cell.id && row.seed == shard.seed);
            let of_it: Vec<Verdict> = of_it.map(|row| row.verdict.clone()).collect();
            self.counted.entry((condition as usize, shard.seed)).or_default().add(&Tally::of(cell, &of_it));
        }
    }

    /// Holds the table's counts to the verdict files.
    fn compare_counts(&mut self, table: Vec<(usize, i64, Tally)>) {
        let table: BTreeMap<_, _> =
            table.into_iter().map(|(condition, seed, tally)| ((condition, seed), tally)).collect();
        let cells: BTreeSet<_> = table.keys().chain(self.counted.keys()).copied().collect();
        for (condition, seed) in cells {
            self.report.cells += 1;
            let (said, counted) = (table.get(&(condition, seed)), self.counted.get(&(condition, seed)));
            if said == counted {
                self.report.cells_equal += 1;
                continue;
            }
            let id = self.evaluation.conditions.get(condition).map_or("?", |c| c.id.as_str());
            let words = |tally: Option<&Tally>| tally.map_or("nothing".into(), |t| format!("{} of {}", t.correct, t.n));
            let problem = format!(
                "{id} seed {seed}: the table counts {} correct, the verdicts {} (or they differ in stages or passes)",
                words(said),
                words(counted)
            );
            self.report.problems.push(problem);
        }
    }

    fn condition(&self, id: &str) -> anyhow::Result<&Condition> {
        self.evaluation.conditions.iter().find(|c| c.id == id).with_context(|| format!("unknown condition {id}"))
    }

    /// Examines stored witnesses against the verdicts they prove.
    async fn witnesses(&mut self, set: &WitnessSet, verdicts: &[VerdictRow]) -> anyhow::Result<()> {
        let condition = self.condition(&set.condition)?.clone();
        let (mut clean, mut labels) = (Vec::new(), Vec::new());
        for &image in &set.images {
            let batch = self.catalogue.read(&self.evaluation.dataset, image as usize..image as usize + 1).await?;
            clean.extend(batch.pixels);
            labels.extend(batch.labels);
        }
        clean.extend(set.pixels.iter().flat_map(|v| v.to_le_bytes()));
        let rule = self.evaluation.protocol.verdict;
        let request = Request::Examine { labels, rule, seed: set.seed };
        let (Reply::Examined { witnesses }, _) = self.child.ask(request, &clean, |_| {}).await? else {
            bail!("the evaluator gave an unexpected answer")
        };
        for (&image, seen) in set.images.iter().zip(&witnesses) {
            self.report.witnesses += 1;
            let row = verdicts.iter().find(|row| row.condition == set.condition && row.verdict.image == image);
            let problem = match row {
                None => Some("no verdict belongs to this witness".into()),
                Some(row) => examine(&condition, &row.verdict, seen, self.model.spec.stochastic),
            };
            match problem {
                None => self.report.witnesses_confirmed += 1,
                Some(problem) => self.report.disagree(&set.condition, set.seed, image, problem),
            }
        }
        Ok(())
    }

    /// Runs a shard again and compares verdict by verdict.
    async fn regenerate(&mut self, shard: &DoneShard, before: &[VerdictRow]) -> anyhow::Result<()> {
        let conditions: Vec<Condition> =
            shard.conditions.iter().map(|&i| self.evaluation.conditions[i as usize].clone()).collect();
        self.child.provide_frost(&conditions, &self.artifacts).await?;
        let first = shard.first_image as usize;
        let range = first..first + shard.images as usize;
        let batch = self.catalogue.read_part(&self.evaluation.dataset, Part::of_group(&conditions), range).await?;
        let request = Request::Shard(ShardRequest {
            conditions: conditions.clone(),
            seed: shard.seed,
            rule: self.evaluation.protocol.verdict,
            first_image: shard.first_image as u32,
            labels: batch.labels,
            witness_images: 0,
            second_opinion: Vec::new(),
            checkpoint_milliseconds: 0,
            checkpoint_bytes: 0,
        });
        let (Reply::Done { verdicts, .. }, _) = self.child.ask(request, &batch.pixels, |_| {}).await? else {
            bail!("the evaluator gave an unexpected answer")
        };
        let known: HashMap<(&str, u32), &Verdict> =
            before.iter().map(|row| ((row.condition.as_str(), row.verdict.image), &row.verdict)).collect();
        for (condition, verdicts) in conditions.iter().zip(&verdicts) {
            for now in verdicts {
                self.report.regenerated += 1;
                match known.get(&(condition.id.as_str(), now.image)) {
                    Some(&then) if then == now => self.report.regenerated_equal += 1,
                    Some(then) => {
                        let word = |v: &Verdict| if v.robust { "robust" } else { "broken" };
                        let problem = format!(
                            "was {} (class {}), is {} (class {})",
                            word(then),
                            then.predicted,
                            word(now),
                            now.predicted
                        );
                        self.report.disagree(&condition.id, shard.seed, now.image, problem);
                    }
                    None => self.report.disagree(&condition.id, shard.seed, now.image, "had no verdict".into()),
                }
            }
        }
        Ok(())
    }
}

/// What is wrong with a witness, if anything.
fn examine(condition: &Condition, verdict: &Verdict, seen: &Examination, stochastic: bool) -> Option<String> {
    if verdict.robust {
        return Some("the verdict says robust, yet a witness is stored".into());
    }
    if !(seen.low >= 0.0 && seen.high <= 1.0) {
        return Some(format!("pixels from {} to {}, outside [0,1]", seen.low, seen.high));
    }
    if let ConditionKind::Attack(attack) = &condition.kind {
        if attack.eight_bit && !seen.eight_bit {
            return Some("it is no 8-bit image".into());
        }
        let size = attack.threat.norm.of(seen.l1, seen.l2, seen.linf);
        if !attack.threat.admits(size) {
            return Some(format!("‖δ‖ = {size} exceeds ε = {}", attack.threat.epsilon.get()));
        }
    }
    if let ConditionKind::MinNorm(condition) = &condition.kind {
        let size = condition.norm.of(seen.l1, seen.l2, seen.linf);
        let said = condition.norm.of(verdict.l1, verdict.l2, verdict.linf);
        if (size - said).abs() > 1e-9 * said {
            return Some(format!("‖δ‖ = {size}, the verdict says {said}"));
        }
    }
    if !seen.misclassified {
        return Some(format!("classified as {}, which is right", seen.predicted));
    }
    (!stochastic && seen.predicted != verdict.predicted)
        .then(|| format!("classified as {}, the verdict says {}", seen.predicted, verdict.predicted))
}
