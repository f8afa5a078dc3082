//! Attacks: mathematics only. An attack never calls the model. It says which points it wants evaluated and what it
//! ascends there, is told loss, prediction and gradient, and moves; the engine schedules trajectories over the rows of a
//! batch.
//!
//! A [`Search`] is a batch of trajectories of one attack, one per slot, each at its own step. In every pass the engine
//!
//! 1. fills empty slots ([`Search::load`]) with images that wait for this attack,
//! 2. evaluates [`Search::points`], each by the [`Goal`] in its slot's [`Demand`]: slots may differ in loss and target, and
//!    rows of other attacks may share the batch,
//! 3. hands the [`Answer`] to [`Search::advance`], which moves every trajectory one step and says where each stands.
//!
//! A trajectory that has finished is taken out ([`Search::candidates`], [`Search::release`]). What became of it decides
//! what comes next for its image: examination of the candidate, the attack's next *run* (a restart, another target), the
//! cascade's next stage, a larger budget.
//!
//! State lives in tensors of fixed shape [S, …], a row per slot; arithmetic goes over all rows, also those that are empty
//! or belong to finished trajectories, and no row may depend on another. Random numbers come from [`Entry::draws`] alone.
//! A move reads nothing back from the device but what the answer already brought to the host, and at most one more row of
//! flags; never image by image.
//!
//! A new attack is a file with its `Search`, and its lines in the functions below.

mod apgd;
mod apgd_l1;
mod boundary;
mod carlini_wagner;
mod ddn;
mod decision;
mod fab;
mod fgsm;
mod fmn;
mod hop_skip_jump;
mod nearest;
mod noise;
mod pgd;
mod queries;
pub(crate) mod rows;
mod runs;
mod square;
mod square_bumps;
mod square_window;
mod step;

use std::sync::Arc;

use tch::{Device, Tensor};

use crate::protocol::{Attack, Loss, Norm, Target};
use crate::robustness::rng::Stream;
use apgd::ApgdSearch;
use apgd_l1::L1ApgdSearch;
use boundary::BoundarySearch;
use carlini_wagner::CarliniWagnerSearch;
use ddn::DdnSearch;
use fab::FabSearch;
use fmn::FmnSearch;
use hop_skip_jump::HopSkipJumpSearch;
use noise::NoiseSearch;
use pgd::PgdSearch;
use runs::Runs;
use square::SquareSearch;

/// What all trajectories of a search have in common.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    pub norm: Norm,
    /// Classes of the model.
    pub classes: u32,
    /// One misclassified draw proves nothing: the search looks for the best candidate and never stops at a success.
    pub stochastic: bool,
    /// The nearest adversarial point is wanted: the search goes on after a success, and radii are distances to beat.
    pub nearest: bool,
    pub slots: usize,
    /// [C, H, W]
    pub shape: [i64; 3],
    pub device: Device,
}

/// Empty slots for trajectories of `attack`, which is no cascade.
pub fn search(attack: &Attack, setting: &Setting) -> Box<dyn Search> {
    match attack {
        Attack::Pgd(pgd) => Box::new(PgdSearch::new(pgd, setting)),
        Attack::ApgdCe(attack) => apgd(Runs::untargeted(Loss::CrossEntropy, attack), attack.steps, setting),
        Attack::ApgdDlr(attack) => apgd(Runs::untargeted(Loss::Dlr, attack), attack.steps, setting),
        Attack::ApgdT(attack) => apgd(Runs::targeted(Loss::Dlr, attack), attack.steps, setting),
        Attack::Fab(attack) => Box::new(FabSearch::new(Runs::untargeted(Loss::Margin, attack), attack.steps, setting)),
        Attack::FabT(attack) => Box::new(FabSearch::new(Runs::targeted(Loss::Margin, attack), attack.steps, setting)),
        Attack::Fmn(fmn) => Box::new(FmnSearch::new(fmn, setting)),
        Attack::Ddn(ddn) => Box::new(DdnSearch::new(ddn, setting)),
        Attack::Cw(attack) => Box::new(CarliniWagnerSearch::new(attack, setting)),
        Attack::Boundary(attack) => Box::new(BoundarySearch::new(attack, setting)),
        Attack::HopSkipJump(attack) => Box::new(HopSkipJumpSearch::new(attack, setting)),
        Attack::Square(square) => Box::new(SquareSearch::new(square, setting)),
        Attack::Noise(noise) => Box::new(NoiseSearch::new(noise, setting)),
        Attack::Fgsm(fgsm) => Box::new(PgdSearch::new(&fgsm::as_pgd(fgsm), setting)),
        Attack::Cascade(_) => unreachable!("the engine runs a cascade's stages"),
    }
}

impl Setting {
    /// Pixels of an image, times channels.
    pub fn dimension(&self) -> usize {
        self.shape.iter().product::<i64>() as usize
    }
}

fn apgd(runs: Runs, steps: u32, setting: &Setting) -> Box<dyn Search> {
    match setting.norm {
        Norm::Linf | Norm::L2 => Box::new(ApgdSearch::new(runs, steps, setting)),
        Norm::L1 => Box::new(L1ApgdSearch::new(runs, steps, setting)),
    }
}

/// Whether the attack reads [`Entry::ranking`].
pub fn needs_ranking(attack: &Attack) -> bool {
    match attack {
        Attack::Pgd(pgd) => matches!(pgd.target, Target::LeastLikely | Target::MostLikely),
        Attack::ApgdT(_) | Attack::FabT(_) => true,
        Attack::ApgdCe(_)
        | Attack::ApgdDlr(_)
        | Attack::Fab(_)
        | Attack::Fmn(_)
        | Attack::Ddn(_)
        | Attack::Cw(_)
        | Attack::HopSkipJump(_)
        | Attack::Boundary(_)
        | Attack::Square(_)
        | Attack::Noise(_)
        | Attack::Fgsm(_)
        | Attack::Cascade(_) => false,
    }
}

/// What a point's loss is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Goal {
    pub loss: Loss,
    /// The class that a targeted loss steers to. Success is any misclassification all the same.
    pub target: Option<u32>,
    /// Take cross-entropy's gradient in plain float32, as published procedures do, instead of exactly.
    pub float32_gradient: bool,
}

/// What an attack wants to know of the point in one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Demand {
    /// The slot is empty; its row rides along.
    Nothing,
    /// Loss and prediction: a forward pass.
    Loss(Goal),
    /// The gradient too: a forward and a backward pass.
    Gradient(Goal),
}

/// What the model says about the points, one row per slot; rows of empty slots mean nothing.
#[derive(Debug)]
pub struct Answer {
    /// The goal's loss, the mean over draws; float64 [S].
    pub loss: Tensor,
    /// Whether more than half of the draws are misclassified; bool [S].
    pub misclassified: Tensor,
    /// `misclassified` on the host.
    pub seen: Vec<bool>,
    /// Gradient of the loss divided by `exp(log_scale)`, the mean over draws; finite float32 [S, C, H, W], zero where it
    /// was not demanded by any slot.
    pub gradient: Tensor,
    /// float64 [S]
    pub log_scale: Tensor,
}

/// Where a trajectory stands after a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Searching,
    /// On from a new start, in the same slot.
    Restarted,
    /// The candidate is settled.
    Finished {
        seen: Seen,
        /// The run to go on with should the image still stand.
        next_run: Option<u32>,
    },
}

/// What the search knows of a candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Misclassified inside the budget.
    Success,
    /// Classified correctly, or too far away.
    Failure,
    /// Never evaluated.
    Unknown,
}

/// A batch of trajectories of one attack.
pub trait Search {
    /// Begins trajectories: row i of `clean` [n, C, H, W] goes to the slot of `entries[i]`.
    fn load(&mut self, entries: &[Entry], clean: &Tensor);

    /// Empties a slot.
    fn release(&mut self, slot: usize);

    /// The points to evaluate, float32 [S, C, H, W].
    fn points(&self) -> &Tensor;

    /// One per slot.
    fn demands(&self) -> &[Demand];

    /// Moves every trajectory by one step and says, per slot, where it stands; empty slots are `Searching`.
    fn advance(&mut self, answer: &Answer) -> Vec<Status>;

    /// The examples that the verdict should examine, inside budget and box wherever they count as a success;
    /// float32 [slots, C, H, W].
    fn candidates(&self, slots: &[usize]) -> Tensor;

    /// What the trajectory in a slot remembers; `None` for an attack whose runs begin anew after an interruption.
    fn freeze(&self, _slot: usize) -> Option<Frozen> {
        None
    }

    /// Lets the trajectory that was just loaded into a slot go on where it was frozen, under the same setting; `false` if
    /// that is not what this attack freezes.
    fn thaw(&mut self, _slot: usize, _frozen: &Frozen) -> bool {
        false
    }
}

/// A trajectory between two moves, beyond what [`Search::load`] sets.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Frozen {
    pub numbers: Vec<u64>,
    /// Its rows of the search's tensors, as [`rows::freeze`] writes them.
    pub rows: Vec<u8>,
}

/// A trajectory to begin.
#[derive(Debug, Clone)]
pub struct Entry {
    pub slot: usize,
    /// 0 first, then what [`Status::Finished`] named.
    pub run: u32,
    pub label: u32,
    /// Radius of the budget; where the nearest point is wanted, the distance to beat, infinite at first.
    pub epsilon: f64,
    /// The wrong classes, by falling logit at the clean image; empty unless [`needs_ranking`].
    pub ranking: Arc<[u32]>,
    pub draws: Draws,
}

/// Where the random numbers of one image under one attack come from.
#[derive(Debug, Clone, Copy)]
pub struct Draws {
    pub seed: u64,
    pub condition: u64,
    pub image: u32,
}

impl Draws {
    /// Streams that each run may draw from.
    const PER_RUN: u32 = 2;

    /// Stream `number` (0 or 1) of a run.
    pub fn stream(&self, run: u32, number: u32) -> Stream {
        debug_assert!(number < Self::PER_RUN);
        Stream::new(self.seed, self.condition, self.image, Self::PER_RUN * run + number)
    }
}

/// Slots as an index tensor beside `like`.
fn index(slots: impl IntoIterator<Item = usize>, like: &Tensor) -> Tensor {
    let slots: Vec<i64> = slots.into_iter().map(|slot| slot as i64).collect();
    Tensor::from_slice(&slots).to_device(like.device())
}
