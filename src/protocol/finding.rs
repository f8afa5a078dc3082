//! Findings: what a reader must know about a model or a run.

use serde::{Deserialize, Serialize};

/// What a finding does to the grade.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Weight {
    /// Nothing; worth knowing all the same.
    Note,
    /// The figures may say more than is true.
    #[default]
    Suspicious,
    /// They do.
    Unreliable,
}

/// A stable code, a plain sentence and the evidence behind it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Finding {
    /// Stable, snake_case; documented in docs/FINDINGS.md.
    pub code: String,
    #[serde(default)]
    pub weight: Weight,
    pub sentence: String,
    /// Figures and image ids that back the sentence.
    pub evidence: serde_json::Value,
}

impl Finding {
    pub fn new(code: &str, weight: Weight, sentence: impl Into<String>, evidence: serde_json::Value) -> Self {
        Self { code: code.to_owned(), weight, sentence: sentence.into(), evidence }
    }
}
