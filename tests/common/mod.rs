//! What several test binaries share.
#![allow(dead_code, reason = "each binary uses its own part")]

pub mod bench;
pub mod postgres;
pub mod torchscript;
pub mod world;
