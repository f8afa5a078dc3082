//! What OpenCV contributes to water spatter: edges, distances to them, and histogram equalisation of small byte maps.

/// The border `dcb|abcd|cba`.
fn mirror(i: isize, n: usize) -> usize {
    let n = n as isize;
    (if n == 1 {
        0
    } else if i < 0 {
        -i
    } else if i >= n {
        2 * n - 2 - i
    } else {
        i
    }) as usize
}

/// Canny edges of a byte map: 3×3 Sobel on repeated borders, |dx| + |dy|, non-maximum suppression, 8-connected hysteresis.
pub fn canny(map: &[u8], width: usize, low: i32, high: i32) -> Vec<bool> {
    let height = map.len() / width;
    let stride = width + 2;
    // One cell of zeros around the magnitudes, of "no edge" around the marks.
    let mut magnitude = vec![0i32; stride * (height + 2)];
    let mut gradient = vec![(0i32, 0i32); map.len()];
    for y in 0..height {
        let row = |y: usize| &map[y * width..][..width];
        let (above, own, below) = (row(y.saturating_sub(1)), row(y), row((y + 1).min(height - 1)));
        for x in 0..width {
            let (l, r) = (x.saturating_sub(1), (x + 1).min(width - 1));
            let at = |row: &[u8], x: usize| i32::from(row[x]);
            let dx = at(above, r) - at(above, l) + 2 * (at(own, r) - at(own, l)) + at(below, r) - at(below, l);
            let dy = at(below, l) + 2 * at(below, x) + at(below, r) - at(above, l) - 2 * at(above, x) - at(above, r);
            gradient[y * width + x] = (dx, dy);
            magnitude[(y + 1) * stride + x + 1] = dx.abs() + dy.abs();
        }
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
            let (dx, dy) = gradient[y * width + x];
            // tan 22.5° in 15-bit fixed point.
            let (across, down) = (i64::from(dx.abs()) * 13573, i64::from(dy.abs()) << 15);
            let largest = if down < across {
                m > magnitude[at - 1] && m >= magnitude[at + 1]
            } else if down > across + (i64::from(dx.abs()) << 16) {
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
            for neighbour in row - 1..=row + 1 {
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
    const STRAIGHT: f32 = 1.0;
    const DIAGONAL: f32 = 1.4;
    const KNIGHT: f32 = 2.1969;
    let height = edges.len() / width;
    let stride = width + 4;
    let far = f32::MAX / 4.0;
    let mut d = vec![far; stride * (height + 4)];
    let least = |a: f32, b: f32| if b < a { b } else { a };
    // The seven neighbours that a scan has passed; `back` is their direction.
    let pass = |d: &[f32], at: usize, back: isize| {
        let up = |rows: isize, columns: isize| d[(at as isize + back * (rows * stride as isize + columns)) as usize];
        let knight = least(least(up(2, -1), up(2, 1)), least(up(1, -2), up(1, 2))) + KNIGHT;
        let diagonal = least(up(1, -1), up(1, 1)) + DIAGONAL;
        let straight = least(up(1, 0), up(0, 1)) + STRAIGHT;
        least(least(knight, diagonal), straight)
    };
    for y in 0..height {
        for x in 0..width {
            let at = (y + 2) * stride + x + 2;
            d[at] = if edges[y * width + x] { 0.0 } else { least(pass(&d, at, -1), far) };
        }
    }
    for y in (0..height).rev() {
        for x in (0..width).rev() {
            let at = (y + 2) * stride + x + 2;
            d[at] = least(d[at], pass(&d, at, 1));
        }
    }
    let rows = d.chunks(stride).skip(2).take(height);
    rows.flat_map(|row| row[2..][..width].iter().map(|&v| least(v, limit))).collect()
}

/// Σ of the 3×3 neighbourhood of every cell, weighted, border mirrored about the edge cell.
fn neighbourhoods<T: Copy>(map: &[T], width: usize, mut cell: impl FnMut([[T; 3]; 3])) {
    let height = map.len() / width;
    for y in 0..height as isize {
        let rows = [-1, 0, 1].map(|k| &map[mirror(y + k, height) * width..][..width]);
        for x in 0..width as isize {
            let columns = [-1, 0, 1].map(|k| mirror(x + k, width));
            cell(rows.map(|row| columns.map(|x| row[x])));
        }
    }
}

/// 3×3 mean of singles, truncated to bytes.
pub fn box_truncated(map: &[f32], width: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(map.len());
    neighbourhoods(map, width, |n| {
        let sum: f64 = n.iter().flatten().map(|&v| f64::from(v)).sum();
        out.push((sum * (1.0 / 9.0)) as f32 as u8);
    });
    out
}

/// 3×3 mean of bytes, rounded.
pub fn box_rounded(map: &[u8], width: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(map.len());
    neighbourhoods(map, width, |n| {
        let sum: u32 = n.iter().flatten().map(|&v| u32::from(v)).sum();
        out.push(((sum + 4) / 9) as u8);
    });
    out
}

/// The relief filter [[−2,−1,0],[−1,1,1],[0,1,2]], clamped to bytes.
pub fn emboss(map: &[u8], width: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(map.len());
    neighbourhoods(map, width, |n| {
        let n = n.map(|row| row.map(i32::from));
        let sum = -2 * n[0][0] - n[0][1] - n[1][0] + n[1][1] + n[1][2] + n[2][1] + 2 * n[2][2];
        out.push(sum.clamp(0, 255) as u8);
    });
    out
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
        let map: Vec<u8> =
            (0..w * h).map(|i| if (8..20).contains(&(i % w)) && (6..18).contains(&(i / w)) { 200 } else { 0 }).collect();
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
        assert!(distance(&vec![false; 9], 3, 20.0).iter().all(|&v| v == 20.0));
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
    fn small_filters_match_hand_sums() {
        let map = [9, 0, 0, 0, 0, 0, 0, 0, 90];
        assert_eq!(box_rounded(&map, 3)[4], 11);
        assert_eq!(emboss(&map, 3)[4], 162);
        assert_eq!(box_truncated(&[20.0; 9], 3), [20; 9]);
    }
}
