//! Checking what a child claims, before anything of it is kept. The child runs a stranger's code.

use std::collections::HashSet;

use crate::dataset::Batch;
use crate::protocol::{AttackCondition, Condition, ConditionKind, Mode, ModelSpec, Signs, Stage, Verdict};
use crate::wire::{CpuTime, WitnessAt};

/// What a child says a shard came to.
pub struct Claims<'a> {
    /// By condition, then image.
    pub verdicts: &'a [Vec<Verdict>],
    pub witnesses: &'a [WitnessAt],
    /// The witnesses as float32.
    pub payload: &'a [u8],
    /// By condition.
    pub signs: &'a [Signs],
    pub time: CpuTime,
}

/// Holds a shard's results to the request: every image once and in order, its true label, classes that exist, "not
/// robust" only with a misclassification inside the budget, and witnesses (of the first `witness_images` images only)
/// that are as large as their verdicts say and inside the box. The error is a sentence.
pub fn results(
    conditions: &[Condition],
    batch: &Batch,
    spec: &ModelSpec,
    witness_images: u32,
    claims: &Claims,
) -> Result<(), String> {
    let Claims { verdicts, witnesses, payload, signs, time } = *claims;
    if !(0.0..f64::INFINITY).contains(&time.wall) {
        return Err(format!("{} s on the wall", time.wall));
    }
    if !(time.total >= 0.0 && (0.0..=time.total + 1.0).contains(&time.corruption)) || time.total.is_infinite() {
        return Err(format!("{} s of corruption in {} s", time.corruption, time.total));
    }
    if verdicts.len() != conditions.len() || signs.len() != conditions.len() {
        let found = format!("{} and {} instead of {}", verdicts.len(), signs.len(), conditions.len());
        return Err(format!("verdicts and signs for {found} conditions"));
    }
    let images = batch.first as u32..(batch.first + batch.labels.len()) as u32;
    for (condition, signs) in conditions.iter().zip(signs) {
        if let Some(problem) = signs.problem(&images) {
            return Err(format!("{}: {problem}", condition.id));
        }
    }
    for (condition, verdicts) in conditions.iter().zip(verdicts) {
        if verdicts.len() != batch.labels.len() {
            return Err(format!("{}: {} verdicts for {} images", condition.id, verdicts.len(), batch.labels.len()));
        }
        for (position, verdict) in verdicts.iter().enumerate() {
            let image = batch.first + position;
            if verdict.image as usize != image || verdict.label != batch.labels[position] {
                return Err(format!("{}: image {image} has another index or label", condition.id));
            }
            one(condition, spec, verdict).map_err(|problem| format!("{}: image {image}: {problem}", condition.id))?;
        }
    }
    let pixels = spec.input.iter().map(|&side| side as usize).product::<usize>();
    if payload.len() != witnesses.len() * pixels * 4 {
        return Err(format!("{} witnesses in {} bytes", witnesses.len(), payload.len()));
    }
    let mut seen = HashSet::new();
    for (at, bytes) in witnesses.iter().zip(payload.chunks(pixels * 4)) {
        let problem =
            |text: &str| Err(format!("the witness for condition {}, image {}: {text}", at.condition, at.image));
        let position = (at.image as usize).wrapping_sub(batch.first);
        let Some(verdict) = verdicts.get(at.condition as usize).and_then(|v| v.get(position)) else {
            return problem("there is no such cell");
        };
        let corrupted = matches!(conditions[at.condition as usize].kind, ConditionKind::Corruption(_));
        if corrupted || verdict.robust || position >= witness_images as usize || !seen.insert((at.condition, at.image))
        {
            return problem("nobody asked for it");
        }
        let on_grid = |pixel: f32| pixel == (pixel * 255.0).round() / 255.0;
        let eight_bit = matches!(&conditions[at.condition as usize].kind, ConditionKind::Attack(a) if a.eight_bit);
        if eight_bit && !bytes.as_chunks::<4>().0.iter().all(|b| on_grid(f32::from_le_bytes(*b))) {
            return problem("it is no 8-bit image");
        }
        if !measures_up(verdict, bytes, &batch.pixels[position * pixels..(position + 1) * pixels]) {
            return problem("it is not what its verdict says");
        }
    }
    Ok(())
}

/// Whether a witness lies in the box and is, in float64, as far from its image as the verdict claims, up to the order of
/// summation.
fn measures_up(verdict: &Verdict, witness: &[u8], clean: &[u8]) -> bool {
    let (mut l1, mut l2, mut linf) = (0.0f64, 0.0f64, 0.0f64);
    for (bytes, &byte) in witness.as_chunks::<4>().0.iter().zip(clean) {
        let pixel = f32::from_le_bytes(*bytes);
        if !(0.0..=1.0).contains(&pixel) {
            return false;
        }
        let delta = (f64::from(pixel) - f64::from(f32::from(byte) / 255.0)).abs();
        l1 += delta;
        l2 += delta * delta;
        linf = linf.max(delta);
    }
    let close = |a: f64, b: f64| (a - b).abs() <= 1e-9 * b.max(1e-9);
    close(verdict.l1, l1) && close(verdict.l2, l2.sqrt()) && close(verdict.linf, linf)
}

fn one(condition: &Condition, spec: &ModelSpec, verdict: &Verdict) -> Result<(), String> {
    if verdict.predicted >= spec.classes {
        return Err(format!("class {} of {}", verdict.predicted, spec.classes));
    }
    if verdict.robust != (verdict.predicted == verdict.label) || verdict.robust == verdict.stage.is_some() {
        return Err("robust, prediction and stage contradict each other".into());
    }
    if let ConditionKind::Corruption(corruption) = &condition.kind {
        return corrupted(corruption.mode, spec, verdict);
    }
    let (attack, budget) = match &condition.kind {
        ConditionKind::Attack(condition) => (&condition.attack, Some(condition)),
        ConditionKind::MinNorm(condition) => (&condition.attack, None),
        ConditionKind::Clean => return unmoved(verdict),
        ConditionKind::Corruption(corruption) => return corrupted(corruption.mode, spec, verdict),
    };
    if !possible(spec, verdict) {
        return Err("a perturbation of impossible size".into());
    }
    let by_it = |stage: &Stage| match stage {
        Stage::Clean => [verdict.l1, verdict.l2, verdict.linf] == [0.0; 3],
        Stage::Ladder => budget.is_some_and(|budget| !budget.independent),
        Stage::Attack(name) => attack.stage_names().contains(name),
        Stage::Corruption => false,
    };
    if !verdict.stage.as_ref().is_none_or(by_it) {
        return Err(format!("broken by {:?}, which is no part of the condition", verdict.stage));
    }
    let Some(AttackCondition { threat, .. }) = budget else { return Ok(()) };
    let size = threat.norm.of(verdict.l1, verdict.l2, verdict.linf);
    if verdict.robust || threat.admits(size) { Ok(()) } else { Err(format!("a perturbation of size {size}")) }
}

fn unmoved(verdict: &Verdict) -> Result<(), String> {
    let unchanged = [verdict.l1, verdict.l2, verdict.linf] == [0.0; 3];
    let clean = unchanged && verdict.stage.as_ref().is_none_or(|s| *s == Stage::Clean);
    if clean { Ok(()) } else { Err("a clean image was changed".into()) }
}

/// A corrupted image has no budget; its distances are still those of two images in [0,1]. Published ones are judged as they are.
fn corrupted(mode: Mode, spec: &ModelSpec, verdict: &Verdict) -> Result<(), String> {
    if mode == Mode::Published && [verdict.l1, verdict.l2, verdict.linf] != [0.0; 3] {
        return Err("a published image was changed".into());
    }
    if verdict.stage.as_ref().is_some_and(|stage| *stage != Stage::Corruption) {
        return Err("a corruption was not what broke it".into());
    }
    if possible(spec, verdict) { Ok(()) } else { Err("a corrupted image of impossible distance".into()) }
}

/// Whether two images in [0,1] can be as far apart as the verdict says.
fn possible(spec: &ModelSpec, verdict: &Verdict) -> bool {
    let pixels = spec.input.iter().map(|&side| f64::from(side)).product::<f64>();
    let within = |size: f64, most: f64| (0.0..=most * (1.0 + 1e-9)).contains(&size);
    // The norms of one perturbation: none is less than the next, or more than all pixels make of it.
    let Verdict { l1, l2, linf, .. } = *verdict;
    within(linf, 1.0)
        && within(l2, pixels.sqrt() * linf)
        && within(l1, pixels.sqrt() * l2)
        && within(linf, l2)
        && within(l2, l1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::Shape;
    use crate::protocol::{Protocol, Sign, builtin};

    /// Two images of one pixel, labels 0 and 1; the first is broken at ε = 0.25 by a witness of 0.25 instead of 0.
    struct Honest {
        conditions: Vec<Condition>,
        batch: Batch,
        spec: ModelSpec,
        verdicts: Vec<Vec<Verdict>>,
        signs: Vec<Signs>,
        witnesses: Vec<WitnessAt>,
        payload: Vec<u8>,
    }

    impl Honest {
        fn new() -> Self {
            let document = serde_json::to_value(builtin("pgd-linf").unwrap()).unwrap();
            let protocol = Protocol::from_value(document, &[("epsilon".into(), "0.25".into())]).unwrap();
            let conditions = protocol.conditions(None).unwrap();
            let verdict = |image: u32, broken: bool, attacked: bool| Verdict {
                image,
                label: image - 7,
                predicted: if broken { 2 } else { image - 7 },
                robust: !broken,
                stage: broken.then(|| Stage::Attack("pgd".into())),
                l1: if attacked { 0.25 } else { 0.0 },
                l2: if attacked { 0.25 } else { 0.0 },
                linf: if attacked { 0.25 } else { 0.0 },
                forwards: 1,
                backwards: 0,
            };
            let shape = Shape { channels: 1, height: 1, width: 1 };
            Self {
                conditions,
                batch: Batch { first: 7, shape, pixels: vec![0, 0], labels: vec![0, 1] },
                spec: serde_json::from_str(r#"{"input": [1, 1, 1], "classes": 3}"#).unwrap(),
                verdicts: vec![
                    vec![verdict(7, false, false), verdict(8, false, false)],
                    vec![verdict(7, true, true), verdict(8, false, true)],
                ],
                signs: vec![Signs::default(); 2],
                witnesses: vec![WitnessAt { condition: 1, image: 7 }],
                payload: 0.25f32.to_le_bytes().to_vec(),
            }
        }

        fn check(&self) -> Result<(), String> {
            let Self { conditions, batch, spec, verdicts, signs, witnesses, payload } = self;
            results(
                conditions,
                batch,
                spec,
                1,
                &Claims { verdicts, witnesses, payload, signs, time: CpuTime::default() },
            )
        }
    }

    #[test]
    fn without_a_budget_any_possible_distance_passes_by_a_stage_of_the_condition() {
        let mut answer = Honest::new();
        let text =
            "name = \"x\"\n[clean]\n[[attack]]\nnorm = \"l2\"\nepsilon = \"minimal\"\ncascade = [\"fmn\", \"ddn\"]";
        answer.conditions = Protocol::from_toml(text, &[]).unwrap().conditions(None).unwrap();
        answer.verdicts[1][0].stage = Some(Stage::Attack("ddn".into()));
        answer.check().unwrap();
        type Lie = (&'static str, fn(&mut Verdict));
        let lies: [Lie; 4] = [
            ("by another attack", |verdict| verdict.stage = Some(Stage::Attack("pgd".into()))),
            ("by a smaller budget", |verdict| verdict.stage = Some(Stage::Ladder)),
            ("moved, yet broken from the start", |verdict| verdict.stage = Some(Stage::Clean)),
            ("farther than images are apart", |verdict| verdict.l2 = 1.5),
        ];
        for (name, lie) in lies {
            let mut answer = Honest { verdicts: answer.verdicts.clone(), ..Honest::new() };
            answer.conditions = Protocol::from_toml(text, &[]).unwrap().conditions(None).unwrap();
            lie(&mut answer.verdicts[1][0]);
            assert!(answer.check().is_err(), "{name} passes");
        }
    }

    #[test]
    fn an_honest_answer_passes_and_every_kind_of_lie_is_named() {
        Honest::new().check().unwrap();
        type Lie = (&'static str, fn(&mut Honest));
        let lies: [Lie; 20] = [
            ("signs of a condition are missing", |h| drop(h.signs.pop())),
            ("a sign on an image that was not sent", |h| h.signs[1].look(Sign::Overturned, 9, true)),
            ("a condition is missing", |h| drop(h.verdicts.pop())),
            ("an image is missing", |h| drop(h.verdicts[0].pop())),
            ("images swapped", |h| h.verdicts[1].swap(0, 1)),
            ("another label", |h| h.verdicts[1][1].label = 2),
            ("a class that does not exist", |h| h.verdicts[1][0].predicted = 3),
            ("robust, though misclassified", |h| h.verdicts[1][0].robust = true),
            ("broken by nothing", |h| h.verdicts[1][0].stage = None),
            ("broken by an attack that is not the condition's", |h| {
                h.verdicts[1][0].stage = Some(Stage::Attack("x".into()))
            }),
            ("broken clean, yet moved", |h| h.verdicts[1][0].stage = Some(Stage::Clean)),
            ("robust at an impossible distance", |h| h.verdicts[1][1].l2 = f64::INFINITY),
            ("outside the budget", |h| h.verdicts[1][0].linf = 0.2501),
            ("a clean image moved", |h| h.verdicts[0][0].linf = 0.1),
            ("a witness for a robust image", |h| h.witnesses[0].image = 8),
            ("a witness for a condition that is not there", |h| h.witnesses[0].condition = 2),
            ("the same witness twice", |h| {
                h.witnesses.push(h.witnesses[0]);
                h.payload.extend(0.25f32.to_le_bytes());
            }),
            ("a witness cut short", |h| h.payload.truncate(3)),
            ("a witness larger than its verdict says", |h| h.payload = 0.26f32.to_le_bytes().to_vec()),
            ("a witness outside the box", |h| h.payload = (-0.25f32).to_le_bytes().to_vec()),
        ];
        for (name, lie) in lies {
            let mut answer = Honest::new();
            lie(&mut answer);
            assert!(answer.check().is_err(), "{name} passes");
        }
        let mut nan = Honest::new();
        nan.payload = f32::NAN.to_le_bytes().to_vec();
        nan.verdicts[1][0].l2 = f64::NAN;
        assert!(nan.check().is_err());
    }
}
