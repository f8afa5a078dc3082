//! The commands.

mod context;
mod dataset;
mod run;
mod show;
mod verify;
mod worker;

use clap::{Parser, Subcommand};

use context::Global;

/// Measures how robust image classifiers are.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Import and manage datasets.
    #[command(subcommand)]
    Dataset(dataset::DatasetCommand),
    /// Evaluate a model file here and now, without server or database.
    Run(Box<run::RunArguments>),
    /// Serve one device: check models and run shards until told to stop.
    Worker,
    /// Examine an evaluation's evidence again, in a new process.
    Verify(verify::VerifyArguments),
    /// The evaluator child; started by workers only.
    #[cfg(feature = "evaluator")]
    #[command(hide = true)]
    Evaluate,
}

/// Parses the command line and runs the command.
pub fn main() -> anyhow::Result<()> {
    let Cli { global, command } = Cli::parse();
    #[cfg(feature = "evaluator")]
    if let Command::Evaluate = command {
        return crate::evaluator::serve();
    }
    let settings = global.settings()?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        match command {
            Command::Dataset(command) => dataset::run(command, context::artifacts(&settings)?.store()).await,
            Command::Run(arguments) => run::run(*arguments, &settings).await,
            Command::Worker => worker::run(&settings).await,
            Command::Verify(arguments) => verify::run(arguments, &settings).await,
            #[cfg(feature = "evaluator")]
            Command::Evaluate => unreachable!("handled above"),
        }
    })
}
