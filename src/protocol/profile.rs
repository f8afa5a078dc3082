//! The numeric profile: everything that decides how floating point comes out.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    Cpu,
    Cuda,
}

/// Verdicts repeat bit for bit under one profile; across profiles agreement is statistical.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct NumericProfile {
    pub device: Device,
    /// Device model, e.g. `NVIDIA H100 80GB HBM3`, or libtorch's CPU capability, e.g. `AVX512`.
    pub hardware: String,
    pub libtorch: String,
    /// Images in every kernel launch; ragged tails are padded to it.
    pub batch: u32,
    /// Intra-op CPU threads.
    pub threads: u32,
    pub memory_format: String,
    /// Precision of the search; verdicts are always true float32.
    pub search_precision: String,
}
