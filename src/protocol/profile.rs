//! The numeric profile: everything that decides how floating point comes out.

use std::fmt;

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    Cpu,
    Cuda,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Device::Cpu => "cpu",
            Device::Cuda => "cuda",
        })
    }
}

/// What a worker brings along. Workers with equal platforms can share an evaluation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Platform {
    pub device: Device,
    /// The GPU's model, e.g. `NVIDIA H100 80GB HBM3`, or libtorch's CPU capability, e.g. `AVX512`.
    pub hardware: String,
    pub libtorch: String,
}

/// Verdicts repeat bit for bit under one profile; across profiles agreement is statistical.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct NumericProfile {
    #[serde(flatten)]
    pub platform: Platform,
    /// Images in every kernel launch; ragged tails are padded to it.
    pub batch: u32,
    /// Intra-op CPU threads.
    pub threads: u32,
    pub memory_format: MemoryFormat,
}

/// What a calibration measured at a profile, alone: no evaluation under it can be faster than its passes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Floor {
    /// Seconds of one image's forward pass without a gradient.
    pub forward_seconds: f64,
    /// Seconds of one image's forward and backward pass.
    pub gradient_seconds: f64,
}

impl Floor {
    /// Seconds that these passes take at least; every backward pass comes with its forward pass.
    pub fn seconds(&self, forwards: u64, backwards: u64) -> f64 {
        self.forward_seconds * forwards.saturating_sub(backwards) as f64 + self.gradient_seconds * backwards as f64
    }
}

/// A profile found by measuring, and what was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Calibration {
    pub profile: NumericProfile,
    pub floor: Floor,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MemoryFormat {
    ChannelsFirst,
    ChannelsLast,
}

/// Arithmetic of the passes that search for adversarial examples. Verdicts are true float32, whatever found them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    #[default]
    Float32,
    /// Products of 10 bits, sums of 23, in a GPU's matrix units; float32 where there are none.
    Tf32,
    /// Convolutions and matrix products in bfloat16, by libtorch's autocast.
    Bfloat16,
}

impl Precision {
    pub fn is_float32(&self) -> bool {
        *self == Precision::Float32
    }
}
