//! What a process tells its operators.

pub mod exposition;
pub mod gpu;
