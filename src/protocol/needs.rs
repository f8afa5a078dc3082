//! What an evaluation asks of the workers that run it, and what a worker offers.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Device;

/// Names with values, both chosen by whoever runs the workers, such as `gpu=h100`.
pub type Labels = BTreeMap<String, String>;

const MAX_LABELS: usize = 16;
const MAX_LENGTH: usize = 63;
const GIB: u64 = 1 << 30;

/// What the workers of an evaluation must have; nothing, if empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Needs {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<Device>,
    /// Least memory of the worker's GPU, all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 9007199254740991_u64)]
    pub gpu_memory_bytes: Option<u64>,
    /// Labels that the worker must have, with these values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: Labels,
}

/// What a worker offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    pub device: Device,
    /// Memory of its GPU; `None` on a CPU, and where it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_memory_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: Labels,
}

/// A part of [`Needs`] that nobody could meet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct NeedsError {
    /// `device`, `gpu_memory_bytes` or `labels.NAME`.
    pub key: String,
    pub problem: String,
}

impl Needs {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The first thing about it that no worker can meet.
    pub fn check(&self) -> Result<(), NeedsError> {
        let wrong = |key: &str, problem: &str| Err(NeedsError { key: key.into(), problem: problem.into() });
        match (self.gpu_memory_bytes, self.device) {
            (Some(0), _) => return wrong("gpu_memory_bytes", "ask for at least 1 byte, or leave it out"),
            // Larger numbers do not survive JSON everywhere, and no GPU has them.
            (Some(n), _) if n >= 1 << 53 => return wrong("gpu_memory_bytes", "no GPU has so much: give bytes"),
            (Some(_), Some(Device::Cpu)) => {
                return wrong("gpu_memory_bytes", "a cpu has no GPU memory: leave out one of the two");
            }
            _ => {}
        }
        check_labels(&self.labels).map_err(|(label, problem)| NeedsError { key: format!("labels.{label}"), problem })
    }

    /// Whether a worker that offers this may run it. The queue asks the database's function `meets`, which says the same.
    pub fn met_by(&self, offered: &Capabilities) -> bool {
        self.device.is_none_or(|device| device == offered.device)
            && self.gpu_memory_bytes.unwrap_or(0) <= offered.gpu_memory_bytes.unwrap_or(0)
            && self.labels.iter().all(|(name, value)| offered.labels.get(name) == Some(value))
    }
}

/// `40.0 GiB of GPU memory, the label gpu=h100`
impl fmt::Display for Needs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let memory = self.gpu_memory_bytes.map(|bytes| format!("{} of GPU memory", gib(bytes)));
        let device = self.device.map(|device| format!("the device {device}"));
        let labels = self.labels.iter().map(|(name, value)| format!("the label {name}={value}"));
        f.write_str(&device.into_iter().chain(memory).chain(labels).collect::<Vec<_>>().join(", "))
    }
}

/// Bytes as people say them of GPUs.
pub fn gib(bytes: u64) -> String {
    match bytes.is_multiple_of(GIB) {
        true => format!("{} GiB", bytes / GIB),
        false => format!("{:.1} GiB", bytes as f64 / GIB as f64),
    }
}

/// A label that cannot be one, and why.
fn check_labels(labels: &Labels) -> Result<(), (String, String)> {
    if let Some(first) = labels.keys().nth(MAX_LABELS) {
        return Err((first.clone(), format!("{} labels, of {MAX_LABELS} that are possible", labels.len())));
    }
    for (name, value) in labels {
        for text in [name, value] {
            let fits = (1..=MAX_LENGTH).contains(&text.len())
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b));
            if !fits {
                let problem = format!("names and values are 1 to {MAX_LENGTH} of A–Z, a–z, 0–9, -_./, unlike {text:?}");
                return Err((name.clone(), problem));
            }
        }
    }
    Ok(())
}

/// Labels as they are written in settings and flags: `gpu=h100,zone=b`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelList(pub Labels);

impl FromStr for LabelList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut labels = Labels::new();
        for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').ok_or_else(|| format!("{pair:?} is no NAME=VALUE"))?;
            if labels.insert(name.trim().to_owned(), value.trim().to_owned()).is_some() {
                return Err(format!("the label {} occurs twice", name.trim()));
            }
        }
        check_labels(&labels).map_err(|(_, problem)| problem)?;
        Ok(Self(labels))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needs(json: &str) -> Needs {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn needs_that_nobody_can_meet_are_named() {
        let many = (0..17).map(|i| format!("\"l{i:02}\": \"x\"")).collect::<Vec<_>>().join(",");
        for (json, key, says) in [
            (r#"{"gpu_memory_bytes": 0}"#, "gpu_memory_bytes", "at least 1"),
            (r#"{"gpu_memory_bytes": 9007199254740992}"#, "gpu_memory_bytes", "give bytes"),
            (r#"{"gpu_memory_bytes": 1, "device": "cpu"}"#, "gpu_memory_bytes", "leave out one"),
            (r#"{"labels": {"gpu": ""}}"#, "labels.gpu", "1 to 63"),
            (r#"{"labels": {"a b": "c"}}"#, "labels.a b", "unlike \"a b\""),
            (&format!("{{\"labels\": {{{many}}}}}"), "labels.l16", "17 labels"),
        ] {
            let error = needs(json).check().unwrap_err();
            assert!(error.key == key && error.problem.contains(says), "{json}: {error:?}");
        }
        assert!(serde_json::from_str::<Needs>(r#"{"gpus": 2}"#).is_err());
    }

    #[test]
    fn needs_are_said_as_people_say_them() {
        let json = r#"{"device": "cuda", "gpu_memory_bytes": 42949672960, "labels": {"gpu": "h100"}}"#;
        assert_eq!(needs(json).to_string(), "the device cuda, 40 GiB of GPU memory, the label gpu=h100");
        assert_eq!(gib(85_017_493_504), "79.2 GiB");
    }

    #[test]
    fn labels_are_read_as_they_are_written() {
        let LabelList(labels) = " gpu=h100, zone=eu/b ,".parse().unwrap();
        assert_eq!(
            labels.into_iter().collect::<Vec<_>>(),
            [("gpu".into(), "h100".into()), ("zone".into(), "eu/b".into())]
        );
        for (text, says) in [("gpu", "NAME=VALUE"), ("a=1,a=2", "twice"), ("a=b c", "unlike")] {
            assert!(text.parse::<LabelList>().unwrap_err().contains(says), "{text}");
        }
    }
}
