//! Gauntlet measures how robust image classifiers are.
//!
//! The rooms, from top to bottom; a module imports only those below it:
//!
//! | room | what |
//! |---|---|
//! | [`cli`] | the commands |
//! | [`http`] | the REST API |
//! | [`webhook`] | tells owners by HTTP what was committed |
//! | [`worker`] | supervisor, lease loop, child protocol |
//! | [`simulate`] | the queue's rules played through: what work costs on so many workers |
//! | [`queue`] | claim, heartbeat, commit, reap |
//! | [`store`] | SQL queries and artifacts |
//! | [`postgres`] | the embedded database cluster |
//! | [`telemetry`] | metrics as operators read them |
//! | [`wire`] | the frames that worker and evaluator exchange |
//! | [`evaluator`] | runs one shard (needs libtorch) |
//! | [`robustness`] | the science (all but [`robustness::corruption`] needs libtorch) |
//! | [`dataset`] | importers and storage layout |
//! | [`protocol`] | conditions, protocols, planner, report: plain data and arithmetic |

pub mod cli;
pub mod config;
pub mod dataset;
#[cfg(feature = "evaluator")]
pub mod evaluator;
pub mod http;
pub mod postgres;
pub mod protocol;
pub mod queue;
pub mod robustness;
pub mod simulate;
pub mod store;
pub mod telemetry;
pub mod webhook;
pub mod wire;
pub mod worker;
