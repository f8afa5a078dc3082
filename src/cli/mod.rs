//! The commands.

pub mod bench;

use clap::{Parser, Subcommand};

/// Measures how robust image classifiers are.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The evaluator child; started by workers only.
    #[cfg(feature = "evaluator")]
    #[command(hide = true)]
    Evaluate,
}

/// Parses the command line and runs the command.
pub fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        #[cfg(feature = "evaluator")]
        Command::Evaluate => crate::evaluator::serve(),
    }
}
