//! The science: tensors in, verdicts out. No HTTP, SQL, clocks or global random numbers in here, and no files but the
//! model a caller names.
//!
//! | module | what |
//! |---|---|
//! | [`runtime`] | libtorch set up so that float32 means float32 and equal inputs give equal bits |
//! | [`rng`] | random numbers keyed by (seed, condition, image, draw) |
//! | [`threat`] | norms, projections, random starts |
//! | [`loss`] | what attacks ascend |
//! | [`model`] | the classifier boundary, TorchScript, the probe |
//! | [`attack`] | one file per attack, mathematics only |
//! | [`diagnostic`] | findings computed from a run itself |
//! | [`engine`] | drives attacks over images in fixed-shape batches and writes verdicts |
//! | [`training`] | the command behind the demo's two models |

pub mod attack;
pub mod diagnostic;
pub mod engine;
pub mod loss;
pub mod model;
pub mod rng;
pub mod runtime;
pub mod threat;
pub mod training;
