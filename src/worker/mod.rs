//! The worker: leases shards and has a child process run them.
//!
//! The supervisor here holds the database password and never touches a model; the child holds the model and nothing
//! else. They speak over a socketpair in frames that [`crate::wire`] defines.

mod attempt_log;
pub mod check;
mod checkpoint;
pub mod child;
mod failure;
mod frost;
mod job;
mod lease_loop;
pub mod memory_group;
mod metrics;
mod patience;
pub mod validate;
mod words;

pub use child::{Child, ChildOptions};
pub use failure::ChildError;
pub use lease_loop::{Shutdown, Worker, WorkerOptions};
