//! Conditions: the cells of a table, with every parameter resolved.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::corruption::CorruptionCondition;
use super::threat::ThreatModel;

/// One cell of the table. The id is unique within its protocol.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Condition {
    pub id: String,
    #[serde(flatten)]
    pub kind: ConditionKind,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ConditionKind {
    Clean,
    Attack(AttackCondition),
    Corruption(CorruptionCondition),
}

/// An attack inside one threat model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AttackCondition {
    #[serde(flatten)]
    pub threat: ThreatModel,
    /// `true` attacks this budget afresh; `false` lets a witness found at a smaller ε of the same ladder stand here too.
    pub independent: bool,
    #[serde(flatten)]
    pub attack: Attack,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "attack", rename_all = "kebab-case")]
pub enum Attack {
    Pgd(Pgd),
}

impl Attack {
    /// The name users write and read.
    pub fn name(&self) -> &'static str {
        match self {
            Attack::Pgd(_) => "pgd",
        }
    }
}

/// Projected gradient descent (Madry et al. 2018), every choice spelled out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Pgd {
    /// Gradient steps of each restart, at least 1.
    pub steps: u32,
    pub step_size: StepSize,
    /// Start uniformly in the norm ball (cut to the pixel box) instead of at the clean image.
    pub random_start: bool,
    /// Independent runs, at least 1; more than one needs a random start.
    pub restarts: u32,
    pub loss: Loss,
    pub target: Target,
    pub projection: Projection,
    pub order: ClipOrder,
    pub keep: Keep,
    /// Gradients averaged per step, at least 1 (expectation over transformation, for stochastic models).
    pub eot: u32,
}

/// Length of one step, in [0,1] pixel units of the norm.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StepSize {
    OfEpsilon(f64),
    Absolute(f64),
}

impl StepSize {
    pub fn resolve(self, epsilon: f64) -> f64 {
        match self {
            StepSize::OfEpsilon(fraction) => fraction * epsilon,
            StepSize::Absolute(alpha) => alpha,
        }
    }
}

/// What a step ascends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Loss {
    /// −log softmax of the true class; targeted: log softmax of the target class.
    CrossEntropy,
    /// Largest wrong logit minus the true logit; targeted: target logit minus true logit.
    Margin,
}

/// Which wrong class the loss steers towards. Success is any misclassification, whatever the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    Untargeted,
    /// (label + 1) mod K.
    NextClass,
    /// The smallest logit at the clean image.
    LeastLikely,
    /// The largest wrong logit at the clean image.
    MostLikely,
    /// Drawn per image and restart, uniformly over the wrong classes.
    Random,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Projection {
    /// The nearest point of ball ∩ box; the order of projecting and clipping then means nothing.
    Euclidean,
    /// δ·min(1, ε/(‖δ‖ + 1e-7)) for L1 and L2, as ART does it, following ART's float32 gradient, which fades on images
    /// that the model is sure of. For L1 much weaker: raises finding `weak_projection`.
    Radial,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ClipOrder {
    ProjectThenClip,
    /// As ART does it.
    ClipThenProject,
}

/// Which iterate becomes the candidate that the verdict examines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    /// Highest search loss. On a deterministic model a misclassified iterate comes first, and ends the search.
    Best,
    /// The end of the trajectory, whatever was seen on the way.
    Last,
    /// The first iterate that the search sees misclassified.
    Any,
}

impl Condition {
    /// 64 bits that depend on the resolved parameters and nothing else: the condition's share of every random key.
    /// The number of restarts is left out, so that restart r draws the same numbers however many follow it.
    pub fn random_key(&self) -> u64 {
        if let ConditionKind::Corruption(corruption) = &self.kind {
            return corruption.random_key();
        }
        let mut kind = self.kind.clone();
        if let ConditionKind::Attack(AttackCondition { attack: Attack::Pgd(pgd), .. }) = &mut kind {
            pgd.restarts = 1;
        }
        let text = serde_json::to_string(&kind).expect("a condition is plain data");
        let digest = Sha256::digest(text.as_bytes());
        u64::from_le_bytes(digest[..8].try_into().expect("a digest has 32 bytes"))
    }
}
