//! `[[corruption]]` blocks of protocol documents.

use std::collections::HashSet;
use std::hash::Hash;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use serde_json::Value;
use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, Schema, Type};

use super::{Corruption, CorruptionCondition, Mode, Pictures, Published, Scene, Severity, Table};
use crate::protocol::{Condition, ConditionKind, ProtocolError};

/// Corruptions of one or several types at one or several severities.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CorruptionBlock {
    #[serde(rename = "type")]
    #[schema(value_type = Vec<Corruption>)]
    pub types: OneOrMany<Corruption>,
    /// 1 to 5; all of them if absent.
    #[serde(default = "every_severity")]
    #[schema(value_type = Vec<u8>)]
    pub severity: OneOrMany<Severity>,
    /// `"auto"`, or the side of the images that the wanted table was published for: 224, 299, 64 or 32.
    #[serde(default)]
    #[schema(schema_with = auto_or_side)]
    pub table: TableChoice,
    /// `"auto"`: `published` where the dataset is a published corrupted set, else `in-memory`. On such a set `saved` means
    /// `published` too: those are the saved files.
    #[serde(default)]
    #[schema(value_type = String)]
    pub mode: ModeChoice,
}

fn auto_or_side() -> Schema {
    let sides = Table::ALL.map(|table| table.side() as u64);
    let auto = ObjectBuilder::new().schema_type(Type::String).enum_values(Some(["auto"]));
    let side = ObjectBuilder::new().schema_type(Type::Integer).enum_values(Some(sides));
    let text = "`\"auto\"`, or the side of the images that the wanted table was published for";
    OneOfBuilder::new().item(auto).item(side).description(Some(text)).into()
}

/// A list that may be written as its only value.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(transparent)]
pub struct OneOrMany<T>(pub Vec<T>);

impl<'de, T: serde::de::DeserializeOwned> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let values = match Value::deserialize(deserializer)? {
            Value::Array(values) => values,
            one => vec![one],
        };
        values.into_iter().map(serde_json::from_value).collect::<Result<_, _>>().map(Self).map_err(D::Error::custom)
    }
}

/// Which table of parameters a block asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TableChoice {
    /// The one published for the images' size, else the dataset preset's.
    #[default]
    Auto,
    Named(Table),
}

impl<'de> Deserialize<'de> for TableChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        match Table::ALL.into_iter().find(|table| table.side().to_string() == text) {
            Some(table) => Ok(Self::Named(table)),
            None if text == "auto" => Ok(Self::Auto),
            None => Err(D::Error::custom(format!("{text} is no table: write \"auto\", 224, 299, 64 or 32"))),
        }
    }
}

impl Serialize for TableChoice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => "auto".serialize(serializer),
            Self::Named(table) => (table.side() as u64).serialize(serializer),
        }
    }
}

/// How a block wants its images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ModeChoice {
    /// Published where the dataset brings them, else computed in memory.
    #[default]
    Auto,
    Named(Mode),
}

impl<'de> Deserialize<'de> for ModeChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        if value == "auto" {
            return Ok(Self::Auto);
        }
        let wrong = |_| {
            D::Error::custom(format!("{value} is no mode: write \"auto\", \"in-memory\", \"saved\" or \"published\""))
        };
        serde_json::from_value(value.clone()).map(Self::Named).map_err(wrong)
    }
}

impl Serialize for ModeChoice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => "auto".serialize(serializer),
            Self::Named(mode) => mode.serialize(serializer),
        }
    }
}

fn every_severity() -> OneOrMany<Severity> {
    OneOrMany(Severity::ALL.to_vec())
}

impl CorruptionBlock {
    /// The keys that a `--set` without a block's name takes for corruptions.
    pub(in crate::protocol) const KEYS: [&str; 4] = ["type", "severity", "table", "mode"];

    pub(in crate::protocol) fn validate(&self, at: &str) -> Result<(), ProtocolError> {
        distinct(&format!("{at}.type"), &self.types.0, |t| t.name().to_owned())?;
        distinct(&format!("{at}.severity"), &self.severity.0, |s| s.get().to_string())
    }

    /// The block's cells: type by type, each by severity.
    pub(in crate::protocol) fn conditions(&self, at: &str, scene: &Scene) -> Result<Vec<Condition>, ProtocolError> {
        let table = match self.table {
            TableChoice::Named(table) => table,
            TableChoice::Auto => scene.table().ok_or_else(|| {
                let [_, height, width] = scene.images;
                let problem = format!(
                    "no parameters were published for images of {height}×{width} pixels: choose with `--set table=224` \
                     (or 299, 64, 32), over HTTP with \"set\""
                );
                ProtocolError { key: format!("{at}.table"), problem }
            })?,
        };
        let mode = self.resolved_mode(at, scene)?;
        let cell = |corruption: Corruption, severity: Severity| {
            let drawn = corruption == Corruption::Frost && mode != Mode::Published;
            let pictures: Option<Pictures> = drawn.then(|| scene.pictures.clone());
            let labels = scene.labels(table, pictures.as_ref());
            let suffix = match mode {
                Mode::InMemory => "",
                Mode::Saved => "-saved",
                Mode::Published => "-published",
            };
            Condition {
                id: format!("{}-{}{suffix}", corruption.name(), severity.get()),
                kind: ConditionKind::Corruption(CorruptionCondition {
                    corruption,
                    severity,
                    table,
                    mode,
                    pictures,
                    labels,
                }),
            }
        };
        Ok(self.cells().map(|(t, s)| cell(t, s)).collect())
    }

    fn cells(&self) -> impl Iterator<Item = (Corruption, Severity)> + '_ {
        self.types.0.iter().flat_map(|&t| self.severity.0.iter().map(move |&s| (t, s)))
    }

    fn resolved_mode(&self, at: &str, scene: &Scene) -> Result<Mode, ProtocolError> {
        let fail = |key: &str, problem: String| Err(ProtocolError { key: format!("{at}.{key}"), problem });
        match (self.mode, &scene.published) {
            (ModeChoice::Named(Mode::Published), None) => {
                fail("mode", "the dataset is no published corrupted set: import one, or write \"saved\"".into())
            }
            (ModeChoice::Auto | ModeChoice::Named(Mode::Saved | Mode::Published), Some(Published { cells, .. })) => {
                let missing: Vec<String> = self
                    .cells()
                    .filter(|cell| !cells.contains(cell))
                    .map(|(corruption, severity)| format!("{}-{}", corruption.name(), severity.get()))
                    .collect();
                match &missing[..] {
                    [] => Ok(Mode::Published),
                    [first, ..] => fail(
                        "type",
                        format!(
                            "the dataset lacks the published images of {} cells ({first} and so on): import the whole set, or \
                             choose with `--set 'type=[…]'` and `--set 'severity=[…]'`, over HTTP with \"set\"",
                            missing.len()
                        ),
                    ),
                }
            }
            (ModeChoice::Named(Mode::InMemory), Some(Published { clean: false, .. })) => {
                fail("mode", "the dataset holds corrupted images alone, and there is no clean image to corrupt".into())
            }
            (ModeChoice::Auto, None) => Ok(Mode::InMemory),
            (ModeChoice::Named(mode), _) => Ok(mode),
        }
    }
}

fn distinct<T: Eq + Hash>(key: &str, values: &[T], name: impl Fn(&T) -> String) -> Result<(), ProtocolError> {
    let fail = |problem: String| Err(ProtocolError { key: key.to_owned(), problem });
    if values.is_empty() {
        return fail("needs at least one value".into());
    }
    let mut seen = HashSet::new();
    match values.iter().find(|value| !seen.insert(*value)) {
        Some(twice) => fail(format!("{} occurs twice", name(twice))),
        None => Ok(()),
    }
}
