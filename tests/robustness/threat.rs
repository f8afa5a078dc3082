use gauntlet::protocol::*;
use gauntlet::robustness::rng::Stream;
use gauntlet::robustness::threat::{Ball, linf_bounds, measure, random_start, to_hyperplane, unit_ball};
use tch::{Kind, Tensor};

use crate::support::{to_vec, uniform};

const NORMS: [Norm; 3] = [Norm::Linf, Norm::L2, Norm::L1];

fn balls() -> Vec<Ball> {
    let mut balls = Vec::new();
    for norm in NORMS {
        for projection in [Projection::Euclidean, Projection::Radial] {
            for order in [ClipOrder::ProjectThenClip, ClipOrder::ClipThenProject] {
                balls.push(Ball { norm, projection, order });
            }
        }
    }
    balls
}

fn assert_admissible(image: &Tensor, clean: &Tensor, norm: Norm, epsilon: f64) {
    assert!(image.min().double_value(&[]) >= 0.0 && image.max().double_value(&[]) <= 1.0, "box, {norm} {epsilon}");
    for size in measure(image, clean) {
        let threat = ThreatModel { norm, epsilon: Epsilon::new(epsilon).unwrap() };
        assert!(threat.admits(size.in_norm(norm)), "{norm} {epsilon}: {size:?}");
        if norm == Norm::Linf {
            assert!(size.linf <= epsilon, "L∞ has no need of its allowance: {size:?} at {epsilon}");
        }
    }
}

/// Pixels of 8-bit images, black and white among them.
fn pixels(rows: i64, dimension: i64, key: u32) -> Tensor {
    (uniform(&[rows, dimension], -40.0, 295.0, key).clamp(0.0, 255.0).round() / 255.0).view([rows, 1, 1, dimension])
}

#[test]
fn every_projection_keeps_budget_and_box_exactly() {
    for (dimension, key) in [(1, 1), (64, 2), (150_528, 3)] {
        let clean = pixels(3, dimension, key);
        let far = uniform(&clean.size(), -1.0, 1.0, key + 10).to_kind(Kind::Double);
        for epsilon in [0.0, 1.0 / 4080.0, 1.0 / 255.0, 0.3, 2.0, 40.0] {
            let radii = Tensor::from_slice(&[epsilon; 3]);
            for ball in balls() {
                for reach in [1e-3, 1.0, 100.0] {
                    let image = ball.project(&clean, &(&far * reach), &radii);
                    assert_admissible(&image, &clean, ball.norm, epsilon);
                    assert!(epsilon > 0.0 || image == clean, "no budget, no move");
                }
            }
            let (low, high) = linf_bounds(&clean, &radii);
            assert_admissible(&low, &clean, Norm::Linf, epsilon);
            assert_admissible(&high, &clean, Norm::Linf, epsilon);
            for norm in NORMS {
                let draw = |row| unit_ball(norm, dimension as usize, &mut Stream::new(0, 0, row, key));
                let unit = Tensor::from_slice(&(0..3).flat_map(draw).collect::<Vec<f64>>()).view_as(&clean);
                assert_admissible(&random_start(&clean, &unit, &radii), &clean, norm, epsilon);
            }
        }
    }
}

#[test]
fn linf_bounds_are_the_outermost_float32_pixels() {
    let clean = pixels(1, 4096, 4);
    for epsilon in [1.0 / 4080.0, 1.0 / 1020.0, 0.1, 0.3] {
        let (low, high) = linf_bounds(&clean, &Tensor::from_slice(&[epsilon]));
        let (clean, low, high) = (to_vec(&clean), to_vec(&low), to_vec(&high));
        for ((x, low), high) in clean.iter().zip(low).zip(high) {
            let above = f64::from((high as f32).next_up());
            let below = f64::from((low as f32).next_down());
            assert!(high == 1.0 || above - x > epsilon, "{x} could rise above {high}");
            assert!(low == 0.0 || x - below > epsilon, "{x} could fall below {low}");
        }
    }
}

/// Size of sign(d)·min(shrink(|d|), room) and the point itself, for one row.
fn shrunk(clean: &[f64], delta: &[f64], shrink: impl Fn(f64) -> f64) -> Vec<f64> {
    let room = |x: f64, d: f64| if d > 0.0 { 1.0 - x } else { x };
    clean.iter().zip(delta).map(|(x, d)| d.signum() * shrink(d.abs()).min(room(*x, *d))).collect()
}

fn size(point: &[f64], norm: Norm) -> f64 {
    match norm {
        Norm::Linf => point.iter().fold(0.0, |most, v| most.max(v.abs())),
        Norm::L2 => point.iter().map(|v| v * v).sum::<f64>().sqrt(),
        Norm::L1 => point.iter().map(|v| v.abs()).sum(),
    }
}

/// The projection found by 200 halvings of its one unknown.
fn by_bisection(clean: &[f64], delta: &[f64], norm: Norm, epsilon: f64) -> Vec<f64> {
    let at = |t: f64| match norm {
        Norm::L1 => shrunk(clean, delta, |d| (d - t).max(0.0)),
        _ => shrunk(clean, delta, |d| d / (1.0 + t)),
    };
    if size(&at(0.0), norm) <= epsilon {
        return at(0.0);
    }
    let (mut low, mut high) = (0.0, 1e12);
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if size(&at(middle), norm) > epsilon { low = middle } else { high = middle }
    }
    at(high)
}

#[test]
fn euclidean_projections_on_ball_and_box_match_brute_force() {
    let distance = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt();
    for norm in [Norm::L1, Norm::L2] {
        let ball = Ball { norm, projection: Projection::Euclidean, order: ClipOrder::ProjectThenClip };
        for (dimension, key) in [(1, 1), (2, 2), (3, 3), (7, 4), (100, 5)] {
            let clean = pixels(20, dimension, key);
            // Coarse steps give ties and zeros.
            let delta = ((uniform(&clean.size(), -1.5, 1.5, key + 50) * 8.0).round() / 8.0).to_kind(Kind::Double);
            for epsilon in [0.01, 0.4, 1.0, 5.0, 1000.0] {
                let image = ball.project(&clean, &delta, &Tensor::from_slice(&[epsilon; 20]));
                for row in 0..20 {
                    let clean = to_vec(&clean.get(row));
                    let delta = to_vec(&delta.get(row));
                    let found: Vec<f64> =
                        to_vec(&image.get(row)).iter().zip(&clean).map(|(image, clean)| image - clean).collect();
                    let expected = by_bisection(&clean, &delta, norm, epsilon);
                    assert!(distance(&found, &expected) < 1e-6, "{norm} {epsilon}: {found:?}, not {expected:?}");
                    // And no admissible point that chance finds is nearer.
                    let mut stream = Stream::new(0, 1, row as u32, key);
                    for _ in 0..50 {
                        let unit = unit_ball(norm, dimension as usize, &mut stream);
                        let tried: Vec<f64> = (unit.iter().zip(&clean))
                            .map(|(unit, clean)| (unit * epsilon).clamp(-clean, 1.0 - clean))
                            .collect();
                        assert!(distance(&found, &delta) <= distance(&tried, &delta) + 1e-6);
                    }
                }
            }
        }
    }
}

#[test]
fn radial_projection_is_arts_formula() {
    let clean = pixels(5, 30, 9);
    let delta = uniform(&clean.size(), -0.8, 0.8, 10).to_kind(Kind::Double);
    for norm in [Norm::L1, Norm::L2] {
        for (order, clips_first) in [(ClipOrder::ClipThenProject, true), (ClipOrder::ProjectThenClip, false)] {
            let ball = Ball { norm, projection: Projection::Radial, order };
            let image = ball.project(&clean, &delta, &Tensor::from_slice(&[0.7; 5]));
            for row in 0..5 {
                let clean = to_vec(&clean.get(row));
                let clip = |point: &[f64]| -> Vec<f64> {
                    point.iter().zip(&clean).map(|(d, x)| (x + d).clamp(0.0, 1.0) - x).collect()
                };
                let scale = |point: &[f64]| -> Vec<f64> {
                    let factor = (0.7 / (size(point, norm) + 1e-7)).min(1.0);
                    point.iter().map(|d| d * factor).collect()
                };
                let delta = to_vec(&delta.get(row));
                let expected = if clips_first { scale(&clip(&delta)) } else { clip(&scale(&delta)) };
                for ((image, x), d) in to_vec(&image.get(row)).iter().zip(&clean).zip(expected) {
                    assert!((image - x - d).abs() < 1e-7);
                }
            }
        }
    }
}

#[test]
fn random_starts_are_uniform_in_their_ball() {
    let (dimension, count) = (5, 4000);
    for norm in NORMS {
        let points: Vec<Vec<f64>> =
            (0..count).map(|image| unit_ball(norm, dimension, &mut Stream::new(3, 0, image, 0))).collect();
        // In a uniform ball ‖x‖^d is uniform on [0,1]: mean 1/2, and a quarter of the points below 1/4.
        let volumes: Vec<f64> = points.iter().map(|point| size(point, norm).powi(dimension as i32)).collect();
        let mean = volumes.iter().sum::<f64>() / f64::from(count);
        let quarter = volumes.iter().filter(|volume| **volume < 0.25).count() as f64 / f64::from(count);
        assert!((mean - 0.5).abs() < 0.02, "{norm}: {mean}");
        assert!((quarter - 0.25).abs() < 0.03, "{norm}: {quarter}");
        for axis in 0..dimension {
            let mean = points.iter().map(|point| point[axis]).sum::<f64>() / f64::from(count);
            assert!(mean.abs() < 0.04, "{norm}, axis {axis}: {mean}");
        }
    }
}

#[test]
fn hyperplane_projections_are_the_shortest_way() {
    // The least size at which Σ|wᵢ|·min(size-allowed move, room) covers the offset, by bisection.
    for key in 0..20 {
        let d = 12i64;
        let point = uniform(&[1, d], -0.3, 1.3, key).clamp(0.0, 1.0).to_kind(Kind::Double);
        let w = uniform(&[1, d], -1.0, 1.0, key + 100).to_kind(Kind::Double);
        let [x, weights] = [&point, &w].map(to_vec);
        for offset in [-2.5, -0.4, 0.1, 1.0, 50.0] {
            let room: Vec<f64> =
                x.iter().zip(&weights).map(|(x, w)| if -offset * w > 0.0 { 1.0 - x } else { *x }).collect();
            let most: f64 = weights.iter().zip(&room).map(|(w, r)| w.abs() * r).sum();
            for norm in [Norm::Linf, Norm::L2, Norm::L1] {
                let found = to_vec(&to_hyperplane(norm, &point, &w, &Tensor::from_slice(&[offset])));
                let gained: f64 = found.iter().zip(&weights).map(|(d, w)| d * w).sum();
                assert!((gained + f64::clamp(offset, -most, most)).abs() < 1e-9, "{norm} {offset}: {gained}");
                assert!(found.iter().zip(&x).all(|(d, x)| (-1e-12..=1.0 + 1e-12).contains(&(x + d))));
                if offset.abs() >= most {
                    continue;
                }
                // Shortest by duality: no move of this size gains more.
                let size = match norm {
                    Norm::Linf => found.iter().fold(0.0f64, |m, d| m.max(d.abs())),
                    Norm::L2 => found.iter().map(|d| d * d).sum::<f64>().sqrt(),
                    Norm::L1 => found.iter().map(|d| d.abs()).sum(),
                };
                let best = match norm {
                    Norm::Linf => weights.iter().zip(&room).map(|(w, r)| w.abs() * r.min(size)).sum::<f64>(),
                    Norm::L2 => {
                        let moves = |t: f64| weights.iter().zip(&room).map(move |(w, r)| (t * w.abs()).min(*r));
                        let (mut low, mut high) = (0.0, 1e6);
                        for _ in 0..200 {
                            let middle = 0.5 * (low + high);
                            let length = moves(middle).map(|m| m * m).sum::<f64>().sqrt();
                            if length <= size { low = middle } else { high = middle }
                        }
                        weights.iter().zip(moves(low)).map(|(w, m)| w.abs() * m).sum()
                    }
                    Norm::L1 => {
                        let mut order: Vec<usize> = (0..d as usize).collect();
                        order.sort_by(|a, b| weights[*b].abs().total_cmp(&weights[*a].abs()));
                        let mut left = size;
                        order
                            .into_iter()
                            .map(|i| {
                                let spent = room[i].min(left);
                                left -= spent;
                                spent * weights[i].abs()
                            })
                            .sum()
                    }
                };
                assert!((best - offset.abs()).abs() < 1e-6, "{norm} {offset}: {best}");
            }
        }
    }
}
