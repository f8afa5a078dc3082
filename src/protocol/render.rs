//! Tables as CSV, Markdown and LaTeX. The columns are stable: new ones are added at the end.

use serde_json::{Value, json};

use super::condition::{Condition, ConditionKind};
use super::corruption::{Corruptions, Label, Mode, Table as Parameters};
use super::finding::{Finding, Weight};
use super::minimal::Minimal;
use super::report::{Columns, Row, Table};

/// Columns of the CSV table.
const CSV_COLUMNS: [&str; 24] = [
    "evaluation",
    "condition",
    "kind",
    "attack",
    "norm",
    "epsilon",
    "type",
    "severity",
    "n",
    "correct",
    "accuracy",
    "ci95_low",
    "ci95_high",
    "sd",
    "forwards_per_image",
    "backwards_per_image",
    "table",
    "mode",
    "labels",
    "text",
    "first_quartile",
    "median",
    "third_quartile",
    "queries",
];

/// One line per condition, after one without a budget its curve (kind `curve`, accuracy at each ε), then one of kind `summary`
/// per column that has a value, then the means by group (`corruption_group`) and type (`corruption_type`) of corruptions, the `grade`, and a line per `finding` with its sentence.
pub fn csv(table: &Table) -> String {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let write = |writer: &mut csv::Writer<Vec<u8>>, fields: Vec<String>| {
        writer.write_record(fields).expect("writing to memory cannot fail");
    };
    write(&mut writer, CSV_COLUMNS.map(str::to_owned).to_vec());
    for row in &table.conditions {
        let condition = serde_json::to_value(&row.condition).expect("a condition is plain data");
        let parameter = |key: &str| condition.get(key).map(plain).unwrap_or_default();
        let mut fields = vec![table.evaluation.clone(), row.condition.id.clone()];
        fields.extend(["kind", "attack", "norm", "epsilon", "type", "severity"].map(parameter));
        fields.extend([row.n.to_string(), row.correct.to_string(), number(row.accuracy)]);
        fields.extend([number(row.ci95.map(|c| c[0])), number(row.ci95.map(|c| c[1])), number(row.sd)]);
        fields.extend([row.forwards_per_image.to_string(), row.backwards_per_image.to_string()]);
        fields.extend(["table", "mode"].map(parameter));
        fields.push(labels(&row.condition).map(|label| plain(&json!(label))).collect::<Vec<_>>().join(" "));
        fields.push(String::new());
        let minimal = row.minimal.as_ref();
        let size = |of: fn(&Minimal) -> Option<f64>| {
            minimal.map_or(String::new(), |m| of(m).map_or("inf".into(), |size| size.to_string()))
        };
        fields.extend([size(|m| m.quartiles[0]), size(|m| m.median), size(|m| m.quartiles[1]), parameter("queries")]);
        write(&mut writer, fields);
        for point in minimal.iter().flat_map(|minimal| &minimal.curve) {
            let mut fields = vec![String::new(); CSV_COLUMNS.len()];
            (fields[0], fields[1], fields[2]) = (table.evaluation.clone(), row.condition.id.clone(), "curve".into());
            (fields[3], fields[4], fields[5]) = (parameter("attack"), parameter("norm"), point.epsilon.to_string());
            fields[8] = row.n.to_string();
            (fields[10], fields[11], fields[12]) =
                (point.accuracy.to_string(), point.ci95[0].to_string(), point.ci95[1].to_string());
            write(&mut writer, fields);
        }
    }
    let mut summary = |kind: &str, name: &str, value: f64, ci95: Option<[f64; 2]>| {
        let mut fields = vec![String::new(); CSV_COLUMNS.len()];
        (fields[0], fields[1], fields[2]) = (table.evaluation.clone(), name.into(), kind.into());
        fields[10] = value.to_string();
        (fields[11], fields[12]) = (number(ci95.map(|c| c[0])), number(ci95.map(|c| c[1])));
        if kind == "corruption_type" {
            fields[6] = name.into();
        }
        write(&mut writer, fields);
    };
    for (name, value) in columns(&table.columns) {
        summary("summary", name, value, None);
    }
    if let Some(corruptions) = &table.columns.corruptions {
        for g in &corruptions.groups {
            summary("corruption_group", g.group.name(), g.accuracy, Some(g.ci95));
        }
        for t in &corruptions.types {
            summary("corruption_type", t.corruption.name(), t.accuracy, Some(t.ci95));
        }
    }
    let mut said = |kind: &str, name: &str, text: &str| {
        let mut fields = vec![String::new(); CSV_COLUMNS.len()];
        (fields[0], fields[1], fields[2], fields[19]) =
            (table.evaluation.clone(), name.into(), kind.into(), text.into());
        write(&mut writer, fields);
    };
    said("grade", table.diagnostics.grade.name(), "");
    for finding in &table.diagnostics.findings {
        said("finding", &finding.code, &finding.sentence);
    }
    String::from_utf8(writer.into_inner().expect("writing to memory cannot fail")).expect("the fields are UTF-8")
}

/// A table in GitHub's dialect, the summary columns, and every finding.
pub fn markdown(table: &Table) -> String {
    let mut text = String::from("| condition | n | accuracy (%) | 95 % interval |\n|---|--:|--:|---|\n");
    for row in &table.conditions {
        let interval = row.ci95.map_or("–".into(), |[low, high]| format!("{} – {}", percent(low), percent(high)));
        let id = row.condition.id.replace('|', "\\|");
        text += &format!("| {id} | {} | {} | {interval} |\n", row.n, accuracy(row, " ± "));
    }
    let columns = columns(&table.columns);
    if !columns.is_empty() {
        let join = |f: fn(&(&'static str, f64)) -> String| columns.iter().map(f).collect::<Vec<_>>().join(" | ");
        let rule = vec!["--:"; columns.len()].join("|");
        text += &format!("\n| {} |\n|{rule}|\n| {} |\n", join(|c| c.0.replace('_', " ")), join(|c| percent(c.1)));
    }
    if let Some(corruptions) = &table.columns.corruptions {
        text += "\n| corruptions | accuracy (%) | 95 % interval |\n|---|--:|---|\n";
        for (name, accuracy, [low, high]) in means(corruptions) {
            text += &format!("| {name} | {} | {} – {} |\n", percent(accuracy), percent(low), percent(high));
        }
    }
    let distances = distances(table);
    if !distances.is_empty() {
        text += "\n| smallest perturbation | first quartile | median | third quartile |\n|---|--:|--:|--:|\n";
        for (id, [first, median, third]) in distances {
            text += &format!("| {} | {first} | {median} | {third} |\n", id.replace('|', "\\|"));
        }
    }
    for note in unofficial(table) {
        text += &format!("\n{note}\n");
    }
    text += &format!("\nGrade: **{}**\n", grade(table));
    for finding in &table.diagnostics.findings {
        text += &format!("\n> **{}** ({}): {}\n", finding.code, weight(finding), finding.sentence);
    }
    if !table.complete {
        text += "\nIncomplete: verdicts are still missing.\n";
    }
    text
}

/// A `tabular` for the booktabs package, and one of distances where there are conditions without a budget.
pub fn latex(table: &Table) -> String {
    let mut text = String::new();
    if !table.complete {
        text += "% Incomplete: verdicts are still missing.\n";
    }
    text += &format!("% Grade: {}.\n", grade(table));
    text += "\\begin{tabular}{lrrl}\n\\toprule\n";
    text += "Condition & $n$ & Accuracy (\\%) & 95\\,\\% interval \\\\\n\\midrule\n";
    for row in &table.conditions {
        let interval = row.ci95.map_or("--".into(), |[low, high]| format!("{}--{}", percent(low), percent(high)));
        let id = escape_latex(&row.condition.id);
        text += &format!("{id} & {} & {} & {interval} \\\\\n", row.n, accuracy(row, " $\\pm$ "));
    }
    let columns = columns(&table.columns);
    if !columns.is_empty() {
        text += "\\midrule\n";
    }
    for (name, value) in columns {
        text += &format!("{} & & {} & \\\\\n", name.replace('_', " "), percent(value));
    }
    if let Some(corruptions) = &table.columns.corruptions {
        text += "\\midrule\n";
        for (name, accuracy, [low, high]) in means(corruptions) {
            text += &format!("{name} & & {} & {}--{} \\\\\n", percent(accuracy), percent(low), percent(high));
        }
    }
    text += "\\bottomrule\n\\end{tabular}\n";
    let distances = distances(table);
    if !distances.is_empty() {
        text += "\n\\begin{tabular}{lrrr}\n\\toprule\n";
        text += "Smallest perturbation & First quartile & Median & Third quartile \\\\\n\\midrule\n";
        for (id, sizes) in distances {
            let [first, median, third] = sizes.map(|size| size.replace('∞', "$\\infty$"));
            text += &format!("{} & {first} & {median} & {third} \\\\\n", escape_latex(id));
        }
        text += "\\bottomrule\n\\end{tabular}\n";
    }
    text
}

fn accuracy(row: &Row, plus_minus: &str) -> String {
    match (row.accuracy, row.sd) {
        (None, _) => "–".into(),
        (Some(a), None) => percent(a),
        (Some(a), Some(sd)) => format!("{}{plus_minus}{}", percent(a), percent(sd)),
    }
}

/// The summary columns that have a value, widest mean first.
pub fn columns(columns: &Columns) -> Vec<(&'static str, f64)> {
    let all = [
        ("overall_mean", columns.overall_mean),
        ("perturbation_mean", columns.perturbation_mean),
        ("white_box", columns.white_box),
        ("corruption", columns.corruption),
        ("clean", columns.clean),
        ("corruption_error", columns.corruption_error),
        ("mce", columns.mce),
        ("relative_mce", columns.relative_mce),
    ];
    all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

/// Per condition without a budget: first quartile, median and third quartile of the distances, as text.
pub fn distances(table: &Table) -> Vec<(&str, [String; 3])> {
    let text = |value: Option<f64>| value.map_or("∞".to_owned(), |v| format!("{v:.4}"));
    let of = |row: &'_ Row| {
        let minimal = row.minimal.as_ref()?;
        Some([minimal.quartiles[0], minimal.median, minimal.quartiles[1]].map(text))
    };
    table.conditions.iter().filter_map(|row| Some((row.condition.id.as_str(), of(row)?))).collect()
}

/// Name, accuracy and interval of every group, then of every type.
pub fn means(corruptions: &Corruptions) -> impl Iterator<Item = (String, f64, [f64; 2])> + '_ {
    let groups = corruptions.groups.iter().map(|g| (format!("{} (group)", g.group.name()), g.accuracy, g.ci95));
    groups.chain(corruptions.types.iter().map(|t| (t.corruption.name().replace('_', " "), t.accuracy, t.ci95)))
}

/// A sentence per reason that keeps figures out of official aggregates.
pub fn unofficial(table: &Table) -> Vec<String> {
    let all = [
        (
            Label::UnofficialSize,
            "unofficial-size",
            "grey images, or not of the size that their parameters are meant for",
        ),
        (Label::OtherDataset, "other-dataset", "their parameters were published for another dataset"),
        (Label::FrostProc, "frost-proc", "frost computed for want of the published pictures"),
        (Label::FrostCustom, "frost-custom", "frost from other than the published pictures"),
    ];
    let count = |label| table.conditions.iter().filter(|row| labels(&row.condition).any(|l| *l == label)).count();
    let note = |(label, name, why)| match count(label) {
        0 => None,
        n => Some(format!("In no official aggregate: {n} conditions labelled {name} ({why}).")),
    };
    let in_memory = |row: &Row| match &row.condition.kind {
        ConditionKind::Corruption(c) => c.mode == Mode::InMemory && c.table == Parameters::Px224,
        _ => false,
    };
    let official = table.columns.corruptions.as_ref().is_some_and(|corruptions| corruptions.official);
    let unsaved = official && table.conditions.iter().any(in_memory);
    let unsaved = unsaved.then(|| {
        "No mCE and no VOneNet means: those are of the published files, or of images saved like them (mode = \"saved\")."
            .to_owned()
    });
    all.into_iter().filter_map(note).chain(unsaved).collect()
}

fn labels(condition: &Condition) -> impl Iterator<Item = &Label> {
    let corruption = match &condition.kind {
        ConditionKind::Corruption(corruption) => Some(corruption),
        _ => None,
    };
    corruption.into_iter().flat_map(|corruption| &corruption.labels)
}

/// The grade in words.
pub fn grade(table: &Table) -> String {
    table.diagnostics.grade.name().replace('_', " ")
}

/// What a finding does to the grade, in a word.
pub fn weight(finding: &Finding) -> &'static str {
    match finding.weight {
        Weight::Note => "note",
        Weight::Suspicious => "suspicious",
        Weight::Unreliable => "unreliable",
    }
}

fn percent(fraction: f64) -> String {
    format!("{:.1}", fraction * 100.0)
}

fn number(value: Option<f64>) -> String {
    value.map_or(String::new(), |v| v.to_string())
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn escape_latex(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => escaped.extend(['\\', c]),
            '\\' => escaped.push_str("\\textbackslash{}"),
            '~' => escaped.push_str("\\textasciitilde{}"),
            '^' => escaped.push_str("\\textasciicircum{}"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
pub mod tests {
    use super::super::corruption::{Corruption, Pictures, Scene, alexnet};
    use super::super::report::{Broken, Tally, columns, row};
    use super::super::stats::wilson95;
    use super::super::{Aggregate, Diagnostics, Grade, Protocol, SecondOpinion, builtin};
    use super::*;

    fn table() -> Table {
        let conditions = builtin("pgd-linf").unwrap().conditions(Some("mnist")).unwrap();
        let tally = |correct| Tally { n: 1000, correct, ..Tally::default() };
        let rows = vec![
            row(&conditions[0], &[(0, tally(990)), (1, tally(990))]),
            row(&conditions[4], &[(0, tally(919)), (1, tally(921))]),
            row(&conditions[3], &[]),
        ];
        Table {
            evaluation: "e1".into(),
            complete: false,
            columns: columns(&rows[..2], Aggregate::None),
            conditions: rows,
            diagnostics: Diagnostics {
                grade: Grade::Suspicious,
                findings: vec![Finding::new("odd", Weight::Suspicious, "It is odd.", Value::Null)],
                second_opinion: SecondOpinion::default(),
            },
            provenance: Value::Null,
        }
    }

    /// `imagenet-c`, saved, of 224-pixel images: every fog image wrong, of the others 90 of 100 right.
    pub fn corrupted(pictures: Pictures, mode: &str) -> Table {
        let document = serde_json::to_value(builtin("imagenet-c").unwrap()).unwrap();
        let protocol = Protocol::from_value(document, &[("mode".into(), mode.into())]).unwrap();
        let conditions = protocol.conditions_for(&Scene::new(Some("imagenet"), [3, 224, 224], pictures)).unwrap();
        let correct = |c: &Condition| if c.id.starts_with("fog") { 0 } else { 90 };
        let tally = |c| Tally { n: 100, correct: correct(c), ..Tally::default() };
        let rows: Vec<Row> = conditions.iter().map(|c| row(c, &[(0, tally(c))])).collect();
        Table {
            evaluation: "e2".into(),
            complete: true,
            columns: columns(&rows, Aggregate::ImagenetC),
            conditions: rows,
            diagnostics: Diagnostics {
                grade: Grade::Trustworthy,
                findings: Vec::new(),
                second_opinion: SecondOpinion::default(),
            },
            provenance: Value::Null,
        }
    }

    /// The mean over 14 × 5 cells of 0.9 and 5 of 0.
    const MEAN: f64 = 0.84;

    #[test]
    fn csv_names_corruption_cells_groups_and_types_with_their_intervals() {
        let text = csv(&corrupted(Pictures::Procedural, "saved"));
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        let records: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
        let at = |name: &str| CSV_COLUMNS.iter().position(|c| *c == name).unwrap();
        let line = |id: &str, kind: &str| records.iter().find(|r| &r[1] == id && &r[2] == kind).unwrap();
        let fields =
            |r: &csv::StringRecord, names: &[&str]| names.iter().map(|n| r[at(n)].to_owned()).collect::<Vec<_>>();
        let frost = line("frost-3-saved", "corruption");
        assert_eq!(
            fields(frost, &["type", "severity", "table", "mode", "labels", "n", "correct", "accuracy"]),
            ["frost", "3", "224", "saved", "frost-proc", "100", "90", "0.9"]
        );
        let number = |r: &csv::StringRecord, name: &str| r[at(name)].parse::<f64>().unwrap();
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} is not {b}");
        close(number(line("corruption", "summary"), "accuracy"), MEAN);
        close(number(line("corruption_error", "summary"), "accuracy"), 1.0 - MEAN);
        // Three of the four weather types are right 90 times of 100; the interval is Wilson's for 100 images.
        let weather = line("weather", "corruption_group");
        close(number(weather, "accuracy"), 0.675);
        let [low, high] = wilson95(67.5, 100.0);
        close(number(weather, "ci95_low"), low);
        close(number(weather, "ci95_high"), high);
        let fog = line("fog", "corruption_type");
        assert_eq!(fields(fog, &["type", "severity", "accuracy"]), ["fog", "", "0"]);
        // Conditions, summaries, groups, types, and the grade.
        assert_eq!(records.len(), 76 + 3 + 4 + 15 + 1);
        assert!(records.iter().all(|r| &r[1] != "mce"));
    }

    #[test]
    fn the_benchmarks_own_aggregates_appear_where_they_are_allowed_and_their_absence_is_explained() {
        // The fourteen types stand at an error of 0.1, fog at 1.
        let of_one = |error: f64, c: Corruption| error / alexnet(c).unwrap();
        let types = &Corruption::ALL[..15];
        let sum: f64 = types.iter().map(|&c| of_one(if c == Corruption::Fog { 1.0 } else { 0.1 }, c)).sum();
        let mce = percent(sum / 15.0);
        let official = corrupted(Pictures::Published, "saved");
        let text = markdown(&official);
        assert!(text.contains("| corruption | clean | corruption error | mce | relative mce |"), "{text}");
        assert!(text.contains(&format!("| 84.0 | 90.0 | 16.0 | {mce} | ")), "{text}");
        assert!(
            text.contains("| weather (group) | 67.5 | 57.8 – 75.9 |") && text.contains("| fog | 0.0 | 0.0 – 3.7 |")
        );
        assert!(!text.contains("official aggregate") && !text.contains("No mCE"), "{text}");
        let text = latex(&official);
        assert!(text.contains("weather (group) & & 67.5 & 57.8--75.9 \\\\"), "{text}");
        assert!(text.contains(&format!("mce & & {mce} & \\\\")), "{text}");

        let text = markdown(&corrupted(Pictures::Procedural, "saved"));
        assert!(text.contains("In no official aggregate: 5 conditions labelled frost-proc"), "{text}");
        assert!(!text.contains("mce"));
        let text = markdown(&corrupted(Pictures::Published, "in-memory"));
        assert!(text.contains("No mCE and no VOneNet means") && !text.contains("| mce |"), "{text}");
    }

    #[test]
    fn csv_has_the_figures_at_full_precision_under_named_columns() {
        let text = csv(&table());
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        let at = |name: &str| CSV_COLUMNS.iter().position(|c| *c == name).unwrap();
        let records: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
        assert_eq!(records.len(), 3 + 2 + 2);
        let attacked = &records[1];
        let get = |name: &str| attacked[at(name)].to_owned();
        assert_eq!([get("kind"), get("attack"), get("norm"), get("epsilon")], ["attack", "pgd", "linf", "0.3"]);
        assert_eq!([get("n"), get("correct"), get("accuracy")], ["2000", "1840", "0.92"]);
        assert_eq!(&records[2][at("accuracy")], "");
        assert_eq!([&records[3][1], &records[3][2], &records[3][at("accuracy")]], ["white_box", "summary", "0.92"]);
        assert_eq!([&records[5][1], &records[5][2]], ["suspicious", "grade"]);
        assert_eq!([&records[6][1], &records[6][2], &records[6][at("text")]], ["odd", "finding", "It is odd."]);
    }

    #[test]
    fn distances_are_in_every_form_and_unbroken_images_infinitely_far() {
        let conditions = builtin("min-norm").unwrap().conditions(None).unwrap();
        // Three of four images broken, one of them from the start.
        let sizes = |sizes: &[f64]| Broken::Sizes(sizes.to_vec());
        let broken = [("clean".to_owned(), sizes(&[0.0])), ("ddn".to_owned(), sizes(&[0.25, 0.5]))].into();
        let tally = Tally { n: 4, correct: 1, broken, ..Tally::default() };
        let table = Table { conditions: vec![row(&conditions[2], &[(0, tally)])], complete: true, ..table() };
        let text = csv(&table);
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        let at = |name: &str| CSV_COLUMNS.iter().position(|c| *c == name).unwrap();
        let records: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
        let cell = |row: usize, name: &str| records[row][at(name)].to_owned();
        assert_eq!(
            ["kind", "norm", "accuracy", "median"].map(|name| cell(0, name)),
            ["min_norm", "l2", "0.25", "0.375"]
        );
        assert_eq!([cell(0, "first_quartile"), cell(0, "third_quartile")], ["0.1875", "inf"]);
        let curve: Vec<[String; 3]> =
            (1..4).map(|row| ["kind", "epsilon", "accuracy"].map(|name| cell(row, name))).collect();
        assert_eq!(curve, [["curve", "0", "0.75"], ["curve", "0.25", "0.5"], ["curve", "0.5", "0.25"]]);
        assert!(markdown(&table).contains("| min-norm-l2 | 0.1875 | 0.3750 | ∞ |"), "{}", markdown(&table));
        assert!(latex(&table).contains("min-norm-l2 & 0.1875 & 0.3750 & $\\infty$ \\\\"), "{}", latex(&table));
        let stages: Vec<(&str, u64)> =
            table.conditions[0].stages.iter().map(|stage| (stage.attack.as_str(), stage.broken)).collect();
        assert_eq!(stages, [("clean", 1), ("fmn", 0), ("ddn", 2), ("fab-t", 0)]);
    }

    #[test]
    fn markdown_and_latex_show_percentages_spread_and_incompleteness() {
        let text = markdown(&table());
        assert!(text.contains("| pgd-linf-0.3 | 2000 | 92.0 ± 0.1 | 90.2 – 93.5 |"), "{text}");
        assert!(
            text.contains("Grade: **suspicious**")
                && text.contains("> **odd** (suspicious): It is odd.")
                && text.contains("Incomplete")
        );
        let text = latex(&table());
        assert!(text.contains("pgd-linf-0.3 & 2000 & 92.0 $\\pm$ 0.1 & 90.2--93.5 \\\\"), "{text}");
        assert!(text.starts_with("% Incomplete"));
        assert_eq!(escape_latex("a_b%\\"), "a\\_b\\%\\textbackslash{}");
    }
}
