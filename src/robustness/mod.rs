//! (robustness)
