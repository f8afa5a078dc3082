//! Attacks against torchattacks in one run, and how much of its time the engine spends in the model.

mod engine;
mod rival;

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Args;
use serde_json::{Map, Value, json};

use super::{Cell, Report};
use crate::dataset::{Source, SourceOptions};
use crate::protocol::{Condition, ConditionKind, builtin};
use crate::robustness::runtime;
use engine::{Subject, Timed};
use rival::{Question, Rival};

/// The budgets of the PGD grid, by norm.
const GRID: [(&str, [f64; 4]); 2] = [("linf", [0.05, 0.1, 0.2, 0.3]), ("l2", [0.5, 1.0, 2.0, 3.0])];
const STEPS: u32 = 64;

#[derive(Debug, Args)]
pub struct AttackArguments {
    /// A folder with MNIST's test files and advertorch's lenet5_{cln,adv}.torchscript.pt.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// A Python with the packages that tools/bench/torchattacks.py names; without one, no rival runs.
    #[arg(long, requires = "data")]
    python: Option<PathBuf>,
    /// A TorchScript model of 3×32×32 images, as tools/bench/resnet18.py writes it, to measure the engine's efficiency on.
    #[arg(long, value_name = "FILE")]
    efficiency: Option<PathBuf>,
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
    ensure!(arguments.data.is_some() || arguments.efficiency.is_some(), "name --data or --efficiency");
    let runtime = runtime::initialise(arguments.threads)?;
    let mut summary = Map::new();
    let mut cells = Vec::new();
    if let Some(data) = &arguments.data {
        let images = Source::open(data, &SourceOptions::default())?
            .read(0..arguments.images as usize, &(std::sync::Arc::new(|_| {}) as crate::dataset::Progress))?;
        let mut rival = arguments.python.as_deref().map(|python| Rival::start(python, &images)).transpose()?;
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
    if let Some(file) = &arguments.efficiency {
        let subject = Subject::untrained(file, runtime)?;
        summary.insert("resnet18_profile".into(), json!(subject.profile));
        let conditions = engine::mixture()?;
        cells.extend(subject.time(&conditions)?.efficiency("resnet18/mixture"));
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
        let mine = subject.time(&conditions(&format!("pgd-{norm}"))?)?;
        cells.extend(mine.efficiency(&format!("{name}/pgd-{norm}")));
        summary.insert(format!("{name}_pgd_{norm}_standing"), json!(mine.standing));
        ours.add(&mine);
        let Some(rival) = rival.as_deref_mut() else { continue };
        let mut standing = Vec::new();
        for epsilon in budgets {
            let model = &subject.file;
            let answer = rival.ask(&Question { model, attack: "pgd", norm, epsilon, steps: STEPS })?;
            theirs.seconds += answer.seconds;
            theirs.cpu_seconds += answer.cpu_seconds;
            standing.push(answer.standing);
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
    let mine = subject.time(&conditions("autoattack-standard")?)?;
    cells.extend(mine.efficiency("adv/autoattack-standard"));
    summary.insert("adv_autoattack_standing".into(), json!(mine.standing));
    let Some(rival) = rival else { return Ok(()) };
    let question = Question { model: &subject.file, attack: "autoattack", norm: "linf", epsilon: 0.3, steps: 100 };
    let answer = rival.ask(&question)?;
    summary.insert("adv_autoattack_standing_rival".into(), json!(answer.standing));
    let theirs = Timed { seconds: answer.seconds, cpu_seconds: answer.cpu_seconds, ..Timed::default() };
    compare("adv/autoattack-standard", &mine, &theirs, true, cells, summary);
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

fn canonical(path: &Path) -> anyhow::Result<PathBuf> {
    path.canonicalize().with_context(|| path.display().to_string())
}
