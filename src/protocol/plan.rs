//! The planner: conditions × seeds × images into shards of about a minute.

use serde::{Deserialize, Serialize};

use super::attack::Subject;
use super::condition::{AttackCondition, Condition, ConditionKind, MinNormCondition};
use super::corruption::Mode;

/// Shards aim at this much work: short enough to lose little, long enough that loading the model does not show.
pub const SHARD_SECONDS: f64 = 60.0;
/// Fewer images than this in a shard would leave most of a kernel batch to padding.
pub const MIN_IMAGES: u32 = 32;
/// More images than this would make frames to the evaluator child unwieldy.
pub const MAX_PIXEL_BYTES: u64 = 64 << 20;
/// More verdicts than this would make the answer unwieldy.
pub const MAX_VERDICTS: u64 = 100_000;
/// More shards than this (two months of one worker) are a mistake, and would weigh on everybody's queue.
pub const MAX_SHARDS: u64 = 100_000;
/// A backward pass costs about two forwards.
pub const BACKWARD_FORWARDS: f64 = 2.0;

/// What a worker leases: some conditions, one seed, a range of images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardPlan {
    /// Indices into the evaluation's conditions; one group, see [`groups`].
    pub conditions: Vec<usize>,
    pub seed: i64,
    /// Index of the first image in the dataset.
    pub first: u32,
    pub images: u32,
}

/// What the planner must know.
#[derive(Debug, Clone, Copy)]
pub struct Workload<'a> {
    pub conditions: &'a [Condition],
    pub model: Subject,
    pub seeds: &'a [i64],
    pub first: u32,
    pub images: u32,
    /// Bytes of one image, uint8.
    pub image_bytes: u64,
    /// Measured when the model was probed.
    pub seconds_per_forward: f64,
}

/// Conditions that run together: the rungs of a ladder share their witnesses or their search, the severities of a computed corruption their images;
/// everything else stands alone.
/// Rungs are in ascending order. A stochastic model has no ladders.
pub fn groups(conditions: &[Condition], stochastic: bool) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for (i, condition) in conditions.iter().enumerate() {
        let joins = |group: &[usize]| match conditions[group[0]].same_ladder(condition) {
            // Two of the same rung, such as blocks with labels of their own, stand apart.
            true => !stochastic && group.iter().all(|&j| conditions[j].rung() != condition.rung()),
            false => same_corruption(&conditions[group[0]], condition),
        };
        match groups.iter_mut().find(|group| joins(group)) {
            Some(ladder) => ladder.push(i),
            None => groups.push(vec![i]),
        }
    }
    for ladder in &mut groups {
        ladder.sort_by(|a, b| conditions[*a].rung().total_cmp(&conditions[*b].rung()));
    }
    groups
}

/// Severities of one type and mode.
fn same_corruption(a: &Condition, b: &Condition) -> bool {
    match (&a.kind, &b.kind) {
        (ConditionKind::Corruption(a), ConditionKind::Corruption(b)) => {
            // Published cells are other pixels each.
            (a.corruption, a.mode) == (b.corruption, b.mode) && a.mode != Mode::Published
        }
        _ => false,
    }
}

/// Forward passes (backwards counted as two) that one image costs at most under this condition.
pub fn forward_equivalents(condition: &Condition, model: &Subject) -> f64 {
    match &condition.kind {
        // Corrupting an image takes about as long on the processor as a small model's forward pass, and runs beside it.
        ConditionKind::Clean | ConditionKind::Corruption(_) => 1.0,
        ConditionKind::Attack(AttackCondition { attack, .. })
        | ConditionKind::MinNorm(MinNormCondition { attack, .. }) => {
            let passes = attack.passes(model);
            // The clean image is looked at too.
            1.0 + passes.forwards + BACKWARD_FORWARDS * passes.backwards
        }
    }
}

/// What a group costs whose conditions, of which `first` is one, cost this much each. A ladder of searches without a budget is one
/// search, looked at at several of its passes.
pub fn of_group(first: &Condition, each: impl Iterator<Item = f64>) -> f64 {
    match first.kind {
        ConditionKind::MinNorm(_) => each.fold(0.0, f64::max),
        _ => each.sum(),
    }
}

/// Most images that one request to the evaluator child may carry for a group of this many conditions.
pub fn most_images(image_bytes: u64, conditions: usize) -> u64 {
    (MAX_PIXEL_BYTES / image_bytes.max(1)).min(MAX_VERDICTS / conditions.max(1) as u64).max(1)
}

/// Shards per seed that a group's images are cut into.
fn cuts(work: &Workload, group: &[usize]) -> u64 {
    let each = group.iter().map(|&i| forward_equivalents(&work.conditions[i], &work.model));
    let cost = of_group(&work.conditions[group[0]], each);
    let wanted = SHARD_SECONDS / (cost * work.seconds_per_forward).max(1e-12);
    // The cast saturates, so an absurdly cheap model gives the largest shards there are.
    let most = most_images(work.image_bytes, group.len());
    let per_shard = (wanted as u64).clamp(u64::from(MIN_IMAGES).min(most), most);
    u64::from(work.images).div_ceil(per_shard).max(1)
}

/// How many shards [`shards`] would make.
pub fn count(work: &Workload) -> u64 {
    let groups = groups(work.conditions, work.model.stochastic);
    groups.iter().map(|group| cuts(work, group)).sum::<u64>() * work.seeds.len() as u64
}

/// Cuts the work. The cut decides scheduling only: verdicts do not depend on it.
pub fn shards(work: &Workload) -> Vec<ShardPlan> {
    let groups = groups(work.conditions, work.model.stochastic);
    let mut plans = Vec::new();
    for &seed in work.seeds {
        for group in &groups {
            let count = cuts(work, group);
            // Equal cuts, so that no worker ends with a crumb.
            let cut = |k: u64| (u64::from(work.images) * k / count) as u32;
            plans.extend((0..count).map(|k| ShardPlan {
                conditions: group.clone(),
                seed,
                first: work.first + cut(k),
                images: cut(k + 1) - cut(k),
            }));
        }
    }
    plans.retain(|plan| plan.images > 0);
    plans
}

#[cfg(test)]
mod tests {
    use super::super::corruption::{Corruption, Pictures, Published, Scene, Severity};
    use super::super::{Protocol, builtin};
    use super::*;

    const MODEL: Subject = Subject { classes: 10, stochastic: false };

    fn work(conditions: &[Condition], seconds_per_forward: f64) -> Workload<'_> {
        Workload {
            conditions,
            model: MODEL,
            seeds: &[0, 7],
            first: 100,
            images: 1003,
            image_bytes: 784,
            seconds_per_forward,
        }
    }

    #[test]
    fn every_cell_of_every_image_is_planned_exactly_once() {
        let conditions = builtin("pgd-grid").unwrap().conditions(Some("mnist")).unwrap();
        for seconds_per_forward in [1e-9, 1e-4, 1e-2, 10.0] {
            let mut cells = std::collections::HashSet::new();
            let work = work(&conditions, seconds_per_forward);
            assert_eq!(count(&work), shards(&work).len() as u64);
            for shard in shards(&work) {
                for image in shard.first..shard.first + shard.images {
                    for &condition in &shard.conditions {
                        assert!(cells.insert((shard.seed, condition, image)));
                    }
                }
            }
            assert_eq!(cells.len(), 2 * conditions.len() * 1003);
        }
    }

    #[test]
    fn rungs_of_a_ladder_stay_together_in_ascending_order() {
        let mut conditions = builtin("pgd-linf").unwrap().conditions(Some("mnist")).unwrap();
        conditions.reverse();
        assert_eq!(groups(&conditions, false), [vec![3, 2, 1, 0], vec![4]]);
        assert!(groups(&conditions, true).iter().all(|g| g.len() == 1));
        for condition in &mut conditions {
            if let ConditionKind::Attack(attack) = &mut condition.kind {
                attack.independent = true;
            }
        }
        assert!(groups(&conditions, false).iter().all(|g| g.len() == 1));
    }

    #[test]
    fn shards_of_a_cheap_model_stay_within_what_one_answer_holds() {
        let conditions = builtin("pgd-grid").unwrap().conditions(Some("mnist")).unwrap();
        let many = Workload { images: 1_000_000, ..work(&conditions, 1e-12) };
        let verdicts = |shard: &ShardPlan| u64::from(shard.images) * shard.conditions.len() as u64;
        let largest = shards(&many).iter().map(verdicts).max().unwrap();
        assert!((MAX_VERDICTS / 2..=MAX_VERDICTS).contains(&largest), "{largest}");
        let pixels = |shard: &ShardPlan| u64::from(shard.images) * (3 << 20);
        let large = Workload { image_bytes: 3 << 20, ..many };
        assert!(shards(&large).iter().all(|shard| pixels(shard) <= MAX_PIXEL_BYTES));
    }

    #[test]
    fn severities_of_a_corruption_share_their_shards_also_of_a_stochastic_model() {
        let conditions = builtin("imagenet-c").unwrap().conditions(Some("imagenet")).unwrap();
        for stochastic in [false, true] {
            let groups = groups(&conditions, stochastic);
            assert_eq!((groups.len(), &groups[1]), (16, &vec![1, 2, 3, 4, 5]));
        }
    }

    #[test]
    fn one_search_serves_all_its_numbers_of_queries() {
        let conditions = builtin("decision-curve").unwrap().conditions(None).unwrap();
        assert_eq!(groups(&conditions, false), [vec![0], (1..=5).collect(), (6..=10).collect()]);
        let keys: std::collections::HashSet<u64> = conditions[1..6].iter().map(Condition::random_key).collect();
        assert_eq!(keys.len(), 1, "the beginning is the same however long it goes on");
    }

    #[test]
    fn published_cells_stand_alone_because_their_pixels_differ() {
        let cells = Severity::ALL.map(|severity| (Corruption::Fog, severity)).to_vec();
        let scene = Scene::new(Some("imagenet"), [3, 224, 224], Pictures::Procedural);
        let scene = Scene { published: Some(Published { clean: true, cells }), ..scene };
        let document = serde_json::to_value(builtin("imagenet-c").unwrap()).unwrap();
        let fog = Protocol::from_value(document, &[("type".into(), "fog".into())]).unwrap();
        let groups = groups(&fog.conditions_for(&scene).unwrap(), false);
        assert_eq!(groups, [vec![0], vec![1], vec![2], vec![3], vec![4], vec![5]]);
    }

    #[test]
    fn the_cost_of_an_attack_counts_classes_and_draws_as_the_engine_does() {
        let cost = |name: &str, classes: u32, stochastic: bool| {
            let conditions = builtin(name).unwrap().conditions(Some("mnist")).unwrap();
            forward_equivalents(conditions.last().unwrap(), &Subject { classes, stochastic })
        };
        // Untargeted FAB takes a gradient per wrong class; 9 targets need 10 classes.
        let [few, many] = [10, 1000].map(|classes| cost("autoattack-plus", classes, false));
        assert_eq!(many - few, 5.0 * 101.0 * 990.0 * 3.0);
        assert_eq!(cost("autoattack-standard", 10, false), cost("autoattack-standard", 1000, false));
        assert!(cost("autoattack-standard", 3, false) < cost("autoattack-standard", 10, false));
        // What a surviving image is known to cost: about 7.8k forwards and 1.9k backwards.
        let standard = cost("autoattack-standard", 10, false);
        assert!((10_000.0..13_000.0).contains(&standard), "{standard}");
        // As measured it is above 5: the passes of FAB's undone steps, of which `fast` has few, are not in these figures.
        assert!(4.6 * cost("fast", 10, false) <= standard, "{}", standard / cost("fast", 10, false));
        // A deterministic model is not asked twenty times.
        let [once, twenty] = [false, true].map(|stochastic| cost("autoattack-rand", 10, stochastic));
        assert!((19.0..21.0).contains(&(twenty / once)), "{}", twenty / once);
    }

    #[test]
    fn shards_take_about_a_minute() {
        let conditions = builtin("pgd-linf").unwrap().conditions(Some("mnist")).unwrap();
        let seconds = 1e-3;
        for shard in shards(&work(&conditions, seconds)).iter().filter(|s| s.conditions.len() > 1) {
            let cost: f64 = shard.conditions.iter().map(|&i| forward_equivalents(&conditions[i], &MODEL)).sum();
            let estimate = cost * f64::from(shard.images) * seconds;
            assert!((20.0..90.0).contains(&estimate), "{estimate} s");
        }
    }
}
