//! Tables a person likes to read.

use clap::ValueEnum;
use comfy_table::{CellAlignment, Table as Grid, presets};

use crate::protocol::corruption::Corruptions;
use crate::protocol::render;
use crate::protocol::report::{Row, Table};

/// How a command prints its result.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    #[default]
    Table,
    Json,
}

pub fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

/// An empty grid with this header.
pub fn grid<const N: usize>(header: [&str; N]) -> Grid {
    let mut grid = Grid::new();
    grid.load_style(presets::UTF8_BORDERS_ONLY);
    grid.set_header(header);
    grid
}

pub fn percent(fraction: f64) -> String {
    format!("{:.1} %", fraction * 100.0)
}

/// An evaluation's table with its columns and findings.
pub fn table(table: &Table) -> String {
    let mut grid = grid(["condition", "accuracy", "95 % interval", "n", "broken by", "passes per image"]);
    for row in &table.conditions {
        grid.add_row([
            row.condition.id.clone(),
            accuracy(row),
            row.ci95.map_or("–".into(), |[low, high]| format!("{:.1} – {:.1} %", low * 100.0, high * 100.0)),
            row.n.to_string(),
            row.stages.iter().map(|s| format!("{} {}", s.attack, s.broken)).collect::<Vec<_>>().join(", "),
            format!("{:.0} + {:.0}", row.forwards_per_image, row.backwards_per_image),
        ]);
    }
    for column in [1, 2, 3, 5] {
        if let Some(column) = grid.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let summary: Vec<String> = render::columns(&table.columns)
        .into_iter()
        .map(|(name, value)| format!("{} {}", name.replace('_', " "), percent(value)))
        .collect();
    let mut text = format!("{grid}\n{}\n", summary.join("   "));
    let distances = render::distances(table);
    if !distances.is_empty() {
        text += &format!("{}\n", smallest(distances));
    }
    if let Some(corruptions) = &table.columns.corruptions {
        text += &format!("{}\n", corruption_means(corruptions));
    }
    for note in render::unofficial(table) {
        text += &format!("{note}\n");
    }
    if !table.complete {
        text += "Incomplete: the evaluation has not finished.\n";
    }
    text += &format!("Grade: {}\n", render::grade(table));
    for finding in &table.diagnostics.findings {
        text += &format!("! {} ({}): {}\n", finding.code, render::weight(finding), finding.sentence);
    }
    text
}

fn smallest(distances: Vec<(&str, [String; 3])>) -> Grid {
    let mut grid = grid(["smallest perturbation", "first quartile", "median", "third quartile"]);
    for (id, [first, median, third]) in distances {
        grid.add_row([id, &first, &median, &third]);
    }
    for column in [1, 2, 3] {
        if let Some(column) = grid.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    grid
}

fn corruption_means(corruptions: &Corruptions) -> Grid {
    let mut grid = grid(["corruptions", "accuracy", "95 % interval"]);
    for (name, accuracy, [low, high]) in render::means(corruptions) {
        grid.add_row([name, percent(accuracy), format!("{:.1} – {:.1} %", low * 100.0, high * 100.0)]);
    }
    for column in [1, 2] {
        if let Some(column) = grid.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    grid
}

fn accuracy(row: &Row) -> String {
    match (row.accuracy, row.sd) {
        (None, _) => "–".into(),
        (Some(a), None) => percent(a),
        (Some(a), Some(sd)) => format!("{:.1} ± {:.1} %", a * 100.0, sd * 100.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Pictures;
    use crate::protocol::render::tests::corrupted;

    #[test]
    fn the_terminals_table_has_cells_columns_means_and_what_is_not_official() {
        let text = table(&corrupted(Pictures::Procedural, "saved"));
        let line = |start: &str| {
            let words = |line: &str| line.split_whitespace().filter(|w| *w != "│").collect::<Vec<_>>().join(" ");
            text.lines()
                .map(words)
                .find(|line| line.starts_with(start))
                .unwrap_or_else(|| panic!("no {start} in {text}"))
        };
        assert_eq!(line("fog-5-saved"), "fog-5-saved 0.0 % 0.0 – 3.7 % 100 0 + 0");
        assert_eq!(line("corruption 84.0"), "corruption 84.0 % clean 90.0 % corruption error 16.0 %");
        assert_eq!(line("weather (group)"), "weather (group) 67.5 % 57.8 – 75.9 %");
        assert_eq!(line("elastic transform"), "elastic transform 90.0 % 82.6 – 94.5 %");
        assert!(line("In no official aggregate: 5 conditions").contains("frost-proc"));
    }
}
