//! Pillow's resampling of bytes: antialiased weights in 22-bit fixed point, a horizontal pass to bytes, then a vertical one.

use super::simd::vectorised;

const BITS: u32 = 22;

/// The weights of one output: inputs `first..first + weights.len()`.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

/// Pillow's coefficients of the BOX filter from `from` to `to` pixels.
fn box_taps(from: usize, to: usize) -> Vec<Taps> {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let support = 0.5 * stretch;
    (0..to)
        .map(|i| {
            let centre = (i as f64 + 0.5) * scale;
            let first = (centre - support + 0.5).max(0.0) as usize;
            let last = ((centre + support + 0.5) as usize).min(from);
            let inside = |j: usize| {
                let x = (j as f64 - centre + 0.5) / stretch;
                x > -0.5 && x <= 0.5
            };
            let raw: Vec<f64> = (first..last).map(|j| f64::from(u8::from(inside(j)))).collect();
            let sum: f64 = raw.iter().sum();
            let fixed = raw.iter().map(|w| (0.5 + w / sum * f64::from(1 << BITS)) as i32);
            let mut weights: Vec<i32> = fixed.collect();
            let leading = weights.iter().take_while(|&&w| w == 0).count();
            weights.drain(..leading);
            while weights.last() == Some(&0) {
                weights.pop();
            }
            Taps { first: first + leading, weights }
        })
        .collect()
}

/// `Image.resize((to_width, to_height), BOX)` of interleaved bytes; every side at least 1.
pub fn resize_box(
    image: &[u8],
    (height, width): (usize, usize),
    channels: usize,
    (to_height, to_width): (usize, usize),
) -> Vec<u8> {
    let across = if to_width == width {
        image.to_vec()
    } else {
        let mut out = vec![0; height * to_width * channels];
        let taps = box_taps(width, to_width);
        let rows = image.chunks(width * channels).zip(out.chunks_mut(to_width * channels));
        match channels {
            1 => rows.for_each(|(from, to)| row_across::<1>(from, to, &taps)),
            _ => rows.for_each(|(from, to)| row_across::<3>(from, to, &taps)),
        }
        out
    };
    if to_height == height {
        return across;
    }
    let row = to_width * channels;
    let mut out = vec![0; to_height * row];
    let mut sums = vec![0; row];
    for (taps, out) in box_taps(height, to_height).iter().zip(out.chunks_mut(row)) {
        if taps.weights.len() == 1 {
            // One tap has weight 1.
            out.copy_from_slice(&across[taps.first * row..][..row]);
            continue;
        }
        sums.fill(1 << (BITS - 1));
        for (i, &weight) in taps.weights.iter().enumerate() {
            add_row(&across[(taps.first + i) * row..][..row], weight, &mut sums);
        }
        to_bytes(&sums, out);
    }
    out
}

fn row_across<const C: usize>(from: &[u8], to: &mut [u8], taps: &[Taps]) {
    let from = from.as_chunks::<C>().0;
    for (taps, to) in taps.iter().zip(to.as_chunks_mut::<C>().0) {
        let pixels = &from[taps.first..][..taps.weights.len()];
        if let [pixel] = pixels {
            *to = *pixel;
            continue;
        }
        let mut sum = [1 << (BITS - 1); C];
        for (pixel, &weight) in pixels.iter().zip(&taps.weights) {
            for c in 0..C {
                sum[c] += i32::from(pixel[c]) * weight;
            }
        }
        for c in 0..C {
            to[c] = (sum[c] >> BITS).clamp(0, 255) as u8;
        }
    }
}

vectorised! {
    fn add_row(from: &[u8], weight: i32, sums: &mut [i32]) {
        for (sum, &v) in sums.iter_mut().zip(from) {
            *sum += i32::from(v) * weight;
        }
    }

    fn to_bytes(sums: &[i32], out: &mut [u8]) {
        for (byte, &sum) in out.iter_mut().zip(sums) {
            *byte = (sum >> BITS).clamp(0, 255) as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halving_averages_and_doubling_repeats() {
        let image = [10, 20, 30, 40, 50, 60, 70, 81];
        assert_eq!(resize_box(&image, (2, 4), 1, (1, 2)), [35, 56]);
        assert_eq!(
            resize_box(&image, (2, 4), 1, (4, 8)),
            [10, 10, 20, 20, 30, 30, 40, 40]
                .repeat(2)
                .into_iter()
                .chain([50, 50, 60, 60, 70, 70, 81, 81].repeat(2))
                .collect::<Vec<_>>()
        );
    }

    #[test]
    fn every_weight_set_sums_to_one() {
        for (from, to) in [(224, 134), (299, 59), (32, 31), (7, 40), (1, 3)] {
            for taps in box_taps(from, to) {
                let sum: i32 = taps.weights.iter().sum();
                assert!((sum - (1 << BITS)).abs() <= taps.weights.len() as i32, "{from} to {to}");
                assert!(taps.first + taps.weights.len() <= from);
            }
        }
    }
}
