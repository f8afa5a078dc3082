//! Findings: what a reader must know about a model or a run.

use serde::{Deserialize, Serialize};

/// A stable code, a plain sentence and the evidence behind it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Finding {
    /// Stable, snake_case; documented in docs/FINDINGS.md.
    pub code: String,
    pub sentence: String,
    /// Figures and image ids that back the sentence.
    pub evidence: serde_json::Value,
}

impl Finding {
    pub fn new(code: &str, sentence: impl Into<String>, evidence: serde_json::Value) -> Self {
        Self { code: code.to_owned(), sentence: sentence.into(), evidence }
    }
}
