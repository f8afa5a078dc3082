//! What a submitter declares about a model.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    Torchscript,
}

/// Per-channel normalisation, applied inside the model boundary: the model sees (x − mean) / std.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Preprocessing {
    /// One value per channel, in [0,1] pixel units.
    pub mean: Vec<f64>,
    /// One positive value per channel.
    pub std: Vec<f64>,
}

/// A model's declared interface: images [n, channels, height, width] in [0,1] to logits [n, classes].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    #[serde(default = "torchscript")]
    pub format: Format,
    /// [channels, height, width]
    pub input: [u32; 3],
    pub classes: u32,
    /// Absent: the model takes [0,1] pixels as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preprocessing: Option<Preprocessing>,
    /// Declares that two forwards of one image may differ.
    #[serde(default)]
    pub stochastic: bool,
}

fn torchscript() -> Format {
    Format::Torchscript
}

/// A spec that cannot describe a classifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("spec.{field}: {problem}")]
pub struct SpecError {
    pub field: &'static str,
    pub problem: String,
}

impl ModelSpec {
    /// Largest side a model may declare, in pixels.
    pub const MAX_SIDE: u32 = 4096;
    /// Most classes a model may declare.
    pub const MAX_CLASSES: u32 = 1_000_000;

    pub fn validate(&self) -> Result<(), SpecError> {
        let [channels, height, width] = self.input;
        let fail = |field, problem: String| Err(SpecError { field, problem });
        if !matches!(channels, 1 | 3) {
            return fail("input", format!("channels must be 1 (grey) or 3 (RGB), not {channels}"));
        }
        if [height, width].iter().any(|side| !(1..=Self::MAX_SIDE).contains(side)) {
            return fail("input", format!("height and width must be 1 to {}, not {height}×{width}", Self::MAX_SIDE));
        }
        if !(2..=Self::MAX_CLASSES).contains(&self.classes) {
            return fail("classes", format!("must be 2 to {}, not {}", Self::MAX_CLASSES, self.classes));
        }
        let Some(Preprocessing { mean, std }) = &self.preprocessing else { return Ok(()) };
        for (field, values) in [("preprocessing.mean", mean), ("preprocessing.std", std)] {
            if values.len() != channels as usize {
                return fail(field, format!("needs one value per channel ({channels}), has {}", values.len()));
            }
            if values.iter().any(|v| !v.is_finite()) {
                return fail(field, "values must be finite".into());
            }
        }
        if std.iter().any(|v| *v <= 0.0) {
            return fail("preprocessing.std", "values must be positive".into());
        }
        Ok(())
    }
}
