//! What a second look at the evidence found.

use std::fmt;

use serde::Serialize;
use uuid::Uuid;

use crate::cli::show::percent;

#[derive(Debug, Serialize)]
pub struct Report {
    evaluation: Uuid,
    stochastic: bool,
    /// Cells of the table (condition × seed), and how many say what their verdicts add up to.
    pub cells: u64,
    pub cells_equal: u64,
    /// Stored witnesses examined, and how many prove their verdict.
    pub witnesses: u64,
    pub witnesses_confirmed: u64,
    /// Verdicts reached a second time, and how many came out the same in every field.
    pub regenerated: u64,
    pub regenerated_equal: u64,
    /// What is wrong with the model's or dataset's bytes, or with the table.
    pub problems: Vec<String>,
    /// The first hundred.
    disagreements: Vec<Disagreement>,
}

#[derive(Debug, Serialize)]
struct Disagreement {
    condition: String,
    seed: i64,
    image: u32,
    problem: String,
}

const MOST_DISAGREEMENTS: usize = 100;

impl Report {
    pub fn new(evaluation: Uuid, stochastic: bool) -> Self {
        Self {
            evaluation,
            stochastic,
            cells: 0,
            cells_equal: 0,
            witnesses: 0,
            witnesses_confirmed: 0,
            regenerated: 0,
            regenerated_equal: 0,
            problems: Vec::new(),
            disagreements: Vec::new(),
        }
    }

    pub fn disagree(&mut self, condition: &str, seed: i64, image: u32, problem: String) {
        if self.disagreements.len() < MOST_DISAGREEMENTS {
            self.disagreements.push(Disagreement { condition: condition.into(), seed, image, problem });
        }
    }

    /// Whether the evidence holds. A stochastic model may disagree with itself: there the rates are the result.
    pub fn holds(&self) -> bool {
        let repeated = self.witnesses == self.witnesses_confirmed && self.regenerated == self.regenerated_equal;
        self.problems.is_empty() && (repeated || self.stochastic)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Cells of the table: {}, equal to their verdicts: {}", self.cells, self.cells_equal)?;
        writeln!(f, "Stored witnesses examined: {}, confirmed: {}", self.witnesses, self.witnesses_confirmed)?;
        writeln!(f, "Verdicts regenerated: {}, equal: {}", self.regenerated, self.regenerated_equal)?;
        if self.stochastic {
            let rate = |part: u64, of: u64| if of == 0 { "–".into() } else { percent(part as f64 / of as f64) };
            writeln!(
                f,
                "The model is stochastic; agreement rates: witnesses {}, verdicts {}",
                rate(self.witnesses_confirmed, self.witnesses),
                rate(self.regenerated_equal, self.regenerated)
            )?;
        }
        for problem in &self.problems {
            writeln!(f, "! {problem}")?;
        }
        for d in &self.disagreements {
            writeln!(f, "! {} seed {} image {}: {}", d.condition, d.seed, d.image, d.problem)?;
        }
        match (self.holds(), self.witnesses + self.regenerated) {
            (false, _) => Ok(()),
            (true, 0) => writeln!(f, "The table agrees with its verdicts; no attack's success was examined again."),
            (true, _) => writeln!(f, "Everything agrees."),
        }
    }
}
