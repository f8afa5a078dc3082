//! `gauntlet key`: make, list, replace and revoke access keys. An operator's command: it talks to the database.

use anyhow::ensure;
use chrono::{DateTime, TimeDelta, Utc};
use clap::Subcommand;
use comfy_table::{Table, presets};

use super::context;
use crate::config::Settings;
use crate::store::keys::{self, Key, NewKey, Scope};
use crate::store::pool;

#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Make a key and print it, this once.
    Create {
        /// Whose objects the key sees and makes.
        #[arg(long)]
        owner: String,
        /// What it is good for; may be repeated. `admin` includes the others and sees everybody's objects.
        #[arg(long = "scope", value_enum, required = true)]
        scopes: Vec<Scope>,
        /// Until when it can be used [default: for ever].
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..=36500))]
        expires_days: Option<i64>,
        /// What it is for, in words.
        #[arg(long, default_value = "")]
        label: String,
    },
    /// Show every key, without its secret.
    List,
    /// Make a successor to a key, which goes on to work for a while.
    Rotate {
        id: String,
        /// How long the old key still works.
        #[arg(long, value_name = "N", default_value_t = 24, value_parser = clap::value_parser!(i64).range(0..=8760))]
        overlap_hours: i64,
    },
    /// Make a key useless, now.
    Revoke { id: String },
}

pub async fn run(command: KeyCommand, settings: &Settings) -> anyhow::Result<()> {
    let database = context::database(settings, 1).await?;
    pool::migrate(&database).await?;
    match command {
        KeyCommand::Create { owner, scopes, expires_days, label } => {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.@".contains(c);
            ensure!(
                (1..=64).contains(&owner.len()) && owner.chars().all(plain),
                "--owner: 1 to 64 letters, digits and -_.@"
            );
            let expires_at = expires_days.map(|days| Utc::now() + TimeDelta::days(days));
            let key =
                keys::create(&database, &NewKey { owner: &owner, label: &label, scopes: &scopes, expires_at }).await?;
            println!("{}", key.reveal());
            eprintln!("Keep it: it is shown this once. A server that asked for no key asks for one from now on.");
        }
        KeyCommand::List => print(&keys::list(&database).await?),
        KeyCommand::Rotate { id, overlap_hours } => {
            let all = keys::list(&database).await?;
            let old = all.iter().find(|key| key.id == id);
            let retired = keys::retire(&database, &id, overlap_hours as f64 * 3600.0).await?;
            let Some(old) = old.filter(|_| retired) else { anyhow::bail!("there is no usable key {id}") };
            let scopes = old.scopes.iter().map(|scope| scope.parse()).collect::<Result<Vec<Scope>, _>>()?;
            let new = NewKey { owner: &old.owner, label: &old.label, scopes: &scopes, expires_at: successor(old) };
            println!("{}", keys::create(&database, &new).await?.reveal());
            eprintln!("Keep it: it is shown this once. The old key works for another {overlap_hours} h.");
        }
        KeyCommand::Revoke { id } => {
            ensure!(keys::revoke(&database, &id).await?, "there is no key {id} that is not revoked already");
            println!("Key {id} is useless now.");
        }
    }
    Ok(())
}

/// A successor lives as long from now as its predecessor was meant to.
fn successor(old: &Key) -> Option<DateTime<Utc>> {
    old.expires_at.map(|end| Utc::now() + (end - old.created_at))
}

fn print(keys: &[Key]) {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(["id", "owner", "scopes", "label", "made", "used", "state"]);
    let day = |time: DateTime<Utc>| time.format("%Y-%m-%d").to_string();
    for key in keys {
        let state = match (key.revoked_at, key.expires_at) {
            (Some(time), _) => format!("revoked {}", day(time)),
            (None, Some(end)) if end < Utc::now() => format!("expired {}", day(end)),
            (None, Some(end)) => format!("until {}", day(end)),
            (None, None) => "usable".into(),
        };
        let used = key.last_used_at.map_or("never".into(), day);
        let scopes = key.scopes.join(" ");
        table.add_row([&key.id, &key.owner, &scopes, &key.label, &day(key.created_at), &used, &state]);
    }
    println!("{table}");
}
