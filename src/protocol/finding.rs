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

impl Finding {
    /// One finding per code: the evidence of equal codes is gathered into a list, in order of appearance.
    pub fn merged(findings: Vec<Finding>) -> Vec<Finding> {
        let mut merged: Vec<Finding> = Vec::new();
        for finding in findings {
            match merged.iter_mut().find(|f| f.code == finding.code) {
                None => merged.push(Finding { evidence: vec![finding.evidence].into(), ..finding }),
                Some(same) => {
                    if let Some(list) = same.evidence.as_array_mut()
                        && !list.contains(&finding.evidence)
                    {
                        list.push(finding.evidence);
                    }
                }
            }
        }
        merged
    }
}
