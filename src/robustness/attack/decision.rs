//! What attacks share that see nothing but the classes that the model answers.

use tch::Tensor;

use super::{Goal, Setting};
use crate::protocol::Loss;
use crate::robustness::rng::Stream;

/// The class is all that is looked at; some loss has to be named.
pub const GOAL: Goal = Goal { loss: Loss::Margin, target: None, float32_gradient: false };

/// An image to begin at, C × H × W: random colours in blocks, every other try of black and white alone. The side of the blocks doubles
/// from try to try, from single pixels up to the whole image: pixel noise alone is one class to many models.
pub fn blocks(setting: &Setting, stream: &mut Stream, tries: u32) -> Vec<f64> {
    let [channels, height, width] = setting.shape.map(|side| side as usize);
    let sides = height.max(width).ilog2() + 2;
    let side = 1usize << (tries / 2 % sides);
    let across = width.div_ceil(side);
    let draw = |_| match stream.uniform() {
        colour if tries.is_multiple_of(2) => colour,
        colour => colour.round(),
    };
    let colours: Vec<f64> = (0..channels * height.div_ceil(side) * across).map(draw).collect();
    let colour = |c: usize, i: usize, j: usize| colours[(c * height.div_ceil(side) + i / side) * across + j / side];
    let rows = (0..channels).flat_map(|c| (0..height).map(move |i| (c, i)));
    rows.flat_map(|(c, i)| (0..width).map(move |j| (c, i, j))).map(|(c, i, j)| colour(c, i, j)).collect()
}

/// What `draw` makes of each slot's stream, zeros where it makes nothing; float64 [S, C, H, W].
pub fn drawn(
    setting: &Setting,
    streams: &mut [Option<Stream>],
    draw: impl Fn(usize, &mut Stream) -> Option<Vec<f64>>,
) -> Tensor {
    let dimension = setting.dimension();
    let mut numbers = Vec::with_capacity(dimension * streams.len());
    for (slot, stream) in streams.iter_mut().enumerate() {
        let drawn = stream.as_mut().and_then(|stream| draw(slot, stream));
        numbers.extend(drawn.unwrap_or_else(|| vec![0.0; dimension]));
    }
    let [channels, height, width] = setting.shape;
    Tensor::from_slice(&numbers).to_device(setting.device).view([streams.len() as i64, channels, height, width])
}
