//! Threat models: a norm and a radius in [0,1] pixel space.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The norm that bounds a perturbation. True Lp over all pixels and channels, never RMS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Norm {
    Linf,
    L2,
    L1,
}

impl Norm {
    /// The norm in which a gradient's length says how fast a linear function can rise per unit of this one.
    pub fn dual(self) -> Self {
        match self {
            Norm::Linf => Norm::L1,
            Norm::L2 => Norm::L2,
            Norm::L1 => Norm::Linf,
        }
    }

    /// Which of a perturbation's sizes this norm means.
    pub fn of(self, l1: f64, l2: f64, linf: f64) -> f64 {
        match self {
            Norm::Linf => linf,
            Norm::L2 => l2,
            Norm::L1 => l1,
        }
    }
}

impl fmt::Display for Norm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Norm::Linf => "linf",
            Norm::L2 => "l2",
            Norm::L1 => "l1",
        })
    }
}

/// The radius of a threat model in [0,1] pixel units: finite and not negative.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(try_from = "f64", into = "f64")]
#[schema(value_type = f64, minimum = 0.0)]
pub struct Epsilon(f64);

impl Epsilon {
    /// `None` unless `value` is finite and at least 0.
    pub fn new(value: f64) -> Option<Self> {
        // `+ 0.0` turns -0 into 0, so that equal radii have one spelling.
        (value.is_finite() && value >= 0.0).then_some(Self(value + 0.0))
    }

    pub fn get(self) -> f64 {
        self.0
    }
}

impl TryFrom<f64> for Epsilon {
    type Error = String;

    fn try_from(value: f64) -> Result<Self, Self::Error> {
        Self::new(value).ok_or_else(|| format!("epsilon must be finite and at least 0, not {value}"))
    }
}

impl From<Epsilon> for f64 {
    fn from(value: Epsilon) -> f64 {
        value.0
    }
}

/// What the adversary may do: move an image at most `epsilon` in `norm`, pixels staying in [0,1].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ThreatModel {
    pub norm: Norm,
    pub epsilon: Epsilon,
}

impl ThreatModel {
    /// Whether a perturbation of this size, measured in float64 from a float32 witness, is inside the budget.
    /// L∞ may exceed ε by 2⁻²⁴ (half a float32 step at 1.0); L2 and L1 by one part in a million.
    pub fn admits(&self, size: f64) -> bool {
        let epsilon = self.epsilon.get();
        match self.norm {
            Norm::Linf => size <= epsilon + 2f64.powi(-24),
            Norm::L2 | Norm::L1 => size <= epsilon * (1.0 + 1e-6),
        }
    }
}
