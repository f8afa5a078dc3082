//! What a process tells its operators.

pub mod exposition;
pub mod gpu;
pub mod logs;
pub mod trace;
