//! The lie detector's judgement: findings and a grade from what evaluators saw. Thresholds hold for the lower end of a 95 %
//! interval, so that a few images neither convict nor, by themselves, acquit.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::attack::{Attack, Projection};
use super::condition::{AttackCondition, Condition, ConditionKind};
use super::corruption::Label;
use super::finding::{Finding, Weight};
use super::plan::groups;
use super::report::{Broken, Tally};
use super::signs::{Seen, Sign, Signs};
use super::stats::wilson95;
use super::threat::Norm;

/// Whether an evaluation's figures can be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Grade {
    /// Every check was made, and none found anything that matters.
    Trustworthy,
    /// Something suggests that the figures say more than is true.
    Suspicious,
    /// The figures say more than is true.
    Unreliable,
    /// Nothing was found, but the checks that would grant trust were not made, or on too few images.
    NotAssessed,
}

impl Grade {
    pub const ALL: [Self; 4] = [Self::Trustworthy, Self::Suspicious, Self::Unreliable, Self::NotAssessed];

    pub fn name(self) -> &'static str {
        match self {
            Self::Trustworthy => "trustworthy",
            Self::Suspicious => "suspicious",
            Self::Unreliable => "unreliable",
            Self::NotAssessed => "not_assessed",
        }
    }
}

/// The grade that findings add up to: that of the worst. Without any, trust must have been earned by checks.
pub fn grade(findings: &[Finding], assessed: bool) -> Grade {
    match findings.iter().map(|finding| finding.weight).max() {
        Some(Weight::Unreliable) => Grade::Unreliable,
        Some(Weight::Suspicious) => Grade::Suspicious,
        Some(Weight::Note) | None if assessed => Grade::Trustworthy,
        Some(Weight::Note) | None => Grade::NotAssessed,
    }
}

/// Whether the evaluation can be trusted, and what speaks against it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Diagnostics {
    pub grade: Grade,
    pub findings: Vec<Finding>,
    /// What the second opinion took.
    #[serde(default)]
    pub second_opinion: SecondOpinion,
}

/// The bounded probe on a sample of images, made beside the attacks themselves. Its passes are in no row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SecondOpinion {
    /// Correct images that were probed, summed over attacks (one budget of each ladder, the largest) and seeds.
    pub images: u64,
    pub forwards: u64,
    pub backwards: u64,
}

/// All that is known of a run, one entry per condition; sums over seeds and images.
#[derive(Debug, Clone, Copy)]
pub struct Observed<'a> {
    pub conditions: &'a [Condition],
    pub tallies: &'a [Tally],
    pub signs: &'a [Signs],
    /// Several seeds attack the same images, and their second opinions' samples overlap: they do not narrow an interval.
    pub seeds: usize,
    pub stochastic: bool,
    /// Whether every image has been seen; until then nothing is trustworthy.
    pub complete: bool,
}

/// Fewer images in a second opinion than this prove nothing.
const FEWEST_IMAGES: u64 = 10;

/// Findings of a model that are about gradients, and say nothing where nothing attacks.
const ABOUT_GRADIENTS: [&str; 4] = ["zero_gradients", "nan_gradients", "softmax_output", "wild_logit_scale"];

/// The judgement on a run of a model with these findings.
pub fn diagnose(of_model: &[Finding], run: &Observed) -> Diagnostics {
    let attacks = |kind: &ConditionKind| matches!(kind, ConditionKind::Attack(_) | ConditionKind::MinNorm(_));
    let attacked = run.conditions.iter().any(|condition| attacks(&condition.kind));
    let mut findings = of_model.to_vec();
    for finding in findings.iter_mut().filter(|f| !attacked && ABOUT_GRADIENTS.contains(&f.code.as_str())) {
        finding.weight = Weight::Note;
    }
    findings.extend(RULES.iter().filter_map(|rule| rule.finding(run)));
    findings.extend(beaten(run));
    findings.extend(rising(run));
    findings.extend(without_eot(run));
    findings.extend(weak_projection(run));
    findings.extend(frost_stand_in(run));
    let probed = run.signs.iter().map(|signs| signs.of(Sign::UnboundedFails)).sum::<u64>();
    let second_opinion = SecondOpinion {
        images: probed,
        forwards: run.signs.iter().fold(0, |sum, signs| sum.saturating_add(signs.forwards)),
        backwards: run.signs.iter().fold(0, |sum, signs| sum.saturating_add(signs.backwards)),
    };
    let assessed = run.complete && opinions(run) >= FEWEST_IMAGES * run.seeds.max(1) as u64;
    Diagnostics { grade: grade(&findings, assessed), findings, second_opinion }
}

/// Images on which every attack got a whole second opinion, a second attack included; 0 if nothing attacks.
fn opinions(run: &Observed) -> u64 {
    // The last of a group is its largest budget, the one that is probed.
    let probed = groups(run.conditions, run.stochastic).into_iter().filter_map(|group| group.last().copied());
    let attacks = probed.filter(|&last| match &run.conditions[last].kind {
        ConditionKind::Attack(condition) => !condition.attack.is_baseline(),
        ConditionKind::MinNorm(_) => true,
        ConditionKind::Clean | ConditionKind::Corruption(_) => false,
    });
    attacks.map(|last| run.signs[last].of(Sign::Overturned)).min().unwrap_or(0)
}

/// Whether the condition is a baseline beside an adversary of the same norm, and so makes no claim of its own.
fn claims_nothing(condition: &Condition, run: &Observed) -> bool {
    let Some(own) = attack(condition).filter(|a| a.attack.is_baseline()) else { return false };
    let stronger = |other: &AttackCondition| !other.attack.is_baseline() && other.threat.norm == own.threat.norm;
    run.conditions.iter().filter_map(attack).any(stronger)
}

/// Signs that something else breaks what the attack did not.
const COMPARING: [Sign; 5] =
    [Sign::NoiseWins, Sign::BlackBoxWins, Sign::MinNormWins, Sign::AscentWins, Sign::Overturned];

/// When a sign becomes a finding. `NEVER` stands for a threshold that no share exceeds.
struct Rule {
    sign: Sign,
    code: &'static str,
    sentence: &'static str,
    /// Whether a share below every threshold is worth a note.
    noted: bool,
    /// The lower end of the share's interval above which the finding is suspicious, and unreliable.
    suspicious: f64,
    unreliable: f64,
}

const NEVER: f64 = 1.0;

const RULES: [Rule; 16] = [
    Rule {
        sign: Sign::ZeroGradients,
        code: "zero_gradients",
        sentence: "Images stand whose gradients were zero in every pixel in at least half of the attack's steps: it could \
                   not move, and surviving it proves little.",
        noted: true,
        suspicious: 0.02,
        unreliable: 0.2,
    },
    Rule {
        sign: Sign::NanGradients,
        code: "nan_gradients",
        sentence: "Some gradients during the attack were not numbers and counted as 0; the attack was weaker for it.",
        noted: true,
        suspicious: 0.02,
        unreliable: 0.5,
    },
    Rule {
        sign: Sign::UndefinedLogits,
        code: "undefined_logits",
        sentence: "Some examined images gave logits that are infinite or not numbers; such an image counts as what argmax \
                   makes of them, which is no answer of the model's.",
        noted: true,
        suspicious: 0.0,
        unreliable: 0.2,
    },
    Rule {
        sign: Sign::Unconfirmed,
        code: "unconfirmed_candidates",
        sentence: "Some examples that the search took for a success were not confirmed by a fresh forward pass; these \
                   images count as robust.",
        noted: true,
        suspicious: 0.02,
        unreliable: 0.2,
    },
    Rule {
        sign: Sign::UnusedBudget,
        code: "unused_budget",
        sentence: "Many images stand although the attack ended with less than half of its budget used: its steps are too \
                   short, vanish, or are projected away.",
        noted: false,
        suspicious: 0.25,
        unreliable: NEVER,
    },
    Rule {
        sign: Sign::Unconverged,
        code: "loss_not_converged",
        sentence: "On many images that stand, the loss was still rising when the attack ran out of steps; more steps may \
                   break them.",
        noted: false,
        suspicious: 0.25,
        unreliable: NEVER,
    },
    Rule {
        sign: Sign::NoneFound,
        code: "nothing_found_at_any_distance",
        sentence: "On some images a search for the smallest perturbation found none, however large: the gradients lead \
                   nowhere, or no start was found. These images count as infinitely far from any other class.",
        noted: true,
        suspicious: 0.02,
        unreliable: 0.2,
    },
    Rule {
        sign: Sign::MisleadingGradient,
        code: "misleading_gradients",
        sentence: "On sampled images a small step along the gradient raises the loss no more than a step against it: the \
                   gradients do not show the way, and attacks that follow them prove little.",
        noted: false,
        suspicious: 0.05,
        unreliable: 0.3,
    },
    Rule {
        sign: Sign::PrecisionMatters,
        code: "precision_matters",
        sentence: "On sampled images float64 gives another class, or a gradient that points elsewhere, than float32: the \
                   model's own arithmetic loses what attacks need to see, and so may whoever runs it.",
        noted: true,
        suspicious: 0.05,
        unreliable: NEVER,
    },
    Rule {
        sign: Sign::Unstable,
        code: "unstable_predictions",
        sentence: "Noise of a single grey level changes the class of sampled images: the model is not smooth enough for \
                   gradients to mean anything, or it is random.",
        noted: false,
        suspicious: 0.05,
        unreliable: NEVER,
    },
    Rule {
        sign: Sign::UnboundedFails,
        code: "unbounded_attack_fails",
        sentence: "Gradient ascent that may change every pixel to anything does not break sampled images; an attack that \
                   fails there fails because of its gradients, not because of its budget.",
        noted: false,
        suspicious: 0.02,
        unreliable: 0.2,
    },
    Rule {
        sign: Sign::NoiseWins,
        code: "noise_beats_attack",
        sentence: "Random noise of the budget's size breaks sampled images that the attack left standing.",
        noted: true,
        suspicious: 0.0,
        unreliable: 0.1,
    },
    Rule {
        sign: Sign::BlackBoxWins,
        code: "black_box_beats_attack",
        sentence: "A short search without gradients breaks sampled images that the attack left standing: gradients are \
                   masked.",
        noted: true,
        suspicious: 0.01,
        unreliable: 0.15,
    },
    Rule {
        sign: Sign::MinNormWins,
        code: "min_norm_beats_attack",
        sentence: "A search for the smallest perturbation breaks sampled images that the attack left standing.",
        noted: true,
        suspicious: 0.05,
        unreliable: 0.15,
    },
    Rule {
        sign: Sign::AscentWins,
        code: "stronger_ascent_helps",
        sentence: "More steps, another loss or another start break sampled images that the attack left standing.",
        noted: true,
        suspicious: 0.05,
        unreliable: 0.15,
    },
    Rule {
        sign: Sign::Overturned,
        code: "verdicts_overturned",
        sentence: "A second opinion breaks so many sampled images that the attack left standing that the accuracy under \
                   attack is known to be overstated by about their share.",
        noted: false,
        suspicious: 0.05,
        unreliable: 0.15,
    },
];

impl Rule {
    /// One finding for all conditions that give reason to it, of the weight of the worst.
    fn finding(&self, run: &Observed) -> Option<Finding> {
        let found: Vec<(Weight, Value)> = run
            .conditions
            .iter()
            .zip(run.signs)
            .filter(|(condition, _)| !(COMPARING.contains(&self.sign) && claims_nothing(condition, run)))
            .filter_map(|(condition, signs)| {
                let seen = signs.seen.get(&self.sign)?;
                let share = Share::of(seen, run.seeds);
                Some((self.weight(&share)?, share.evidence(&condition.id, &seen.images)))
            })
            .collect();
        let weight = found.iter().map(|(weight, _)| *weight).max()?;
        let evidence: Vec<Value> = found.into_iter().map(|(_, evidence)| evidence).collect();
        Some(Finding::new(self.code, weight, self.sentence, evidence.into()))
    }

    fn weight(&self, share: &Share) -> Option<Weight> {
        let [low, _] = share.interval();
        match () {
            _ if share.count == 0 => None,
            _ if low > self.unreliable => Some(Weight::Unreliable),
            _ if low > self.suspicious => Some(Weight::Suspicious),
            _ => self.noted.then_some(Weight::Note),
        }
    }
}

/// A count of images, and the seeds it was summed over.
struct Share {
    count: u64,
    of: u64,
    seeds: f64,
}

impl Share {
    fn of(seen: &Seen, seeds: usize) -> Self {
        Self { count: seen.count, of: seen.of, seeds: seeds.max(1) as f64 }
    }

    fn interval(&self) -> [f64; 2] {
        wilson95(self.count as f64 / self.seeds, self.of as f64 / self.seeds)
    }

    fn evidence(&self, condition: &str, images: &[u32]) -> Value {
        let share = self.count as f64 / self.of as f64;
        json!({"condition": condition, "count": self.count, "of": self.of, "share": share, "ci95": self.interval(), "images": images})
    }
}

fn attack(condition: &Condition) -> Option<&AttackCondition> {
    match &condition.kind {
        ConditionKind::Attack(attack) => Some(attack),
        ConditionKind::Clean | ConditionKind::MinNorm(_) | ConditionKind::Corruption(_) => None,
    }
}

/// Inside a cascade: what no ascent broke, a stage that does not ascend did.
fn beaten(run: &Observed) -> Option<Finding> {
    const SUSPICIOUS: f64 = 0.03;
    let mut evidence = Vec::new();
    let mut weight = Weight::Note;
    for (condition, tally) in run.conditions.iter().zip(run.tallies) {
        let Some(condition_attack) = attack(condition) else { continue };
        let broken = |stage: &str| tally.broken.get(stage).map_or(0, Broken::count);
        let mut standing = tally.n.saturating_sub(broken("clean") + broken("ladder"));
        let mut ascended = false;
        for (stage, name) in condition_attack.attack.stages().into_iter().zip(condition_attack.attack.stage_names()) {
            let count = broken(&name);
            let share = Share { count, of: standing, seeds: run.seeds.max(1) as f64 };
            if ascended && !stage.ascends() && count > 0 {
                if share.interval()[0] > SUSPICIOUS {
                    weight = Weight::Suspicious;
                }
                let mut item = share.evidence(&condition.id, &[]);
                item["stage"] = name.into();
                evidence.push(item);
            }
            ascended |= stage.ascends();
            standing = standing.saturating_sub(count);
        }
    }
    (!evidence.is_empty()).then(|| {
        Finding::new(
            "ascent_beaten_in_cascade",
            weight,
            "Images that gradient ascent left standing were broken by a later stage that searches otherwise. The cascade's \
             figure counts them; if they are many, gradients are masked, and it may still be too high.",
            evidence.into(),
        )
    })
}

/// Accuracy that grows with an independent attack's budget. Before the end, two budgets may have seen different images.
fn rising(run: &Observed) -> Option<Finding> {
    if !run.complete {
        return None;
    }
    let cells: Vec<(&Condition, &AttackCondition, &Tally)> = run
        .conditions
        .iter()
        .zip(run.tallies)
        .filter_map(|(condition, tally)| Some((condition, attack(condition)?, tally)))
        .filter(|(_, _, tally)| tally.n > 0)
        .collect();
    let interval = |tally: &Tally| {
        let seeds = run.seeds.max(1) as f64;
        wilson95(tally.correct as f64 / seeds, tally.n as f64 / seeds)
    };
    let mut evidence = Vec::new();
    for (below, small, under) in &cells {
        for (above, large, over) in &cells {
            let same = (small.threat.norm, &small.attack) == (large.threat.norm, &large.attack);
            if same && small.threat.epsilon < large.threat.epsilon && interval(over)[0] > interval(under)[1] {
                let accuracy = |tally: &Tally| tally.correct as f64 / tally.n as f64;
                let [lower, higher] = [accuracy(under), accuracy(over)];
                evidence.push(json!({"conditions": [below.id, above.id], "accuracies": [lower, higher]}));
            }
        }
    }
    (!evidence.is_empty()).then(|| {
        Finding::new(
            "accuracy_rises_with_epsilon",
            Weight::Unreliable,
            "An attack does better with a smaller budget than with a larger one, which contains it: the larger one's figure \
             is too high.",
            evidence.into(),
        )
    })
}

fn without_eot(run: &Observed) -> Option<Finding> {
    let follows =
        |a: &AttackCondition| a.attack.stages().iter().any(|stage| !stage.is_forward_only() && stage.eot() <= 1);
    let single = |condition: &&Condition| run.stochastic && attack(condition).is_some_and(follows);
    let named: Vec<&str> = run.conditions.iter().filter(single).map(|condition| condition.id.as_str()).collect();
    (!named.is_empty()).then(|| {
        Finding::new(
            "stochastic_without_eot",
            Weight::Suspicious,
            "The model is stochastic, and the attack follows the gradient of a single draw instead of the mean over many \
             (`eot`).",
            json!({ "conditions": named }),
        )
    })
}

fn weak_projection(run: &Observed) -> Option<Finding> {
    let radial = |condition: &&Condition| {
        attack(condition).is_some_and(|a| {
            a.threat.norm == Norm::L1 && matches!(&a.attack, Attack::Pgd(pgd) if pgd.projection == Projection::Radial)
        })
    };
    let named: Vec<&str> = run.conditions.iter().filter(radial).map(|condition| condition.id.as_str()).collect();
    (!named.is_empty()).then(|| {
        Finding::new(
            "weak_projection",
            Weight::Suspicious,
            "The radial L1 projection rescales a step instead of finding the nearest admissible image; it exists for parity \
             with published numbers and understates what an L1 adversary can do.",
            json!({ "conditions": named }),
        )
    })
}

fn frost_stand_in(run: &Observed) -> Option<Finding> {
    let drawn = |condition: &&Condition| match &condition.kind {
        ConditionKind::Corruption(corruption) => corruption.labels.contains(&Label::FrostProc),
        _ => false,
    };
    let named: Vec<&str> = run.conditions.iter().filter(drawn).map(|condition| condition.id.as_str()).collect();
    (!named.is_empty()).then(|| {
        Finding::new(
            "frost_stand_in",
            Weight::Note,
            "Frost was drawn from computed pictures, because the published ones are not installed; it is not the \
             benchmark's frost, and counts in none of its aggregates. `make provision` fetches the pictures.",
            json!({ "conditions": named }),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::attack::{Distribution, Noise};
    use super::super::builtin;
    use super::*;
    use crate::protocol::Precision;

    /// The PGD ladder of MNIST, 1,000 images, of which fewer stand from rung to rung.
    struct Run {
        conditions: Vec<Condition>,
        tallies: Vec<Tally>,
        signs: Vec<Signs>,
    }

    impl Run {
        fn honest() -> Self {
            let conditions = builtin("pgd-linf").unwrap().conditions(Some("mnist")).unwrap();
            let tallies: Vec<Tally> =
                (0..5).map(|rung| Tally { n: 1000, correct: 990 - 100 * rung, ..Tally::default() }).collect();
            let mut signs = vec![Signs::default(); conditions.len()];
            for sign in [Sign::UnboundedFails, Sign::MisleadingGradient, Sign::Overturned, Sign::AscentWins] {
                (0..32).for_each(|image| signs[4].look(sign, image, false));
            }
            Self { conditions, tallies, signs }
        }

        fn with(mut self, sign: Sign, count: u32, of: u32) -> Self {
            let mut signs = Signs::default();
            (0..of).for_each(|image| signs.look(sign, image, image < count));
            self.signs[4].seen.extend(signs.seen);
            self
        }

        fn diagnose(&self, of_model: &[Finding]) -> Diagnostics {
            let Self { conditions, tallies, signs } = self;
            diagnose(of_model, &Observed { conditions, tallies, signs, seeds: 1, stochastic: false, complete: true })
        }

        fn codes(&self) -> Vec<String> {
            self.diagnose(&[]).findings.into_iter().map(|finding| finding.code).collect()
        }
    }

    #[test]
    fn the_worst_finding_makes_the_grade_and_trust_must_be_earned() {
        let finding = |weight| Finding::new("odd", weight, "It is odd.", Value::Null);
        let [note, doubt, lie] = [Weight::Note, Weight::Suspicious, Weight::Unreliable].map(finding);
        for assessed in [true, false] {
            let unmoved = if assessed { Grade::Trustworthy } else { Grade::NotAssessed };
            assert_eq!(grade(&[], assessed), unmoved);
            assert_eq!(grade(std::slice::from_ref(&note), assessed), unmoved);
            assert_eq!(grade(&[note.clone(), doubt.clone()], assessed), Grade::Suspicious);
            assert_eq!(grade(&[lie.clone(), doubt.clone()], assessed), Grade::Unreliable);
        }
    }

    #[test]
    fn an_honest_run_is_trustworthy_and_one_without_a_second_opinion_not_assessed() {
        let honest = Run::honest();
        assert_eq!((honest.diagnose(&[]).grade, honest.codes()), (Grade::Trustworthy, vec![]));
        let mut blind = Run::honest();
        blind.signs[4] = Signs::default();
        assert_eq!(blind.diagnose(&[]).grade, Grade::NotAssessed);
    }

    #[test]
    fn trust_needs_ten_images_under_every_attack_and_a_second_attack_on_them() {
        let mut alone = Run::honest();
        for condition in &mut alone.conditions {
            if let ConditionKind::Attack(attack) = &mut condition.kind {
                attack.independent = true;
            }
        }
        // Five images under each of four attacks are five images, not twenty.
        let mut five = Signs::default();
        (0..5).for_each(|image| five.look(Sign::Overturned, image, false));
        alone.signs = vec![Signs::default(), five.clone(), five.clone(), five.clone(), five];
        assert_eq!(alone.diagnose(&[]).grade, Grade::NotAssessed);
        let mut once = Run::honest();
        once.signs[4].seen.remove(&Sign::Overturned);
        assert_eq!(once.diagnose(&[]).grade, Grade::NotAssessed);
    }

    #[test]
    fn a_baseline_claims_nothing_beside_an_adversary() {
        let baseline = Attack::Noise(Noise { queries: 100, distribution: Distribution::Uniform, eot: 1 });
        let threat = attack(&Run::honest().conditions[4]).unwrap().threat;
        let kind = ConditionKind::Attack(AttackCondition {
            threat,
            attack: baseline,
            independent: false,
            eight_bit: false,
            search_precision: Precision::Float32,
        });
        let (mut run, mut overturned) = (Run::honest(), Signs::default());
        (0..32).for_each(|image| overturned.look(Sign::Overturned, image, true));
        run.conditions.push(Condition { id: "noise".into(), kind });
        run.tallies.push(Tally { n: 1000, correct: 985, ..Tally::default() });
        run.signs.push(overturned);
        assert_eq!(run.diagnose(&[]).grade, Grade::Trustworthy);
        // Alone it is all the evidence there is.
        run.conditions.drain(1..5);
        run.tallies.drain(1..5);
        run.signs.drain(1..5);
        assert_eq!(run.diagnose(&[]).grade, Grade::Unreliable);
    }

    #[test]
    fn shares_convict_only_where_their_interval_is_clear_of_the_threshold() {
        let grade = |count, of| Run::honest().with(Sign::Overturned, count, of).diagnose(&[]).grade;
        // 2 of 32 is what chance and an honest model show.
        assert_eq!(grade(2, 32), Grade::Trustworthy);
        assert_eq!(grade(8, 32), Grade::Suspicious);
        assert_eq!(grade(24, 32), Grade::Unreliable);
        let noted = Run::honest().with(Sign::AscentWins, 1, 32).diagnose(&[]);
        assert_eq!((noted.grade, noted.findings[0].weight), (Grade::Trustworthy, Weight::Note));
        assert_eq!(noted.findings[0].evidence[0]["images"], json!([0]));
    }

    #[test]
    fn an_attack_that_does_worse_with_more_budget_is_exposed() {
        let mut run = Run::honest();
        assert_eq!(run.codes(), [""; 0]);
        run.tallies[3].correct = 995;
        assert_eq!(run.codes(), ["accuracy_rises_with_epsilon"]);
        assert_eq!(run.diagnose(&[]).grade, Grade::Unreliable);
        // A difference that chance explains is none.
        run.tallies[3].correct = run.tallies[2].correct + 10;
        assert_eq!(run.codes(), [""; 0]);
    }

    #[test]
    fn a_later_stage_that_does_the_ascents_work_is_told() {
        let conditions = builtin("autoattack-standard").unwrap().conditions(Some("mnist")).unwrap();
        let diagnosed = |fab: u64| {
            let broken = [("clean", 10), ("apgd-ce", 200), ("apgd-t", 40), ("fab-t", fab)];
            let broken = broken.into_iter().map(|(stage, count)| (stage.to_owned(), Broken::Count(count))).collect();
            let tally = Tally { n: 1000, correct: 750 - fab, broken, ..Tally::default() };
            let signs = vec![Signs::default(); 2];
            let tallies = [Tally { n: 1000, correct: 990, ..Tally::default() }, tally];
            let run = Observed {
                conditions: &conditions,
                tallies: &tallies,
                signs: &signs,
                seeds: 1,
                stochastic: false,
                complete: true,
            };
            diagnose(&[], &run).findings
        };
        assert_eq!(diagnosed(0), []);
        let [few] = &diagnosed(2)[..] else { panic!("one finding") };
        assert_eq!((few.code.as_str(), few.weight), ("ascent_beaten_in_cascade", Weight::Note));
        let [many] = &diagnosed(700)[..] else { panic!("one finding") };
        assert_eq!((many.weight, &many.evidence[0]["of"]), (Weight::Suspicious, &json!(750)));
    }

    #[test]
    fn what_a_condition_is_can_be_reason_enough() {
        let Run { mut conditions, tallies, signs } = Run::honest();
        let codes = |conditions: &[Condition], stochastic| {
            let run = Observed { conditions, tallies: &tallies, signs: &signs, seeds: 1, stochastic, complete: true };
            diagnose(&[], &run).findings.into_iter().map(|finding| finding.code).collect::<Vec<_>>()
        };
        assert_eq!(codes(&conditions, true), ["stochastic_without_eot"]);
        for condition in &mut conditions[1..] {
            let ConditionKind::Attack(AttackCondition { threat, attack: Attack::Pgd(pgd), .. }) = &mut condition.kind
            else {
                panic!("{} is no PGD", condition.id)
            };
            threat.norm = Norm::L1;
            pgd.projection = Projection::Radial;
            pgd.eot = 20;
        }
        assert_eq!(codes(&conditions, true), ["weak_projection"]);
    }

    #[test]
    fn several_seeds_see_the_same_images_and_convict_no_sooner() {
        let run = Run::honest().with(Sign::Overturned, 3, 12);
        let mut thrice = Run::honest();
        thrice.signs[4] = Signs::default();
        (0..3).for_each(|_| thrice.signs[4].add(&run.signs[4]));
        let Run { conditions, tallies, signs } = &thrice;
        let together =
            diagnose(&[], &Observed { conditions, tallies, signs, seeds: 3, stochastic: false, complete: true });
        assert_eq!(together.grade, run.diagnose(&[]).grade);
    }

    #[test]
    fn gradients_say_nothing_where_nothing_attacks() {
        let finding = Finding::new("zero_gradients", Weight::Suspicious, "Zero.", Value::Null);
        let mut run = Run::honest();
        assert_eq!(run.diagnose(std::slice::from_ref(&finding)).grade, Grade::Suspicious);
        run.conditions.truncate(1);
        run.tallies.truncate(1);
        run.signs.truncate(1);
        assert_eq!(run.diagnose(&[finding]).grade, Grade::NotAssessed);
    }
}
