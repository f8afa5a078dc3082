//! The science: bytes and tensors in, verdicts out. No HTTP, SQL, clocks or global random numbers in here, and no files
//! but the model a caller names.
//!
//! | module | what |
//! |---|---|
//! | [`corruption`] | the ImageNet-C corruptions: plain arithmetic on bytes, no libtorch |
//! | `runtime` | libtorch set up so that float32 means float32 and equal inputs give equal bits |
//! | `rng` | random numbers keyed by (seed, condition, image, draw) |
//! | `threat` | norms, projections, random starts |
//! | `loss` | what attacks ascend |
//! | `host` | tensors on the CPU as plain numbers, for what costs libtorch more calls than arithmetic |
//! | `model` | the classifier boundary, TorchScript, the probe |
//! | `attack` | one file per attack, mathematics only |
//! | `diagnostic` | signs of whether a run can be trusted, and the second opinion |
//! | `engine` | drives attacks over images in fixed-shape batches and writes verdicts |
//! | `training` | the command behind the demo's two models |

pub mod corruption;

#[cfg(feature = "evaluator")]
pub mod attack;
#[cfg(feature = "evaluator")]
pub mod diagnostic;
#[cfg(feature = "evaluator")]
pub mod engine;
#[cfg(feature = "evaluator")]
mod host;
#[cfg(feature = "evaluator")]
pub mod loss;
#[cfg(feature = "evaluator")]
pub mod model;
#[cfg(feature = "evaluator")]
pub mod rng;
#[cfg(feature = "evaluator")]
pub mod runtime;
#[cfg(feature = "evaluator")]
pub mod threat;
#[cfg(feature = "evaluator")]
pub mod training;
