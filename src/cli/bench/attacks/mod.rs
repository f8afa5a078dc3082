//! Attacks against torchattacks in one run, and how much of its time the engine spends in the model.

mod engine;
mod rival;
mod untrained;

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};

use super::{Cell, Report};
use crate::dataset::{Shape, Source, SourceOptions};
use crate::protocol::{Condition, ConditionKind, Device, Precision, builtin};
use crate::robustness::runtime;
use engine::{Subject, Timed};
use rival::{Answer, Question, Rival};

/// The budgets of the PGD grid, by norm.
const GRID: [(&str, [f64; 4]); 2] = [("linf", [0.05, 0.1, 0.2, 0.3]), ("l2", [0.5, 1.0, 2.0, 3.0])];
const STEPS: u32 = 64;

#[derive(Debug, Args)]
pub struct AttackArguments {
    /// A folder with MNIST's test files and advertorch's lenet5_{cln,adv}.torchscript.pt.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// A Python with the packages that tools/bench/torchattacks.py names; without one, no rival runs.
    #[arg(long)]
    python: Option<PathBuf>,
    /// A TorchScript model of colour images, as tools/bench/resnet.py writes it, whose weights do not matter.
    #[arg(long, value_name = "FILE")]
    untrained: Option<PathBuf>,
    /// Height and width of that model's images.
    #[arg(long, default_value_t = 32)]
    side: u32,
    /// Classes of that model.
    #[arg(long, default_value_t = 10)]
    classes: u32,
    /// Where that model runs, on both sides.
    #[arg(long, value_enum, default_value = "cpu")]
    device: Processor,
    /// Leave AutoAttack out, which takes minutes.
    #[arg(long)]
    quick: bool,
    /// CPU threads of both sides.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: u32,
    /// Test images.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    images: u32,
    #[arg(long)]
    pub json: bool,
}

pub fn run(arguments: &AttackArguments) -> anyhow::Result<Report> {
    ensure!(arguments.data.is_some() || arguments.untrained.is_some(), "name --data or --untrained");
    let runtime = runtime::initialise(arguments.threads)?;
    let mut summary = Map::new();
    let mut cells = Vec::new();
    if let Some(data) = &arguments.data {
        let images = Source::open(data, &SourceOptions::default())?
            .read(0..arguments.images as usize, &(std::sync::Arc::new(|_| {}) as crate::dataset::Progress))?;
        let mut rival =
            arguments.python.as_deref().map(|python| Rival::start(python, &images, Device::Cpu)).transpose()?;
        for name in ["cln", "adv"] {
            let subject = Subject::lenet(&data.join(format!("lenet5_{name}.torchscript.pt")), &images, runtime)?;
            summary.insert(format!("{name}_profile"), json!(subject.profile));
            grid(name, &subject, rival.as_mut(), &mut cells, &mut summary)?;
            if name == "adv" && !arguments.quick {
                autoattack(&subject, rival.as_mut(), &mut cells, &mut summary)?;
            }
        }
        if let Some(rival) = &rival {
            summary.insert("rival".into(), rival.versions.clone());
        }
    }
    if let Some(file) = &arguments.untrained {
        let shape = Shape { channels: 3, height: arguments.side, width: arguments.side };
        let device = arguments.device.into();
        let subject = Subject::untrained(file, shape, arguments.classes, arguments.images, device, runtime)?;
        let name = file.file_stem().map_or_else(|| "untrained".into(), |name| name.to_string_lossy());
        summary.insert(format!("{name}_profile"), json!(subject.profile));
        let python = arguments.python.as_deref();
        let mut rival = python.map(|python| Rival::start(python, &subject.batch(shape), device)).transpose()?;
        untrained::measure(&name, &subject, rival.as_mut(), &mut cells, &mut summary)?;
        if let Some(rival) = &rival {
            summary.insert("rival".into(), rival.versions.clone());
        }
    }
    summary.insert("threads".into(), json!(runtime.threads));
    summary.insert("optimised_build".into(), json!(!cfg!(debug_assertions)));
    Ok(Report { bench: "attacks", cells, summary })
}

/// Conditions of a built-in protocol on MNIST, clean ones left out.
fn conditions(protocol: &str) -> anyhow::Result<Vec<Condition>> {
    let all = builtin(protocol).context("a built-in protocol")?.conditions(Some("mnist"))?;
    Ok(all.into_iter().filter(|condition| matches!(condition.kind, ConditionKind::Attack(_))).collect())
}

/// The ladders of both norms against the rival's PGD at every budget, by turns.
fn grid(
    name: &str,
    subject: &Subject,
    mut rival: Option<&mut Rival>,
    cells: &mut Vec<Cell>,
    summary: &mut Map<String, Value>,
) -> anyhow::Result<()> {
    let (mut ours, mut theirs) = (Timed::default(), Timed::default());
    for (norm, budgets) in GRID {
        let mine = subject.time(&conditions(&format!("pgd-{norm}"))?, Precision::Float32)?;
        cells.extend(mine.efficiency(&format!("{name}/pgd-{norm}")));
        summary.insert(format!("{name}_pgd_{norm}_standing"), json!(mine.standing));
        ours.add(&mine);
        let Some(rival) = rival.as_deref_mut() else { continue };
        let mut standing = Vec::new();
        for epsilon in budgets {
            let model = &subject.file;
            let (steps, queries, reduced) = (STEPS, 0, false);
            let answer = rival.ask(&Question { model, attack: "pgd", norm, epsilon, steps, queries, reduced })?;
            standing.push(answer.standing);
            theirs.add(&answer.into());
        }
        summary.insert(format!("{name}_pgd_{norm}_standing_rival"), json!(standing));
    }
    compare(&format!("{name}/pgd-grid"), &ours, &theirs, rival.is_some(), cells, summary);
    Ok(())
}

fn autoattack(
    subject: &Subject,
    rival: Option<&mut Rival>,
    cells: &mut Vec<Cell>,
    summary: &mut Map<String, Value>,
) -> anyhow::Result<()> {
    let mine = subject.time(&conditions("autoattack-standard")?, Precision::Float32)?;
    cells.extend(mine.efficiency("adv/autoattack-standard"));
    summary.insert("adv_autoattack_standing".into(), json!(mine.standing));
    let Some(rival) = rival else { return Ok(()) };
    let question = Question {
        model: &subject.file,
        attack: "autoattack",
        norm: "linf",
        epsilon: 0.3,
        steps: 100,
        queries: 5000,
        reduced: false,
    };
    let answer = rival.ask(&question)?;
    summary.insert("adv_autoattack_standing_rival".into(), json!(answer.standing));
    compare("adv/autoattack-standard", &mine, &answer.into(), true, cells, summary);
    Ok(())
}

/// How many times faster, by the clock on the wall and by processor time, which other work on the machine stretches less.
fn compare(
    id: &str,
    ours: &Timed,
    theirs: &Timed,
    both: bool,
    cells: &mut Vec<Cell>,
    summary: &mut Map<String, Value>,
) {
    if both {
        cells.push(Cell::speedup(id, ours.seconds, "s", theirs.seconds));
        cells.push(Cell::speedup(format!("{id}/cpu"), ours.cpu_seconds, "s", theirs.cpu_seconds));
    } else {
        summary.insert(format!("{id}_seconds"), json!(ours.seconds));
    }
}

/// Where a model runs.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Processor {
    Cpu,
    Cuda,
}

impl From<Processor> for Device {
    fn from(processor: Processor) -> Self {
        match processor {
            Processor::Cpu => Self::Cpu,
            Processor::Cuda => Self::Cuda,
        }
    }
}

impl From<Answer> for Timed {
    fn from(answer: Answer) -> Self {
        Self { seconds: answer.seconds, cpu_seconds: answer.cpu_seconds, ..Self::default() }
    }
}

fn canonical(path: &Path) -> anyhow::Result<PathBuf> {
    path.canonicalize().with_context(|| path.display().to_string())
}
