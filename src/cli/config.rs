//! `gauntlet config`: what the settings are, where they come from, and what is wrong with them.

use clap::Subcommand;
use serde_json::json;

use super::context::Global;
use super::show::{self, Format};
use crate::config;

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Show every setting and where its value comes from; passwords are covered.
    Show {
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Look for mistakes; ends with 1 if there are any.
    Check {
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Print README's table of settings.
    #[command(hide = true)]
    Table,
}

pub fn run(command: ConfigCommand, global: &Global) -> anyhow::Result<()> {
    match command {
        ConfigCommand::Show { format } => show(global, format),
        ConfigCommand::Check { format } => check(global, format),
        ConfigCommand::Table => {
            print!("{}", config::table());
            Ok(())
        }
    }
}

fn show(global: &Global, format: Format) -> anyhow::Result<()> {
    let sources = global.sources()?;
    let settings = serde_json::to_value(global.settings()?.without_secrets())?;
    let mut rows = Vec::new();
    for (name, value) in settings.as_object().into_iter().flatten() {
        match value.as_object() {
            Some(inner) => rows.extend(inner.iter().map(|(inner, value)| (format!("{name}.{inner}"), value))),
            None => rows.push((name.clone(), value)),
        }
    }
    let origin = |name: &str| match global.overrides(name) {
        true => format!("--{}", name.replace('_', "-")),
        false => sources.origin(name),
    };
    if format == Format::Json {
        let all: serde_json::Map<_, _> = rows
            .into_iter()
            .map(|(name, value)| (name.clone(), json!({"value": value, "origin": origin(&name)})))
            .collect();
        return show::print_json(&all);
    }
    let mut grid = show::grid(["setting", "value", "from"]);
    for (name, value) in rows {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let text = if value.is_null() { "–".into() } else { text };
        grid.add_row([name.clone(), text, origin(&name)]);
    }
    println!("{grid}");
    Ok(())
}

fn check(global: &Global, format: Format) -> anyhow::Result<()> {
    let found = config::check(&global.sources()?, &std::env::vars().collect::<Vec<_>>())?;
    if format == Format::Json {
        show::print_json(&found)?;
    } else {
        for problem in &found {
            let kind = if problem.advice { "advice" } else { "error" };
            println!("{kind}: {} (from {}): {}", problem.setting, problem.origin, problem.problem);
        }
    }
    match found.iter().filter(|problem| !problem.advice).count() {
        0 => {
            if format == Format::Table {
                println!("The configuration can be used.");
            }
            Ok(())
        }
        1 => anyhow::bail!("one setting cannot be used"),
        n => anyhow::bail!("{n} settings cannot be used"),
    }
}
