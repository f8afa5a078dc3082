//! Projections and directions on the CPU, a row at a time in one sweep. What is computed, and why, stands beside the tensor
//! formulas.

use tch::Tensor;

use crate::robustness::host::{Numbers, filled};

/// Sums go in as many lanes, so that a processor can add them side by side.
const LANES: usize = 8;
/// Newton's method arrives in a handful of rounds.
const MOST_ROUNDS: usize = 64;

/// Both sums of `terms(i)` for i below `count`.
fn sums(count: usize, terms: impl Fn(usize) -> (f64, f64)) -> (f64, f64) {
    let (mut ones, mut others) = ([0.0; LANES], [0.0; LANES]);
    let whole = count - count % LANES;
    for first in (0..whole).step_by(LANES) {
        for (lane, (sum, other_sum)) in ones.iter_mut().zip(&mut others).enumerate() {
            let (one, other) = terms(first + lane);
            *sum += one;
            *other_sum += other;
        }
    }
    let (mut one, mut other) = (ones.iter().sum::<f64>(), others.iter().sum::<f64>());
    for at in whole..count {
        let (more, other_more) = terms(at);
        (one, other) = (one + more, other + other_more);
    }
    (one, other)
}

/// The admissible image nearest to `clean + delta` under L2: see [`Ball::project`](super::Ball::project).
pub fn l2_image(clean: &Tensor, delta: &Tensor, epsilon: &Tensor) -> Tensor {
    let shape = clean.size();
    let (clean, delta, epsilon) = (Numbers::<f32>::of(clean), Numbers::<f64>::of(delta), Numbers::<f64>::of(epsilon));
    let width = clean.read().len() / epsilon.read().len().max(1);
    let rows = clean.read().chunks_exact(width).zip(delta.read().chunks_exact(width)).zip(epsilon.read());
    let mut bounds = vec![(0.0, 0.0); width];
    filled(&shape, |images| {
        for (((clean, delta), epsilon), image) in rows.zip(images.chunks_exact_mut(width)) {
            project_l2(clean, delta, *epsilon, &mut bounds, image);
        }
    })
}

/// The admissible images nearest to those that lie `length` [n] from `points` up the gradient, cut where the box holds a pixel.
pub fn l2_step(clean: &Tensor, points: &Tensor, gradient: &Tensor, length: &Tensor, epsilon: &Tensor) -> Tensor {
    let shape = clean.size();
    let [clean, points, gradient] = [clean, points, gradient].map(Numbers::<f32>::of);
    let [length, epsilon] = [length, epsilon].map(Numbers::<f64>::of);
    let width = clean.read().len() / epsilon.read().len().max(1);
    let images = clean.read().chunks_exact(width).zip(points.read().chunks_exact(width));
    let rows = images.zip(gradient.read().chunks_exact(width)).zip(length.read().iter().zip(epsilon.read()));
    let (mut delta, mut bounds) = (vec![0.0; width], vec![(0.0, 0.0); width]);
    filled(&shape, |images| {
        for ((((clean, point), gradient), (length, epsilon)), image) in rows.zip(images.chunks_exact_mut(width)) {
            let norm = free_gradient(point, gradient, &mut delta);
            for ((delta, point), clean) in delta.iter_mut().zip(point).zip(clean) {
                *delta = *delta / norm * length + (f64::from(*point) - f64::from(*clean));
            }
            project_l2(clean, &delta, *epsilon, &mut bounds, image);
        }
    })
}

/// One row of [`l2_image`]; `bounds` is room to work in.
fn project_l2(clean: &[f32], delta: &[f64], epsilon: f64, bounds: &mut [(f64, f64)], image: &mut [f32]) {
    for ((bound, clean), delta) in bounds.iter_mut().zip(clean).zip(delta) {
        let clean = f64::from(*clean);
        *bound = (delta.abs(), if *delta > 0.0 { 1.0 - clean } else { clean });
    }
    let scale = l2_scale(bounds, epsilon * epsilon);
    for (((image, clean), delta), (distance, room)) in image.iter_mut().zip(clean).zip(delta).zip(bounds.iter()) {
        *image = toward_clean(*clean, (distance * scale).min(*room).copysign(*delta));
    }
}

/// Writes the gradient without the pixels that the box keeps from following it, and returns its length, no smaller than what can
/// be divided by.
fn free_gradient(point: &[f32], gradient: &[f32], free: &mut [f64]) -> f64 {
    for ((free, point), gradient) in free.iter_mut().zip(point).zip(gradient) {
        let held = (*point <= 0.0 && *gradient < 0.0) || (*point >= 1.0 && *gradient > 0.0);
        *free = if held { 0.0 } else { f64::from(*gradient) };
    }
    let (squares, _) = sums(free.len(), |at| (free[at] * free[at], 0.0));
    squares.sqrt().max(f64::MIN_POSITIVE)
}

/// The largest s ≤ 1 with Σ min(s·distance, room)² ≤ `budget`, of (distance, room).
fn l2_scale(bounds: &[(f64, f64)], budget: f64) -> f64 {
    let mut scale = 0.0;
    for _ in 0..MOST_ROUNDS {
        let (spent, free) = sums(bounds.len(), |at| {
            let (distance, room) = bounds[at];
            if distance * scale >= room { (room * room, 0.0) } else { (0.0, distance * distance) }
        });
        let next = ((budget - spent).max(0.0) / free.max(f64::MIN_POSITIVE)).sqrt().min(1.0).max(scale);
        if next == scale {
            break;
        }
        scale = next;
    }
    scale
}

fn toward_clean(clean: f32, delta: f64) -> f32 {
    let wide = f64::from(clean);
    let nearest = (wide + delta) as f32;
    if (f64::from(nearest) - wide).abs() <= delta.abs() {
        nearest
    } else if nearest > clean {
        nearest.next_down()
    } else {
        nearest.next_up()
    }
}

/// `gradient` over its L2 norm, without the pixels that the box keeps from following it; float64.
pub fn steepest_l2(point: &Tensor, gradient: &Tensor) -> Tensor {
    let shape = point.size();
    let (point, gradient) = (Numbers::<f32>::of(point), Numbers::<f32>::of(gradient));
    let width = point.read().len() / shape[0].max(1) as usize;
    let rows = point.read().chunks_exact(width).zip(gradient.read().chunks_exact(width));
    filled(&shape, |directions| {
        for ((point, gradient), direction) in rows.zip(directions.chunks_exact_mut(width)) {
            let length = free_gradient(point, gradient, direction);
            direction.iter_mut().for_each(|direction| *direction /= length);
        }
    })
}

/// min(λ·speed, room)·direction with the λ at which Σ gain·min(λ·speed, room) = |offset|, the speed being the gain or, if `even`,
/// 1: see [`to_hyperplane`](super::to_hyperplane). `points` and `w` float64 [n, …], `offset` float64 [n].
pub fn to_hyperplane(even: bool, points: &Tensor, w: &Tensor, offset: &Tensor) -> Tensor {
    let shape = points.size();
    let [points, w, offset] = [points, w, offset].map(Numbers::<f64>::of);
    let width = points.read().len() / offset.read().len().max(1);
    let rows = points.read().chunks_exact(width).zip(w.read().chunks_exact(width)).zip(offset.read());
    let mut bounds = vec![(0.0, 0.0); width];
    filled(&shape, |steps| {
        for (((points, w), offset), step) in rows.zip(steps.chunks_exact_mut(width)) {
            for ((bound, point), w) in bounds.iter_mut().zip(points).zip(w) {
                *bound = (w.abs(), if direction(*w, *offset) > 0.0 { 1.0 - point } else { *point });
            }
            let speed = |gain: f64| if even { 1.0 } else { gain };
            let mut lambda = 0.0;
            for _ in 0..MOST_ROUNDS {
                let (spent, slope) = sums(width, |at| {
                    let (gain, room) = bounds[at];
                    let speed = speed(gain);
                    if speed * lambda >= room { (gain * room, 0.0) } else { (0.0, gain * speed) }
                });
                let next = ((offset.abs() - spent).max(0.0) / slope.max(f64::MIN_POSITIVE)).min(1e100).max(lambda);
                if next == lambda {
                    break;
                }
                lambda = next;
            }
            for ((step, w), (gain, room)) in step.iter_mut().zip(w).zip(&bounds) {
                *step = (speed(*gain) * lambda).min(*room) * direction(*w, *offset);
            }
        }
    })
}

/// Which way a pixel goes to the hyperplane: −sign(w·offset), 0 where either is.
fn direction(w: f64, offset: f64) -> f64 {
    let sign = |number: f64| if number == 0.0 { 0.0 } else { number.signum() };
    -(sign(w) * sign(offset))
}
