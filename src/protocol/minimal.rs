//! How far images had to be moved: the summary of a condition without a budget.

use serde::{Deserialize, Serialize};

use super::stats::wilson95;

/// Most points of a curve.
const MOST_POINTS: usize = 101;

/// The smallest perturbations found, in the condition's norm. An image misclassified without being moved counts as moved by
/// 0, one that nothing broke as moved infinitely far. Every image's distance is in the verdicts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Minimal {
    /// Over images and seeds; `null`: infinite.
    pub median: Option<f64>,
    /// The first and third quartile.
    pub quartiles: [Option<f64>; 2],
    /// Accuracy against ε: a step function, given at its steps or, with many images, at 101 of them evenly spaced in accuracy.
    pub curve: Vec<Point>,
}

/// A point of a curve.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Point {
    pub epsilon: f64,
    /// Share of the images that no perturbation found breaks, of those no longer than ε.
    pub accuracy: f64,
    /// Wilson 95 % interval over images.
    pub ci95: [f64; 2],
}

/// `sizes` of the images broken, ascending, out of `n` verdicts on `n / seeds` images; `None` without verdicts.
pub fn minimal(sizes: &[f64], n: u64, seeds: u64) -> Option<Minimal> {
    if n == 0 {
        return None;
    }
    let images = n as f64 / seeds.max(1) as f64;
    let standing = |epsilon: f64| 1.0 - sizes.partition_point(|size| *size <= epsilon) as f64 / n as f64;
    let point = |epsilon: f64| {
        let accuracy = standing(epsilon);
        Point { epsilon, accuracy, ci95: wilson95(accuracy * images, images) }
    };
    let last = sizes.len().saturating_sub(1);
    let shown = sizes.len().min(MOST_POINTS - 1);
    let steps = (0..shown).map(|i| if shown > 1 { sizes[i * last / (shown - 1)] } else { sizes[last] });
    let mut radii: Vec<f64> = std::iter::once(0.0).chain(steps).collect();
    radii.dedup();
    Some(Minimal {
        median: quantile(sizes, n, 0.5),
        quartiles: [quantile(sizes, n, 0.25), quantile(sizes, n, 0.75)],
        curve: radii.into_iter().map(point).collect(),
    })
}

/// The quantile, between two values their weighted mean, of `sizes` and as many infinities as make them `n`.
fn quantile(sizes: &[f64], n: u64, share: f64) -> Option<f64> {
    let at = share * (n - 1) as f64;
    let (below, above) = (at.floor() as usize, at.ceil() as usize);
    let weight = at - at.floor();
    let (low, high) = (*sizes.get(below)?, *sizes.get(above)?);
    Some(low * (1.0 - weight) + high * weight)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_that_nothing_breaks_are_infinitely_far() {
        let of = |sizes: &[f64], n| minimal(sizes, n, 1).unwrap();
        assert_eq!(of(&[0.0, 1.0, 2.0, 3.0, 10.0], 5).median, Some(2.0));
        assert_eq!(of(&[0.0, 1.0, 2.0, 3.0], 4).median, Some(1.5));
        assert_eq!((of(&[1.0, 2.0], 3).median, of(&[1.0, 2.0], 3).quartiles), (Some(2.0), [Some(1.5), None]));
        // Half of the way to infinity is infinite.
        assert_eq!(of(&[1.0, 2.0], 4).median, None);
        assert_eq!(of(&[], 4).curve, [Point { epsilon: 0.0, accuracy: 1.0, ci95: wilson95(4.0, 4.0) }]);
        assert_eq!(minimal(&[], 0, 1), None);
    }

    #[test]
    fn the_curve_is_the_share_still_standing_at_every_radius() {
        let sizes = [0.0, 0.5, 0.5, 2.0];
        let curve = minimal(&sizes, 8, 1).unwrap().curve;
        let steps: Vec<(f64, f64)> = curve.iter().map(|p| (p.epsilon, p.accuracy)).collect();
        assert_eq!(steps, [(0.0, 7.0 / 8.0), (0.5, 5.0 / 8.0), (2.0, 4.0 / 8.0)]);
        let many: Vec<f64> = (0..10_000).map(f64::from).collect();
        let curve = minimal(&many, 10_000, 1).unwrap().curve;
        assert!((99..=MOST_POINTS).contains(&curve.len()));
        assert!(curve.windows(2).all(|pair| pair[0].accuracy > pair[1].accuracy && pair[0].epsilon < pair[1].epsilon));
        let exact = |p: &Point| (1.0 - (p.epsilon + 1.0) / 10_000.0 - p.accuracy).abs() < 1e-12;
        assert!(curve.iter().all(exact) && curve.last().is_some_and(|p| p.accuracy == 0.0));
        // Two seeds see the same images.
        assert_eq!(minimal(&sizes, 8, 2).unwrap().curve[0].ci95, wilson95(3.5, 4.0));
    }
}
