//! `gauntlet simulate`: how long work would take on so many workers, and what it would cost.

use anyhow::{Context, ensure};
use clap::{Args, Subcommand};
use serde::Serialize;
use sqlx::PgPool;
use uuid::Uuid;

use super::context;
use super::run::{named_protocol, setting};
use super::show::{self, Format};
use crate::config::Settings;
use crate::dataset::Preset;
use crate::protocol::Subject;
use crate::protocol::plan::Workload;
use crate::simulate::{self, Fleet, Forecast, History, Job, Rates};
use crate::store::evaluations::{self, Evaluation, Filter, State};
use crate::store::models::{self, Model};
use crate::store::shards;

#[derive(Debug, Subcommand)]
pub enum SimulateCommand {
    /// A protocol on a model of which only the speed is known.
    Protocol(Box<ProtocolArguments>),
    /// An evaluation as it was measured, perhaps of more images.
    Like(LikeArguments),
    /// What is queued now, to its end.
    Queue(QueueArguments),
}

#[derive(Debug, Args)]
struct FleetArguments {
    /// Numbers of workers to try.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 64], value_parser = clap::value_parser!(u32).range(1..=100_000))]
    workers: Vec<u32>,
    /// Devices that the workers share [default: one for each].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    devices: Option<u32>,
    /// Seconds until a worker has another model loaded [default: as measured; without a measurement 10].
    #[arg(long)]
    load_seconds: Option<f64>,
    /// Seconds of a worker between two shards [default: as measured; without a measurement 0.05].
    #[arg(long)]
    between_seconds: Option<f64>,
    /// Price of a device for an hour, in any currency.
    #[arg(long)]
    price: Option<f64>,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Debug, Args)]
pub struct ProtocolArguments {
    /// The name of a built-in protocol, or a TOML file.
    protocol: String,
    /// Sets a protocol value: `steps=10`. May be repeated.
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = setting)]
    settings: Vec<(String, String)>,
    /// Whose budgets apply.
    #[arg(long, value_enum, default_value = "imagenet")]
    preset: Preset,
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(1..))]
    images: u32,
    /// The model's input.
    #[arg(long, value_delimiter = ',', default_values_t = [3, 224, 224], value_name = "C,H,W")]
    input: Vec<u32>,
    #[arg(long, default_value_t = 1000)]
    classes: u32,
    /// Two forward passes of one image may differ: gradients are averaged as the protocol says.
    #[arg(long)]
    stochastic: bool,
    /// May be repeated.
    #[arg(long = "seed", value_name = "S", default_values_t = [0])]
    seeds: Vec<i64>,
    /// Seconds that the device takes for one image's forward pass, in batches; a model's probe says it, and so does its maker:
    /// 1,261 images/s are 0.000793.
    #[arg(long, value_name = "SECONDS")]
    seconds_per_forward: f64,
    /// Corrupted images per second that the processor beside each device makes (`gauntlet bench corruption-rate`) [default: enough].
    #[arg(long, value_name = "RATE")]
    corruption_rate: Option<f64>,
    #[command(flatten)]
    fleet: FleetArguments,
}

#[derive(Debug, Args)]
pub struct LikeArguments {
    /// An evaluation with committed shards.
    evaluation: Uuid,
    /// Of so many images [default: as many as it had].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    images: Option<u32>,
    #[command(flatten)]
    fleet: FleetArguments,
}

#[derive(Debug, Args)]
pub struct QueueArguments {
    #[command(flatten)]
    fleet: FleetArguments,
}

/// Work to be simulated, and how its times are known.
struct Question {
    jobs: Vec<Job>,
    /// What each job is, for people.
    names: Vec<String>,
    load_seconds: f64,
    between_seconds: f64,
    /// Shards whose time rests on no measurement.
    unmeasured: usize,
}

pub async fn run(command: SimulateCommand, settings: &Settings) -> anyhow::Result<()> {
    let (question, fleet) = match command {
        SimulateCommand::Protocol(arguments) => (of_protocol(&arguments)?, arguments.fleet),
        SimulateCommand::Like(arguments) => {
            let pool = context::database(settings, 2).await?;
            (like(&pool, arguments.evaluation, arguments.images).await?, arguments.fleet)
        }
        SimulateCommand::Queue(arguments) => {
            let pool = context::database(settings, 2).await?;
            (of_queue(&pool).await?, arguments.fleet)
        }
    };
    answer(&question, &fleet)
}

fn of_protocol(arguments: &ProtocolArguments) -> anyhow::Result<Question> {
    ensure!(arguments.seconds_per_forward > 0.0, "--seconds-per-forward must be more than 0");
    ensure!(arguments.corruption_rate.is_none_or(|rate| rate > 0.0), "--corruption-rate must be more than 0");
    ensure!(arguments.input.len() == 3, "--input takes three sides: channels, height, width");
    let protocol = named_protocol(&arguments.protocol, &arguments.settings)?;
    let conditions = protocol.conditions(Some(arguments.preset.name()))?;
    let work = Workload {
        conditions: &conditions,
        model: Subject { classes: arguments.classes, stochastic: arguments.stochastic },
        seeds: &arguments.seeds,
        first: 0,
        images: arguments.images,
        image_bytes: arguments.input.iter().map(|&side| u64::from(side)).product(),
        seconds_per_forward: arguments.seconds_per_forward,
    };
    let rates = Rates { corrupted_per_second: arguments.corruption_rate, measured: Vec::new() };
    let (shards, unmeasured) = simulate::shards(&work, &rates);
    let job = Job { owner: String::new(), model: Uuid::nil(), priority: 0, shards };
    Ok(Question { jobs: vec![job], names: vec![protocol.name], load_seconds: 10.0, between_seconds: 0.05, unmeasured })
}

async fn like(pool: &PgPool, id: Uuid, images: Option<u32>) -> anyhow::Result<Question> {
    let evaluation = evaluations::get(pool, id).await?.with_context(|| format!("there is no evaluation {id}"))?;
    let history = History::of(&shards::timed(pool, id).await?);
    ensure!(history.shards > 0, "evaluation {id} has no committed shard yet: there is nothing to go by");
    let model = model(pool, &evaluation).await?;
    let first = evaluation.first_image as u32;
    let images = first..first + images.unwrap_or(evaluation.images as u32);
    let work = evaluations::workload(&model, &evaluation.conditions, &evaluation.seeds, images);
    let rates = Rates { corrupted_per_second: None, measured: history.per_image };
    let (shards, unmeasured) = simulate::shards(&work, &rates);
    Ok(Question {
        jobs: vec![job(&evaluation, shards)],
        names: vec![name(&evaluation, &model)],
        load_seconds: history.load_seconds,
        between_seconds: history.between_seconds,
        unmeasured,
    })
}

/// Every evaluation whose shards are cut and not all done, oldest first.
async fn of_queue(pool: &PgPool) -> anyhow::Result<Question> {
    let mut open = Vec::new();
    for state in [State::Queued, State::Running] {
        let filter = Filter { state: Some(state), ..Filter::default() };
        open.extend(evaluations::list(pool, &filter, None, 100_000).await?);
    }
    open.retain(|evaluation| evaluation.planned);
    open.sort_by_key(|evaluation| evaluation.created_at);
    let (mut loads, mut betweens) = (Vec::new(), Vec::new());
    let mut question =
        Question { jobs: Vec::new(), names: Vec::new(), load_seconds: 10.0, between_seconds: 0.05, unmeasured: 0 };
    for evaluation in open {
        let (history, model) =
            (History::of(&shards::timed(pool, evaluation.id).await?), model(pool, &evaluation).await?);
        if history.shards > 1 {
            loads.push(history.load_seconds);
            betweens.push(history.between_seconds);
        }
        let first = evaluation.first_image as u32;
        let images = first..first + evaluation.images as u32;
        let work = evaluations::workload(&model, &evaluation.conditions, &evaluation.seeds, images);
        let rates = Rates { corrupted_per_second: None, measured: history.per_image };
        let left = shards::left(pool, evaluation.id).await?;
        let left: Vec<(Vec<usize>, u32)> = left
            .into_iter()
            .map(|(conditions, images)| (conditions.iter().map(|&c| c as usize).collect(), images as u32))
            .collect();
        let (times, unmeasured) =
            simulate::times(&work, &rates, left.iter().map(|(group, images)| (&group[..], *images)));
        question.unmeasured += unmeasured;
        question.names.push(name(&evaluation, &model));
        question.jobs.push(job(&evaluation, times));
    }
    let mean = |of: &[f64]| (!of.is_empty()).then(|| of.iter().sum::<f64>() / of.len() as f64);
    question.load_seconds = mean(&loads).unwrap_or(question.load_seconds);
    question.between_seconds = mean(&betweens).unwrap_or(question.between_seconds);
    Ok(question)
}

async fn model(pool: &PgPool, evaluation: &Evaluation) -> anyhow::Result<Model> {
    models::get_even_deleted(pool, evaluation.model_id).await?.context("the evaluation's model is gone")
}

fn job(evaluation: &Evaluation, shards: Vec<f64>) -> Job {
    Job { owner: evaluation.owner.clone(), model: evaluation.model_id, priority: evaluation.priority, shards }
}

fn name(evaluation: &Evaluation, model: &Model) -> String {
    format!("{} {} {}", evaluation.id, model.name, evaluation.protocol.name)
}

#[derive(Serialize)]
struct Answer<'a> {
    workers: u32,
    devices: u32,
    seconds: f64,
    first_result_seconds: f64,
    device_hours: f64,
    utilisation: f64,
    cost: Option<f64>,
    evaluations: Vec<End<'a>>,
}

#[derive(Serialize)]
struct End<'a> {
    evaluation: &'a str,
    seconds: f64,
}

fn answer(question: &Question, arguments: &FleetArguments) -> anyhow::Result<()> {
    let load_seconds = arguments.load_seconds.unwrap_or(question.load_seconds);
    let between_seconds = arguments.between_seconds.unwrap_or(question.between_seconds);
    ensure!(load_seconds >= 0.0 && between_seconds >= 0.0, "times must not be negative");
    let of = |&workers: &u32| {
        let devices = arguments.devices.unwrap_or(workers).min(workers);
        let Forecast { seconds, first_result, ends, device_seconds, utilisation, .. } =
            simulate::simulate(&question.jobs, &Fleet { workers, devices, load_seconds, between_seconds });
        let evaluations =
            question.names.iter().zip(ends).map(|(evaluation, seconds)| End { evaluation, seconds }).collect();
        let device_hours = device_seconds / 3600.0;
        // Devices are paid for until the end, whether they are in use or not.
        let cost = arguments.price.map(|price| price * f64::from(devices) * seconds / 3600.0);
        Answer {
            workers,
            devices,
            seconds,
            first_result_seconds: first_result,
            device_hours,
            utilisation,
            cost,
            evaluations,
        }
    };
    let answers: Vec<Answer> = arguments.workers.iter().map(of).collect();
    let shards: usize = question.jobs.iter().map(|job| job.shards.len()).sum();
    if arguments.format == Format::Json {
        return show::print_json(&serde_json::json!({
            "shards": shards, "unmeasured_shards": question.unmeasured, "load_seconds": load_seconds,
            "between_seconds": between_seconds, "answers": answers,
        }));
    }
    let mut grid = show::grid(["workers", "devices", "time", "first result", "device hours", "in use", "cost"]);
    for answer in &answers {
        grid.add_row([
            answer.workers.to_string(),
            answer.devices.to_string(),
            duration(answer.seconds),
            duration(answer.first_result_seconds),
            format!("{:.1}", answer.device_hours),
            show::percent(answer.utilisation),
            answer.cost.map_or("–".into(), |cost| format!("{cost:.2}")),
        ]);
    }
    println!("{grid}");
    println!("{shards} shards; {load_seconds:.2} s to load a model, {between_seconds:.3} s between shards.");
    if question.unmeasured > 0 {
        println!("{} of them were not measured: what their passes take at most.", question.unmeasured);
    }
    if let [_, _, ..] = &question.jobs[..]
        && let Some(fewest) = answers.first()
    {
        println!("With {} worker(s):", fewest.workers);
        fewest.evaluations.iter().for_each(|end| println!("  {} after {}", end.evaluation, duration(end.seconds)));
    }
    Ok(())
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.1} s"),
        s if s < 7200.0 => format!("{:.1} min", s / 60.0),
        s if s < 48.0 * 3600.0 => format!("{:.1} h", s / 3600.0),
        s => format!("{:.1} days", s / 86400.0),
    }
}
