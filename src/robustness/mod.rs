//! The science: bytes and tensors in, verdicts out.
//!
//! Corruptions are plain arithmetic on bytes and need no libtorch; whatever does is gated by the feature `evaluator`.

pub mod corruption;
