//! The second opinion: a probe of bounded cost on a sample of images, at one condition. It changes no verdict; what it breaks
//! of the images that stand, its examination has confirmed as any verdict's.
//!
//! Every sampled image costs one forward pass. Those that the model gets right cost 13 forwards and three backwards for the
//! direction of the gradient, in float32 and in float64, and the stability of the class, and [`UNBOUNDED_STEPS`] of each without a budget. Those that the
//! condition left standing cost [`NOISE_DRAWS`] forwards, and a cascade of [`QUERIES`] forwards (Square), then [`FAB_STEPS`]
//! of each towards [`TARGETS`] classes (FAB), [`ASCENT_STEPS`] of each on cross-entropy and again towards each of those
//! classes (APGD). Where the attack averages over draws (`eot`), gradients are averaged over as many.
//!
//! A deterministic model alone is attacked again: a stochastic one's verdict is a draw, which another draw does not refute.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};

use tch::{Kind, Tensor};

use crate::protocol::{
    Attack, AttackCondition, Cascade, ClipOrder, Condition, ConditionKind, Epsilon, Keep, Loss, Norm, Pgd, Precision,
    Projection, Schedule, Sign, Signs, Square, Stage, StepSize, Target, Targeted, ThreatModel, Untargeted,
};
use crate::robustness::attack::{Answer, Goal};
use crate::robustness::engine::{
    EngineError, Images, Kernel, Objective, Outcome, Progress, Run, evaluate, guarded, name_pass,
};
use crate::robustness::model::to_unit;
use crate::robustness::rng::Stream;
use crate::robustness::threat::{flat, random_start, to_eight_bits, to_vec, unit_sphere};

/// Steps of the ascent without a budget; each may move a pixel by a twentieth of its range.
pub const UNBOUNDED_STEPS: u32 = 50;
const UNBOUNDED_STEP: f64 = 0.05;
/// Draws of noise on the budget's surface.
pub const NOISE_DRAWS: u32 = 16;
pub const QUERIES: u32 = 300;
pub const FAB_STEPS: u32 = 20;
pub const ASCENT_STEPS: u32 = 50;
/// Likeliest wrong classes to steer to.
pub const TARGETS: u32 = 3;
/// One grey level.
const LEVEL: f64 = 1.0 / 255.0;
/// Grey levels from the image to where the gradient is looked at.
const NEAR: f64 = 2.0;
/// Cosine of two gradients that point the same way, near enough.
const SAME_WAY: f64 = 0.9;
/// Draws of noise of one grey level.
const LEVEL_DRAWS: u32 = 8;
/// Names the probe's random numbers among all others.
const KEY: u64 = 0x7365_636f_6e64_206f;

/// Probes the images of `run` whose indices are in `sample`, at the last of the run's conditions, an attack, under which
/// they came to `outcomes`. `observer` is called after every pass with the passes spent so far.
pub fn second_opinion(
    run: &Run,
    sample: &[u32],
    outcomes: &[Outcome],
    observer: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Signs, EngineError> {
    let last = run.conditions.len().wrapping_sub(1);
    let Some(ConditionKind::Attack(condition)) = run.conditions.last().map(|condition| &condition.kind) else {
        return Ok(Signs::default());
    };
    let sampled = chosen(run.images, |position| sample.contains(&run.images.indices[position]));
    if sampled.indices.is_empty() {
        return Ok(Signs::default());
    }
    let mut probe = Probe { run, condition, signs: Signs::default(), observer };
    let correct = guarded(|| probe.correct(&sampled))?;
    guarded(|| probe.gradients(&correct))?;
    guarded(|| probe.stability(&correct))?;
    probe.unbounded(&correct)?;
    if !run.model.spec().stochastic {
        let stands = |image: u32| {
            let found = outcomes.iter().find(|outcome| outcome.condition == last && outcome.verdict.image == image);
            found.is_some_and(|outcome| outcome.verdict.robust)
        };
        let standing = chosen(&correct, |position| stands(correct.indices[position]));
        let fallen = chosen(&correct, |position| !stands(correct.indices[position]));
        let noisy = guarded(|| probe.noise(&standing))?;
        probe.again(&standing, &noisy)?;
        probe.nothing_new(&fallen);
    }
    Ok(probe.signs)
}

/// The images at positions that `test` accepts.
fn chosen(images: &Images, test: impl Fn(usize) -> bool) -> Images {
    let each = images.pixels.len() / images.indices.len().max(1);
    let mut found = Images::default();
    for position in (0..images.indices.len()).filter(|position| test(*position)) {
        found.indices.push(images.indices[position]);
        found.labels.push(images.labels[position]);
        found.pixels.extend(&images.pixels[position * each..(position + 1) * each]);
    }
    found
}

/// Whether two answers agree on the class of each point, and roughly on the direction of its gradient.
fn alike(one: &Answer, other: &Answer) -> Vec<bool> {
    let [a, b] = [one, other].map(|answer| flat(&answer.gradient).to_kind(Kind::Double));
    let [still, too] = [&a, &b].map(|gradient| gradient.abs().amax(1, false).eq(0.0));
    let cosine = Tensor::cosine_similarity(&a, &b, 1, f64::MIN_POSITIVE).masked_fill(&still.logical_and(&too), 1.0);
    let classes = one.seen.iter().zip(&other.seen);
    to_vec(&cosine).into_iter().zip(classes).map(|(cosine, (one, other))| one == other && cosine >= SAME_WAY).collect()
}

struct Probe<'a, 'r> {
    run: &'a Run<'r>,
    condition: &'a AttackCondition,
    signs: Signs,
    observer: &'a mut dyn FnMut(Progress) -> ControlFlow<()>,
}

impl Probe<'_, '_> {
    fn kernel(&self) -> Kernel<'_> {
        Kernel::new(self.run.model, self.run.batch.into())
    }

    /// float32 [n, C, H, W] on the model's device.
    fn points(&self, images: &Images) -> Tensor {
        let [channels, height, width] = self.run.model.spec().input.map(i64::from);
        let shape = [images.indices.len() as i64, channels, height, width];
        to_unit(&Tensor::from_data_size(&images.pixels, &shape, Kind::Uint8), self.run.model.device())
    }

    /// Notes passes over `images` and lets the observer speak.
    fn spent(&mut self, images: &Images, forwards: u32, backwards: u32) -> Result<(), EngineError> {
        let count = images.indices.len() as u64;
        self.signs.forwards += count * u64::from(forwards);
        self.signs.backwards += count * u64::from(backwards);
        self.tell(0, 0)
    }

    fn tell(&mut self, forwards: u64, backwards: u64) -> Result<(), EngineError> {
        let (forwards, backwards) = (self.signs.forwards + forwards, self.signs.backwards + backwards);
        match (self.observer)(Progress { done: 0, total: 0, forwards, backwards }) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(EngineError::Stopped),
        }
    }

    /// Which points the model misclassifies, one per image.
    fn misclassified(&self, points: &Tensor, images: &Images) -> Result<Vec<bool>, EngineError> {
        let classes = self.kernel().logits(points)?.argmax(1, false).to_device(tch::Device::Cpu);
        let classes = Vec::<i64>::try_from(classes).expect("a row of classes");
        Ok(classes.iter().zip(&images.labels).map(|(class, label)| *class != i64::from(*label)).collect())
    }

    /// Names the random numbers that a stochastic model draws from here on.
    fn name(&self, step: u32) {
        name_pass(self.run, self.run.conditions[self.run.conditions.len() - 1], u32::MAX - step);
    }

    fn correct(&mut self, sampled: &Images) -> Result<Images, EngineError> {
        self.name(0);
        let wrong = self.misclassified(&self.points(sampled), sampled)?;
        self.spent(sampled, 1, 0)?;
        Ok(chosen(sampled, |position| !wrong[position]))
    }

    /// From a point near the image, a step of one grey level along the gradient of the margin must end at a higher margin
    /// than one against it. Images often lie on round numbers, where a model may behave better than anywhere else.
    fn gradients(&mut self, images: &Images) -> Result<(), EngineError> {
        let draws = self.condition.attack.draws(self.run.model.spec().stochastic);
        // No more rows at a time than the attack itself had.
        let chunk = (self.run.batch / draws).max(1) as usize;
        for first in (0..images.indices.len()).step_by(chunk) {
            self.directions(&chosen(images, |position| (first..first + chunk).contains(&position)), draws)?;
        }
        Ok(())
    }

    fn directions(&mut self, images: &Images, draws: u32) -> Result<(), EngineError> {
        let goal = Goal { loss: Loss::Margin, target: None, float32_gradient: false };
        let objective = Objective::new(&images.labels, &vec![Some(goal); images.labels.len()], self.run.model.device());
        let points = self.near(images, Norm::Linf, NEAR * LEVEL, 0);
        let margin =
            |points: &Tensor, gradient: bool| self.kernel().evaluate(points, &objective, draws.into(), gradient);
        self.name(1);
        let here = margin(&points, true)?.answer;
        let step = here.gradient.sign() * LEVEL;
        let along = to_vec(&margin(&(&points + &step).clamp(0.0, 1.0), false)?.answer.loss);
        let against = to_vec(&margin(&(&points - &step).clamp(0.0, 1.0), false)?.answer.loss);
        for ((image, along), against) in images.indices.iter().zip(along).zip(against) {
            // Where either is no number, the comparison is false, and the gradient useless.
            let leads = along > against;
            self.signs.look(Sign::MisleadingGradient, *image, !leads);
        }
        self.precision(images, &points, &objective, &here)?;
        self.spent(images, 3 * draws, draws)
    }

    /// Near the image, float64 should find the class and, roughly, the gradient's direction that float32 finds. A stochastic model draws
    /// other numbers in each.
    fn precision(
        &mut self,
        images: &Images,
        points: &Tensor,
        objective: &Objective,
        here: &Answer,
    ) -> Result<(), EngineError> {
        let model = self.run.model.in_float64().filter(|model| !model.spec().stochastic);
        let Some(model) = model else { return Ok(()) };
        let kernel = Kernel::new(&*model, self.run.batch.into());
        // What cannot be computed in float64 says nothing of float32.
        let Ok(Ok(wide)) = catch_unwind(AssertUnwindSafe(|| kernel.evaluate(points, objective, 1, true))) else {
            return Ok(());
        };
        // A model that does not even agree with itself has another fault.
        let again = self.kernel().evaluate(points, objective, 1, true)?;
        for ((image, wide), again) in
            images.indices.iter().zip(alike(here, &wide.answer)).zip(alike(here, &again.answer))
        {
            self.signs.look(Sign::PrecisionMatters, *image, again && !wide);
        }
        self.spent(images, 2, 2)
    }

    /// Noise of one grey level in every pixel should not change the class.
    fn stability(&mut self, images: &Images) -> Result<(), EngineError> {
        let changed = self.under_noise(images, Norm::Linf, LEVEL, 1..1 + LEVEL_DRAWS, false)?;
        for (image, changed) in images.indices.iter().zip(changed) {
            self.signs.look(Sign::Unstable, *image, changed);
        }
        Ok(())
    }

    /// Noise as large as the budget; returns which images it breaks.
    fn noise(&mut self, images: &Images) -> Result<Vec<bool>, EngineError> {
        let ThreatModel { norm, epsilon } = self.condition.threat;
        let first = 1 + LEVEL_DRAWS;
        let broken =
            self.under_noise(images, norm, epsilon.get(), first..first + NOISE_DRAWS, self.condition.eight_bit)?;
        for (image, broken) in images.indices.iter().zip(&broken) {
            self.signs.look(Sign::NoiseWins, *image, *broken);
        }
        Ok(broken)
    }

    /// Which images any of these draws of noise on the sphere misclassifies.
    fn under_noise(
        &mut self,
        images: &Images,
        norm: Norm,
        radius: f64,
        draws: std::ops::Range<u32>,
        snapped: bool,
    ) -> Result<Vec<bool>, EngineError> {
        let mut broken = vec![false; images.indices.len()];
        if broken.is_empty() {
            return Ok(broken);
        }
        for draw in draws {
            let points = self.near(images, norm, radius, draw);
            let points = if snapped { to_eight_bits(&points, &self.points(images)) } else { points };
            self.name(2 + draw);
            let wrong = self.misclassified(&points, images)?;
            broken.iter_mut().zip(wrong).for_each(|(broken, wrong)| *broken |= wrong);
            self.spent(images, 1, 0)?;
        }
        Ok(broken)
    }

    /// A point on the sphere around each image, cut to the box.
    fn near(&self, images: &Images, norm: Norm, radius: f64, draw: u32) -> Tensor {
        let points = self.points(images);
        let dimension = points.numel() / images.indices.len();
        let radii = Tensor::from_slice(&vec![radius; images.indices.len()]).to_device(points.device());
        let noise = |image: &u32| unit_sphere(norm, dimension, &mut Stream::new(self.run.seed, KEY, *image, draw));
        let unit: Vec<f64> = images.indices.iter().flat_map(noise).collect();
        random_start(&points, &Tensor::from_slice(&unit).to_device(points.device()).view_as(&points), &radii)
    }

    /// Ascent from the clean image with every pixel free.
    fn unbounded(&mut self, images: &Images) -> Result<(), EngineError> {
        let attack = Attack::Pgd(Pgd {
            steps: UNBOUNDED_STEPS,
            step_size: StepSize::Absolute(UNBOUNDED_STEP),
            random_start: false,
            restarts: 1,
            loss: Loss::CrossEntropy,
            target: Target::Untargeted,
            projection: Projection::Euclidean,
            order: ClipOrder::ProjectThenClip,
            keep: Keep::Best,
            eot: self.condition.attack.eot(),
        });
        let everything = ThreatModel { norm: Norm::Linf, epsilon: Epsilon::new(1.0).expect("a radius") };
        for outcome in self.attacked(images, everything, attack)? {
            self.signs.look(Sign::UnboundedFails, outcome.verdict.image, outcome.verdict.robust);
        }
        Ok(())
    }

    /// A short cascade of other attacks inside the condition's own budget; `noisy` images have fallen to noise.
    fn again(&mut self, images: &Images, noisy: &[bool]) -> Result<(), EngineError> {
        let targeted = |steps| Targeted { steps, targets: TARGETS, restarts: 1, eot: 1 };
        let cascade = vec![
            Attack::Square(Square { queries: QUERIES, p: 0.8, schedule: Schedule::Published, restarts: 1, eot: 1 }),
            Attack::FabT(targeted(FAB_STEPS)),
            Attack::ApgdCe(Untargeted { steps: ASCENT_STEPS, restarts: 1, eot: 1 }),
            Attack::ApgdT(targeted(ASCENT_STEPS)),
        ];
        let outcomes = self.attacked(images, self.condition.threat, Attack::Cascade(Cascade { cascade }))?;
        for (outcome, noisy) in outcomes.into_iter().zip(noisy) {
            let image = outcome.verdict.image;
            let by = match &outcome.verdict.stage {
                Some(Stage::Attack(name)) => name.as_str(),
                _ => "",
            };
            self.signs.look(Sign::BlackBoxWins, image, by == "square");
            self.signs.look(Sign::MinNormWins, image, by == "fab-t");
            self.signs.look(Sign::AscentWins, image, by.starts_with("apgd"));
            self.signs.look(Sign::Overturned, image, *noisy || !outcome.verdict.robust);
        }
        Ok(())
    }

    /// Images that the condition broke itself: no second opinion can count against it.
    fn nothing_new(&mut self, images: &Images) {
        for sign in [Sign::NoiseWins, Sign::BlackBoxWins, Sign::MinNormWins, Sign::AscentWins, Sign::Overturned] {
            images.indices.iter().for_each(|image| self.signs.look(sign, *image, false));
        }
    }

    /// What becomes of `images`, in their order, under an attack of the probe's own.
    fn attacked(&mut self, images: &Images, threat: ThreatModel, attack: Attack) -> Result<Vec<Outcome>, EngineError> {
        if images.indices.is_empty() {
            return Ok(Vec::new());
        }
        let eight_bit = self.condition.eight_bit;
        let kind = ConditionKind::Attack(AttackCondition {
            threat,
            independent: true,
            eight_bit,
            search_precision: Precision::Float32,
            attack,
        });
        let condition = Condition { id: "second opinion".into(), kind };
        let run = Run {
            images,
            conditions: &[&condition],
            // Not the numbers that an equal attack of the run itself has drawn.
            seed: self.run.seed ^ KEY,
            wants_witness: &|_| false,
            ..*self.run
        };
        let outcomes = evaluate(&run, &mut |now| match self.tell(now.forwards, now.backwards) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        })?;
        for outcome in &outcomes {
            self.signs.forwards += u64::from(outcome.verdict.forwards);
            self.signs.backwards += u64::from(outcome.verdict.backwards);
        }
        Ok(outcomes)
    }
}
