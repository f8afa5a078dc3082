//! Pillow's resampling of bytes: antialiased weights in 22-bit fixed point, a horizontal pass to bytes, then a vertical one.

use super::simd::vectorised;

const BITS: u32 = 22;

/// Largest number of inputs to one output, which shrinking to a fifth needs.
const MOST: usize = 8;

/// The weights of every output of one axis, `count` inputs from `first` on; shorter sets are padded with zeros.
struct Taps {
    count: usize,
    first: Vec<usize>,
    weights: Vec<[i32; MOST]>,
}

/// Pillow's coefficients of the BOX filter from `from` to `to` pixels.
fn box_taps(from: usize, to: usize) -> Taps {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let support = 0.5 * stretch;
    let (mut first, mut weights) = (Vec::with_capacity(to), Vec::with_capacity(to));
    let mut count = 1;
    for i in 0..to {
        let centre = (i as f64 + 0.5) * scale;
        let low = (centre - support + 0.5).max(0.0) as usize;
        let high = ((centre + support + 0.5) as usize).min(from);
        let inside = |&j: &usize| {
            let x = (j as f64 - centre + 0.5) / stretch;
            x > -0.5 && x <= 0.5
        };
        // A box weighs all it holds alike.
        let start = (low..high).find(inside).expect("a box is at least one pixel wide");
        let size = (start..high).take_while(inside).count();
        let weight = (0.5 + 1.0 / size as f64 * f64::from(1 << BITS)) as i32;
        count = count.max(size);
        first.push(start);
        weights.push(std::array::from_fn(|k| if k < size { weight } else { 0 }));
    }
    assert!(count <= MOST, "shrinking by more than {MOST} is not asked for");
    // Windows of the common length must end inside the axis.
    for (first, weights) in first.iter_mut().zip(&mut weights) {
        let excess = (*first + count).saturating_sub(from);
        *first -= excess;
        weights.rotate_right(excess);
    }
    Taps { count, first, weights }
}

/// `Image.resize((to_width, to_height), BOX)` of interleaved bytes; every side at least 1, none shrunk more than eightfold.
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
        match channels {
            1 => rows_across::<1>(image, width, &taps, &mut out),
            _ => rows_across::<3>(image, width, &taps, &mut out),
        }
        out
    };
    if to_height == height {
        return across;
    }
    let row = to_width * channels;
    let mut out = vec![0; to_height * row];
    let mut sums = vec![0; row];
    let taps = box_taps(height, to_height);
    for ((&first, weights), out) in taps.first.iter().zip(&taps.weights).zip(out.chunks_mut(row)) {
        if taps.count == 1 {
            out.copy_from_slice(&across[first * row..][..row]);
            continue;
        }
        sums.fill(1 << (BITS - 1));
        for (i, &weight) in weights[..taps.count].iter().enumerate() {
            if weight != 0 {
                add_row(&across[(first + i) * row..][..row], weight, &mut sums);
            }
        }
        to_bytes(&sums, out);
    }
    out
}

fn rows_across<const C: usize>(image: &[u8], width: usize, taps: &Taps, out: &mut [u8]) {
    let to_width = taps.first.len();
    for (from, to) in image.chunks(width * C).zip(out.chunks_mut(to_width * C)) {
        let (from, to) = (from.as_chunks::<C>().0, to.as_chunks_mut::<C>().0);
        match taps.count {
            1 => to.iter_mut().zip(&taps.first).for_each(|(to, &first)| *to = from[first]),
            2 => row_across::<C, 2>(from, taps, to),
            3 => row_across::<C, 3>(from, taps, to),
            4 => row_across::<C, 4>(from, taps, to),
            5 => row_across::<C, 5>(from, taps, to),
            6 => row_across::<C, 6>(from, taps, to),
            7 => row_across::<C, 7>(from, taps, to),
            _ => row_across::<C, MOST>(from, taps, to),
        }
    }
}

fn row_across<const C: usize, const K: usize>(from: &[[u8; C]], taps: &Taps, to: &mut [[u8; C]]) {
    for ((to, &first), weights) in to.iter_mut().zip(&taps.first).zip(&taps.weights) {
        let mut sum = [1 << (BITS - 1); C];
        for (pixel, &weight) in from[first..first + K].iter().zip(&weights[..K]) {
            for c in 0..C {
                sum[c] += i32::from(pixel[c]) * weight;
            }
        }
        *to = sum.map(|sum| (sum >> BITS).clamp(0, 255) as u8);
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
    fn every_weight_set_sums_to_one_inside_the_axis() {
        for (from, to) in [(224, 134), (299, 59), (32, 31), (7, 40), (1, 3), (33, 5)] {
            let taps = box_taps(from, to);
            for (first, weights) in taps.first.iter().zip(&taps.weights) {
                let sum: i32 = weights[..taps.count].iter().sum();
                assert!((sum - (1 << BITS)).abs() <= taps.count as i32, "{from} to {to}");
                assert!(first + taps.count <= from);
            }
        }
    }
}
