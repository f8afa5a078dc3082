//! Attacks: mathematics only. An attack never calls the model. It says which points it wants evaluated, is told loss
//! and gradient there, and moves; the engine schedules trajectories over the rows of a batch.

mod pgd;

pub use pgd::PgdSearch;

use tch::Tensor;

/// What an attack wants to know of the point in one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Demand {
    /// The slot is empty; its row rides along.
    Nothing,
    /// Loss and prediction: a forward pass.
    Loss,
    /// The gradient too: a forward and a backward pass.
    Gradient,
}

/// What the model says about the points, one row per slot.
#[derive(Debug)]
pub struct Answer {
    /// Search loss, the mean over draws; float64 [S].
    pub loss: Tensor,
    /// Whether more than half of the draws are misclassified; bool [S].
    pub misclassified: Tensor,
    /// Gradient of the loss divided by `exp(log_scale)`, the mean over draws; finite float32 [S, C, H, W].
    pub gradient: Tensor,
    /// float64 [S]
    pub log_scale: Tensor,
}

/// Where a trajectory stands after a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Searching,
    /// The candidate is settled. `success`: the search saw it misclassified.
    Finished {
        success: bool,
    },
}

/// A batch of trajectories, one per slot, each at its own step.
pub trait Search {
    /// Begins trajectories: row i of the tensors goes to `slots[i]`.
    fn load(&mut self, slots: &[usize], images: &Start);

    /// Begins another restart in each of `slots` from new points, keeping its candidate while nothing better comes.
    fn restart(&mut self, slots: &[usize], points: &Tensor);

    /// Empties a slot.
    fn release(&mut self, slot: usize);

    /// The points to evaluate, float32 [S, C, H, W].
    fn points(&self) -> &Tensor;

    /// One per slot.
    fn demands(&self) -> &[Demand];

    /// Moves every trajectory by one step and says, per slot, where it stands; empty slots are `Searching`.
    fn advance(&mut self, answer: &Answer) -> Vec<Status>;

    /// The examples that the verdict should examine, float32 [slots, C, H, W].
    fn candidates(&self, slots: &[usize]) -> Tensor;
}

/// Clean images, where to start, and how far to go.
#[derive(Debug)]
pub struct Start {
    /// float32 [n, C, H, W] in [0,1]
    pub clean: Tensor,
    /// The first point of each trajectory, inside its budget; like `clean`.
    pub points: Tensor,
    /// Radii, n of them.
    pub epsilon: Vec<f64>,
}

/// `slots` as an index tensor beside `like`.
fn index(slots: &[usize], like: &Tensor) -> Tensor {
    let slots: Vec<i64> = slots.iter().map(|slot| *slot as i64).collect();
    Tensor::from_slice(&slots).to_device(like.device())
}
