//! The commands.

pub mod bench;
mod client;
mod config;
mod context;
mod corrupt;
mod dataset;
mod demo;
mod follow;
mod gc;
mod hash;
mod health;
mod images;
mod key;
mod pieces;
mod run;
mod show;
mod simulate;
mod submit;
#[cfg(feature = "evaluator")]
mod train;
mod up;
mod verify;
mod worker;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use nix::sys::signal::{SigHandler, Signal, signal};

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
    /// Run everything here: database (embedded unless DATABASE_URL is set), API, workers.
    Up,
    /// Run the API alone; workers run elsewhere.
    Serve,
    /// Serve one device: check models and run shards until told to stop.
    Worker(worker::WorkerArguments),
    /// Say by the exit code whether the API or worker of these settings is well; for health checks.
    Health {
        #[arg(value_enum)]
        part: health::Part,
    },
    /// Bring the database's schema forward.
    Migrate,
    /// Show and check the settings.
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Import and manage datasets.
    #[command(subcommand)]
    Dataset(dataset::DatasetCommand),
    /// Make, list, replace and revoke access keys.
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Remove what has expired and files that nothing names; safe beside running servers and workers.
    Gc(gc::GcArguments),
    /// Show and set how long owners' models, witnesses and logs are kept.
    #[command(subcommand)]
    Retention(gc::RetentionCommand),
    /// Submit a model to a server and evaluate it.
    Submit(Box<submit::SubmitArguments>),
    /// Show one evaluation, or the newest ones.
    Status(submit::StatusArguments),
    /// Print an evaluation's table.
    Table(submit::TableArguments),
    /// Stop an evaluation.
    Cancel(submit::CancelArguments),
    /// Examine an evaluation's evidence again, in a new process.
    Verify(verify::VerifyArguments),
    /// Evaluate a model file here and now, without server or database.
    Run(Box<run::RunArguments>),
    /// Corrupt a picture as ImageNet-C does, or draw a sheet of all corruptions.
    Corrupt(Box<corrupt::CorruptArguments>),
    /// See the whole path on real images, in a minute.
    Demo(demo::DemoArguments),
    /// Measure, as ratios to rivals in the same run.
    #[command(subcommand)]
    Bench(bench::BenchCommand),
    /// Say how long work would take on so many workers, and what it would cost.
    #[command(subcommand)]
    Simulate(simulate::SimulateCommand),
    /// Print the API's description, the content of openapi.yaml.
    #[command(hide = true)]
    Openapi,
    /// Train the demo's models.
    #[cfg(feature = "evaluator")]
    #[command(hide = true)]
    TrainDigits(train::TrainArguments),
    /// The evaluator child; started by workers only.
    #[cfg(feature = "evaluator")]
    #[command(hide = true)]
    Evaluate,
}

/// Parses the command line and runs the command; an error is one paragraph on standard error.
pub fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(Cli { global, command }: Cli) -> anyhow::Result<()> {
    // For every HTTP client of this process. Fails only if there is one already, which serves as well.
    rustls::crypto::ring::default_provider().install_default().ok();
    match command {
        #[cfg(feature = "evaluator")]
        Command::Evaluate => crate::evaluator::serve(),
        #[cfg(feature = "evaluator")]
        Command::TrainDigits(arguments) => train::run(arguments),
        Command::Openapi => {
            print!("{}", crate::http::openapi_yaml());
            Ok(())
        }
        // Also when the settings cannot be used.
        Command::Config(command) => config::run(command, &global),
        command => tokio::runtime::Runtime::new()?.block_on(run_async(global, command)),
    }
}

async fn run_async(global: Global, command: Command) -> anyhow::Result<()> {
    let settings = global.settings()?;
    if !matches!(command, Command::Up | Command::Serve | Command::Worker(_) | Command::Demo(_) | Command::Submit(_)) {
        // `gauntlet status | head` should end as other tools do. Servers want the error instead, and so does an upload whose
        // connection breaks off.
        // SAFETY: no handler is involved.
        unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }?;
    }
    match command {
        Command::Up => up::up(&settings).await,
        Command::Serve => up::serve(&settings).await,
        Command::Worker(arguments) => worker::run(arguments, &settings).await,
        Command::Health { part } => health::run(part, &settings).await,
        Command::Migrate => up::migrate(&settings).await,
        Command::Dataset(command) => dataset::run(command, context::artifacts(&settings)?.store()).await,
        Command::Key(command) => key::run(command, &settings).await,
        Command::Gc(arguments) => gc::gc(arguments, &settings).await,
        Command::Retention(command) => gc::retention(command, &settings).await,
        Command::Submit(arguments) => submit::submit(*arguments).await,
        Command::Status(arguments) => submit::status(arguments).await,
        Command::Table(arguments) => submit::table(arguments).await,
        Command::Cancel(arguments) => submit::cancel(arguments).await,
        Command::Verify(arguments) => verify::run(arguments, &settings).await,
        Command::Run(arguments) => run::run(*arguments, &settings).await,
        Command::Corrupt(arguments) => corrupt::run(&arguments, &settings),
        Command::Demo(arguments) => demo::run(arguments, &settings).await,
        Command::Bench(command) => bench::run(command).await,
        Command::Simulate(command) => simulate::run(command, &settings).await,
        Command::Openapi | Command::Config(_) => unreachable!("needs no runtime"),
        #[cfg(feature = "evaluator")]
        Command::Evaluate | Command::TrainDigits(_) => unreachable!("needs no runtime"),
    }
}
