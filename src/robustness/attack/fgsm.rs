//! The fast gradient sign method (Goodfellow et al. 2015) and its kin in L2 and L1: one step, as long as the budget.

use crate::protocol::{ClipOrder, Fgsm, Keep, Pgd, Projection, StepSize, Target};

/// FGSM is PGD's first step, taken at full length.
pub fn as_pgd(fgsm: &Fgsm) -> Pgd {
    Pgd {
        steps: 1,
        step_size: StepSize::OfEpsilon(1.0),
        random_start: false,
        restarts: 1,
        loss: fgsm.loss,
        target: Target::Untargeted,
        projection: Projection::Euclidean,
        order: ClipOrder::ProjectThenClip,
        keep: Keep::Last,
        eot: fgsm.eot,
    }
}
