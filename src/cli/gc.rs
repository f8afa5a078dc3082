//! `gauntlet gc` and `gauntlet retention`: what is kept, and for how long. Operators' commands: they talk to the database.

use anyhow::ensure;
use clap::{Args, Subcommand};

use super::context;
use super::show::{self, Format};
use crate::config::Settings;
use crate::store::gc::{self, Rules, Sweep};
use crate::store::pool;
use crate::store::retention::{self, Own};

#[derive(Debug, Args)]
pub struct GcArguments {
    /// Only say what would be removed.
    #[arg(long)]
    dry_run: bool,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Removes what has expired and files that no row names; safe beside running servers and workers.
pub async fn gc(arguments: GcArguments, settings: &Settings) -> anyhow::Result<()> {
    let database = context::database(settings, 2).await?;
    ensure!(
        pool::is_migrated(&database).await.unwrap_or(false),
        "this database is not of this version, or not Gauntlet's: run `gauntlet migrate` if it is"
    );
    let artifacts = context::artifacts(settings)?;
    let rules = rules(settings, arguments.dry_run);
    let mut sweep = gc::expire(&database, &artifacts, &rules).await?;
    sweep.0.extend(gc::orphans(&database, &artifacts, rules.dry_run).await?.0);
    match arguments.format {
        Format::Json => show::print_json(&sweep),
        Format::Table => {
            print(&sweep, arguments.dry_run);
            Ok(())
        }
    }
}

/// What these settings say.
pub fn rules(settings: &Settings, dry_run: bool) -> Rules {
    Rules { retention: settings.retention, upload_hours: settings.upload_hours, dry_run }
}

fn print(sweep: &Sweep, dry_run: bool) {
    if sweep.0.is_empty() {
        println!("Nothing to remove.");
        return;
    }
    let mut grid = show::grid([if dry_run { "would be removed" } else { "removed" }, "count", "MiB"]);
    for (what, removed) in &sweep.0 {
        grid.add_row([(*what).to_owned(), removed.count.to_string(), mebibytes(removed.bytes)]);
    }
    println!("{grid}\n{} MiB altogether", mebibytes(sweep.bytes()));
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}

#[derive(Debug, Subcommand)]
pub enum RetentionCommand {
    /// Show the installation's rule and those of owners.
    List,
    /// Give an owner a rule of their own; days, 0 for ever. What is left out stays as it was.
    Set {
        #[arg(long)]
        owner: String,
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..=36500))]
        model_days: Option<i32>,
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..=36500))]
        witness_days: Option<i32>,
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..=36500))]
        log_days: Option<i32>,
    },
    /// Have the installation's rule hold for an owner again.
    Clear {
        #[arg(long)]
        owner: String,
    },
}

pub async fn retention(command: RetentionCommand, settings: &Settings) -> anyhow::Result<()> {
    let database = context::database(settings, 1).await?;
    pool::migrate(&database).await?;
    match command {
        RetentionCommand::List => {
            let all = &settings.retention;
            let days = |days: u32| if days == 0 { "for ever".into() } else { days.to_string() };
            let mut grid = show::grid(["owner", "models", "witnesses", "logs"]);
            grid.add_row(["(everybody)".to_owned(), days(all.model_days), days(all.witness_days), days(all.log_days)]);
            let own = |days: Option<i32>| match days {
                None => "as everybody".to_owned(),
                Some(0) => "for ever".into(),
                Some(days) => days.to_string(),
            };
            for rule in retention::list(&database).await? {
                grid.add_row([rule.owner, own(rule.model_days), own(rule.witness_days), own(rule.log_days)]);
            }
            println!("{grid}");
        }
        RetentionCommand::Set { owner, model_days, witness_days, log_days } => {
            let given = [model_days, witness_days, log_days].iter().any(Option::is_some);
            ensure!(given, "say what: --model-days, --witness-days or --log-days");
            retention::set(&database, &Own { owner, model_days, witness_days, log_days }).await?;
        }
        RetentionCommand::Clear { owner } => {
            ensure!(retention::clear(&database, &owner).await?, "{owner} has no rule of their own");
        }
    }
    Ok(())
}
