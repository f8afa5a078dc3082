//! Verdicts: what was found for one image under one condition and seed.

use serde::{Deserialize, Serialize};

/// What decided a verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// The clean image is misclassified: δ = 0 is a witness.
    Clean,
    /// The named attack found a witness at this budget.
    Attack(String),
    /// A witness found at a smaller ε of the same ladder stands here too.
    Ladder,
    /// The corrupted image is misclassified.
    Corruption,
}

/// How the verdict on a stochastic model's candidate is drawn; a deterministic model needs one forward under either rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum VerdictRule {
    /// One fresh forward pass, as the published evaluations of stochastic models do.
    #[default]
    OneForward,
    /// Not robust when more than half of this many fresh forward passes are misclassified (odd, at least 3).
    Majority(u32),
}

/// One image under one condition and seed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Index in the dataset.
    pub image: u32,
    pub label: u32,
    /// Class of the examined image (the witness if there is one, else the last candidate).
    pub predicted: u32,
    pub robust: bool,
    /// What broke the image; `None` while it is robust.
    pub stage: Option<Stage>,
    /// Sizes of the examined perturbation, float64 over float32 pixels.
    pub l1: f64,
    pub l2: f64,
    pub linf: f64,
    /// Passes spent on this image under this condition.
    pub forwards: u32,
    pub backwards: u32,
}
