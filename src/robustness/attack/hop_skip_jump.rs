//! HopSkipJump (Chen et al. 2020, algorithms 1 and 2) in L2 and L∞: from nothing but the classes that the model answers, along
//! the decision boundary towards the image.

use tch::{Kind, Tensor};

use super::decision::{GOAL, blocks, drawn};
use super::nearest::Nearest;
use super::rows::{self, choose};
use super::{Answer, Demand, Entry, Frozen, Search, Setting, Status};
use crate::protocol::{Norm, Walk};
use crate::robustness::rng::Stream;
use crate::robustness::threat::{length, onto_sphere, per_row};

/// Points around the boundary in the first round; in round k √k times as many, up to the most.
const FIRST_PROBES: f64 = 100.0;
const MOST_PROBES: f64 = 10_000.0;
/// How far from the boundary point the first round's probes are, in L2.
const FIRST_REACH: f64 = 0.1;
/// Probes are at least this far away in the average pixel, or float32 would round them to the point itself.
const SMALLEST_REACH: f64 = 1.0 / (1u32 << 20) as f64;
/// A step that leads out of the adversarial region at this many lengths, each half of the one before, is given up.
const MOST_HALVINGS: u32 = 30;

/// What the point that a slot shows is for.
#[derive(Debug, Clone, Copy)]
enum Phase {
    /// To be adversarial at all, the how-manieth try.
    Start { tries: u32 },
    /// The middle of a stretch of the way from the image, 0, to the outer point, 1, that the boundary crosses.
    Bisection { low: f64, high: f64 },
    /// One of the points around the boundary point that tell which side of it is adversarial.
    Probe { seen: u32, adversarial: u32 },
    /// To be adversarial a step further along the boundary's normal, after so many halvings of the step.
    Step { halvings: u32 },
}

/// HopSkipJump trajectories: each a walk of rounds of probes, a step and a bisection.
#[derive(Debug)]
pub struct HopSkipJumpSearch {
    queries: u32,
    setting: Setting,
    /// The random numbers of each trajectory's path; none where the slot is empty.
    streams: Vec<Option<Stream>>,
    demands: Vec<Demand>,
    /// Points looked at, per slot.
    count: Vec<u32>,
    phase: Vec<Phase>,
    /// From 1.
    round: Vec<u32>,
    nearest: Nearest,
    point: Tensor,
    /// The adversarial point that the last step led to, and its distance.
    outer: Tensor,
    outer_distance: Tensor,
    /// The adversarial end of the last bisection, and its distance.
    boundary: Tensor,
    distance: Tensor,
    /// Sums over the round's probes of their displacements, and of the same with the sign of the answer.
    displaced: Tensor,
    signed: Tensor,
    /// The estimated normal of the boundary, of length 1; its signs in L∞.
    normal: Tensor,
}

impl HopSkipJumpSearch {
    /// Empty slots; the norm is L2 or L∞.
    pub fn new(attack: &Walk, setting: &Setting) -> Self {
        let (images, numbers) = (|| rows::images(setting), || rows::numbers(setting));
        Self {
            queries: attack.queries,
            setting: *setting,
            streams: vec![None; setting.slots],
            demands: vec![Demand::Nothing; setting.slots],
            count: vec![0; setting.slots],
            phase: vec![Phase::Start { tries: 0 }; setting.slots],
            round: vec![1; setting.slots],
            nearest: Nearest::new(setting),
            point: images(),
            outer: images(),
            outer_distance: numbers(),
            boundary: images(),
            distance: numbers(),
            displaced: images().to_kind(Kind::Double),
            signed: images().to_kind(Kind::Double),
            normal: images().to_kind(Kind::Double),
        }
    }

    /// Share of the way between image and outer point to which a bisection narrows the boundary down: d^(−3/2) in L2, d^(−2) in L∞.
    fn tolerance(&self) -> f64 {
        let dimension = self.setting.dimension() as f64;
        match self.setting.norm {
            Norm::Linf => dimension.powi(-2),
            Norm::L2 | Norm::L1 => dimension.powf(-1.5),
        }
    }

    fn probes(&self, slot: usize) -> u32 {
        (FIRST_PROBES * f64::from(self.round[slot]).sqrt()).min(MOST_PROBES) as u32
    }

    /// A direction of length 1: normal in L2, uniform in the cube in L∞.
    fn direction(setting: &Setting, stream: &mut Stream) -> Vec<f64> {
        let dimension = setting.dimension();
        onto_sphere(
            Norm::L2,
            match setting.norm {
                Norm::Linf => (0..dimension).map(|_| 2.0 * stream.uniform() - 1.0).collect(),
                Norm::L2 | Norm::L1 => {
                    (0..dimension.div_ceil(2)).flat_map(|_| stream.normals()).take(dimension).collect()
                }
            },
        )
    }

    /// The points at these shares of the ways to the outer points: in L2 on the straight line, in L∞ the outer point cut to the
    /// cube around the image.
    fn between(&self, share: &Tensor) -> Tensor {
        let clean = self.nearest.clean.to_kind(Kind::Double);
        let delta = self.nearest.delta(&self.outer);
        let delta = match self.setting.norm {
            Norm::Linf => {
                let reach = per_row(&(share * &self.outer_distance), &delta);
                delta.minimum(&reach).maximum(&-&reach)
            }
            Norm::L2 | Norm::L1 => delta * per_row(share, &clean),
        };
        (clean + delta).to_kind(Kind::Float).clamp(0.0, 1.0)
    }

    /// How far probes are from the boundary point, in L2.
    fn reach(&self) -> Tensor {
        let dimension = self.setting.dimension() as f64;
        let first = rows::mask(&self.setting, |slot| self.round[slot] == 1);
        let later = (&self.outer_distance / dimension).clamp_min(SMALLEST_REACH * dimension.sqrt());
        choose(&first, &later.full_like(FIRST_REACH), &later)
    }

    /// Adds the probes among the points to the sums.
    fn learn(&mut self, answer: &Answer) {
        let probing = |slot: usize| matches!(self.phase[slot], Phase::Probe { .. });
        if !(0..self.setting.slots).any(probing) {
            return;
        }
        // What the box and rounding left of the displacement.
        let displacement = self.point.to_kind(Kind::Double) - self.boundary.to_kind(Kind::Double);
        let probes = per_row(&rows::mask(&self.setting, probing), &displacement);
        let displacement = displacement.where_scalarother(&probes, 0.0);
        self.displaced = &self.displaced + &displacement;
        self.signed =
            &self.signed + displacement.where_self(&per_row(&answer.misclassified, &displacement), &-&displacement);
    }

    /// The normal that the sums of these slots' probes say; `means` of the answers, −1 to 1.
    fn estimate(&mut self, ended: impl Fn(usize) -> bool, means: &[f64]) {
        // Answers that all agree say no more than where their mean displacement points.
        let mean = rows::column(&self.setting, |slot| if means[slot].abs() == 1.0 { 0.0 } else { means[slot] });
        let gradient = &self.signed - &self.displaced * per_row(&mean, &self.displaced);
        let normal = match self.setting.norm {
            Norm::Linf => gradient.sign(),
            Norm::L2 | Norm::L1 => {
                let size = length(Norm::L2, &gradient).clamp_min(f64::MIN_POSITIVE);
                &gradient / per_row(&size, &gradient)
            }
        };
        let ended = rows::mask(&self.setting, ended);
        self.normal = choose(&ended, &normal, &self.normal);
    }

    /// The next point of every slot, by its phase.
    fn moved(&mut self) -> Tensor {
        let slots = self.setting.slots;
        let in_phase = |search: &Self, test: fn(&Phase) -> bool| {
            let rows: Vec<bool> =
                (0..slots).map(|slot| search.streams[slot].is_some() && test(&search.phase[slot])).collect();
            rows.contains(&true).then(|| rows::mask(&search.setting, |slot| rows[slot]))
        };
        let mut points = self.point.shallow_clone();
        if let Some(rows) = in_phase(self, |phase| matches!(phase, Phase::Bisection { .. })) {
            let share = rows::column(&self.setting, |slot| match self.phase[slot] {
                Phase::Bisection { low, high } => (low + high) / 2.0,
                _ => 0.0,
            });
            points = choose(&rows, &self.between(&share), &points);
        }
        if let Some(rows) = in_phase(self, |phase| matches!(phase, Phase::Step { .. })) {
            let size = rows::column(&self.setting, |slot| match self.phase[slot] {
                Phase::Step { halvings } => 0.5f64.powi(halvings as i32) / f64::from(self.round[slot]).sqrt(),
                _ => 0.0,
            });
            let step = &self.normal * per_row(&(size * &self.distance), &self.normal);
            let there = (self.boundary.to_kind(Kind::Double) + step).to_kind(Kind::Float).clamp(0.0, 1.0);
            points = choose(&rows, &there, &points);
        }
        if let Some(rows) = in_phase(self, |phase| matches!(phase, Phase::Probe { .. })) {
            let setting = self.setting;
            let unit = drawn(&setting, &mut self.streams, |slot, stream| match self.phase[slot] {
                Phase::Probe { .. } => Some(Self::direction(&setting, stream)),
                _ => None,
            });
            let away = unit * per_row(&self.reach(), &self.boundary);
            let there = (self.boundary.to_kind(Kind::Double) + away).to_kind(Kind::Float).clamp(0.0, 1.0);
            points = choose(&rows, &there, &points);
        }
        if let Some(rows) = in_phase(self, |phase| matches!(phase, Phase::Start { .. })) {
            let setting = self.setting;
            let noise = drawn(&setting, &mut self.streams, |slot, stream| match self.phase[slot] {
                Phase::Start { tries } => Some(blocks(&setting, stream, tries)),
                _ => None,
            });
            points = choose(&rows, &noise.to_kind(Kind::Float), &points);
        }
        points
    }

    /// Takes the answers to the points, by their phases.
    fn proceed(&mut self, answer: &Answer) {
        let slots = self.setting.slots;
        let tolerance = self.tolerance();
        let (mut stepped, mut landed, mut estimated) = (vec![false; slots], vec![false; slots], vec![false; slots]);
        let (mut shares, mut means) = (vec![0.0; slots], vec![0.0; slots]);
        for slot in (0..slots).filter(|slot| self.streams[*slot].is_some()) {
            let adversarial = answer.seen[slot];
            self.count[slot] += 1;
            let onto_boundary = Phase::Bisection { low: 0.0, high: 1.0 };
            let probing = Phase::Probe { seen: 0, adversarial: 0 };
            self.phase[slot] = match self.phase[slot] {
                Phase::Start { tries } if !adversarial => Phase::Start { tries: tries + 1 },
                Phase::Start { .. } => {
                    stepped[slot] = true;
                    onto_boundary
                }
                Phase::Bisection { low, high } => {
                    let middle = (low + high) / 2.0;
                    let (low, high) = if adversarial { (low, middle) } else { (middle, high) };
                    if high - low > tolerance {
                        Phase::Bisection { low, high }
                    } else {
                        (landed[slot], shares[slot]) = (true, high);
                        probing
                    }
                }
                Phase::Probe { seen, adversarial: before } => {
                    let (seen, adversarial) = (seen + 1, before + u32::from(adversarial));
                    if seen < self.probes(slot) {
                        Phase::Probe { seen, adversarial }
                    } else {
                        (estimated[slot], means[slot]) = (true, 2.0 * f64::from(adversarial) / f64::from(seen) - 1.0);
                        Phase::Step { halvings: 0 }
                    }
                }
                Phase::Step { .. } if adversarial => {
                    stepped[slot] = true;
                    self.round[slot] += 1;
                    onto_boundary
                }
                Phase::Step { halvings } if halvings < MOST_HALVINGS => Phase::Step { halvings: halvings + 1 },
                Phase::Step { .. } => {
                    self.round[slot] += 1;
                    probing
                }
            };
        }
        if stepped.contains(&true) {
            let rows = rows::mask(&self.setting, |slot| stepped[slot]);
            self.outer = choose(&rows, &self.point, &self.outer);
            let distance = length(self.setting.norm, &self.nearest.delta(&self.outer));
            self.outer_distance = choose(&rows, &distance, &self.outer_distance);
        }
        if landed.contains(&true) {
            let rows = rows::mask(&self.setting, |slot| landed[slot]);
            let share = rows::column(&self.setting, |slot| shares[slot]);
            self.boundary = choose(&rows, &self.between(&share), &self.boundary);
            let distance = length(self.setting.norm, &self.nearest.delta(&self.boundary));
            self.distance = choose(&rows, &distance, &self.distance);
        }
        if estimated.contains(&true) {
            self.estimate(|slot| estimated[slot], &means);
            let rows = per_row(&rows::mask(&self.setting, |slot| estimated[slot]), &self.displaced);
            self.displaced = self.displaced.masked_fill(&rows, 0.0);
            self.signed = self.signed.masked_fill(&rows, 0.0);
        }
    }

    /// What trajectories remember, a row each, beside the nearest point.
    fn memory(&self) -> [&Tensor; 8] {
        [
            &self.point,
            &self.outer,
            &self.outer_distance,
            &self.boundary,
            &self.distance,
            &self.displaced,
            &self.signed,
            &self.normal,
        ]
    }
}

impl Search for HopSkipJumpSearch {
    fn load(&mut self, entries: &[Entry], clean: &Tensor) {
        let slots = rows::slots(entries, &self.setting);
        self.nearest.load(entries, clean);
        let mut noise = Vec::with_capacity(clean.numel());
        for entry in entries {
            let mut stream = entry.draws.stream(entry.run, 0);
            noise.extend(blocks(&self.setting, &mut stream, 0));
            self.count[entry.slot] = 0;
            self.round[entry.slot] = 1;
            self.phase[entry.slot] = Phase::Start { tries: 0 };
            self.demands[entry.slot] = Demand::Loss(GOAL);
            self.streams[entry.slot] = Some(stream);
        }
        let noise = Tensor::from_slice(&noise).to_device(self.setting.device).view_as(clean).to_kind(Kind::Float);
        let _ = self.point.index_copy_(0, &slots, &noise);
        let _ = self.displaced.index_fill_(0, &slots, 0.0);
        let _ = self.signed.index_fill_(0, &slots, 0.0);
    }

    fn release(&mut self, slot: usize) {
        self.demands[slot] = Demand::Nothing;
        self.streams[slot] = None;
    }

    fn points(&self) -> &Tensor {
        &self.point
    }

    fn demands(&self) -> &[Demand] {
        &self.demands
    }

    fn advance(&mut self, answer: &Answer) -> Vec<Status> {
        self.nearest.record(&self.point, answer);
        self.learn(answer);
        self.proceed(answer);
        self.point = self.moved();
        (0..self.setting.slots)
            .map(|slot| match &self.streams[slot] {
                Some(_) if self.nearest.suffices(slot) || self.count[slot] >= self.queries => {
                    Status::Finished { seen: self.nearest.seen(slot), next_run: None }
                }
                _ => Status::Searching,
            })
            .collect()
    }

    fn candidates(&self, slots: &[usize]) -> Tensor {
        self.nearest.candidates(slots)
    }
    fn freeze(&self, slot: usize) -> Option<Frozen> {
        let [low, high] = self.streams[slot].as_ref()?.position();
        let [phase, one, other] = match self.phase[slot] {
            Phase::Start { tries } => [0, tries.into(), 0],
            Phase::Bisection { low, high } => [1, low.to_bits(), high.to_bits()],
            Phase::Probe { seen, adversarial } => [2, seen.into(), adversarial.into()],
            Phase::Step { halvings } => [3, halvings.into(), 0],
        };
        let numbers = vec![self.count[slot].into(), self.round[slot].into(), phase, one, other, low, high];
        Some(Frozen { numbers, rows: self.nearest.freeze(&self.memory(), slot) })
    }

    fn thaw(&mut self, slot: usize, frozen: &Frozen) -> bool {
        let (Some(stream), &[count, round, phase, one, other, low, high]) =
            (&mut self.streams[slot], &frozen.numbers[..])
        else {
            return false;
        };
        stream.seek([low, high]);
        self.count[slot] = count as u32;
        self.round[slot] = (round as u32).max(1);
        self.phase[slot] = match phase {
            0 => Phase::Start { tries: one as u32 },
            1 => Phase::Bisection { low: f64::from_bits(one), high: f64::from_bits(other) },
            2 => Phase::Probe { seen: one as u32, adversarial: other as u32 },
            _ => Phase::Step { halvings: one as u32 },
        };
        let rows = self.memory().map(Tensor::shallow_clone);
        self.nearest.thaw(&rows.each_ref(), slot, &frozen.rows)
    }
}
