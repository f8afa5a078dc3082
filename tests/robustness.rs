//! The science against closed forms, brute force and its own promises.
#![cfg(feature = "evaluator")]

#[path = "robustness/support.rs"]
mod support;

#[path = "robustness/baselines.rs"]
mod baselines;
#[path = "robustness/cascade.rs"]
mod cascade;
#[path = "robustness/checkpoint.rs"]
mod checkpoint;
#[path = "robustness/diagnostic.rs"]
mod diagnostic;
#[path = "robustness/eight_bit.rs"]
mod eight_bit;
#[path = "robustness/engine.rs"]
mod engine;
#[path = "robustness/interrupted.rs"]
mod interrupted;
#[path = "robustness/linear.rs"]
mod linear;
#[path = "robustness/losses.rs"]
mod losses;
#[path = "robustness/nearest.rs"]
mod nearest;
#[path = "robustness/precision.rs"]
mod precision;
#[path = "robustness/probe.rs"]
mod probe;
#[path = "robustness/relu.rs"]
mod relu;
#[path = "robustness/stochastic.rs"]
mod stochastic;
#[path = "robustness/threat.rs"]
mod threat;
#[path = "robustness/torchscript.rs"]
mod torchscript;
