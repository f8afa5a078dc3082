//! The report: a table computed from tallies of verdicts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::condition::{AttackCondition, Condition, ConditionKind, MinNormCondition};
use super::corruption::Corruptions;
use super::corruption::{even, figures};
use super::diagnosis::Diagnostics;
use super::file::Aggregate;
use super::minimal::{Minimal, minimal};
use super::stats::{mean_sd, wilson95};
use super::verdict::{Stage, Verdict};

/// Images broken by one stage: how many, and of a condition without a budget how far each was moved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Broken {
    Count(u64),
    /// In the condition's norm, ascending.
    Sizes(Vec<f64>),
}

impl Broken {
    /// Of images that one stage broke.
    fn of(condition: &Condition, verdicts: &[&Verdict]) -> Self {
        match &condition.kind {
            ConditionKind::MinNorm(condition) => {
                let mut sizes: Vec<f64> = verdicts.iter().map(|v| condition.norm.of(v.l1, v.l2, v.linf)).collect();
                sizes.sort_by(f64::total_cmp);
                Broken::Sizes(sizes)
            }
            ConditionKind::Clean | ConditionKind::Attack(_) | ConditionKind::Corruption(_) => {
                Broken::Count(verdicts.len() as u64)
            }
        }
    }

    pub fn count(&self) -> u64 {
        match self {
            Broken::Count(count) => *count,
            Broken::Sizes(sizes) => sizes.len() as u64,
        }
    }

    fn sizes(&self) -> &[f64] {
        match self {
            Broken::Count(_) => &[],
            Broken::Sizes(sizes) => sizes,
        }
    }

    fn add(&mut self, other: &Broken) {
        match (self, other) {
            (Broken::Sizes(sizes), Broken::Sizes(more)) => {
                sizes.extend(more);
                sizes.sort_by(f64::total_cmp);
            }
            (this, other) => *this = Broken::Count(this.count() + other.count()),
        }
    }
}

/// Counts over some images of one condition and seed. Tallies of disjoint images add up.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Tally {
    pub n: u64,
    pub correct: u64,
    pub broken: BTreeMap<String, Broken>,
    pub forwards: u64,
    pub backwards: u64,
}

impl Tally {
    /// Counts verdicts under `condition`.
    pub fn of(condition: &Condition, verdicts: &[Verdict]) -> Self {
        let mut tally = Self::default();
        let mut broken: BTreeMap<String, Vec<&Verdict>> = BTreeMap::new();
        for v in verdicts {
            tally.n += 1;
            tally.correct += u64::from(v.robust);
            if let Some(stage) = &v.stage {
                broken.entry(stage.to_string()).or_default().push(v);
            }
            tally.forwards += u64::from(v.forwards);
            tally.backwards += u64::from(v.backwards);
        }
        tally.broken = broken.into_iter().map(|(stage, verdicts)| (stage, Broken::of(condition, &verdicts))).collect();
        tally
    }

    pub fn add(&mut self, other: &Tally) {
        self.n += other.n;
        self.correct += other.correct;
        for (stage, broken) in &other.broken {
            self.broken.entry(stage.clone()).and_modify(|sum| sum.add(broken)).or_insert_with(|| broken.clone());
        }
        self.forwards += other.forwards;
        self.backwards += other.backwards;
    }
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Stage::Clean => "clean",
            Stage::Ladder => "ladder",
            Stage::Corruption => "corruption",
            Stage::Attack(name) => name,
        })
    }
}

/// How many images a stage broke. `clean`: misclassified before any attack; `ladder`: by a smaller ε's witness.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct StageCount {
    pub attack: String,
    pub broken: u64,
}

/// One seed's share of a row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SeedRow {
    pub seed: i64,
    pub n: u64,
    pub correct: u64,
    pub accuracy: f64,
}

/// One condition of the table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Row {
    #[serde(flatten)]
    pub condition: Condition,
    /// Verdicts counted: images × seeds, less what is still to come.
    pub n: u64,
    pub correct: u64,
    /// correct / n, equal to the mean over seeds once complete; `null` before the first verdict.
    pub accuracy: Option<f64>,
    /// Wilson 95 % interval over images. Several seeds do not narrow it: they see the same images.
    pub ci95: Option<[f64; 2]>,
    /// Sample standard deviation of the accuracy over seeds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sd: Option<f64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub seeds: Vec<SeedRow>,
    pub stages: Vec<StageCount>,
    /// How far images had to be moved; conditions without a budget only, whose `accuracy` is the share that nothing broke.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimal: Option<Minimal>,
    /// Passes spent per counted verdict, mean.
    pub forwards_per_image: f64,
    pub backwards_per_image: f64,
}

/// Summary accuracies; `null` where a part was not measured.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Columns {
    /// (white box + corruption + clean) / 3; VOneNet's aggregate only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overall_mean: Option<f64>,
    /// (white box + corruption) / 2; VOneNet's aggregate only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub perturbation_mean: Option<f64>,
    /// Plain mean over the attack cells.
    pub white_box: Option<f64>,
    /// Plain mean over the cells of the fifteen benchmark corruptions.
    pub corruption: Option<f64>,
    pub clean: Option<f64>,
    /// 1 − corruption, unnormalised; the aggregates of ImageNet-C and CIFAR-10-C only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub corruption_error: Option<f64>,
    /// Mean corruption error over AlexNet's, as a fraction of 1: of 15 × 5 conditions of 224-pixel colour images, published or
    /// saved with the published frost pictures, and of no others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mce: Option<f64>,
    /// The same of the errors above the clean error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relative_mce: Option<f64>,
    /// Means by type and group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub corruptions: Option<Corruptions>,
}

/// The table that a client receives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Table {
    pub evaluation: String,
    /// Whether every verdict is in.
    pub complete: bool,
    pub conditions: Vec<Row>,
    pub columns: Columns,
    pub diagnostics: Diagnostics,
    /// Everything needed to repeat the run: model, dataset, protocol, seeds, numeric profile, software, sandbox.
    pub provenance: Value,
}

/// Where the evaluators' processor time went, for a table's provenance: seconds of all threads together.
pub fn cpu_time(total: f64, corruption: f64) -> Value {
    let share = if total > 0.0 { corruption / total } else { 0.0 };
    serde_json::json!({"seconds": total, "corruption_seconds": corruption, "corruption_share": share})
}

/// Builds a row from the tallies of each seed.
pub fn row(condition: &Condition, per_seed: &[(i64, Tally)]) -> Row {
    let mut total = Tally::default();
    per_seed.iter().for_each(|(_, tally)| total.add(tally));
    let seeds: Vec<SeedRow> = per_seed
        .iter()
        .filter(|(_, t)| t.n > 0)
        .map(|(seed, t)| SeedRow { seed: *seed, n: t.n, correct: t.correct, accuracy: t.correct as f64 / t.n as f64 })
        .collect();
    let n = total.n as f64;
    let accuracy = (total.n > 0).then(|| total.correct as f64 / n);
    let images = n / seeds.len().max(1) as f64;
    let minimal = match &condition.kind {
        ConditionKind::MinNorm(_) => {
            let mut sizes: Vec<f64> = total.broken.values().flat_map(Broken::sizes).copied().collect();
            sizes.sort_by(f64::total_cmp);
            minimal(&sizes, total.n, seeds.len() as u64)
        }
        _ => None,
    };
    let per_verdict = |passes: u64| if total.n == 0 { 0.0 } else { passes as f64 / n };
    Row {
        condition: condition.clone(),
        n: total.n,
        correct: total.correct,
        accuracy,
        ci95: accuracy.map(|a| wilson95(a * images, images)),
        sd: mean_sd(&seeds.iter().map(|s| s.accuracy).collect::<Vec<_>>()).1,
        seeds: if seeds.len() > 1 { seeds } else { Vec::new() },
        stages: stages(condition, &total.broken),
        minimal,
        forwards_per_image: per_verdict(total.forwards),
        backwards_per_image: per_verdict(total.backwards),
    }
}

/// What broke images, in the order of events: misclassified at once, by a smaller ε, then stage by stage. A cascade's stages
/// are all named, others only where they broke something.
fn stages(condition: &Condition, broken: &BTreeMap<String, Broken>) -> Vec<StageCount> {
    let mut names = vec!["clean".to_owned(), "ladder".to_owned()];
    let mut all = Vec::new();
    if let ConditionKind::Attack(AttackCondition { attack, .. })
    | ConditionKind::MinNorm(MinNormCondition { attack, .. }) = &condition.kind
    {
        let stages = attack.stage_names();
        names.extend(stages.iter().cloned());
        if stages.len() > 1 {
            all = stages;
        }
    }
    names.extend(broken.keys().cloned());
    let mut seen = std::collections::HashSet::new();
    names.retain(|name| seen.insert(name.clone()) && (broken.contains_key(name) || all.contains(name)));
    let count = |name: String| StageCount { broken: broken.get(&name).map_or(0, Broken::count), attack: name };
    names.into_iter().map(count).collect()
}

/// The summary columns of finished rows.
pub fn columns(rows: &[Row], aggregate: Aggregate) -> Columns {
    let mean = |kind: fn(&ConditionKind) -> bool| {
        let values: Option<Vec<f64>> = rows.iter().filter(|r| kind(&r.condition.kind)).map(|r| r.accuracy).collect();
        values.filter(|v| !v.is_empty()).map(|v| mean_sd(&v).0)
    };
    let clean = mean(|kind| matches!(kind, ConditionKind::Clean));
    let white_box = mean(|kind| matches!(kind, ConditionKind::Attack(_)));
    let corrupted = figures(rows, clean, aggregate);
    let parts = Columns {
        white_box,
        clean,
        corruption: corrupted.accuracy,
        corruption_error: corrupted.error,
        mce: corrupted.mce,
        relative_mce: corrupted.relative_mce,
        corruptions: corrupted.parts,
        ..Columns::default()
    };
    match aggregate {
        // Means over different images would be means of nothing.
        Aggregate::Vonenet if even(rows) => vonenet(parts),
        Aggregate::Vonenet => parts,
        Aggregate::None | Aggregate::ImagenetC | Aggregate::Cifar10C => parts,
    }
}

/// Dapello, Marques et al. 2020, headline table: Perturbation = (White box + Corruption) / 2,
/// Overall = (White box + Corruption + Clean) / 3. Its corrupted images are the published JPEG files: unsaid of any others.
fn vonenet(parts: Columns) -> Columns {
    if parts.corruptions.as_ref().is_some_and(|corruptions| !corruptions.published_form) {
        return parts;
    }
    let perturbation_mean = parts.white_box.zip(parts.corruption).map(|(w, c)| (w + c) / 2.0);
    let overall_mean = parts.white_box.zip(parts.corruption).zip(parts.clean).map(|((w, c), k)| (w + c + k) / 3.0);
    Columns { perturbation_mean, overall_mean, ..parts }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The four rows printed in the paper: overall, perturbation, white box, corruption, clean.
    #[test]
    fn vonenet_columns_reproduce_the_published_table() {
        for [overall, perturbation, white_box, corruption, clean] in [
            [43.6, 27.6, 16.4, 38.8, 75.6],
            [49.0, 42.3, 52.3, 32.3, 62.4],
            [48.0, 34.9, 17.3, 52.6, 74.1],
            [54.3, 45.6, 51.1, 40.0, 71.7],
        ] {
            let parts = Columns {
                white_box: Some(white_box),
                corruption: Some(corruption),
                clean: Some(clean),
                ..Columns::default()
            };
            let columns = vonenet(parts);
            assert!((columns.overall_mean.unwrap() - overall).abs() <= 0.1);
            assert!((columns.perturbation_mean.unwrap() - perturbation).abs() <= 0.1);
        }
    }

    #[test]
    fn a_missing_part_leaves_the_means_unsaid() {
        let columns = vonenet(Columns { white_box: Some(0.5), clean: Some(0.9), ..Columns::default() });
        assert_eq!((columns.overall_mean, columns.perturbation_mean), (None, None));
    }

    #[test]
    fn corruptions_computed_in_memory_give_no_vonenet_means() {
        for (published_form, expected) in [(true, Some(0.45)), (false, None)] {
            let corruptions = Corruptions { official: true, published_form, groups: Vec::new(), types: Vec::new() };
            let columns = vonenet(Columns {
                white_box: Some(0.5),
                corruption: Some(0.4),
                clean: Some(0.9),
                corruptions: Some(corruptions),
                ..Columns::default()
            });
            assert_eq!((columns.perturbation_mean, columns.overall_mean.is_some()), (expected, published_form));
        }
    }

    #[test]
    fn seeds_give_a_spread_but_no_narrower_interval() {
        let condition = Condition { id: "clean".into(), kind: ConditionKind::Clean };
        let tally = |correct| Tally { n: 100, correct, ..Tally::default() };
        let one = row(&condition, &[(0, tally(80))]);
        let three = row(&condition, &[(0, tally(79)), (1, tally(80)), (2, tally(81))]);
        assert_eq!(one.ci95, three.ci95);
        assert_eq!((one.sd, one.accuracy), (None, three.accuracy));
        assert!((three.sd.unwrap() - 0.01).abs() < 1e-12);
        assert_eq!(three.n, 300);
    }
}
