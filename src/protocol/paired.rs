//! Two models on the same images.

use serde::{Deserialize, Serialize};

use super::stats::mcnemar;

/// Which of some consecutive images held under one condition, over any number of seeds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    first: u32,
    /// Per image: verdicts seen, and whether all of them were "robust".
    images: Vec<(u32, bool)>,
}

impl Held {
    /// Of `images` images from `first` on, before any verdict.
    pub fn new(first: u32, images: u32) -> Self {
        Self { first, images: vec![(0, true); images as usize] }
    }

    /// Takes one verdict; those of images outside the range are ignored.
    pub fn add(&mut self, image: u32, robust: bool) {
        let index = image.checked_sub(self.first).map(|i| i as usize);
        if let Some((verdicts, all)) = index.and_then(|i| self.images.get_mut(i)) {
            *verdicts += 1;
            *all &= robust;
        }
    }

    /// Whether the image held under each of `seeds` seeds; `None` unless that many verdicts were seen.
    fn get(&self, image: u32, seeds: u32) -> Option<bool> {
        let (verdicts, all) = self.images.get(image.checked_sub(self.first)? as usize)?;
        (*verdicts == seeds).then_some(*all)
    }
}

/// A paired comparison under one condition.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Paired {
    /// Images that both have verdicts on under every common seed.
    pub n: u64,
    /// Share of them that held under every common seed.
    pub accuracy_a: Option<f64>,
    pub accuracy_b: Option<f64>,
    /// `accuracy_a` − `accuracy_b`
    pub difference: Option<f64>,
    /// Images that held for a alone, and for b alone.
    pub only_a: u64,
    pub only_b: u64,
    /// Exact two-sided McNemar test: how likely so uneven a split is if both models are equally good.
    pub p: f64,
}

/// Compares image by image. With several seeds an image counts as held when it held under all of them: verdicts on one
/// image are not independent, so they must not be counted as separate pairs.
pub fn paired(a: &Held, b: &Held, seeds: u32) -> Paired {
    let (mut n, mut held_a, mut held_b, mut only_a, mut only_b) = (0u64, 0u64, 0u64, 0u64, 0u64);
    for image in a.first..a.first + a.images.len() as u32 {
        let (Some(x), Some(y)) = (a.get(image, seeds), b.get(image, seeds)) else { continue };
        n += 1;
        held_a += u64::from(x);
        held_b += u64::from(y);
        only_a += u64::from(x && !y);
        only_b += u64::from(y && !x);
    }
    let share = |held: u64| (n > 0).then(|| held as f64 / n as f64);
    Paired {
        n,
        accuracy_a: share(held_a),
        accuracy_b: share(held_b),
        difference: (n > 0).then(|| (held_a as f64 - held_b as f64) / n as f64),
        only_a,
        only_b,
        p: mcnemar(only_a, only_b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_images_seen_by_both_under_every_seed_are_paired() {
        let (mut a, mut b) = (Held::new(10, 5), Held::new(12, 5));
        for (image, robust) in [(10, true), (12, true), (13, true), (14, false)] {
            (0..2).for_each(|_| a.add(image, robust));
        }
        // Image 13 falls under one of two seeds; 14 has one verdict only.
        for (image, robust) in [(12, false), (12, false), (13, true), (13, false), (14, true), (16, true)] {
            b.add(image, robust);
        }
        let found = paired(&a, &b, 2);
        assert_eq!((found.n, found.only_a, found.only_b, found.p), (2, 2, 0, 0.5));
        assert_eq!((found.accuracy_a, found.accuracy_b, found.difference), (Some(1.0), Some(0.0), Some(1.0)));
    }

    #[test]
    fn nothing_in_common_says_nothing() {
        let found = paired(&Held::new(0, 3), &Held::new(9, 3), 1);
        assert_eq!((found.n, found.accuracy_a, found.difference, found.p), (0, None, None, 1.0));
    }
}
