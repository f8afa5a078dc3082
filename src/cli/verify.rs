//! `gauntlet verify`: look at an evaluation's evidence again, in a new process.

use std::collections::{HashMap, HashSet};
use std::io::IsTerminal;

use anyhow::{Context, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use uuid::Uuid;

use super::context;
use super::show::{self, Format};
use crate::config::Settings;
use crate::dataset::Catalogue;
use crate::protocol::{Condition, ConditionKind, Norm, Verdict};
use crate::store::Artifacts;
use crate::store::evaluations::{self, Evaluation};
use crate::store::evidence::{self, VerdictRow, WitnessSet};
use crate::store::models::{self, Model};
use crate::store::shards::{self, DoneShard};
use crate::wire::{BatchWish, Examination, Reply, Request, ShardRequest};
use crate::worker::Child;

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

/// What a second look found.
#[derive(Debug, Default, Serialize)]
struct Report {
    evaluation: Uuid,
    stochastic: bool,
    /// Stored witnesses examined, and how many prove their verdict.
    witnesses: u64,
    witnesses_confirmed: u64,
    /// Verdicts reached a second time, and how many came out the same in every field.
    regenerated: u64,
    regenerated_equal: u64,
    /// The first hundred.
    disagreements: Vec<Disagreement>,
}

#[derive(Debug, Serialize)]
struct Disagreement {
    condition: String,
    seed: i64,
    image: u32,
    problem: String,
}

const MOST_DISAGREEMENTS: usize = 100;

impl Report {
    fn disagree(&mut self, condition: &str, seed: i64, image: u32, problem: String) {
        if self.disagreements.len() < MOST_DISAGREEMENTS {
            self.disagreements.push(Disagreement { condition: condition.into(), seed, image, problem });
        }
    }

    fn agrees(&self) -> bool {
        self.witnesses == self.witnesses_confirmed && self.regenerated == self.regenerated_equal
    }
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
    let mut options = context::child_options(settings, 1)?;
    options.device = profile.platform.device;
    let mut child = Child::start(&options).await?;
    child
        .load(&file, &model.spec, Some(&profile), BatchWish::Free)
        .await
        .context("this machine cannot take the evaluation's numeric profile")?;

    let catalogue = Catalogue::new(artifacts.store());
    let mut verifier =
        Verifier { evaluation: &evaluation, model: &model, artifacts, catalogue, child, report: Report::default() };
    verifier.report.evaluation = evaluation.id;
    verifier.report.stochastic = model.spec.stochastic;
    let bar =
        if std::io::stderr().is_terminal() { ProgressBar::new(shards.len() as u64) } else { ProgressBar::hidden() };
    bar.set_style(ProgressStyle::with_template("Verifying {wide_bar} {pos}/{len} shards, {eta} left")?);
    for shard in &shards {
        verifier.shard(shard, arguments.stored_only).await?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    let report = verifier.report;
    match arguments.format {
        Format::Json => show::print_json(&report)?,
        Format::Table => print(&report),
    }
    // A stochastic model may disagree with itself: there the rate is the result.
    if report.agrees() || report.stochastic { Ok(()) } else { bail!("the evidence does not hold") }
}

fn print(report: &Report) {
    println!("Stored witnesses examined: {}, confirmed: {}", report.witnesses, report.witnesses_confirmed);
    println!("Verdicts regenerated: {}, equal: {}", report.regenerated, report.regenerated_equal);
    if report.stochastic {
        let rate = |part: u64, of: u64| if of == 0 { "–".into() } else { show::percent(part as f64 / of as f64) };
        println!(
            "The model is stochastic; agreement rates: witnesses {}, verdicts {}",
            rate(report.witnesses_confirmed, report.witnesses),
            rate(report.regenerated_equal, report.regenerated)
        );
    }
    for d in &report.disagreements {
        println!("! {} seed {} image {}: {}", d.condition, d.seed, d.image, d.problem);
    }
    if report.agrees() {
        println!("Everything agrees.");
    }
}

struct Verifier<'a> {
    evaluation: &'a Evaluation,
    model: &'a Model,
    artifacts: Artifacts,
    catalogue: Catalogue,
    child: Child,
    report: Report,
}

impl Verifier<'_> {
    async fn shard(&mut self, shard: &DoneShard, stored_only: bool) -> anyhow::Result<()> {
        let verdicts = evidence::from_parquet(self.artifacts.get(&shard.verdicts_key).await?)?;
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
        let batch = self.catalogue.read(&self.evaluation.dataset, first..first + shard.images as usize).await?;
        let request = Request::Shard(ShardRequest {
            conditions: conditions.clone(),
            seed: shard.seed,
            rule: self.evaluation.protocol.verdict,
            first_image: shard.first_image as u32,
            labels: batch.labels,
            witness_images: 0,
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
        let size = match attack.threat.norm {
            Norm::Linf => seen.linf,
            Norm::L2 => seen.l2,
            Norm::L1 => seen.l1,
        };
        if !attack.threat.admits(size) {
            return Some(format!("‖δ‖ = {size} exceeds ε = {}", attack.threat.epsilon.get()));
        }
    }
    if !seen.misclassified {
        return Some(format!("classified as {}, which is right", seen.predicted));
    }
    (!stochastic && seen.predicted != verdict.predicted)
        .then(|| format!("classified as {}, the verdict says {}", seen.predicted, verdict.predicted))
}
