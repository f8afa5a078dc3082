//! Conditions: the cells of a table, with every parameter resolved.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::attack::Attack;
use super::corruption::CorruptionCondition;
use super::threat::ThreatModel;

/// One cell of the table. The id is unique within its protocol.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Condition {
    pub id: String,
    #[serde(flatten)]
    pub kind: ConditionKind,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ConditionKind {
    Clean,
    Attack(AttackCondition),
    Corruption(CorruptionCondition),
}

/// An attack inside one threat model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AttackCondition {
    #[serde(flatten)]
    pub threat: ThreatModel,
    /// `true` attacks this budget afresh; `false` lets a witness found at a smaller ε of the same ladder stand here too.
    pub independent: bool,
    #[serde(flatten)]
    pub attack: Attack,
}

impl Condition {
    /// 64 bits that depend on the resolved parameters and nothing else: the condition's share of every random key. What only
    /// adds runs to an attack is left out, so that run r draws the same numbers however many follow it.
    pub fn random_key(&self) -> u64 {
        match &self.kind {
            ConditionKind::Clean => hash(&self.kind),
            ConditionKind::Attack(condition) => condition.stage_key(&condition.attack),
            ConditionKind::Corruption(corruption) => corruption.random_key(),
        }
    }
}

impl AttackCondition {
    /// The random key of one of this condition's stages: that of the stage attacking alone, so that an attack does the same
    /// in a cascade as by itself.
    pub fn stage_key(&self, stage: &Attack) -> u64 {
        hash(&ConditionKind::Attack(Self { attack: stage.with_one_run(), ..self.clone() }))
    }
}

fn hash(kind: &ConditionKind) -> u64 {
    let text = serde_json::to_string(kind).expect("a condition is plain data");
    let digest = Sha256::digest(text.as_bytes());
    u64::from_le_bytes(digest[..8].try_into().expect("a digest has 32 bytes"))
}
