//! What OpenCV contributes to water spatter: edges, distances to them, and histogram equalisation of small byte maps.

use super::simd::{truncate, vectorised};

/// A map with one more cell on every side.
struct Framed<T> {
    cells: Vec<T>,
    stride: usize,
}

impl<T: Copy + Default> Framed<T> {
    /// The frame repeats the cell `inset` places inside the edge (0: the edge itself; 1: mirrored about it).
    fn new(map: &[T], width: usize, inset: usize) -> Self {
        let (height, stride) = (map.len() / width, width + 2);
        let mut cells = vec![T::default(); stride * (height + 2)];
        let (rows, columns) = (inset.min(height - 1), inset.min(width - 1));
        for y in 0..height + 2 {
            let from = match y {
                0 => rows,
                y if y <= height => y - 1,
                _ => height - 1 - rows,
            };
            let (from, to) = (&map[from * width..][..width], &mut cells[y * stride..][..stride]);
            to[1..=width].copy_from_slice(from);
            to[0] = from[columns];
            to[width + 1] = from[width - 1 - columns];
        }
        Self { cells, stride }
    }

    /// The three framed rows around row `y` of the map.
    fn around(&self, y: usize) -> [&[T]; 3] {
        [0, 1, 2].map(|k| &self.cells[(y + k) * self.stride..][..self.stride])
    }
}

/// Canny edges of a byte map: 3×3 Sobel on repeated borders, |dx| + |dy|, non-maximum suppression, 8-connected hysteresis.
pub fn canny(map: &[u8], width: usize, low: i16, high: i16) -> Vec<bool> {
    let height = map.len() / width;
    let stride = width + 2;
    let framed = Framed::new(map, width, 0);
    // One cell of zeros around the magnitudes, of "no edge" around the marks.
    let mut magnitude = vec![0i16; stride * (height + 2)];
    let (mut dx, mut dy) = (vec![0i16; map.len()], vec![0i16; map.len()]);
    for y in 0..height {
        let [above, own, below] = framed.around(y);
        let (dx, dy) = (&mut dx[y * width..][..width], &mut dy[y * width..][..width]);
        sobel(above, own, below, dx, dy, &mut magnitude[(y + 1) * stride + 1..][..width]);
    }
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        No,
        Maybe,
        Edge,
    }
    let mut marks = vec![Mark::No; magnitude.len()];
    let mut open = Vec::new();
    for y in 0..height {
        for x in 0..width {
            let at = (y + 1) * stride + x + 1;
            let m = magnitude[at];
            if m <= low {
                continue;
            }
            let (dx, dy) = (i32::from(dx[y * width + x]), i32::from(dy[y * width + x]));
            // tan 22.5° in 15-bit fixed point.
            let (across, down) = (dx.abs() * 13573, dy.abs() << 15);
            let largest = if down < across {
                m > magnitude[at - 1] && m >= magnitude[at + 1]
            } else if down > across + (dx.abs() << 16) {
                m > magnitude[at - stride] && m >= magnitude[at + stride]
            } else if (dx ^ dy) < 0 {
                m > magnitude[at - stride + 1] && m > magnitude[at + stride - 1]
            } else {
                m > magnitude[at - stride - 1] && m > magnitude[at + stride + 1]
            };
            if largest && m > high {
                marks[at] = Mark::Edge;
                open.push(at);
            } else if largest {
                marks[at] = Mark::Maybe;
            }
        }
    }
    while let Some(at) = open.pop() {
        for row in [at - stride, at, at + stride] {
            for neighbour in [row - 1, row, row + 1] {
                if marks[neighbour] == Mark::Maybe {
                    marks[neighbour] = Mark::Edge;
                    open.push(neighbour);
                }
            }
        }
    }
    marks.chunks(stride).skip(1).take(height).flat_map(|row| row[1..=width].iter().map(|&m| m == Mark::Edge)).collect()
}

/// Distance to the nearest edge, at most `limit`, by a 5×5 chamfer of steps 1, 1.4 and 2.1969; single-precision sums.
pub fn distance(edges: &[bool], width: usize, limit: f32) -> Vec<f32> {
    let height = edges.len() / width;
    let stride = width + 4;
    let mut d = vec![f32::MAX / 4.0; stride * (height + 4)];
    let mut nearest = vec![0f32; width];
    for y in 0..height {
        let (passed, row) = d.split_at_mut((y + 2) * stride);
        step(&passed[y * stride..][..stride], &passed[(y + 1) * stride..], &mut nearest);
        let edges = &edges[y * width..][..width];
        let mut last = row[1];
        for ((d, &nearest), &edge) in row[2..].iter_mut().zip(&nearest).zip(edges) {
            last = if edge { 0.0 } else { least(nearest, last + STRAIGHT) };
            *d = last;
        }
    }
    for y in (0..height).rev() {
        let (row, passed) = d.split_at_mut((y + 3) * stride);
        step(&passed[stride..][..stride], &passed[..stride], &mut nearest);
        let row = &mut row[(y + 2) * stride..];
        let mut last = row[width + 2];
        for (d, &nearest) in row[2..width + 2].iter_mut().zip(&nearest).rev() {
            last = least(least(*d, nearest), last + STRAIGHT);
            *d = last;
        }
    }
    let rows = d.chunks(stride).skip(2).take(height);
    rows.flat_map(|row| row[2..][..width].iter().map(|&v| least(v, limit))).collect()
}

const STRAIGHT: f32 = 1.0;
const DIAGONAL: f32 = 1.4;
const KNIGHT: f32 = 2.1969;

#[inline(always)]
fn least(a: f32, b: f32) -> f32 {
    if b < a { b } else { a }
}

/// 3×3 mean of singles, truncated to bytes, border mirrored about the edge cell.
pub fn box_truncated(map: &[f32], width: usize) -> Vec<u8> {
    by_rows(map, width, mean_truncated)
}

/// 3×3 mean of bytes, rounded, border mirrored about the edge cell.
pub fn box_rounded(map: &[u8], width: usize) -> Vec<u8> {
    by_rows(map, width, mean_rounded)
}

/// The relief filter [[−2,−1,0],[−1,1,1],[0,1,2]], clamped to bytes, border mirrored about the edge cell.
pub fn emboss(map: &[u8], width: usize) -> Vec<u8> {
    by_rows(map, width, relief)
}

/// What makes a row of the three framed rows around it.
type RowFilter<T> = fn(&[T], &[T], &[T], &mut [u8]);

fn by_rows<T: Copy + Default>(map: &[T], width: usize, row: RowFilter<T>) -> Vec<u8> {
    let framed = Framed::new(map, width, 1);
    let mut out = vec![0; map.len()];
    for (y, out) in out.chunks_mut(width).enumerate() {
        let [above, own, below] = framed.around(y);
        row(above, own, below, out);
    }
    out
}

vectorised! {
    fn sobel(above: &[u8], own: &[u8], below: &[u8], dx: &mut [i16], dy: &mut [i16], magnitude: &mut [i16]) {
        let n = dx.len();
        let (above, own, below) = (&above[..n + 2], &own[..n + 2], &below[..n + 2]);
        let (dy, magnitude) = (&mut dy[..n], &mut magnitude[..n]);
        for x in 0..n {
            let at = |row: &[u8], k: usize| i16::from(row[x + k]);
            let across = at(above, 2) - at(above, 0) + 2 * (at(own, 2) - at(own, 0)) + at(below, 2) - at(below, 0);
            let down = at(below, 0) + 2 * at(below, 1) + at(below, 2) - at(above, 0) - 2 * at(above, 1) - at(above, 2);
            dx[x] = across;
            dy[x] = down;
            magnitude[x] = across.abs() + down.abs();
        }
    }

    /// The nearest by way of the two rows before (both with two cells of frame).
    fn step(second: &[f32], first: &[f32], out: &mut [f32]) {
        let n = out.len();
        let (second, first) = (&second[..n + 4], &first[..n + 4]);
        for x in 0..n {
            let knight = least(least(second[x + 1], second[x + 3]), least(first[x], first[x + 4])) + KNIGHT;
            let diagonal = least(first[x + 1], first[x + 3]) + DIAGONAL;
            out[x] = least(least(knight, diagonal), first[x + 2] + STRAIGHT);
        }
    }

    fn mean_truncated(above: &[f32], own: &[f32], below: &[f32], out: &mut [u8]) {
        let n = out.len();
        let (above, own, below) = (&above[..n + 2], &own[..n + 2], &below[..n + 2]);
        for x in 0..n {
            let mut sum = 0.0;
            for row in [above, own, below] {
                for k in 0..3 {
                    sum += f64::from(row[x + k]);
                }
            }
            out[x] = truncate(f64::from((sum * (1.0 / 9.0)) as f32));
        }
    }

    fn mean_rounded(above: &[u8], own: &[u8], below: &[u8], out: &mut [u8]) {
        let n = out.len();
        let (above, own, below) = (&above[..n + 2], &own[..n + 2], &below[..n + 2]);
        for x in 0..n {
            let mut sum = 4u16;
            for row in [above, own, below] {
                for k in 0..3 {
                    sum += u16::from(row[x + k]);
                }
            }
            // ⌊sum/9⌋ for sums up to 2299.
            out[x] = ((u32::from(sum) * 7282) >> 16) as u8;
        }
    }

    fn relief(above: &[u8], own: &[u8], below: &[u8], out: &mut [u8]) {
        let n = out.len();
        let (above, own, below) = (&above[..n + 2], &own[..n + 2], &below[..n + 2]);
        for x in 0..n {
            let at = |row: &[u8], k: usize| i16::from(row[x + k]);
            let sum = at(own, 1) + at(own, 2) + at(below, 1) + 2 * at(below, 2)
                - 2 * at(above, 0) - at(above, 1) - at(own, 0);
            out[x] = sum.clamp(0, 255) as u8;
        }
    }
}

/// OpenCV's `equalizeHist`: a byte becomes rint((cdf − cdf_min)·255/(N − h_min)); a flat map stays.
pub fn equalize(map: &mut [u8]) {
    let mut histogram = [0u32; 256];
    for &v in map.iter() {
        histogram[usize::from(v)] += 1;
    }
    let Some(first) = histogram.iter().position(|&h| h > 0) else { return };
    if histogram[first] as usize == map.len() {
        return;
    }
    let scale = 255.0 / (map.len() as u32 - histogram[first]) as f32;
    let mut sum = 0;
    let mut lut = [0u8; 256];
    for v in first + 1..256 {
        sum += histogram[v];
        lut[v] = (sum as f32 * scale).round_ties_even() as u8;
    }
    map.iter_mut().for_each(|v| *v = lut[usize::from(*v)]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bright_square_has_a_closed_edge_one_pixel_wide() {
        let (w, h) = (30, 24);
        let map: Vec<u8> = (0..w * h)
            .map(|i| if (8..20).contains(&(i % w)) && (6..18).contains(&(i / w)) { 200 } else { 0 })
            .collect();
        let edges = canny(&map, w, 50, 150);
        let row: Vec<usize> = (0..w).filter(|x| edges[12 * w + x]).collect();
        let column: Vec<usize> = (0..h).filter(|y| edges[y * w + 14]).collect();
        assert_eq!(row.len(), 2, "{row:?}");
        assert_eq!(column.len(), 2, "{column:?}");
        assert_eq!(row[1] - row[0], 12);
        assert!(!canny(&vec![90; w * h], w, 50, 150).contains(&true));
    }

    #[test]
    fn distance_from_a_point_is_the_cheapest_chain_of_chamfer_steps() {
        let (w, h) = (15, 13);
        let mut edges = vec![false; w * h];
        edges[6 * w + 7] = true;
        let d = distance(&edges, w, 20.0);
        for y in 0..h {
            for x in 0..w {
                let (a, b) = (x.abs_diff(7).max(y.abs_diff(6)) as f32, x.abs_diff(7).min(y.abs_diff(6)) as f32);
                // Knights cover slopes between straight and diagonal.
                let expected =
                    if 2.0 * b <= a { b * 2.1969 + (a - 2.0 * b) } else { (a - b) * 2.1969 + (2.0 * b - a) * 1.4 };
                assert!((d[y * w + x] - expected).abs() < 1e-4, "{x} {y}: {} {expected}", d[y * w + x]);
            }
        }
        assert!(distance(&[false; 9], 3, 20.0).iter().all(|&v| v == 20.0));
    }

    #[test]
    fn equalisation_spreads_the_histogram() {
        let mut map = [10, 10, 20, 30];
        equalize(&mut map);
        assert_eq!(map, [0, 0, 128, 255]);
        let mut flat = [7; 5];
        equalize(&mut flat);
        assert_eq!(flat, [7; 5]);
    }

    #[test]
    fn ninths_are_divided_exactly() {
        for sum in 0..=9 * 255 + 4u32 {
            assert_eq!((sum * 7282) >> 16, sum / 9, "{sum}");
        }
    }

    #[test]
    fn small_filters_match_hand_sums() {
        let map = [9, 0, 0, 0, 0, 0, 0, 0, 90];
        assert_eq!(box_rounded(&map, 3)[4], 11);
        assert_eq!(emboss(&map, 3)[4], 162);
        assert_eq!(box_truncated(&[20.0; 9], 3), [20; 9]);
    }
}
