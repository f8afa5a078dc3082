//! Models with random weights, at budgets so small that every image stands: what attacks cost and where the time goes, on a CPU or a GPU.

use serde_json::{Map, Value, json};

use super::super::Cell;
use super::compare;
use super::engine::{Subject, Timed};
use super::rival::{Question, Rival};
use crate::protocol::{Condition, Device, Precision, Protocol};

const GRID_STEPS: u32 = 16;
const CASCADE_STEPS: u32 = 10;
const QUERIES: u32 = 100;
/// Budgets in L∞ and L2.
const GRID: [(&str, [f64; 4]); 2] = [("linf", [1e-6, 2e-6, 3e-6, 4e-6]), ("l2", [1e-5, 2e-5, 3e-5, 4e-5])];

/// Efficiency in every precision that the device has a use for, and the same attacks as torchattacks runs them.
pub fn measure(
    name: &str,
    subject: &Subject,
    rival: Option<&mut Rival>,
    cells: &mut Vec<Cell>,
    summary: &mut Map<String, Value>,
) -> anyhow::Result<()> {
    let precisions: &[Precision] = match subject.profile.platform.device {
        Device::Cpu => &[Precision::Float32],
        Device::Cuda => &[Precision::Float32, Precision::Tf32, Precision::Bfloat16],
    };
    for precision in precisions {
        let word = word(*precision);
        let mine = subject.time(&mixture(word)?, *precision)?;
        cells.extend(mine.efficiency(&format!("{name}/mixture/{word}")));
    }
    let Some(rival) = rival else { return Ok(()) };
    // The rival has no bfloat16: its fastest is what PyTorch does unless told otherwise, TF32 in convolutions.
    let mut theirs: Vec<(bool, Timed)> = Vec::new();
    for precision in precisions {
        let reduced = *precision != Precision::Float32;
        if theirs.iter().all(|(known, _)| *known != reduced) {
            theirs.push((reduced, grid_of_rival(subject, rival, reduced, summary, name)?));
        }
        let word = word(*precision);
        let mut ours = Timed::default();
        for (norm, budgets) in GRID {
            let mine = subject.time(&ladder(norm, budgets, word)?, *precision)?;
            summary.insert(format!("{name}_pgd_{norm}_{word}_standing"), json!(mine.standing));
            ours.add(&mine);
        }
        let (_, theirs) = theirs.iter().find(|(known, _)| *known == reduced).expect("measured above");
        cells.extend(ours.efficiency(&format!("{name}/pgd-grid/{word}")));
        compare(&format!("{name}/pgd-grid/{word}"), &ours, theirs, true, cells, summary);
    }
    let fastest = *precisions.last().expect("there is one");
    let mine = subject.time(&cascade(word(fastest))?, fastest)?;
    let id = format!("{name}/autoattack/{}", word(fastest));
    cells.extend(mine.efficiency(&id));
    summary.insert(format!("{name}_autoattack_standing"), json!(mine.standing));
    let question = Question {
        model: &subject.file,
        attack: "autoattack",
        norm: "linf",
        epsilon: GRID[0].1[0],
        steps: CASCADE_STEPS,
        queries: QUERIES,
        reduced: fastest != Precision::Float32,
    };
    let answer = rival.ask(&question)?;
    summary.insert(format!("{name}_autoattack_standing_rival"), json!(answer.standing));
    compare(&id, &mine, &answer.into(), true, cells, summary);
    Ok(())
}

fn grid_of_rival(
    subject: &Subject,
    rival: &mut Rival,
    reduced: bool,
    summary: &mut Map<String, Value>,
    name: &str,
) -> anyhow::Result<Timed> {
    let mut theirs = Timed::default();
    for (norm, budgets) in GRID {
        let mut standing = Vec::new();
        for epsilon in budgets {
            let model = &subject.file;
            let (steps, queries) = (GRID_STEPS, 0);
            let answer = rival.ask(&Question { model, attack: "pgd", norm, epsilon, steps, queries, reduced })?;
            standing.push(answer.standing);
            theirs.add(&answer.into());
        }
        summary.insert(format!("{name}_pgd_{norm}_standing_rival"), json!(standing));
    }
    Ok(theirs)
}

fn word(precision: Precision) -> &'static str {
    match precision {
        Precision::Float32 => "float32",
        Precision::Tf32 => "tf32",
        Precision::Bfloat16 => "bfloat16",
    }
}

/// Gradient steps and random search.
fn mixture(precision: &str) -> anyhow::Result<Vec<Condition>> {
    block(&format!(
        r#"
            norm = "linf"
            epsilon = [0.000001]
            cascade = [{{ attack = "apgd-ce", steps = 8 }}, {{ attack = "square", queries = 16 }}]
            search_precision = "{precision}"
        "#
    ))
}

fn ladder(norm: &str, budgets: [f64; 4], precision: &str) -> anyhow::Result<Vec<Condition>> {
    block(&format!(
        r#"
            attack = "pgd"
            norm = "{norm}"
            epsilon = {budgets:?}
            steps = {GRID_STEPS}
            step_size = {{ of_epsilon = 0.25 }}
            random_start = false
            search_precision = "{precision}"
        "#
    ))
}

fn cascade(precision: &str) -> anyhow::Result<Vec<Condition>> {
    block(&format!(
        r#"
            norm = "linf"
            epsilon = [0.000001]
            cascade = ["apgd-ce", "apgd-t", "fab-t", "square"]
            steps = {CASCADE_STEPS}
            queries = {QUERIES}
            search_precision = "{precision}"
        "#
    ))
}

fn block(block: &str) -> anyhow::Result<Vec<Condition>> {
    let text =
        format!("name = \"untrained\"\nversion = 1\naggregate = \"none\"\n[[attack]]\nlabel = \"untrained\"\n{block}");
    Ok(Protocol::from_toml(&text, &[])?.conditions(None)?)
}
