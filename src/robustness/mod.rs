//! The science: bytes and tensors in, verdicts out.

pub mod corruption;
