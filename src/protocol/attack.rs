//! Attacks and cascades of them, with every parameter resolved.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "attack", rename_all = "kebab-case")]
pub enum Attack {
    Pgd(Pgd),
    /// Auto-PGD on cross-entropy (Croce and Hein 2020); in L1 the sparse version of "Mind the box" (2021), as below.
    ApgdCe(Untargeted),
    /// Auto-PGD on the difference-of-logits ratio.
    ApgdDlr(Untargeted),
    /// Auto-PGD on the targeted difference-of-logits ratio, one target after another.
    ApgdT(Targeted),
    /// Fast adaptive boundary (Croce and Hein 2020, "Minimally distorted adversarial examples") against all classes at once:
    /// each step costs a forward and a backward pass per wrong class.
    Fab(Untargeted),
    /// The same towards one class after another.
    FabT(Targeted),
    /// Fast minimum-norm attack (Pintor et al. 2021): the nearest adversarial example, whatever the budget.
    Fmn(Untargeted),
    /// Decoupled direction and norm (Rony et al. 2019): the same, in L2 only.
    Ddn(Untargeted),
    /// Carlini and Wagner's (2017), in L2: descends length and loss together, for one weight between them after another.
    Cw(CarliniWagner),
    /// Along the decision boundary by the model's answers alone (Chen et al. 2020), in L2 and L∞.
    HopSkipJump(Walk),
    /// At random among adversarial images towards the clean one, by the model's answers alone (Brendel et al. 2018), in L2.
    Boundary(Walk),
    /// Random search over squares of pixels, without gradients (Andriushchenko et al. 2020).
    Square(Square),
    /// Random noise as long as the budget allows: the baseline that every attack must beat.
    Noise(Noise),
    /// One gradient step as long as the budget (Goodfellow et al. 2015).
    Fgsm(Fgsm),
    Cascade(Cascade),
}

impl Attack {
    /// The name users write and read.
    pub fn name(&self) -> &'static str {
        match self {
            Attack::Pgd(_) => "pgd",
            Attack::ApgdCe(_) => "apgd-ce",
            Attack::ApgdDlr(_) => "apgd-dlr",
            Attack::ApgdT(_) => "apgd-t",
            Attack::Fab(_) => "fab",
            Attack::FabT(_) => "fab-t",
            Attack::Fmn(_) => "fmn",
            Attack::Ddn(_) => "ddn",
            Attack::Cw(_) => "cw",
            Attack::HopSkipJump(_) => "hop-skip-jump",
            Attack::Boundary(_) => "boundary",
            Attack::Square(_) => "square",
            Attack::Noise(_) => "noise",
            Attack::Fgsm(_) => "fgsm",
            Attack::Cascade(_) => "cascade",
        }
    }

    /// The attacks to run one after another: a cascade's in order, or this one alone.
    pub fn stages(&self) -> Vec<&Attack> {
        match self {
            Attack::Cascade(Cascade { cascade }) => cascade.iter().flat_map(Attack::stages).collect(),
            attack => vec![attack],
        }
    }

    /// The names of [`stages`](Self::stages), each its own: the second `pgd` of a cascade is `pgd-2`.
    pub fn stage_names(&self) -> Vec<String> {
        let stages = self.stages();
        let before = |i: usize| stages[..i].iter().filter(|stage| stage.name() == stages[i].name()).count();
        let name = |i: usize| match before(i) {
            0 => stages[i].name().to_owned(),
            earlier => format!("{}-{}", stages[i].name(), earlier + 1),
        };
        (0..stages.len()).map(name).collect()
    }

    /// Whether the attack looks for the nearest adversarial example instead of any inside a budget.
    pub fn seeks_nearest(&self) -> bool {
        match self {
            Attack::Fab(_) | Attack::FabT(_) | Attack::Fmn(_) | Attack::Ddn(_) | Attack::Cw(_) => true,
            Attack::HopSkipJump(_) | Attack::Boundary(_) => true,
            Attack::Cascade(Cascade { cascade }) => cascade.iter().all(Attack::seeks_nearest),
            Attack::Pgd(_)
            | Attack::ApgdCe(_)
            | Attack::ApgdDlr(_)
            | Attack::ApgdT(_)
            | Attack::Square(_)
            | Attack::Noise(_)
            | Attack::Fgsm(_) => false,
        }
    }

    /// The same attack with a single run.
    pub(super) fn with_one_run(&self) -> Self {
        let mut attack = self.clone();
        match &mut attack {
            Attack::Pgd(pgd) => pgd.restarts = 1,
            Attack::ApgdCe(apgd) | Attack::ApgdDlr(apgd) => apgd.restarts = 1,
            Attack::Fab(attack) | Attack::Fmn(attack) | Attack::Ddn(attack) => attack.restarts = 1,
            Attack::Cw(attack) => attack.restarts = 1,
            // Which run is which target's depends on how many there are.
            Attack::ApgdT(targeted) | Attack::FabT(targeted) => targeted.restarts = 1,
            // How long a walk goes on changes nothing of its beginning.
            Attack::HopSkipJump(walk) | Attack::Boundary(walk) => walk.queries = 1,
            Attack::Square(square) => square.restarts = 1,
            Attack::Noise(noise) => noise.queries = 1,
            Attack::Fgsm(_) | Attack::Cascade(_) => {}
        }
        attack
    }

    /// Draws averaged at every point (expectation over transformation), for stochastic models; the most of any stage.
    pub fn eot(&self) -> u32 {
        match self {
            Attack::Pgd(pgd) => pgd.eot,
            Attack::ApgdCe(Untargeted { eot, .. })
            | Attack::ApgdDlr(Untargeted { eot, .. })
            | Attack::Fab(Untargeted { eot, .. })
            | Attack::Fmn(Untargeted { eot, .. })
            | Attack::Ddn(Untargeted { eot, .. })
            | Attack::ApgdT(Targeted { eot, .. })
            | Attack::FabT(Targeted { eot, .. })
            | Attack::Cw(CarliniWagner { eot, .. })
            | Attack::HopSkipJump(Walk { eot, .. })
            | Attack::Boundary(Walk { eot, .. })
            | Attack::Square(Square { eot, .. })
            | Attack::Noise(Noise { eot, .. })
            | Attack::Fgsm(Fgsm { eot, .. }) => *eot,
            Attack::Cascade(Cascade { cascade }) => cascade.iter().map(Attack::eot).max().unwrap_or(1),
        }
    }

    /// Draws averaged at every point of a search: a deterministic model needs one.
    pub fn draws(&self, stochastic: bool) -> u32 {
        if stochastic { self.eot().max(1) } else { 1 }
    }

    /// Whether it never demands a gradient: such trajectories are batched apart, in passes without a backward.
    pub fn is_forward_only(&self) -> bool {
        match self {
            Attack::Square(_) | Attack::Noise(_) | Attack::HopSkipJump(_) | Attack::Boundary(_) => true,
            Attack::Pgd(_) | Attack::Fgsm(_) | Attack::ApgdCe(_) | Attack::ApgdDlr(_) | Attack::ApgdT(_) => false,
            Attack::Fab(_) | Attack::FabT(_) | Attack::Fmn(_) | Attack::Ddn(_) | Attack::Cw(_) => false,
            Attack::Cascade(_) => false,
        }
    }

    /// Whether it follows gradients to where the loss is highest. FGSM's one step does not get there: what it breaks after an
    /// ascent speaks against the ascent, and what others break after it speaks against nothing.
    pub fn ascends(&self) -> bool {
        match self {
            Attack::Pgd(_) | Attack::ApgdCe(_) | Attack::ApgdDlr(_) | Attack::ApgdT(_) => true,
            Attack::Fgsm(_) | Attack::Noise(_) | Attack::Square(_) => false,
            Attack::HopSkipJump(_) | Attack::Boundary(_) | Attack::Cascade(_) => false,
            Attack::Fab(_) | Attack::FabT(_) | Attack::Fmn(_) | Attack::Ddn(_) | Attack::Cw(_) => false,
        }
    }

    /// Whether it is a walk whose length is all that its number of queries says: one shows what a shorter one comes to.
    pub fn is_walk(&self) -> bool {
        matches!(self, Attack::HopSkipJump(_) | Attack::Boundary(_))
    }

    /// Whether it is no adversary but what adversaries are compared with: standing up to it proves little by itself.
    pub fn is_baseline(&self) -> bool {
        self.stages().iter().all(|stage| matches!(stage, Attack::Noise(_) | Attack::Fgsm(_)))
    }

    /// Forward and backward passes that one image costs at most, but for one misclassified from the start.
    pub fn passes(&self, model: &Subject) -> Passes {
        let eot = f64::from(self.draws(model.stochastic));
        let others = model.classes.saturating_sub(1).max(1);
        let product = |counts: &[u32]| counts.iter().map(|count| f64::from(*count)).product::<f64>();
        // Every step takes both passes, and the end of every run is looked at.
        let ascent = |steps: u32, runs: f64| Passes {
            forwards: runs * f64::from(steps + 1) * eot,
            backwards: runs * f64::from(steps) * eot,
        };
        let queries = |counts: &[u32]| Passes { forwards: product(counts) * eot, backwards: 0.0 };
        // Once for the order of the classes.
        let ranked = |search: Passes| Passes { forwards: search.forwards + 1.0, ..search };
        let search = match self {
            Attack::Pgd(pgd) => match pgd.target {
                Target::LeastLikely | Target::MostLikely => ranked(ascent(pgd.steps, pgd.restarts.into())),
                Target::Untargeted | Target::NextClass | Target::Random => ascent(pgd.steps, pgd.restarts.into()),
            },
            Attack::ApgdCe(attack) | Attack::ApgdDlr(attack) | Attack::Fmn(attack) | Attack::Ddn(attack) => {
                ascent(attack.steps, attack.restarts.into())
            }
            Attack::ApgdT(attack) => {
                ranked(ascent(attack.steps, product(&[attack.targets.min(others), attack.restarts])))
            }
            // A step looks at the boundary to each wrong class, FAB-T's at one; it is undone and tried again where it led too far.
            Attack::Fab(attack) => {
                let looks = product(&[attack.steps + 1, attack.restarts, others]) * eot;
                Passes { forwards: looks, backwards: looks }
            }
            Attack::FabT(attack) => {
                let looks = product(&[attack.steps + 1, attack.restarts, attack.targets.min(others)]) * eot;
                ranked(Passes { forwards: looks, backwards: looks })
            }
            Attack::Square(square) => queries(&[square.queries, square.restarts]),
            Attack::Cw(attack) => ascent(attack.steps, product(&[attack.searches, attack.restarts])),
            Attack::HopSkipJump(walk) | Attack::Boundary(walk) => queries(&[walk.queries]),
            Attack::Noise(noise) => queries(&[noise.queries]),
            Attack::Fgsm(_) => Passes { forwards: eot, backwards: eot },
            Attack::Cascade(Cascade { cascade }) => {
                let each = cascade.iter().map(|stage| stage.passes(model));
                each.fold(Passes::default(), |sum, stage| Passes {
                    forwards: sum.forwards + stage.forwards,
                    backwards: sum.backwards + stage.backwards,
                })
            }
        };
        // Each run's candidate may be examined, but hardly any is before the last.
        match self {
            Attack::Cascade(_) => search,
            _ => Passes { forwards: search.forwards + 1.0, ..search },
        }
    }
}

/// What of a model decides how many passes an attack takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subject {
    pub classes: u32,
    pub stochastic: bool,
}

/// Passes of one image.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Passes {
    pub forwards: f64,
    pub backwards: f64,
}

/// Attacks at one threat model, each on the images that those before it left standing: worst case per image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Cascade {
    /// The stages in order, at least one.
    #[schema(no_recursion)]
    pub cascade: Vec<Attack>,
}

/// An attack away from the true class.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Untargeted {
    /// Gradient steps of each restart, at least 1.
    pub steps: u32,
    /// Independent runs, at least 1.
    pub restarts: u32,
    /// Draws averaged at every point, at least 1 (for stochastic models).
    pub eot: u32,
}

/// An attack towards the likeliest wrong classes, one after another. Success is any misclassification.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Targeted {
    /// Gradient steps of each run, at least 1.
    pub steps: u32,
    /// Classes to steer to, by falling logit at the clean image, at least 1; a model of few classes has fewer.
    pub targets: u32,
    /// Runs per target, at least 1.
    pub restarts: u32,
    /// Draws averaged at every point, at least 1 (for stochastic models).
    pub eot: u32,
}

/// The parameters of Square.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Square {
    /// Points that each restart looks at, at least 1.
    pub queries: u32,
    /// Share of the pixels that the first squares cover; it falls with the number of queries.
    pub p: f64,
    #[serde(default, skip_serializing_if = "Schedule::is_published")]
    pub schedule: Schedule,
    /// Independent runs, at least 1.
    pub restarts: u32,
    /// Draws averaged at every point, at least 1 (for stochastic models).
    pub eot: u32,
}

/// When the squares become smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// After as many queries as published, which are for searches of 10,000.
    #[default]
    Published,
    /// After the same shares of the search, however short it is.
    Rescaled,
}

impl Schedule {
    /// Documents that leave the published schedule unsaid keep their hash, and their random numbers.
    pub(super) fn is_published(&self) -> bool {
        *self == Schedule::Published
    }
}

/// The parameters of Carlini and Wagner's attack.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CarliniWagner {
    /// Gradient steps of each descent, at least 1.
    pub steps: u32,
    /// Descents of each restart, each with another weight of the loss, at least 1.
    pub searches: u32,
    /// Independent runs, at least 1.
    pub restarts: u32,
    /// Draws averaged at every point, at least 1 (for stochastic models).
    pub eot: u32,
}

/// The parameters of a walk among adversarial images by the model's answers alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Walk {
    /// Points looked at, at least 1.
    pub queries: u32,
    /// Draws that vote at every point, at least 1 (for stochastic models).
    pub eot: u32,
}

/// The parameters of noise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Noise {
    pub distribution: Distribution,
    /// Points looked at, at least 1.
    pub queries: u32,
    /// Draws averaged at every point, at least 1 (for stochastic models).
    pub eot: u32,
}

/// What a pixel of the noise is drawn from, before the whole is scaled to the length of the budget and cut to the box.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Distribution {
    Uniform,
    Gaussian,
}

/// The parameters of FGSM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Fgsm {
    pub loss: Loss,
    /// Gradients averaged, at least 1 (for stochastic models).
    pub eot: u32,
}

/// Projected gradient descent (Madry et al. 2018), every choice spelled out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Pgd {
    /// Gradient steps of each restart, at least 1.
    pub steps: u32,
    pub step_size: StepSize,
    /// Start uniformly in the norm ball (cut to the pixel box) instead of at the clean image.
    pub random_start: bool,
    /// Independent runs, at least 1; more than one needs a random start.
    pub restarts: u32,
    pub loss: Loss,
    pub target: Target,
    pub projection: Projection,
    pub order: ClipOrder,
    pub keep: Keep,
    /// Gradients averaged per step, at least 1 (expectation over transformation, for stochastic models).
    pub eot: u32,
}

/// Length of one step, in [0,1] pixel units of the norm.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StepSize {
    OfEpsilon(f64),
    Absolute(f64),
}

impl StepSize {
    pub fn resolve(self, epsilon: f64) -> f64 {
        match self {
            StepSize::OfEpsilon(fraction) => fraction * epsilon,
            StepSize::Absolute(alpha) => alpha,
        }
    }
}

/// What a step ascends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Loss {
    /// −log softmax of the true class; targeted: log softmax of the target class.
    CrossEntropy,
    /// Largest wrong logit minus the true logit; targeted: target logit minus true logit.
    Margin,
    /// The margin over the spread of the largest logits, which no scale of the logits changes (Croce and Hein 2020). With
    /// three classes the targeted ratio takes the third logit for the fourth; with two it is the margin.
    Dlr,
}

/// Which wrong class the loss steers towards. Success is any misclassification, whatever the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    Untargeted,
    /// (label + 1) mod K.
    NextClass,
    /// The smallest logit at the clean image.
    LeastLikely,
    /// The largest wrong logit at the clean image.
    MostLikely,
    /// Drawn per image and restart, uniformly over the wrong classes.
    Random,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Projection {
    /// The nearest point of ball ∩ box; the order of projecting and clipping then means nothing.
    Euclidean,
    /// δ·min(1, ε/(‖δ‖ + 1e-7)) for L1 and L2, as ART does it, following ART's float32 gradient, which fades on images
    /// that the model is sure of. For L1 much weaker: raises finding `weak_projection`.
    Radial,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ClipOrder {
    ProjectThenClip,
    /// As ART does it.
    ClipThenProject,
}

/// Which iterate becomes the candidate that the verdict examines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    /// Highest search loss. On a deterministic model a misclassified iterate comes first, and ends the search.
    Best,
    /// The end of the trajectory, whatever was seen on the way.
    Last,
    /// The first iterate that the search sees misclassified.
    Any,
}
