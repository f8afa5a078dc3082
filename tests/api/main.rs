//! The API over real HTTP, on a real database.

#[path = "../common/mod.rs"]
mod common;

mod access;
mod contract;
mod evaluations;
mod events;
mod idempotency;
mod keeping;
mod models;
mod problems;
mod protocols;
mod results;
mod service;
mod shards;
mod uploads;
mod webhooks;
