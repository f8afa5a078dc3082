//! Attack blocks of protocol documents: which keys each attack takes, and what they are when left out.

use serde::{Deserialize, Serialize};

use super::attack::{
    Attack, CarliniWagner, Cascade, ClipOrder, Distribution, Fgsm, Keep, Loss, Noise, Pgd, Projection, Schedule,
    Square, StepSize, Target, Targeted, Untargeted, Walk,
};
use super::budget::Budgets;
use super::file::{ProtocolError, check_name};
use super::profile::Precision;
use super::threat::Norm;

/// One attack, or a cascade of them, at one norm, over one or several budgets. A key that none of the block's attacks reads
/// is an error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AttackBlock {
    /// Either this or `cascade`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attack: Option<AttackName>,
    /// Attacks in order, each on the images that those before it left standing. The block's keys reach every stage that
    /// reads them and does not say otherwise itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cascade: Vec<StageBlock>,
    /// Replaces the attack's name in condition ids; needed when two blocks differ only in parameters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    pub norm: Norm,
    /// A number, a fraction such as `"1/255"`, a list of them, or a list per dataset preset; `"minimal"`: how far each image
    /// must be moved, by attacks that look for the nearest adversarial example.
    #[schema(value_type = Value)]
    pub epsilon: Budgets,
    /// Gradient steps; 64 for pgd, else 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u32>,
    /// pgd; a quarter of ε.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_size: Option<StepSize>,
    /// pgd; false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub random_start: Option<bool>,
    /// Independent runs (per target); 1, but 5 for apgd-ce in L1, as AutoAttack has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restarts: Option<u32>,
    /// pgd and fgsm; cross-entropy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<Loss>,
    /// pgd; untargeted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    /// pgd; Euclidean.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub projection: Option<Projection>,
    /// pgd; project, then clip.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<ClipOrder>,
    /// pgd; best.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<Keep>,
    #[serde(default)]
    pub independent: bool,
    /// Count only adversarial examples that are 8-bit images; false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub eight_bit: bool,
    /// Arithmetic of the passes that search; float32. Verdicts are float32 in any case.
    #[serde(default, skip_serializing_if = "Precision::is_float32")]
    pub search_precision: Precision,
    /// apgd-t and fab-t: how many of the likeliest wrong classes; 9, but 5 for apgd-t in L1, as AutoAttack has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub targets: Option<u32>,
    /// cw: descents, each with another weight of the loss; 9.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub searches: Option<u32>,
    /// Points looked at; square 5000, noise 100, hop-skip-jump and boundary 10000. Of these two without a budget a rising list
    /// too: a condition each, of one search.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queries: Option<Queries>,
    /// noise; uniform.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distribution: Option<Distribution>,
    /// square: share of the pixels in the first windows; 0.8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p: Option<f64>,
    /// square: when the windows shrink; as published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Schedule>,
    /// Draws averaged at every point, for stochastic models; 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eot: Option<u32>,
}

/// One number of points to look at, or several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(untagged)]
pub enum Queries {
    One(u32),
    Listed(Vec<u32>),
}

impl Queries {
    fn last(&self) -> u32 {
        match self {
            Queries::One(count) => *count,
            Queries::Listed(counts) => counts.last().copied().unwrap_or(0),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AttackName {
    Pgd,
    ApgdCe,
    ApgdDlr,
    ApgdT,
    Fab,
    FabT,
    Fmn,
    Ddn,
    Cw,
    HopSkipJump,
    Boundary,
    Square,
    Noise,
    Fgsm,
}

/// A stage of a cascade: a name, or a table of the name and keys that differ from the block's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(untagged)]
pub enum StageBlock {
    Name(AttackName),
    Table(StageTable),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StageTable {
    pub attack: AttackName,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restarts: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub targets: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub searches: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queries: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Schedule>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distribution: Option<Distribution>,
}

impl StageBlock {
    fn attack(&self) -> AttackName {
        match self {
            StageBlock::Name(attack) | StageBlock::Table(StageTable { attack, .. }) => *attack,
        }
    }

    /// The parameters that the stage names itself.
    fn keys(&self) -> Vec<&'static str> {
        let StageBlock::Table(stage) = self else { return Vec::new() };
        [
            ("steps", stage.steps.is_some()),
            ("restarts", stage.restarts.is_some()),
            ("targets", stage.targets.is_some()),
            ("searches", stage.searches.is_some()),
            ("queries", stage.queries.is_some()),
            ("p", stage.p.is_some()),
            ("schedule", stage.schedule.is_some()),
            ("distribution", stage.distribution.is_some()),
        ]
        .into_iter()
        .filter_map(|(key, named)| named.then_some(key))
        .collect()
    }

    /// The block that this stage would be by itself.
    fn within(&self, block: &AttackBlock) -> AttackBlock {
        let alone = AttackBlock { attack: Some(self.attack()), cascade: Vec::new(), ..block.clone() };
        match self {
            StageBlock::Name(_) => alone,
            StageBlock::Table(stage) => AttackBlock {
                steps: stage.steps.or(block.steps),
                restarts: stage.restarts.or(block.restarts),
                targets: stage.targets.or(block.targets),
                searches: stage.searches.or(block.searches),
                queries: stage.queries.map(Queries::One).or_else(|| block.queries.clone()),
                p: stage.p.or(block.p),
                schedule: stage.schedule.or(block.schedule),
                distribution: stage.distribution.or(block.distribution),
                ..alone
            },
        }
    }
}

impl AttackName {
    fn reads(self, key: &str) -> bool {
        use AttackName::{ApgdT, Boundary, Cw, FabT, Fgsm, HopSkipJump, Noise, Pgd, Square};
        match key {
            "eot" => true,
            "restarts" => !matches!(self, Noise | Fgsm | HopSkipJump | Boundary),
            "steps" => !matches!(self, Square | Noise | Fgsm | HopSkipJump | Boundary),
            "targets" => matches!(self, ApgdT | FabT),
            "searches" => self == Cw,
            "queries" => matches!(self, Square | Noise | HopSkipJump | Boundary),
            "p" | "schedule" => self == Square,
            "distribution" => self == Noise,
            "loss" => matches!(self, Pgd | Fgsm),
            _ => self == Pgd,
        }
    }

    /// The attack with `block`'s parameters, and defaults for those it leaves out.
    fn resolve(self, block: &AttackBlock) -> Attack {
        let l1 = block.norm == Norm::L1;
        let steps = block.steps.unwrap_or(if self == AttackName::Pgd { 64 } else { 100 });
        let restarts = block.restarts.unwrap_or(if l1 && self == AttackName::ApgdCe { 5 } else { 1 });
        let targets = block.targets.unwrap_or(if l1 && self == AttackName::ApgdT { 5 } else { 9 });
        let queries = |default: u32| block.queries.as_ref().map_or(default, Queries::last);
        let eot = block.eot.unwrap_or(1);
        let loss = block.loss.unwrap_or(Loss::CrossEntropy);
        let untargeted = Untargeted { steps, restarts, eot };
        let targeted = Targeted { steps, targets, restarts, eot };
        match self {
            AttackName::Pgd => Attack::Pgd(Pgd {
                steps,
                step_size: block.step_size.unwrap_or(StepSize::OfEpsilon(0.25)),
                random_start: block.random_start.unwrap_or(false),
                restarts,
                loss,
                target: block.target.unwrap_or(Target::Untargeted),
                projection: block.projection.unwrap_or(Projection::Euclidean),
                order: block.order.unwrap_or(ClipOrder::ProjectThenClip),
                keep: block.keep.unwrap_or(Keep::Best),
                eot,
            }),
            AttackName::ApgdCe => Attack::ApgdCe(untargeted),
            AttackName::ApgdDlr => Attack::ApgdDlr(untargeted),
            AttackName::ApgdT => Attack::ApgdT(targeted),
            AttackName::Fab => Attack::Fab(untargeted),
            AttackName::FabT => Attack::FabT(targeted),
            AttackName::Fmn => Attack::Fmn(untargeted),
            AttackName::Ddn => Attack::Ddn(untargeted),
            AttackName::Cw => Attack::Cw(CarliniWagner { steps, searches: block.searches.unwrap_or(9), restarts, eot }),
            AttackName::HopSkipJump => Attack::HopSkipJump(Walk { queries: queries(10_000), eot }),
            AttackName::Boundary => Attack::Boundary(Walk { queries: queries(10_000), eot }),
            AttackName::Square => {
                let (p, schedule) = (block.p.unwrap_or(0.8), block.schedule.unwrap_or_default());
                Attack::Square(Square { queries: queries(5000), p, schedule, restarts, eot })
            }
            AttackName::Noise => Attack::Noise(Noise {
                distribution: block.distribution.unwrap_or(Distribution::Uniform),
                queries: queries(100),
                eot,
            }),
            AttackName::Fgsm => Attack::Fgsm(Fgsm { loss, eot }),
        }
    }
}

impl AttackBlock {
    /// The same block with defaults written out, where it holds one attack: documents that mean the same are the same. A
    /// cascade's stages have different defaults, and conditions carry them.
    pub(super) fn filled(self) -> Self {
        let Some(name) = self.attack else { return self };
        let attack = name.resolve(&self);
        let block = Self { eot: Some(attack.eot()), ..self };
        match attack {
            Attack::Pgd(pgd) => Self {
                restarts: Some(pgd.restarts),
                steps: Some(pgd.steps),
                step_size: Some(pgd.step_size),
                random_start: Some(pgd.random_start),
                loss: Some(pgd.loss),
                target: Some(pgd.target),
                projection: Some(pgd.projection),
                order: Some(pgd.order),
                keep: Some(pgd.keep),
                ..block
            },
            Attack::ApgdCe(Untargeted { steps, restarts, .. })
            | Attack::ApgdDlr(Untargeted { steps, restarts, .. })
            | Attack::Fab(Untargeted { steps, restarts, .. })
            | Attack::Fmn(Untargeted { steps, restarts, .. })
            | Attack::Ddn(Untargeted { steps, restarts, .. }) => {
                Self { steps: Some(steps), restarts: Some(restarts), ..block }
            }
            Attack::ApgdT(Targeted { steps, targets, restarts, .. })
            | Attack::FabT(Targeted { steps, targets, restarts, .. }) => {
                Self { steps: Some(steps), targets: Some(targets), restarts: Some(restarts), ..block }
            }
            Attack::Cw(CarliniWagner { steps, searches, restarts, .. }) => {
                Self { steps: Some(steps), searches: Some(searches), restarts: Some(restarts), ..block }
            }
            Attack::HopSkipJump(Walk { queries, .. }) | Attack::Boundary(Walk { queries, .. }) => {
                let queries = block.queries.clone().unwrap_or(Queries::One(queries));
                Self { queries: Some(queries), ..block }
            }
            Attack::Square(Square { queries, p, schedule, restarts, .. }) => Self {
                queries: Some(Queries::One(queries)),
                p: Some(p),
                schedule: Some(schedule).filter(|schedule| !schedule.is_published()),
                restarts: Some(restarts),
                ..block
            },
            Attack::Noise(Noise { distribution, queries, .. }) => {
                Self { distribution: Some(distribution), queries: Some(Queries::One(queries)), ..block }
            }
            Attack::Fgsm(Fgsm { loss, .. }) => Self { loss: Some(loss), ..block },
            Attack::Cascade(_) => block,
        }
    }

    /// What condition ids begin with.
    pub(super) fn name(&self) -> String {
        self.label.clone().unwrap_or_else(|| self.resolve().name().to_owned())
    }

    /// The block's attack with every parameter.
    pub(super) fn resolve(&self) -> Attack {
        match self.attack {
            Some(attack) => attack.resolve(self),
            None => {
                let stage = |stage: &StageBlock| stage.attack().resolve(&stage.within(self));
                Attack::Cascade(Cascade { cascade: self.cascade.iter().map(stage).collect() })
            }
        }
    }

    pub(super) fn validate(&self, at: &str) -> Result<(), ProtocolError> {
        let fail = |key: &str, problem: String| Err(ProtocolError::new(format!("{at}.{key}"), problem));
        if let Some(label) = &self.label {
            check_name(&format!("{at}.label"), label)?;
        }
        if self.attack.is_some() != self.cascade.is_empty() {
            return fail("attack", "give either `attack` or a `cascade` of at least one".into());
        }
        let stages: Vec<AttackName> =
            self.attack.into_iter().chain(self.cascade.iter().map(StageBlock::attack)).collect();
        if let Some(key) = self.keys().into_iter().find(|key| !stages.iter().any(|stage| stage.reads(key))) {
            return fail(key, "no attack of this block reads it".into());
        }
        if self.epsilon == Budgets::Minimal && self.independent {
            return fail("independent", "there is no other budget to be independent of".into());
        }
        let budgeted = [("eight_bit", self.eight_bit), ("search_precision", !self.search_precision.is_float32())];
        if let Some((key, _)) = budgeted.into_iter().find(|(_, set)| *set && self.epsilon == Budgets::Minimal) {
            return fail(key, "only a block with budgets reads it".into());
        }
        if let (Some(attack), None) = (self.attack, self.cascade.first()) {
            if let Some(problem) = self.unsuited(&attack.resolve(self)) {
                return fail("attack", problem);
            }
            if let Some(problem) = self.unlisted() {
                return fail("queries", problem);
            }
            return problem(&attack.resolve(self)).map_or(Ok(()), |(key, problem)| fail(key, problem));
        }
        if let Some(problem) = self.unlisted() {
            return fail("queries", problem);
        }
        let mut seen = Vec::new();
        for (i, stage) in self.cascade.iter().enumerate() {
            let own = stage.keys();
            if let Some(key) = own.iter().find(|key| !stage.attack().reads(key)) {
                return fail(&format!("cascade[{i}].{key}"), "this attack does not read it".into());
            }
            let attack = stage.attack().resolve(&stage.within(self));
            if let Some((key, problem)) = problem(&attack) {
                let key = if own.contains(&key) { format!("cascade[{i}].{key}") } else { key.to_owned() };
                return fail(&key, problem);
            }
            if let Some(problem) = self.unsuited(&attack) {
                return fail(&format!("cascade[{i}]"), problem);
            }
            if seen.contains(&attack) {
                return fail(
                    &format!("cascade[{i}]"),
                    format!("{} comes twice and would do the same again", attack.name()),
                );
            }
            seen.push(attack);
        }
        Ok(())
    }

    /// Why an attack cannot do what the block asks for.
    fn unsuited(&self, attack: &Attack) -> Option<String> {
        match attack {
            Attack::Ddn(_) | Attack::Cw(_) | Attack::Boundary(_) if self.norm != Norm::L2 => {
                Some(format!("{} knows the norm l2 only", attack.name()))
            }
            Attack::HopSkipJump(_) if self.norm == Norm::L1 => Some("hop-skip-jump knows the norms l2 and linf".into()),
            _ if self.epsilon == Budgets::Minimal && !attack.seeks_nearest() => Some(format!(
                "{} needs a budget: epsilon = \"minimal\" is for fab, fab-t, fmn, ddn, cw, hop-skip-jump and boundary",
                attack.name()
            )),
            _ => None,
        }
    }

    /// What is wrong with a list of numbers of queries.
    fn unlisted(&self) -> Option<String> {
        let Some(Queries::Listed(counts)) = &self.queries else { return None };
        let walk = matches!(self.attack, Some(AttackName::HopSkipJump | AttackName::Boundary));
        if !walk || self.epsilon != Budgets::Minimal {
            return Some("a list is for hop-skip-jump or boundary by itself, with epsilon = \"minimal\"".into());
        }
        let rises = !counts.is_empty() && counts.windows(2).all(|pair| pair[0] < pair[1]) && counts[0] > 0;
        (!rises).then(|| "must be a rising list of numbers of at least 1".into())
    }

    /// What the block asks for besides budgets: how far images must be moved, once, or after each number of queries of one
    /// search. What distinguishes their ids, and the attacks.
    pub(super) fn unbudgeted(&self) -> Vec<(String, Attack)> {
        match (&self.epsilon, &self.queries) {
            (Budgets::Minimal, Some(Queries::Listed(counts))) => {
                let after = |count: &u32| Self { queries: Some(Queries::One(*count)), ..self.clone() };
                counts.iter().map(|count| (format!("-q{count}"), after(count).resolve())).collect()
            }
            (Budgets::Minimal, _) => vec![(String::new(), self.resolve())],
            (Budgets::Listed(_) | Budgets::PerPreset(_), _) => Vec::new(),
        }
    }

    /// The attack parameters that the block names.
    fn keys(&self) -> Vec<&'static str> {
        [
            ("steps", self.steps.is_some()),
            ("step_size", self.step_size.is_some()),
            ("random_start", self.random_start.is_some()),
            ("restarts", self.restarts.is_some()),
            ("loss", self.loss.is_some()),
            ("target", self.target.is_some()),
            ("targets", self.targets.is_some()),
            ("searches", self.searches.is_some()),
            ("queries", self.queries.is_some()),
            ("distribution", self.distribution.is_some()),
            ("p", self.p.is_some()),
            ("schedule", self.schedule.is_some()),
            ("projection", self.projection.is_some()),
            ("order", self.order.is_some()),
            ("keep", self.keep.is_some()),
            ("eot", self.eot.is_some()),
        ]
        .into_iter()
        .filter_map(|(key, named)| named.then_some(key))
        .collect()
    }
}

/// What is wrong with an attack's parameters, and which.
fn problem(attack: &Attack) -> Option<(&'static str, String)> {
    let counts = match attack {
        Attack::Pgd(pgd) => vec![("steps", pgd.steps), ("restarts", pgd.restarts)],
        Attack::ApgdCe(attack)
        | Attack::ApgdDlr(attack)
        | Attack::Fab(attack)
        | Attack::Fmn(attack)
        | Attack::Ddn(attack) => {
            vec![("steps", attack.steps), ("restarts", attack.restarts)]
        }
        Attack::ApgdT(attack) | Attack::FabT(attack) => {
            vec![("steps", attack.steps), ("restarts", attack.restarts), ("targets", attack.targets)]
        }
        Attack::Cw(attack) => {
            vec![("steps", attack.steps), ("searches", attack.searches), ("restarts", attack.restarts)]
        }
        Attack::HopSkipJump(walk) | Attack::Boundary(walk) => vec![("queries", walk.queries)],
        Attack::Square(square) => vec![("queries", square.queries), ("restarts", square.restarts)],
        Attack::Noise(noise) => vec![("queries", noise.queries)],
        Attack::Fgsm(_) | Attack::Cascade(_) => Vec::new(),
    };
    for (key, value) in counts.into_iter().chain([("eot", attack.eot())]) {
        let most = match key {
            "steps" => 100_000,
            "queries" => 1_000_000,
            "eot" => 1000,
            "searches" => 100,
            _ => 10_000,
        };
        if !(1..=most).contains(&value) {
            return Some((key, format!("must be 1 to {most}, not {value}")));
        }
    }
    match attack {
        Attack::Pgd(pgd) if pgd.restarts > 1 && !pgd.random_start => {
            Some(("restarts", "more than one restart needs random_start = true: every run would be the same".into()))
        }
        Attack::Pgd(pgd) => {
            let (StepSize::OfEpsilon(step) | StepSize::Absolute(step)) = pgd.step_size;
            let good = step.is_finite() && step > 0.0;
            (!good).then(|| ("step_size", format!("must be finite and positive, not {step}")))
        }
        Attack::Square(Square { p, .. }) => {
            (!(*p > 0.0 && *p <= 1.0)).then(|| ("p", format!("must be above 0 and at most 1, not {p}")))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::builtin::builtin;
    use super::super::condition::ConditionKind;
    use super::super::file::Protocol;
    use super::*;

    fn stages(protocol: &Protocol) -> Vec<Attack> {
        match &protocol.conditions(Some("mnist")).unwrap().last().unwrap().kind {
            ConditionKind::Attack(condition) => condition.attack.stages().into_iter().cloned().collect(),
            ConditionKind::Clean | ConditionKind::MinNorm(_) | ConditionKind::Corruption(_) => Vec::new(),
        }
    }

    fn with(name: &str, settings: &[(&str, &str)]) -> Result<Protocol, ProtocolError> {
        let settings: Vec<_> = settings.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        Protocol::from_value(serde_json::to_value(builtin(name).unwrap()).unwrap(), &settings)
    }

    #[test]
    fn autoattack_is_what_its_authors_run() {
        let untargeted = |restarts, eot| Untargeted { steps: 100, restarts, eot };
        let targeted = |targets| Targeted { steps: 100, targets, restarts: 1, eot: 1 };
        let square =
            Attack::Square(Square { queries: 5000, p: 0.8, schedule: Schedule::Published, restarts: 1, eot: 1 });
        assert_eq!(
            stages(&builtin("autoattack-standard").unwrap()),
            [Attack::ApgdCe(untargeted(1, 1)), Attack::ApgdT(targeted(9)), Attack::FabT(targeted(9)), square.clone()]
        );
        let l1 = stages(&with("autoattack-standard", &[("norm", "l1"), ("epsilon", "12")]).unwrap());
        assert_eq!(
            l1,
            [Attack::ApgdCe(untargeted(5, 1)), Attack::ApgdT(targeted(5)), Attack::FabT(targeted(9)), square.clone()]
        );
        assert_eq!(
            stages(&builtin("autoattack-plus").unwrap()),
            [
                Attack::ApgdCe(untargeted(5, 1)),
                Attack::ApgdDlr(untargeted(5, 1)),
                Attack::Fab(untargeted(5, 1)),
                square,
                Attack::ApgdT(targeted(9)),
                Attack::FabT(targeted(9))
            ]
        );
        assert_eq!(
            stages(&builtin("autoattack-rand").unwrap()),
            [Attack::ApgdCe(untargeted(1, 20)), Attack::ApgdDlr(untargeted(1, 20))]
        );
    }

    #[test]
    fn keys_that_nothing_reads_are_errors_and_settings_reach_the_stages_that_read_them() {
        let found = stages(&with("autoattack-standard", &[("steps", "7"), ("queries", "30")]).unwrap());
        assert!(matches!(&found[0], Attack::ApgdCe(Untargeted { steps: 7, .. })));
        assert!(matches!(&found[3], Attack::Square(Square { queries: 30, .. })));
        for (key, value, at) in [
            ("step_size", "{ absolute = 0.1 }", "attack[0].step_size"),
            ("targets", "0", "attack[0].targets"),
            ("p", "1.5", "attack[0].p"),
            ("schedule", "faster", "attack[0].schedule"),
            ("cascade", "[]", "attack[0].attack"),
            ("cascade", "[\"square\", \"square\"]", "attack[0].cascade[1]"),
            ("cascade", "[{ attack = \"square\", steps = 3 }]", "attack[0].cascade[0].steps"),
            ("cascade", "[{ attack = \"square\", queries = 0 }]", "attack[0].cascade[0].queries"),
        ] {
            let error = with("autoattack-standard", &[(key, value)]).unwrap_err();
            assert_eq!(error.key, at, "{error}");
        }
    }
}
