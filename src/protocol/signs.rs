//! Signs: what an evaluator saw that bears on whether its verdicts can be trusted, as counts over images. Counts of disjoint
//! images add up to the same whatever the cut.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// What was looked for. Each is a share of the images that it could be seen on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sign {
    /// Of images that stand after gradient steps: at least half of the gradients were zero in every pixel.
    ZeroGradients,
    /// Of images attacked with gradients: some gradient had a NaN, which counted as 0.
    NanGradients,
    /// Of examined images: some logit was no finite number.
    UndefinedLogits,
    /// Of attacked images: the examination did not confirm what the search took for a success.
    Unconfirmed,
    /// Of images that stand after an ascent: the loss was still rising when the steps ran out.
    Unconverged,
    /// Of images that stand after an ascent: what was examined uses less than half of the budget.
    UnusedBudget,
    /// Of images attacked without a budget: no adversarial example was found at any distance.
    NoneFound,
    /// Of a sample of correct images: a small step along the gradient does not raise the loss above a step against it.
    MisleadingGradient,
    /// Of a sample of correct images: float32 and float64 disagree on the class next to it, or on where the gradient points.
    PrecisionMatters,
    /// Of a sample of correct images: noise of one grey level changes the class.
    Unstable,
    /// Of a sample of correct images: an ascent without a budget does not break it.
    UnboundedFails,
    /// Of a sample of correct images: it stands, but random noise of the budget's size breaks it.
    NoiseWins,
    /// Of a sample of correct images: it stands, but a short search without gradients breaks it.
    BlackBoxWins,
    /// Of a sample of correct images: it stands, but a short search for the smallest perturbation breaks it.
    MinNormWins,
    /// Of a sample of correct images: it stands, but another ascent (more steps, another loss, another start) breaks it.
    AscentWins,
    /// Of a sample of correct images: it stands, but any of these four breaks it.
    Overturned,
}

/// On how many of the images looked at a sign was seen.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Seen {
    pub of: u64,
    pub count: u64,
    /// The smallest indices of images that have it, rising, at most [`Seen::LISTED`].
    pub images: Vec<u32>,
}

impl Seen {
    pub const LISTED: usize = 20;

    fn add(&mut self, other: &Self) {
        self.of = self.of.saturating_add(other.of);
        self.count = self.count.saturating_add(other.count);
        self.images.extend(&other.images);
        self.images.sort_unstable();
        self.images.dedup();
        self.images.truncate(Self::LISTED);
    }
}

/// The signs of one condition, over some images, and the passes that looking for them took beside the attack's own.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Signs {
    pub seen: BTreeMap<Sign, Seen>,
    pub forwards: u64,
    pub backwards: u64,
}

impl Signs {
    /// Notes that `sign` was looked for on `image`, and whether it was there.
    pub fn look(&mut self, sign: Sign, image: u32, there: bool) {
        let images = if there { vec![image] } else { Vec::new() };
        self.seen.entry(sign).or_default().add(&Seen { of: 1, count: u64::from(there), images });
    }

    pub fn add(&mut self, other: &Self) {
        for (sign, seen) in &other.seen {
            self.seen.entry(*sign).or_default().add(seen);
        }
        self.forwards = self.forwards.saturating_add(other.forwards);
        self.backwards = self.backwards.saturating_add(other.backwards);
    }

    /// Images on which a sign was looked for.
    pub fn of(&self, sign: Sign) -> u64 {
        self.seen.get(&sign).map_or(0, |seen| seen.of)
    }

    /// What these signs, said to be of the images in `range`, cannot be.
    pub fn problem(&self, range: &Range<u32>) -> Option<String> {
        let wrong = |(sign, seen): (&Sign, &Seen)| {
            let listed = (seen.count as usize).min(Seen::LISTED);
            let fits = seen.count <= seen.of && seen.of <= range.len() as u64 && seen.images.len() == listed;
            let ordered = seen.images.windows(2).all(|pair| pair[0] < pair[1]);
            let inside = seen.images.iter().all(|image| range.contains(image));
            (!(fits && ordered && inside)).then(|| format!("{sign:?} on {} of {} images", seen.count, seen.of))
        };
        self.seen.iter().find_map(wrong)
    }
}

/// Which images of a slice get a second opinion: `count` of them, drawn by seed and index alone, so that every cut of the
/// slice knows its own. Rising.
pub fn sample(seed: i64, slice: Range<u32>, count: u32) -> Vec<u32> {
    let key = |image: u32| {
        let mut hash = Sha256::new();
        hash.update(b"gauntlet second opinion 1");
        hash.update(seed.to_le_bytes());
        hash.update(image.to_le_bytes());
        <[u8; 32]>::from(hash.finalize())
    };
    let mut drawn: Vec<([u8; 32], u32)> = slice.map(|image| (key(image), image)).collect();
    let count = (count as usize).min(drawn.len());
    if count > 0 {
        drawn.select_nth_unstable(count - 1);
    }
    let mut images: Vec<u32> = drawn[..count].iter().map(|(_, image)| *image).collect();
    images.sort_unstable();
    images
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_add_up_to_the_same_whatever_the_cut() {
        let seen = |images: Range<u32>| {
            let mut signs = Signs::default();
            images.for_each(|image| signs.look(Sign::NoiseWins, image, image % 3 == 0));
            signs
        };
        let whole = seen(0..100);
        for cuts in [vec![0, 100], vec![0, 1, 50, 100], vec![0, 33, 66, 99, 100]] {
            let mut sum = Signs::default();
            cuts.windows(2).rev().for_each(|cut| sum.add(&seen(cut[0]..cut[1])));
            assert_eq!(sum, whole);
        }
        assert_eq!((whole.of(Sign::NoiseWins), whole.seen[&Sign::NoiseWins].count), (100, 34));
        assert_eq!(whole.seen[&Sign::NoiseWins].images.len(), Seen::LISTED);
    }

    #[test]
    fn impossible_signs_are_named() {
        let mut honest = Signs::default();
        (10..20).for_each(|image| honest.look(Sign::Unstable, image, image < 12));
        assert_eq!(honest.problem(&(10..20)), None);
        assert!(honest.problem(&(11..21)).is_some(), "an image that was not sent");
        assert!(honest.problem(&(10..15)).is_some(), "more images than were sent");
        let lie = |lie: fn(&mut Seen)| {
            let mut signs = honest.clone();
            lie(signs.seen.get_mut(&Sign::Unstable).unwrap());
            signs.problem(&(10..20))
        };
        assert!(lie(|seen| seen.count = 11).is_some());
        assert!(lie(|seen| seen.images = vec![11, 10]).is_some());
        assert!(lie(|seen| seen.images.clear()).is_some());
    }

    #[test]
    fn a_sample_depends_on_seed_and_slice_alone() {
        let drawn = sample(7, 100..1100, 32);
        assert_eq!(drawn.len(), 32);
        assert!(drawn.is_sorted() && drawn.iter().all(|image| (100..1100).contains(image)));
        assert_eq!(drawn, sample(7, 100..1100, 32));
        assert_ne!(drawn, sample(8, 100..1100, 32));
        assert_eq!(sample(7, 5..8, 32), [5, 6, 7]);
        assert_eq!(sample(7, 5..8, 0), [0; 0]);
    }
}
