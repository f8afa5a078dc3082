//! Conditions: the cells of a table, with every parameter resolved.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::attack::Attack;
use super::corruption::CorruptionCondition;
use super::profile::Precision;
use super::spec::ModelSpec;
use super::threat::{Norm, ThreatModel};

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
    MinNorm(MinNormCondition),
    Corruption(CorruptionCondition),
}

/// An attack inside one threat model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AttackCondition {
    #[serde(flatten)]
    pub threat: ThreatModel,
    /// `true` attacks this budget afresh; `false` lets a witness found at a smaller ε of the same ladder stand here too.
    pub independent: bool,
    /// The witness must be an 8-bit image: every pixel a multiple of 1/255.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub eight_bit: bool,
    /// Arithmetic of the passes that search.
    #[serde(default, skip_serializing_if = "Precision::is_float32")]
    pub search_precision: Precision,
    #[serde(flatten)]
    pub attack: Attack,
}

/// The least that each image must be moved to be misclassified, as far as the attack finds it: no budget, and nothing that
/// counts but the distance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct MinNormCondition {
    pub norm: Norm,
    /// One that looks for the nearest adversarial example, or a cascade of such: the nearest of all stages counts.
    #[serde(flatten)]
    pub attack: Attack,
}

impl Condition {
    /// Whether both are rungs of one ladder: budgets of one attack that does not have to find them afresh, or numbers of queries
    /// of one search.
    pub fn same_ladder(&self, other: &Self) -> bool {
        match (&self.kind, &other.kind) {
            (ConditionKind::Attack(a), ConditionKind::Attack(b)) => {
                !a.independent
                    && !b.independent
                    && a.threat.norm == b.threat.norm
                    && a.eight_bit == b.eight_bit
                    && a.search_precision == b.search_precision
                    && a.attack == b.attack
            }
            (ConditionKind::MinNorm(a), ConditionKind::MinNorm(b)) => {
                a.attack.is_walk()
                    && a.norm == b.norm
                    && a.attack.with_one_run() == b.attack.with_one_run()
                    && a.attack.eot() == b.attack.eot()
            }
            _ => false,
        }
    }

    /// What rises from rung to rung of a ladder: ε, or the number of queries.
    pub fn rung(&self) -> f64 {
        match &self.kind {
            ConditionKind::Attack(condition) => condition.threat.epsilon.get(),
            ConditionKind::MinNorm(MinNormCondition { attack, .. }) => match attack {
                Attack::HopSkipJump(walk) | Attack::Boundary(walk) => walk.queries.into(),
                _ => 0.0,
            },
            ConditionKind::Clean | ConditionKind::Corruption(_) => 0.0,
        }
    }

    /// Arithmetic of the passes that search.
    pub fn search(&self) -> Precision {
        match &self.kind {
            ConditionKind::Attack(condition) => condition.search_precision,
            ConditionKind::Clean | ConditionKind::MinNorm(_) | ConditionKind::Corruption(_) => Precision::Float32,
        }
    }

    /// Why this condition says nothing about a model of this kind.
    pub fn unsuited(&self, spec: &ModelSpec) -> Option<String> {
        let nearest = matches!(self.kind, ConditionKind::MinNorm(_));
        (nearest && spec.stochastic).then(|| {
            format!(
                "{}: on a stochastic model the nearest adversarial example is one of chance; give the block budgets",
                self.id
            )
        })
    }

    /// The random key of one of this condition's stages: that of the stage attacking alone, so that an attack does the same
    /// in a cascade as by itself.
    pub fn stage_key(&self, stage: &Attack) -> u64 {
        let attack = stage.with_one_run();
        hash(&match &self.kind {
            ConditionKind::Attack(condition) => ConditionKind::Attack(AttackCondition { attack, ..condition.clone() }),
            ConditionKind::MinNorm(condition) => {
                ConditionKind::MinNorm(MinNormCondition { attack, ..condition.clone() })
            }
            kind @ (ConditionKind::Clean | ConditionKind::Corruption(_)) => kind.clone(),
        })
    }

    /// 64 bits that depend on the resolved parameters and nothing else: the condition's share of every random key. What only
    /// adds runs to an attack is left out, so that run r draws the same numbers however many follow it.
    pub fn random_key(&self) -> u64 {
        match &self.kind {
            ConditionKind::Clean => hash(&self.kind),
            ConditionKind::Attack(AttackCondition { attack, .. })
            | ConditionKind::MinNorm(MinNormCondition { attack, .. }) => self.stage_key(attack),
            ConditionKind::Corruption(corruption) => corruption.random_key(),
        }
    }
}

fn hash(kind: &ConditionKind) -> u64 {
    let text = serde_json::to_string(kind).expect("a condition is plain data");
    let digest = Sha256::digest(text.as_bytes());
    u64::from_le_bytes(digest[..8].try_into().expect("a digest has 32 bytes"))
}
