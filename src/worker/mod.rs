//! The worker: leases shards and has a child process run them.
//!
//! The supervisor here holds the database password and never touches a model; the child holds the model and nothing
//! else. They speak over a socketpair in frames that [`wire`] defines.

pub mod child;
mod failure;
mod lease_loop;
mod validate;
pub mod wire;

pub use child::{Child, ChildOptions};
pub use failure::ChildError;
pub use lease_loop::{Worker, WorkerOptions};
