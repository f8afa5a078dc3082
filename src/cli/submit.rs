//! `gauntlet submit`, `status`, `table`, `cancel`: a server's API from the shell.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use serde_json::Value;
use uuid::Uuid;

use super::client::{Client, Server};
use super::follow::{follow, status_line};
use super::run::setting;
use super::show::{self, Format};
use crate::dataset::Shape;
use crate::http::evaluations::{EvaluationRequest, ProtocolChoice};
use crate::protocol::{Device, Format as ModelFormat, LabelList, ModelSpec, Needs, Preprocessing, builtin};
use crate::store::evaluations::{State, WitnessPolicy};

#[derive(Debug, Args)]
pub struct SubmitArguments {
    /// A TorchScript file, or the id of a model that the server has.
    model: String,
    /// A dataset of the server.
    #[arg(long)]
    dataset: String,
    /// A protocol of the server, or a TOML file.
    #[arg(long, default_value = "pgd-grid")]
    protocol: String,
    /// Sets a protocol value: `steps=10`, `attack.linf.epsilon=[0.1,0.2]`. May be repeated.
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = setting)]
    settings: Vec<(String, String)>,
    /// What to call the model [default: the file's name].
    #[arg(long)]
    name: Option<String>,
    /// A JSON file with the model's spec; else it comes from the flags below and the dataset.
    #[arg(long, conflicts_with_all = ["mean", "std", "classes", "stochastic"])]
    spec: Option<PathBuf>,
    /// Per-channel mean that the model expects to be subtracted, e.g. 0.485,0.456,0.406.
    #[arg(long, value_delimiter = ',', requires = "std")]
    mean: Option<Vec<f64>>,
    /// Per-channel standard deviation that the model expects to be divided by.
    #[arg(long, value_delimiter = ',', requires = "mean")]
    std: Option<Vec<f64>>,
    /// The model's class count, if it differs from the dataset's.
    #[arg(long, value_name = "K")]
    classes: Option<u32>,
    /// Two forward passes of one image may differ.
    #[arg(long)]
    stochastic: bool,
    /// Evaluate this many images [default: to the end of the dataset].
    #[arg(long, value_name = "N")]
    images: Option<u32>,
    /// Start at this image.
    #[arg(long, value_name = "K", default_value_t = 0)]
    offset: u32,
    /// May be repeated: every seed is a run of its own.
    #[arg(long = "seed", value_name = "S", default_values_t = [0])]
    seeds: Vec<i64>,
    /// Store witnesses: `none`, `all`, or those of the first N images.
    #[arg(long, value_name = "none|all|N", value_parser = witness_policy)]
    witnesses: Option<WitnessPolicy>,
    /// Higher is served first.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    priority: i32,
    /// Only workers of this device may run it.
    #[arg(long, value_enum, value_name = "DEVICE")]
    need_device: Option<Device>,
    /// Only workers whose GPU has so much memory, e.g. 40.
    #[arg(long, value_name = "GIB")]
    need_gpu_gib: Option<u64>,
    /// Only workers with these labels, e.g. gpu=h100,zone=b.
    #[arg(long, value_name = "NAME=VALUE,…")]
    need_labels: Option<LabelList>,
    /// Wait for the end and print the table.
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    server: Server,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

fn witness_policy(text: &str) -> Result<WitnessPolicy, String> {
    match text {
        "none" => Ok(WitnessPolicy::None),
        "all" => Ok(WitnessPolicy::All),
        n => n.parse().map(WitnessPolicy::Sample).map_err(|_| "write none, all or a number of images".into()),
    }
}

pub async fn submit(arguments: SubmitArguments) -> anyhow::Result<()> {
    let client = arguments.server.client()?;
    let (model, name) = match arguments.model.parse::<Uuid>() {
        Ok(id) => (id, client.model(id).await?.name),
        Err(_) => upload(&client, &arguments).await?,
    };
    let request = EvaluationRequest {
        model,
        dataset: arguments.dataset.clone(),
        protocol: protocol(&arguments.protocol)?,
        set: arguments.settings.iter().map(|(k, v)| (k.clone(), value(v))).collect::<BTreeMap<_, _>>(),
        offset: arguments.offset,
        images: arguments.images,
        seeds: arguments.seeds.clone(),
        witnesses: arguments.witnesses.unwrap_or_default(),
        priority: arguments.priority,
        needs: Needs {
            device: arguments.need_device,
            gpu_memory_bytes: arguments.need_gpu_gib.map(|gib| gib.saturating_mul(1 << 30)),
            labels: arguments.need_labels.clone().unwrap_or_default().0,
        },
    };
    let view = client.submit(&request).await?;
    let id = view.summary.id;
    if !arguments.watch {
        return match arguments.format {
            Format::Json => show::print_json(&view),
            Format::Table => {
                println!("Evaluation {id} is {}.", status_line(&view));
                println!("Follow it with `gauntlet status {id} --watch`, read it with `gauntlet table {id}`.");
                Ok(())
            }
        };
    }
    eprintln!("Evaluation {id}");
    finish(&client, id, &name, arguments.format).await
}

/// Follows to the end, then prints the table or fails with the reason.
async fn finish(client: &Client, id: Uuid, name: &str, format: Format) -> anyhow::Result<()> {
    let end = follow(client, id, name).await?;
    if end.summary.state != State::Succeeded {
        bail!("evaluation {id} is {}", status_line(&end));
    }
    print_table(client, id, format.into()).await
}

async fn upload(client: &Client, arguments: &SubmitArguments) -> anyhow::Result<(Uuid, String)> {
    let file = PathBuf::from(&arguments.model);
    anyhow::ensure!(file.is_file(), "{} is neither a file nor a model's id", file.display());
    let spec = match &arguments.spec {
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
            serde_json::from_str(&text).with_context(|| path.display().to_string())?
        }
        None => {
            let manifest = client.dataset(&arguments.dataset).await?;
            let Shape { channels, height, width } = manifest.shape;
            let preprocessing =
                arguments.mean.clone().zip(arguments.std.clone()).map(|(mean, std)| Preprocessing { mean, std });
            ModelSpec {
                format: ModelFormat::Torchscript,
                input: [channels, height, width],
                classes: arguments.classes.unwrap_or(manifest.classes),
                preprocessing,
                stochastic: arguments.stochastic,
            }
        }
    };
    let stem = || file.file_stem().map_or_else(|| "model".into(), |s| s.to_string_lossy().into_owned());
    let name = arguments.name.clone().unwrap_or_else(stem);
    let model = client.upload(&file, &name, &spec).await?;
    Ok((model.id, model.name))
}

/// A file's document goes inline; anything else is a name for the server to know.
fn protocol(text: &str) -> anyhow::Result<ProtocolChoice> {
    if builtin(text).is_some() || !std::path::Path::new(text).is_file() {
        return Ok(ProtocolChoice::Named(text.to_owned()));
    }
    let document: toml::Table = toml::from_str(&std::fs::read_to_string(text)?).with_context(|| text.to_owned())?;
    Ok(ProtocolChoice::Inline(serde_json::to_value(document)?))
}

/// TOML where it is TOML, else a plain string.
fn value(text: &str) -> Value {
    let parsed = toml::from_str::<toml::Table>(&format!("value = {text}")).ok().and_then(|mut t| t.remove("value"));
    parsed.and_then(|v| serde_json::to_value(v).ok()).unwrap_or_else(|| Value::String(text.to_owned()))
}

#[derive(Debug, Args)]
pub struct StatusArguments {
    /// The evaluation's id; without it, the newest evaluations are listed.
    id: Option<Uuid>,
    /// Wait for the end and print the table.
    #[arg(long, requires = "id")]
    watch: bool,
    #[command(flatten)]
    server: Server,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

pub async fn status(arguments: StatusArguments) -> anyhow::Result<()> {
    let client = arguments.server.client()?;
    let Some(id) = arguments.id else { return list(&client, arguments.format).await };
    if arguments.watch {
        return finish(&client, id, &id.to_string()[..8], arguments.format).await;
    }
    let view = client.evaluation(id).await?;
    if arguments.format == Format::Json {
        return show::print_json(&view);
    }
    println!("{id} is {}", status_line(&view));
    let mut grid = show::grid(["condition", "verdicts"]);
    for condition in &view.progress.conditions {
        grid.add_row([condition.id.clone(), format!("{}/{}", condition.done, condition.total)]);
    }
    println!("{grid}");
    Ok(())
}

async fn list(client: &Client, format: Format) -> anyhow::Result<()> {
    let evaluations = client.evaluations(50).await?;
    if format == Format::Json {
        return show::print_json(&evaluations);
    }
    if evaluations.is_empty() {
        println!("No evaluations yet. Submit one with `gauntlet submit MODEL --dataset NAME`.");
        return Ok(());
    }
    let mut grid = show::grid(["evaluation", "state", "protocol", "dataset", "images", "shards", "submitted"]);
    for e in evaluations {
        grid.add_row([
            e.id.to_string(),
            e.state.name().to_owned(),
            e.protocol.name,
            e.dataset.name,
            e.images.to_string(),
            format!("{}/{}", e.shards.done, e.shards.total),
            e.created_at.format("%Y-%m-%d %H:%M UTC").to_string(),
        ]);
    }
    println!("{grid}");
    Ok(())
}

#[derive(Debug, Args)]
pub struct TableArguments {
    id: Uuid,
    #[command(flatten)]
    server: Server,
    #[arg(long, value_enum, default_value_t)]
    format: TableFormat,
}

/// How `gauntlet table` prints.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub enum TableFormat {
    #[default]
    Table,
    Json,
    Csv,
    Markdown,
    Latex,
}

impl From<Format> for TableFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Table => Self::Table,
            Format::Json => Self::Json,
        }
    }
}

pub async fn table(arguments: TableArguments) -> anyhow::Result<()> {
    print_table(&arguments.server.client()?, arguments.id, arguments.format).await
}

async fn print_table(client: &Client, id: Uuid, format: TableFormat) -> anyhow::Result<()> {
    match format {
        TableFormat::Json => show::print_json(&client.table(id).await?)?,
        TableFormat::Table => print!("{}", show::table(&client.table(id).await?)),
        TableFormat::Csv => print!("{}", client.rendered_table(id, "csv").await?),
        TableFormat::Markdown => print!("{}", client.rendered_table(id, "md").await?),
        TableFormat::Latex => print!("{}", client.rendered_table(id, "tex").await?),
    }
    Ok(())
}

#[derive(Debug, Args)]
pub struct CancelArguments {
    id: Uuid,
    #[command(flatten)]
    server: Server,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

pub async fn cancel(arguments: CancelArguments) -> anyhow::Result<()> {
    let view = arguments.server.client()?.cancel(arguments.id).await?;
    match arguments.format {
        Format::Json => show::print_json(&view),
        Format::Table => {
            println!("{} is {}", arguments.id, status_line(&view));
            Ok(())
        }
    }
}
