//! (evaluator)
