//! The severity parameters of the four published benchmarks: 224 and 299 pixels (ImageNet-C), 64 (Tiny-ImageNet-C, ImageNet-64-C) and
//! 32 (CIFAR-10-C, CIFAR-100-C).

use super::{Severity, Table};

/// Five values, by severity, for the four tables in the order 224, 299, 64, 32.
type Rows<T> = [[T; 5]; 4];

fn pick<T: Copy>(rows: &Rows<T>, table: Table, severity: Severity) -> T {
    let row = match table {
        Table::Px224 => 0,
        Table::Px299 => 1,
        Table::Px64 => 2,
        Table::Px32 => 3,
    };
    rows[row][usize::from(severity.get()) - 1]
}

macro_rules! parameter {
    ($($(#[$meta:meta])* $name:ident: $kind:ty = $rows:expr;)+) => {$(
        $(#[$meta])*
        pub fn $name(table: Table, severity: Severity) -> $kind {
            const ROWS: Rows<$kind> = $rows;
            pick(&ROWS, table, severity)
        }
    )+};
}

/// A defocused point: disk radius in pixels, σ of its antialiasing.
pub type Defocus = (f64, f64);
/// σ of the blurs, largest displacement in pixels, passes.
pub type Glass = (f64, usize, usize);
/// Radius in pixels, σ.
pub type Motion = (usize, f64);
/// Last factor (excluded), step; the first is 1.
pub type Zoom = (f64, f64);
/// Weight of the image, weight of the frost.
pub type Frost = (f64, f64);
/// Amplitude, decay per halving of the plasma.
pub type Fog = (f64, f64);
/// Scale, offset.
pub type Saturate = (f64, f64);

/// A layer of flakes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Snow {
    pub mean: f64,
    pub sd: f64,
    pub zoom: f64,
    pub threshold: f64,
    pub radius: usize,
    pub sigma: f64,
    /// Weight of the unwhitened image.
    pub weight: f64,
}

const fn snow(mean: f64, sd: f64, zoom: f64, threshold: f64, radius: usize, sigma: f64, weight: f64) -> Snow {
    Snow { mean, sd, zoom, threshold, radius, sigma, weight }
}

/// Drops of water or mud.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spatter {
    pub mean: f64,
    pub sd: f64,
    /// σ of the layer's blur.
    pub blur: f64,
    pub threshold: f64,
    /// Water: strength. Mud: σ of the mask's blur.
    pub strength: f64,
    pub mud: bool,
}

const fn water(mean: f64, sd: f64, blur: f64, threshold: f64, strength: f64) -> Spatter {
    Spatter { mean, sd, blur, threshold, strength, mud: false }
}

const fn mud(mean: f64, sd: f64, blur: f64, threshold: f64, strength: f64) -> Spatter {
    Spatter { mean, sd, blur, threshold, strength, mud: true }
}

/// Factors of `base`, in pixels: displacement, its σ, and the largest shift of a corner of the affine map.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Elastic {
    pub alpha: f64,
    pub sigma: f64,
    pub shift: f64,
}

/// 244 (not 224) is the reference's own base for 224 pixels.
const fn elastic(base: f64, rows: [(f64, f64, f64); 5]) -> [Elastic; 5] {
    let mut out = [Elastic { alpha: 0.0, sigma: 0.0, shift: 0.0 }; 5];
    let mut i = 0;
    while i < 5 {
        let (alpha, sigma, shift) = rows[i];
        out[i] = Elastic { alpha: base * alpha, sigma: base * sigma, shift: base * shift };
        i += 1;
    }
    out
}

const ELASTIC_LARGE: [(f64, f64, f64); 5] =
    [(2.0, 0.7, 0.1), (2.0, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)];
const ZOOM_LARGE: [Zoom; 5] = [(1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)];
const ZOOM_SMALL: [Zoom; 5] = [(1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)];
const FROST_LARGE: [Frost; 5] = [(1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)];
const CONTRAST: [f64; 5] = [0.4, 0.3, 0.2, 0.1, 0.05];
const BRIGHTNESS: [f64; 5] = [0.1, 0.2, 0.3, 0.4, 0.5];
const SATURATE: [Saturate; 5] = [(0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (20.0, 0.2)];
const SNOW_LARGE: [Snow; 5] = [
    snow(0.1, 0.3, 3.0, 0.5, 10, 4.0, 0.8),
    snow(0.2, 0.3, 2.0, 0.5, 12, 4.0, 0.7),
    snow(0.55, 0.3, 4.0, 0.9, 12, 8.0, 0.7),
    snow(0.55, 0.3, 4.5, 0.85, 12, 8.0, 0.65),
    snow(0.55, 0.3, 2.5, 0.85, 12, 12.0, 0.55),
];

parameter! {
    /// σ of the noise, in units of the full range.
    gaussian_noise: f64 = [
        [0.08, 0.12, 0.18, 0.26, 0.38],
        [0.09, 0.13, 0.19, 0.27, 0.40],
        [0.04, 0.08, 0.12, 0.15, 0.18],
        [0.04, 0.06, 0.08, 0.09, 0.10],
    ];
    /// Photons at full brightness.
    shot_noise: f64 = [
        [60.0, 25.0, 12.0, 5.0, 3.0],
        [50.0, 20.0, 10.0, 5.0, 3.0],
        [250.0, 100.0, 50.0, 30.0, 15.0],
        [500.0, 250.0, 100.0, 75.0, 50.0],
    ];
    /// Share of the values that turn black or white.
    impulse_noise: f64 = [
        [0.03, 0.06, 0.09, 0.17, 0.27],
        [0.04, 0.07, 0.10, 0.18, 0.28],
        [0.01, 0.02, 0.05, 0.08, 0.14],
        [0.01, 0.02, 0.03, 0.05, 0.07],
    ];
    /// σ of the noise, in units of the value.
    speckle_noise: f64 = [
        [0.15, 0.2, 0.35, 0.45, 0.6],
        [0.16, 0.21, 0.36, 0.46, 0.61],
        [0.15, 0.2, 0.25, 0.3, 0.35],
        [0.06, 0.1, 0.12, 0.16, 0.2],
    ];
    /// σ in pixels.
    gaussian_blur: f64 = [
        [1.0, 2.0, 3.0, 4.0, 6.0],
        [1.5, 2.5, 3.5, 4.5, 6.5],
        [0.5, 0.75, 1.0, 1.25, 1.5],
        [0.4, 0.6, 0.7, 0.8, 1.0],
    ];
    defocus_blur: Defocus = [
        [(3.0, 0.1), (4.0, 0.5), (6.0, 0.5), (8.0, 0.5), (10.0, 0.5)],
        [(4.0, 0.1), (5.0, 0.5), (7.0, 0.5), (10.0, 0.5), (12.0, 0.5)],
        [(0.5, 0.6), (1.0, 0.1), (1.5, 0.1), (2.5, 0.01), (3.0, 0.1)],
        [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1)],
    ];
    glass_blur: Glass = [
        [(0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2)],
        [(0.8, 1, 3), (1.0, 3, 1), (1.1, 2, 4), (1.2, 4, 2), (1.6, 5, 2)],
        [(0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)],
        [(0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)],
    ];
    motion_blur: Motion = [
        [(10, 3.0), (15, 5.0), (15, 8.0), (15, 12.0), (20, 15.0)],
        [(12, 4.0), (17, 6.0), (17, 9.0), (17, 13.0), (22, 16.0)],
        [(10, 1.0), (10, 1.5), (10, 2.0), (10, 2.5), (12, 3.0)],
        [(6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5)],
    ];
    zoom_blur: Zoom = [ZOOM_LARGE, ZOOM_LARGE, ZOOM_SMALL, ZOOM_SMALL];
    snow_layer: Snow = [
        SNOW_LARGE,
        SNOW_LARGE,
        [
            snow(0.1, 0.2, 1.0, 0.6, 8, 3.0, 0.8),
            snow(0.1, 0.2, 1.0, 0.5, 10, 4.0, 0.8),
            snow(0.15, 0.3, 1.75, 0.55, 10, 4.0, 0.7),
            snow(0.25, 0.3, 2.25, 0.6, 12, 6.0, 0.65),
            snow(0.3, 0.3, 1.25, 0.65, 14, 12.0, 0.6),
        ],
        [
            snow(0.1, 0.2, 1.0, 0.6, 8, 3.0, 0.95),
            snow(0.1, 0.2, 1.0, 0.5, 10, 4.0, 0.9),
            snow(0.15, 0.3, 1.75, 0.55, 10, 4.0, 0.9),
            snow(0.25, 0.3, 2.25, 0.6, 12, 6.0, 0.85),
            snow(0.3, 0.3, 1.25, 0.65, 14, 12.0, 0.8),
        ],
    ];
    frost: Frost = [
        FROST_LARGE,
        FROST_LARGE,
        [(1.0, 0.3), (0.9, 0.4), (0.8, 0.45), (0.75, 0.5), (0.7, 0.55)],
        [(1.0, 0.2), (1.0, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)],
    ];
    fog: Fog = [
        [(1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4)],
        [(1.5, 2.0), (2.0, 2.0), (2.5, 1.8), (2.5, 1.6), (3.0, 1.5)],
        [(0.4, 3.0), (0.7, 3.0), (1.0, 2.5), (1.5, 2.0), (2.0, 1.75)],
        [(0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75)],
    ];
    /// Added to the value of HSV.
    brightness: f64 = [BRIGHTNESS, BRIGHTNESS, BRIGHTNESS, [0.05, 0.1, 0.15, 0.2, 0.3]];
    /// What is left of the distance to the mean.
    contrast: f64 = [CONTRAST, CONTRAST, CONTRAST, [0.75, 0.5, 0.4, 0.3, 0.15]];
    saturate: Saturate = [
        SATURATE,
        SATURATE,
        [(0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (30.0, 0.2)],
        [(0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2)],
    ];
    elastic_transform: Elastic = [
        elastic(244.0, ELASTIC_LARGE),
        elastic(360.0, ELASTIC_LARGE),
        elastic(64.0, [(0.0, 0.0, 0.08), (0.05, 0.3, 0.06), (0.1, 0.08, 0.06), (0.1, 0.03, 0.03), (0.16, 0.03, 0.02)]),
        elastic(32.0, [(0.0, 0.0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)]),
    ];
    /// What is left of each side.
    pixelate: f64 = [
        [0.6, 0.5, 0.4, 0.3, 0.25],
        [0.5, 0.4, 0.3, 0.25, 0.2],
        [0.9, 0.8, 0.7, 0.6, 0.5],
        [0.95, 0.9, 0.85, 0.75, 0.65],
    ];
    /// JPEG quality.
    jpeg_compression: u32 = [[25, 18, 15, 10, 7], [23, 16, 13, 8, 5], [65, 58, 50, 40, 25], [80, 65, 58, 50, 40]];
    spatter: Spatter = [
        [
            water(0.65, 0.3, 4.0, 0.69, 0.6),
            water(0.65, 0.3, 3.0, 0.68, 0.6),
            water(0.65, 0.3, 2.0, 0.68, 0.5),
            mud(0.65, 0.3, 1.0, 0.65, 1.5),
            mud(0.67, 0.4, 1.0, 0.65, 1.5),
        ],
        [
            water(0.65, 0.3, 4.0, 0.69, 0.9),
            water(0.65, 0.3, 3.5, 0.68, 0.9),
            water(0.65, 0.3, 3.0, 0.68, 0.8),
            mud(0.65, 0.3, 1.2, 0.65, 1.8),
            mud(0.67, 0.4, 1.2, 0.65, 1.8),
        ],
        [
            water(0.62, 0.1, 0.7, 0.7, 0.6),
            water(0.65, 0.1, 0.8, 0.7, 0.6),
            water(0.65, 0.3, 1.0, 0.69, 0.6),
            mud(0.65, 0.1, 0.7, 0.68, 0.6),
            mud(0.65, 0.1, 0.5, 0.67, 0.6),
        ],
        [
            water(0.62, 0.1, 0.7, 0.7, 0.5),
            water(0.65, 0.1, 0.8, 0.7, 0.5),
            water(0.65, 0.3, 1.0, 0.69, 0.5),
            mud(0.65, 0.1, 0.7, 0.69, 0.6),
            mud(0.65, 0.1, 0.5, 0.68, 0.6),
        ],
    ];
}

/// `np.arange(1, end, step)`: as many factors as ⌈(end − 1)/step⌉ in floating point, the last of which may reach the end.
pub fn zoom_factors((end, step): Zoom) -> Vec<f64> {
    let count = ((end - 1.0) / step).ceil() as usize;
    // NumPy fills a range from its first two values.
    let delta = (1.0 + step) - 1.0;
    (0..count).map(|i| 1.0 + i as f64 * delta).collect()
}

/// Side of the plasma map of a table.
pub fn plasma_size(table: Table) -> usize {
    match table {
        Table::Px224 => 256,
        Table::Px299 => 512,
        Table::Px64 => 64,
        Table::Px32 => 32,
    }
}

/// How much the frost pictures are shrunk for a table.
pub fn frost_scale(table: Table) -> f64 {
    match table {
        Table::Px224 | Table::Px299 => 1.0,
        Table::Px64 => 0.3,
        Table::Px32 => 0.2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zoom_lists_have_the_measured_lengths() {
        let lengths = |table| Severity::ALL.map(|s| zoom_factors(zoom_blur(table, s)).len());
        assert_eq!(lengths(Table::Px224), [12, 16, 11, 13, 11]);
        assert_eq!(lengths(Table::Px32), [7, 12, 16, 21, 26]);
        assert_eq!(zoom_factors((1.11, 0.01))[11], 1.11);
    }
}
