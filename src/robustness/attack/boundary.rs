//! Boundary attack (Brendel et al. 2018, algorithm 1 and figure 2) in L2: from nothing but the classes that the model answers, a random
//! walk among adversarial images towards the clean one.

use tch::{Kind, Tensor};

use super::decision::{GOAL, blocks, drawn};
use super::nearest::Nearest;
use super::rows::{self, choose};
use super::{Answer, Demand, Entry, Frozen, Search, Setting, Status};
use crate::protocol::{Norm, Walk};
use crate::robustness::rng::Stream;
use crate::robustness::threat::{clip, flat, length, per_row, unit_sphere};

/// Steps around the image and towards it at the beginning, as shares of the distance.
const FIRST_STEP: f64 = 0.1;
/// The way from the image to the first adversarial point is halved so often.
const BISECTIONS: u32 = 10;
/// Every so manieth look is at a step around the image alone, to learn how large it may be.
const TURN_EVERY: u32 = 8;
/// Half of the steps around the image are to stay adversarial, and a quarter of those that also approach it.
const TURNS_KEPT: f64 = 0.5;
const STEPS_KEPT: f64 = 0.25;
/// Every so manieth look moves the pixels at the edge of the box too. They can move to one side only, and where the box holds them
/// back that is the wrong one: were they always moved, hardly any step would succeed, and all would shrink to nothing.
const EDGES_EVERY: u32 = 2;
/// Less than any distance, and large enough that its inverse is a number.
const TINY: f64 = 1e-100;
/// How far one answer changes the logarithm of a step.
const TURN_RATE: f64 = 0.2;
const STEP_RATE: f64 = 0.1;

/// What the point that a slot shows is for.
#[derive(Debug, Clone, Copy)]
enum Phase {
    /// To be adversarial at all, the how-manieth try.
    Start { tries: u32 },
    /// On the way from the image, 0, to where the walk is, 1, the middle between there and `low`, which is not adversarial.
    Bisection { low: f64, rounds: u32 },
    /// A random step around the image that does not approach it.
    Turn,
    /// The same, and then one towards it.
    Step,
}

/// Boundary attack trajectories.
#[derive(Debug)]
pub struct BoundarySearch {
    queries: u32,
    setting: Setting,
    /// The random numbers of each trajectory's path; none where the slot is empty.
    streams: Vec<Option<Stream>>,
    demands: Vec<Demand>,
    /// Points looked at, per slot.
    count: Vec<u32>,
    phase: Vec<Phase>,
    /// Lengths of the steps around the image and towards it, as shares of the distance.
    turn: Vec<f64>,
    approach: Vec<f64>,
    nearest: Nearest,
    point: Tensor,
    /// Where the walk is; adversarial.
    here: Tensor,
}

impl BoundarySearch {
    /// Empty slots; the norm is L2.
    pub fn new(attack: &Walk, setting: &Setting) -> Self {
        Self {
            queries: attack.queries,
            setting: *setting,
            streams: vec![None; setting.slots],
            demands: vec![Demand::Nothing; setting.slots],
            count: vec![0; setting.slots],
            phase: vec![Phase::Start { tries: 0 }; setting.slots],
            turn: vec![FIRST_STEP; setting.slots],
            approach: vec![FIRST_STEP; setting.slots],
            nearest: Nearest::new(setting),
            point: rows::images(setting),
            here: rows::images(setting),
        }
    }

    /// Takes the answer to the slot's point; whether the walk goes on from there.
    fn proceed(&mut self, slot: usize, adversarial: bool) -> bool {
        let nudged = |step: f64, kept: f64, rate: f64| {
            let surprise = f64::from(u8::from(adversarial)) - kept;
            (step * (rate * surprise).exp()).min(1.0)
        };
        self.count[slot] += 1;
        let walks = if self.count[slot].is_multiple_of(TURN_EVERY) { Phase::Turn } else { Phase::Step };
        let (next, goes_there) = match self.phase[slot] {
            Phase::Start { tries } if !adversarial => (Phase::Start { tries: tries + 1 }, false),
            Phase::Start { .. } => (Phase::Bisection { low: 0.0, rounds: 1 }, true),
            Phase::Bisection { low, rounds } => {
                let middle = f64::midpoint(low, 1.0);
                let low = if adversarial { low / middle } else { middle };
                let next = if rounds < BISECTIONS { Phase::Bisection { low, rounds: rounds + 1 } } else { walks };
                (next, adversarial)
            }
            Phase::Turn => {
                self.turn[slot] = nudged(self.turn[slot], TURNS_KEPT, TURN_RATE);
                (walks, false)
            }
            Phase::Step => {
                self.approach[slot] = nudged(self.approach[slot], STEPS_KEPT, STEP_RATE);
                (walks, adversarial)
            }
        };
        self.phase[slot] = next;
        goes_there
    }

    /// The next point of every slot, by its phase.
    fn moved(&mut self) -> Tensor {
        let (setting, slots) = (self.setting, self.setting.slots);
        let mask = |test: fn(&Phase) -> bool| {
            let rows: Vec<bool> =
                (0..slots).map(|slot| self.streams[slot].is_some() && test(&self.phase[slot])).collect();
            rows.contains(&true).then(|| rows::mask(&setting, |slot| rows[slot]))
        };
        let starts = mask(|phase| matches!(phase, Phase::Start { .. }));
        let bisects = mask(|phase| matches!(phase, Phase::Bisection { .. }));
        let walks = mask(|phase| matches!(phase, Phase::Turn | Phase::Step));
        let mut points = self.point.shallow_clone();
        if let Some(rows) = bisects {
            let share = rows::column(&setting, |slot| match self.phase[slot] {
                Phase::Bisection { low, .. } => f64::midpoint(low, 1.0),
                _ => 0.0,
            });
            let way = self.nearest.delta(&self.here);
            points = choose(&rows, &self.image(&(&way * per_row(&share, &way))), &points);
        }
        if let Some(rows) = walks {
            let units = drawn(&setting, &mut self.streams, |slot, stream| match self.phase[slot] {
                Phase::Turn | Phase::Step => Some(unit_sphere(Norm::L2, setting.dimension(), stream)),
                _ => None,
            });
            points = choose(&rows, &self.stepped(&units), &points);
        }
        if let Some(rows) = starts {
            let noise = drawn(&setting, &mut self.streams, |slot, stream| match self.phase[slot] {
                Phase::Start { tries } => Some(blocks(&setting, stream, tries)),
                _ => None,
            });
            points = choose(&rows, &noise.to_kind(Kind::Float), &points);
        }
        points
    }

    /// A step around the image along the parts of `units` [S, …] that are orthogonal to the way from it, at the same distance but
    /// for what the box takes; then the step towards it, to the share of the distance that it is to leave.
    fn stepped(&self, units: &Tensor) -> Tensor {
        let way = self.nearest.delta(&self.here);
        let distance = length(Norm::L2, &way).clamp_min(TINY);
        let spared = rows::mask(&self.setting, |slot| !(self.count[slot] + 1).is_multiple_of(EDGES_EVERY));
        let edges = self.here.le(0.0).logical_or(&self.here.ge(1.0));
        let units = units.masked_fill(&edges.logical_and(&per_row(&spared, &edges)), 0.0);
        let along = flat(&(&units * &way)).sum_dim_intlist(1, false, Kind::Double) / distance.square();
        let aside = units - &way * per_row(&along, &way);
        let turn = rows::column(&self.setting, |slot| self.turn[slot]);
        let aside_length = &turn * &distance / length(Norm::L2, &aside).clamp_min(TINY);
        let turned = (&way + &aside * per_row(&aside_length, &aside)) / per_row(&(turn.square() + 1.0).sqrt(), &way);
        let turned = clip(&self.nearest.clean, &turned);
        let left = rows::column(&self.setting, |slot| match self.phase[slot] {
            Phase::Step => 1.0 - self.approach[slot],
            _ => 1.0,
        });
        let shrunk = (left * distance / length(Norm::L2, &turned).clamp_min(TINY)).clamp_max(1.0);
        self.image(&(&turned * per_row(&shrunk, &turned)))
    }

    /// `clean + delta`, which is in the box.
    fn image(&self, delta: &Tensor) -> Tensor {
        (self.nearest.clean.to_kind(Kind::Double) + delta).to_kind(Kind::Float).clamp(0.0, 1.0)
    }
}

impl Search for BoundarySearch {
    fn load(&mut self, entries: &[Entry], clean: &Tensor) {
        let slots = rows::slots(entries, &self.setting);
        self.nearest.load(entries, clean);
        let mut noise = Vec::with_capacity(clean.numel());
        for entry in entries {
            let mut stream = entry.draws.stream(entry.run, 0);
            noise.extend(blocks(&self.setting, &mut stream, 0));
            self.count[entry.slot] = 0;
            self.phase[entry.slot] = Phase::Start { tries: 0 };
            (self.turn[entry.slot], self.approach[entry.slot]) = (FIRST_STEP, FIRST_STEP);
            self.demands[entry.slot] = Demand::Loss(GOAL);
            self.streams[entry.slot] = Some(stream);
        }
        let noise = Tensor::from_slice(&noise).to_device(self.setting.device).view_as(clean).to_kind(Kind::Float);
        let _ = self.point.index_copy_(0, &slots, &noise);
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
        let occupied: Vec<bool> = self.streams.iter().map(Option::is_some).collect();
        let goes_there: Vec<bool> =
            (0..self.setting.slots).map(|slot| occupied[slot] && self.proceed(slot, answer.seen[slot])).collect();
        if goes_there.contains(&true) {
            let rows = rows::mask(&self.setting, |slot| goes_there[slot]);
            self.here = choose(&rows, &self.point, &self.here);
        }
        self.point = self.moved();
        let finished = |slot: usize| self.nearest.suffices(slot) || self.count[slot] >= self.queries;
        (0..self.setting.slots)
            .map(|slot| match occupied[slot] && finished(slot) {
                true => Status::Finished { seen: self.nearest.seen(slot), next_run: None },
                false => Status::Searching,
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
            Phase::Bisection { low, rounds } => [1, low.to_bits(), rounds.into()],
            Phase::Turn => [2, 0, 0],
            Phase::Step => [3, 0, 0],
        };
        let steps = [self.turn[slot], self.approach[slot]].map(f64::to_bits);
        let numbers = vec![self.count[slot].into(), phase, one, other, steps[0], steps[1], low, high];
        Some(Frozen { numbers, rows: self.nearest.freeze(&[&self.point, &self.here], slot) })
    }

    fn thaw(&mut self, slot: usize, frozen: &Frozen) -> bool {
        let (Some(stream), &[count, phase, one, other, turn, approach, low, high]) =
            (&mut self.streams[slot], &frozen.numbers[..])
        else {
            return false;
        };
        stream.seek([low, high]);
        self.count[slot] = count as u32;
        self.phase[slot] = match phase {
            0 => Phase::Start { tries: one as u32 },
            1 => Phase::Bisection { low: f64::from_bits(one), rounds: other as u32 },
            2 => Phase::Turn,
            _ => Phase::Step,
        };
        (self.turn[slot], self.approach[slot]) = (f64::from_bits(turn), f64::from_bits(approach));
        self.nearest.thaw(&[&self.point, &self.here], slot, &frozen.rows)
    }
}
