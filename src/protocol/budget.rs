//! The ε values of an attack block: one, several, or a stated list per dataset preset.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use serde_json::Value;

use super::threat::Epsilon;

/// One ε as its author wrote it: a number, or a fraction such as `1/255` that names the condition better than its decimals.
#[derive(Debug, Clone, PartialEq)]
pub struct Budget {
    pub text: String,
    pub epsilon: Epsilon,
}

impl Budget {
    fn parse(value: &Value) -> Result<Self, String> {
        let (text, number) = match value {
            Value::Number(n) => (n.to_string(), n.as_f64()),
            Value::String(s) => (s.trim().to_owned(), fraction(s)),
            other => return Err(format!("must be a number or a fraction such as \"1/255\", not {other}")),
        };
        let epsilon = number.and_then(Epsilon::new).ok_or_else(|| format!("{text} is not a radius of at least 0"))?;
        // 0.30 and 0.3 are one condition; a fraction keeps its spelling.
        let text = if text.contains('/') { text } else { epsilon.get().to_string() };
        Ok(Self { text, epsilon })
    }
}

fn fraction(text: &str) -> Option<f64> {
    match text.split_once('/') {
        None => text.trim().parse().ok(),
        Some((a, b)) => Some(a.trim().parse::<f64>().ok()? / b.trim().parse::<f64>().ok()?),
    }
}

/// What stands behind `epsilon =`.
#[derive(Debug, Clone, PartialEq)]
pub enum Budgets {
    Listed(Vec<Budget>),
    /// Keyed by dataset preset: `mnist`, `cifar10`, `imagenet`…
    PerPreset(BTreeMap<String, Vec<Budget>>),
    /// None: how far each image must be moved is to be found out.
    Minimal,
}

const MINIMAL: &str = "minimal";

impl Budgets {
    /// The budgets for a dataset with this preset; none where they are to be found out.
    pub fn for_preset(&self, preset: Option<&str>) -> Result<&[Budget], String> {
        match self {
            Budgets::Listed(budgets) => Ok(budgets),
            Budgets::Minimal => Ok(&[]),
            Budgets::PerPreset(table) => preset.and_then(|p| table.get(p)).map(Vec::as_slice).ok_or_else(|| {
                let known = table.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
                let of = preset.map_or("a dataset without a preset".into(), |p| format!("preset {p}"));
                format!("no budgets are stated for {of} (only for {known}): say them with `--set 'epsilon=[…]'`, over HTTP with \"set\"")
            }),
        }
    }
}

fn list(value: &Value) -> Result<Vec<Budget>, String> {
    let budgets = match value {
        Value::Array(items) => items.iter().map(Budget::parse).collect::<Result<Vec<_>, _>>()?,
        one => vec![Budget::parse(one)?],
    };
    if budgets.is_empty() { Err("needs at least one value".into()) } else { Ok(budgets) }
}

impl<'de> Deserialize<'de> for Budgets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        match &value {
            Value::Object(table) => {
                let lists = table.iter().map(|(preset, v)| Ok((preset.clone(), list(v)?)));
                lists.collect::<Result<_, String>>().map(Budgets::PerPreset)
            }
            Value::String(text) if text == MINIMAL => Ok(Budgets::Minimal),
            other => list(other).map(Budgets::Listed),
        }
        .map_err(D::Error::custom)
    }
}

impl Serialize for Budget {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.text.contains('/') { self.text.serialize(serializer) } else { self.epsilon.get().serialize(serializer) }
    }
}

impl Serialize for Budgets {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Budgets::Listed(budgets) => budgets.serialize(serializer),
            Budgets::PerPreset(table) => table.serialize(serializer),
            Budgets::Minimal => MINIMAL.serialize(serializer),
        }
    }
}
