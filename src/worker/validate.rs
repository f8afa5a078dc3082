//! Checking what a child claims, before anything of it is kept. The child runs a stranger's code.

use std::collections::HashSet;

use crate::dataset::Batch;
use crate::protocol::{Condition, ConditionKind, Finding, ModelSpec, Stage, Verdict};
use crate::wire::{CpuTime, WitnessAt};

/// What a child says a shard came to.
pub struct Claims<'a> {
    /// By condition, then image.
    pub verdicts: &'a [Vec<Verdict>],
    pub witnesses: &'a [WitnessAt],
    /// The witnesses as float32.
    pub payload: &'a [u8],
    pub findings: &'a [Finding],
    pub time: CpuTime,
}

/// Most bytes that a shard's findings may take as JSON.
const MAX_FINDING_BYTES: usize = 1 << 20;

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
    let Claims { verdicts, witnesses, payload, findings, time } = *claims;
    if !(time.total >= 0.0 && (0.0..=time.total + 1.0).contains(&time.corruption)) || time.total.is_infinite() {
        return Err(format!("{} s of corruption in {} s", time.corruption, time.total));
    }
    if serde_json::to_vec(findings).map_or(0, |json| json.len()) > MAX_FINDING_BYTES {
        return Err(format!("{} findings of more than {MAX_FINDING_BYTES} bytes", findings.len()));
    }
    if verdicts.len() != conditions.len() {
        return Err(format!("verdicts for {} conditions instead of {}", verdicts.len(), conditions.len()));
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
    if let ConditionKind::Corruption(_) = condition.kind {
        return corrupted(spec, verdict);
    }
    let ConditionKind::Attack(attack) = &condition.kind else {
        let unchanged = [verdict.l1, verdict.l2, verdict.linf] == [0.0; 3];
        let clean = unchanged && verdict.stage.as_ref().is_none_or(|s| *s == Stage::Clean);
        return if clean { Ok(()) } else { Err("a clean image was changed".into()) };
    };
    let size = match attack.threat.norm {
        crate::protocol::Norm::Linf => verdict.linf,
        crate::protocol::Norm::L2 => verdict.l2,
        crate::protocol::Norm::L1 => verdict.l1,
    };
    if verdict.robust || attack.threat.admits(size) { Ok(()) } else { Err(format!("a perturbation of size {size}")) }
}

/// A corrupted image has no budget; its distances are still those of two images in [0,1].
fn corrupted(spec: &ModelSpec, verdict: &Verdict) -> Result<(), String> {
    if verdict.stage.as_ref().is_some_and(|stage| *stage != Stage::Corruption) {
        return Err("a corruption was not what broke it".into());
    }
    let pixels = spec.input.iter().map(|&side| f64::from(side)).product::<f64>();
    let within = |size: f64, most: f64| (0.0..=most * (1.0 + 1e-9)).contains(&size);
    let possible = within(verdict.linf, 1.0) && within(verdict.l2, pixels.sqrt()) && within(verdict.l1, pixels);
    if possible { Ok(()) } else { Err("a corrupted image of impossible distance".into()) }
}
