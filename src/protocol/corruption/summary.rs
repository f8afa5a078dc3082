//! What corrupted cells come to: means by type and group, and the benchmark's own aggregates.

use serde::{Deserialize, Serialize};

use super::published::{ALEXNET_CLEAN, alexnet};
use super::{Corruption, CorruptionCondition, Group, Mode, Severity, Table};
use crate::protocol::report::Row;
use crate::protocol::stats::wilson95;
use crate::protocol::{Aggregate, ConditionKind};

/// Means over corrupted cells.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Corruptions {
    /// The fifteen types at five severities over the same images, each as published: dataset, size, colour and frost
    /// pictures. Only then are there aggregates under the benchmark's own names.
    pub official: bool,
    /// Also in the form of the published 224-pixel files: read from them, or saved like them. Without it there is no mCE, and
    /// there are no VOneNet means.
    pub published_form: bool,
    pub groups: Vec<GroupMean>,
    pub types: Vec<TypeMean>,
}

/// The plain mean over the cells of a group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct GroupMean {
    pub group: Group,
    pub accuracy: f64,
    /// Wilson 95 % interval over images: cells share their images, so many cells do not narrow it.
    pub ci95: [f64; 2],
}

/// The plain mean over the severities of a type.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TypeMean {
    #[serde(rename = "type")]
    pub corruption: Corruption,
    pub group: Group,
    pub accuracy: f64,
    /// As a group's.
    pub ci95: [f64; 2],
    /// Error over AlexNet's published error, where that comparison is allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub corruption_error: Option<f64>,
}

/// The figures of a finished or growing table. Means are over the verdicts there are, and absent until every cell has
/// some; the benchmark's own aggregates wait until all cells have as many.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Figures {
    /// Plain mean accuracy over the benchmark's types.
    pub accuracy: Option<f64>,
    /// Its complement, where the aggregate asks for errors.
    pub error: Option<f64>,
    pub mce: Option<f64>,
    pub relative_mce: Option<f64>,
    pub parts: Option<Corruptions>,
}

struct Cell<'a> {
    condition: &'a CorruptionCondition,
    accuracy: f64,
    /// Images behind the accuracy.
    images: f64,
}

/// Sums up the corrupted rows; `clean` is the accuracy on unperturbed images.
pub fn figures(rows: &[Row], clean: Option<f64>, aggregate: Aggregate) -> Figures {
    let cell = |row: &'_ Row| match &row.condition.kind {
        ConditionKind::Corruption(_) => Some(row.accuracy),
        _ => None,
    };
    let all: Option<Vec<f64>> = rows.iter().filter_map(cell).collect();
    if all.is_none_or(|all| all.is_empty()) {
        return Figures::default();
    }
    let cells: Vec<Cell> = rows
        .iter()
        .filter_map(|row| match &row.condition.kind {
            ConditionKind::Corruption(condition) => {
                let images = row.n as f64 / row.seeds.len().max(1) as f64;
                Some(Cell { condition, accuracy: row.accuracy?, images })
            }
            _ => None,
        })
        .collect();
    let benchmark: Vec<&Cell> = cells.iter().filter(|c| c.condition.corruption.group() != Group::Extra).collect();
    let accuracy = mean(&benchmark);
    let official = is_official(&benchmark);
    let published_form =
        official && benchmark.iter().all(|c| c.condition.mode != Mode::InMemory && c.condition.table == Table::Px224);
    let of_type =
        |corruption| -> Vec<&Cell> { cells.iter().filter(|c| c.condition.corruption == corruption).collect() };
    let types: Vec<TypeMean> = Corruption::ALL
        .into_iter()
        .filter_map(|corruption| {
            let cells = of_type(corruption);
            let accuracy = mean(&cells)?;
            let alexnet = alexnet(corruption).filter(|_| published_form && aggregate == Aggregate::ImagenetC);
            let corruption_error = alexnet.map(|error| (1.0 - accuracy) / error);
            Some(TypeMean {
                corruption,
                group: corruption.group(),
                accuracy,
                ci95: interval(&cells, accuracy),
                corruption_error,
            })
        })
        .collect();
    let groups = Group::ALL
        .into_iter()
        .filter_map(|group| {
            let cells: Vec<&Cell> = cells.iter().filter(|c| c.condition.corruption.group() == group).collect();
            let accuracy = mean(&cells)?;
            Some(GroupMean { group, accuracy, ci95: interval(&cells, accuracy) })
        })
        .collect();
    let wants_errors = matches!(aggregate, Aggregate::ImagenetC | Aggregate::Cifar10C);
    Figures {
        accuracy,
        error: accuracy.filter(|_| wants_errors).map(|accuracy| 1.0 - accuracy),
        mce: over_alexnet(&types, |t| t.corruption_error),
        relative_mce: clean.filter(|_| even(rows)).and_then(|clean| {
            over_alexnet(&types, |t| {
                t.corruption_error?;
                Some((clean - t.accuracy) / (alexnet(t.corruption)? - ALEXNET_CLEAN))
            })
        }),
        parts: Some(Corruptions { official, published_form, groups, types }),
    }
}

/// Mean of a ratio over the fifteen types; `None` unless every one of them has it.
fn over_alexnet(types: &[TypeMean], ratio: impl Fn(&TypeMean) -> Option<f64>) -> Option<f64> {
    let benchmark = types.iter().filter(|t| t.group != Group::Extra);
    let ratios: Vec<f64> = benchmark.map(ratio).collect::<Option<_>>()?;
    (ratios.len() == 15).then(|| ratios.iter().sum::<f64>() / 15.0)
}

/// Whether all rows count the same number of verdicts.
pub fn even(rows: &[Row]) -> bool {
    rows.iter().all(|row| row.n == rows[0].n)
}

/// All 15 types × 5 severities, once each, of one table and mode, and nothing labelled.
fn is_official(cells: &[&Cell]) -> bool {
    let complete = Corruption::ALL.into_iter().filter(|c| c.group() != Group::Extra).all(|corruption| {
        Severity::ALL.into_iter().all(|severity| {
            let same = |c: &&&Cell| (c.condition.corruption, c.condition.severity) == (corruption, severity);
            cells.iter().filter(same).count() == 1
        })
    });
    let alike = |c: &&Cell| {
        let first = cells[0].condition;
        c.condition.labels.is_empty() && (c.condition.table, c.condition.mode) == (first.table, first.mode)
    };
    complete && cells.iter().all(alike) && cells.iter().all(|c| c.images == cells[0].images)
}

fn mean(cells: &[&Cell]) -> Option<f64> {
    (!cells.is_empty()).then(|| cells.iter().map(|c| c.accuracy).sum::<f64>() / cells.len() as f64)
}

/// A mean of several 0-or-1 outcomes of one image varies no more than one such outcome, so this is wide enough.
fn interval(cells: &[&Cell], accuracy: f64) -> [f64; 2] {
    let images = cells.iter().map(|c| c.images).fold(f64::INFINITY, f64::min);
    wilson95(accuracy * images, images)
}

#[cfg(test)]
mod tests {
    use super::super::{Pictures, Published, Scene};
    use super::*;
    use crate::protocol::report::{Tally, row};
    use crate::protocol::{Condition, Protocol, builtin};

    fn scene(images: [u32; 3], pictures: Pictures) -> Scene<'static> {
        Scene::new(Some("imagenet"), images, pictures)
    }

    /// Every clean image right; a corrupted one with AlexNet's published error.
    fn rows(conditions: &[Condition], error: impl Fn(Corruption) -> f64) -> Vec<Row> {
        let tally = |c: &Condition| match &c.kind {
            ConditionKind::Corruption(c) => 1_000_000 - (error(c.corruption) * 1e6).round() as u64,
            _ => 565_000,
        };
        let row = |c| row(c, &[(0, Tally { n: 1_000_000, correct: tally(c), ..Tally::default() })]);
        conditions.iter().map(row).collect()
    }

    fn saved(scene: &Scene) -> Vec<Condition> {
        let document = serde_json::to_value(builtin("imagenet-c").unwrap()).unwrap();
        let protocol = Protocol::from_value(document, &[("mode".into(), "saved".into())]).unwrap();
        protocol.conditions_for(scene).unwrap()
    }

    #[test]
    fn alexnet_has_an_mce_and_a_relative_mce_of_one() {
        let conditions = saved(&scene([3, 224, 224], Pictures::Published));
        let found = figures(&rows(&conditions, |c| alexnet(c).unwrap()), Some(0.565), Aggregate::ImagenetC);
        assert!((found.mce.unwrap() - 1.0).abs() < 1e-6, "{found:?}");
        assert!((found.relative_mce.unwrap() - 1.0).abs() < 1e-5, "{found:?}");
        assert!((found.error.unwrap() - 0.788_99).abs() < 1e-4 && found.parts.unwrap().official);
    }

    #[test]
    fn the_mce_is_unsaid_where_it_would_not_be_the_published_one() {
        let of = |conditions: &[Condition]| figures(&rows(conditions, |_| 0.5), Some(0.6), Aggregate::ImagenetC);
        let official = scene([3, 224, 224], Pictures::Published);
        assert!(of(&saved(&official)).mce.is_some());
        let in_memory = builtin("imagenet-c").unwrap().conditions_for(&official).unwrap();
        assert_eq!(of(&in_memory).mce, None);
        let parts = of(&in_memory).parts.unwrap();
        assert!(parts.official && !parts.published_form);
        let cells: Vec<_> = Corruption::ALL.into_iter().flat_map(|c| Severity::ALL.map(|s| (c, s))).collect();
        let published = Scene { published: Some(Published { clean: true, cells }), ..official.clone() };
        let published = builtin("imagenet-c").unwrap().conditions_for(&published).unwrap();
        assert_eq!(of(&published).mce, of(&saved(&official)).mce);
        assert!(of(&published).parts.unwrap().published_form);
        assert!((of(&in_memory).error.unwrap() - 0.5).abs() < 1e-12);
        for other in [
            scene([3, 224, 224], Pictures::Procedural),
            scene([1, 224, 224], Pictures::Published),
            scene([3, 256, 256], Pictures::Published),
            scene([3, 32, 32], Pictures::Published),
        ] {
            assert_eq!(of(&saved(&other)).mce, None, "{other:?}");
        }
        let one_less: Vec<Condition> = saved(&official).into_iter().filter(|c| c.id != "fog-3-saved").collect();
        assert_eq!(of(&one_less).mce, None);
    }

    #[test]
    fn groups_are_plain_means_of_their_cells_and_wait_for_all_of_them() {
        let conditions =
            builtin("imagenet-c").unwrap().conditions_for(&scene([3, 224, 224], Pictures::Published)).unwrap();
        let error = |c: Corruption| if c == Corruption::Fog { 0.8 } else { 0.4 };
        let mut rows = rows(&conditions, error);
        let parts = figures(&rows, None, Aggregate::None).parts.unwrap();
        let weather = parts.groups.iter().find(|g| g.group == Group::Weather).unwrap();
        assert!((weather.accuracy - 0.5).abs() < 1e-12);
        assert!(weather.ci95[0] < 0.5 && weather.ci95[1] > 0.5);
        let fog = parts.types.iter().find(|t| t.corruption == Corruption::Fog).unwrap();
        assert!((fog.accuracy - 0.2).abs() < 1e-12 && fog.corruption_error.is_none());
        rows.last_mut().unwrap().accuracy = None;
        assert_eq!(figures(&rows, None, Aggregate::None), Figures::default());
    }
}
