//! The default random mode has the laws of the reference: exact output laws on flat images, and equal statistics of whole images with
//! the NumPy mode, which is the reference byte for byte.
//!
//! Every test is at p ≈ 1e-4 or |z| < 4 with fixed seeds.

use std::path::Path;

use gauntlet::robustness::corruption::{
    Channels, Corruption, FrostTextures, Image, Keyed, NumpyCompat, Recipe, Severity, Shape, Table,
};

fn recipe(corruption: Corruption, severity: u8, table: Table) -> Recipe {
    Recipe { corruption, severity: Severity::new(severity).unwrap(), table, saved: false }
}

fn flat(value: u8, side: usize) -> Image {
    let shape = Shape { height: side, width: side, channels: Channels::Rgb };
    Image::new(shape, vec![value; side * side * 3]).unwrap()
}

fn keyed(recipe: Recipe, image: &Image, seed: u64) -> Vec<u8> {
    recipe.apply(image, &FrostTextures::procedural(), &mut Keyed::new(seed, 17, 3)).into_bytes()
}

/// Φ(x) by the series of the error function, and its continued fraction in the tails.
fn normal_cdf(x: f64) -> f64 {
    if x < -5.0 {
        let fraction = (1..=40).rev().fold(-x, |f, k| -x + f64::from(k) / f);
        return (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt() / fraction;
    }
    if x > 5.0 {
        return 1.0 - normal_cdf(-x);
    }
    let (mut term, mut sum) = (x, x);
    for k in 1..200 {
        term *= x * x / f64::from(2 * k + 1);
        sum += term;
    }
    0.5 + sum * (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt()
}

/// trunc(255·clip(u + s·N))
fn normal_law(value: u8, s: f64) -> Vec<f64> {
    let u = f64::from(value) / 255.0;
    let below = |k: usize| if k == 256 { 1.0 } else { normal_cdf((k as f64 / 255.0 - u) / s) };
    (0..256)
        .map(|k| match k {
            0 => below(1),
            255 => 1.0 - below(255),
            k => below(k + 1) - below(k),
        })
        .collect()
}

/// trunc(255·min(P/λ, 1)), P ~ Poisson(u·λ)
fn shot_law(value: u8, rate: f64) -> Vec<f64> {
    let mean = f64::from(value) / 255.0 * rate;
    let mut law = vec![0.0; 256];
    let mut mass = (-mean).exp();
    for count in 0..2000u32 {
        law[((f64::from(count) / rate).min(1.0) * 255.0) as usize] += mass;
        mass *= mean / f64::from(count + 1);
    }
    law
}

fn impulse_law(value: u8, p: f64) -> Vec<f64> {
    let mut law = vec![0.0; 256];
    law[0] += p / 2.0;
    law[255] += p / 2.0;
    law[usize::from(value)] += 1.0 - p;
    law
}

/// Pearson's χ² of bytes against a law, cells joined until 10 are expected; returns the statistic and its 1 − 1e-4 quantile.
fn chi_squared(bytes: &[u8], law: &[f64]) -> (f64, f64) {
    let mut observed = [0f64; 256];
    bytes.iter().for_each(|&b| observed[usize::from(b)] += 1.0);
    let mut cells: Vec<(f64, f64)> = Vec::new();
    let (mut o, mut e) = (0.0, 0.0);
    for (seen, mass) in observed.iter().zip(law) {
        o += seen;
        e += mass * bytes.len() as f64;
        if e >= 10.0 {
            cells.push((o, e));
            (o, e) = (0.0, 0.0);
        }
    }
    if let Some(last) = cells.last_mut() {
        last.0 += o;
        last.1 += e;
    }
    let statistic = cells.iter().map(|(o, e)| (o - e).powi(2) / e).sum();
    let freedom = (cells.len() - 1).max(1) as f64;
    // Wilson–Hilferty.
    let quantile = freedom * (1.0 - 2.0 / (9.0 * freedom) + 3.719 * (2.0 / (9.0 * freedom)).sqrt()).powi(3);
    (statistic, quantile)
}

#[test]
fn noise_on_flat_images_has_the_exact_output_laws() {
    let levels = [
        (1, 0.08, 60.0, 0.03, 0.15),
        (2, 0.12, 25.0, 0.06, 0.2),
        (3, 0.18, 12.0, 0.09, 0.35),
        (4, 0.26, 5.0, 0.17, 0.45),
        (5, 0.38, 3.0, 0.27, 0.6),
    ];
    for value in [0, 7, 64, 128, 200, 255] {
        for (severity, sigma, rate, p, speckle) in levels {
            let u = f64::from(value) / 255.0;
            let mut cases = vec![
                (Corruption::GaussianNoise, normal_law(value, sigma)),
                (Corruption::ShotNoise, shot_law(value, rate)),
                (Corruption::ImpulseNoise, impulse_law(value, p)),
            ];
            if value > 0 {
                cases.push((Corruption::SpeckleNoise, normal_law(value, speckle * u)));
            }
            for (corruption, law) in cases {
                let bytes = keyed(recipe(corruption, severity, Table::Px224), &flat(value, 224), 1);
                let (statistic, quantile) = chi_squared(&bytes, &law);
                assert!(
                    statistic < quantile,
                    "{corruption:?} {severity} on {value}: χ² {statistic:.1} > {quantile:.1}"
                );
            }
        }
    }
}

#[test]
fn noise_is_independent_between_channels_neighbours_and_seeds() {
    for corruption in
        [Corruption::GaussianNoise, Corruption::ShotNoise, Corruption::ImpulseNoise, Corruption::SpeckleNoise]
    {
        let recipe = recipe(corruption, 2, Table::Px224);
        let image = flat(128, 224);
        let (one, two) = (keyed(recipe, &image, 1), keyed(recipe, &image, 2));
        assert_ne!(one, two);
        let centred = |bytes: &[u8]| {
            let mean = bytes.iter().map(|&b| f64::from(b)).sum::<f64>() / bytes.len() as f64;
            bytes.iter().map(|&b| f64::from(b) - mean).collect::<Vec<f64>>()
        };
        let (one, two) = (centred(&one), centred(&two));
        let correlation = |a: &[f64], b: &[f64]| {
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
            dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
        };
        let n = one.len() as f64;
        let row = 224 * 3;
        // Next channel, next pixel, next row, and the two halves of the generator's chunks.
        for lag in [1, 2, 3, row, 512, 1024] {
            let rho = correlation(&one[lag..], &one[..one.len() - lag]);
            assert!(rho.abs() < 4.0 / n.sqrt(), "{corruption:?}: correlation {rho} at lag {lag}");
        }
        let rho = correlation(&one, &two);
        assert!(rho.abs() < 4.0 / n.sqrt(), "{corruption:?}: correlation {rho} between seeds");
    }
}

fn astronaut() -> Image {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/corruption/astronaut-224.png");
    let picture = image::open(path).unwrap().to_rgb8();
    Image::new(Shape { height: 224, width: 224, channels: Channels::Rgb }, picture.into_raw()).unwrap()
}

/// Shift of the mean, mean absolute change, and share of changed bytes.
fn summary(before: &[u8], after: &[u8]) -> [f64; 3] {
    let n = before.len() as f64;
    let pairs = || before.iter().zip(after).map(|(&a, &b)| (f64::from(a), f64::from(b)));
    [
        pairs().map(|(a, b)| b - a).sum::<f64>() / n,
        pairs().map(|(a, b)| (b - a).abs()).sum::<f64>() / n,
        pairs().filter(|(a, b)| a != b).count() as f64 / n,
    ]
}

/// z of two samples' means.
fn two_sample(a: &[f64], b: &[f64]) -> f64 {
    let moments = |x: &[f64]| {
        let n = x.len() as f64;
        let mean = x.iter().sum::<f64>() / n;
        (mean, x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0) / n)
    };
    let ((m, s), (n, t)) = (moments(a), moments(b));
    if m == n { 0.0 } else { (m - n) / (s + t).sqrt() }
}

#[test]
fn whole_images_change_as_much_as_under_numpys_generator() {
    const SEEDS: u32 = 64;
    let image = astronaut();
    let textures = FrostTextures::procedural();
    let random = Corruption::ALL.into_iter().filter(|c| c.is_random());
    let recipes: Vec<Recipe> = random.flat_map(|c| [1, 2, 3, 4, 5].map(|s| recipe(c, s, Table::Px224))).collect();
    let (image, textures) = (&image, &textures);
    std::thread::scope(|scope| {
        for part in recipes.chunks(recipes.len().div_ceil(4)) {
            scope.spawn(move || {
                for recipe in part {
                    let sample = |apply: &dyn Fn(u32) -> Image| -> Vec<[f64; 3]> {
                        (0..SEEDS).map(|seed| summary(image.bytes(), apply(seed).bytes())).collect()
                    };
                    let ours = sample(&|seed| recipe.apply(image, textures, &mut Keyed::new(seed.into(), 5, 0)));
                    let theirs = sample(&|seed| recipe.apply(image, textures, &mut NumpyCompat::new(seed)));
                    for (k, name) in ["mean shift", "mean change", "changed share"].into_iter().enumerate() {
                        let column = |x: &[[f64; 3]]| x.iter().map(|s| s[k]).collect::<Vec<f64>>();
                        let z = two_sample(&column(&ours), &column(&theirs));
                        assert!(z.abs() < 4.0, "{recipe:?}: {name} z = {z:.1}");
                    }
                }
            });
        }
    });
}

/// Means of the original package over 64 seeds on this picture, by severity, and how far ours may be from them: what 64 seeds and
/// the printed digits leave open.
#[test]
fn whole_images_change_as_much_as_was_measured_of_the_original_package() {
    const SEEDS: u64 = 64;
    let image = astronaut();
    let textures = FrostTextures::procedural();
    let shift = |[shift, _, _]: [f64; 3]| shift;
    let change = |[_, change, _]: [f64; 3]| change;
    type Measured = (Corruption, fn([f64; 3]) -> f64, [f64; 5], f64);
    let measured: [Measured; 5] = [
        (Corruption::Snow, shift, [40.7, 63.0, 62.8, 74.1, 85.5], 1.4),
        (Corruption::Spatter, shift, [0.8, 4.4, 7.5, -8.2, -13.3], 0.7),
        (Corruption::MotionBlur, change, [14.3, 20.3, 26.6, 32.3, 35.6], 0.7),
        (Corruption::ElasticTransform, change, [53.0, 65.0, 24.0, 24.0, 26.0], 1.5),
        (Corruption::Fog, change, [46.0, 52.0, 56.0, 56.0, 59.0], 1.5),
    ];
    for (corruption, figure, expected, tolerance) in measured {
        for (severity, expected) in (1..).zip(expected) {
            let recipe = recipe(corruption, severity, Table::Px224);
            let of = |seed| {
                let after = recipe.apply(&image, &textures, &mut Keyed::new(seed, 5, 0));
                figure(summary(image.bytes(), after.bytes()))
            };
            let mean = (0..SEEDS).map(of).sum::<f64>() / SEEDS as f64;
            assert!((mean - expected).abs() < tolerance, "{corruption:?} {severity}: {mean:.2} instead of {expected}");
        }
    }
}

/// Log₂ of the power per octave of spatial frequency, averaged over images of 32×32, first channel: [1, 2), [2, 4), [4, 8), [8, 16).
fn octaves(images: &[Vec<u8>]) -> [f64; 4] {
    const N: usize = 32;
    let wave: Vec<(f64, f64)> = (0..N).map(|i| (std::f64::consts::TAU * i as f64 / N as f64).sin_cos()).collect();
    let (mut power, mut count) = ([0.0; 4], [0.0; 4]);
    for image in images {
        let at = |y: usize, x: usize| f64::from(image[(y * N + x) * 3]);
        // Along rows, then along columns; half of the plane is enough of a real image.
        let rows: Vec<Vec<(f64, f64)>> = (0..N)
            .map(|y| {
                let of = |k: usize| {
                    let sum = |a: (f64, f64), x: usize| {
                        let (s, c) = wave[k * x % N];
                        (a.0 + at(y, x) * c, a.1 - at(y, x) * s)
                    };
                    (0..N).fold((0.0, 0.0), sum)
                };
                (0..N / 2).map(of).collect()
            })
            .collect();
        for (k, l) in (0..N / 2).flat_map(|k| (0..N).map(move |l| (k, l))) {
            let signed = if l < N / 2 { l as f64 } else { l as f64 - N as f64 };
            let radius = (k as f64).hypot(signed);
            if !(1.0..16.0).contains(&radius) {
                continue;
            }
            let sum = |a: (f64, f64), y: usize| {
                let ((s, c), (re, im)) = (wave[l * y % N], rows[y][k]);
                (a.0 + re * c + im * s, a.1 + im * c - re * s)
            };
            let (re, im) = (0..N).fold((0.0, 0.0), sum);
            power[radius.log2() as usize] += re * re + im * im;
            count[radius.log2() as usize] += 1.0;
        }
    }
    std::array::from_fn(|octave| (power[octave] / count[octave]).log2())
}

#[test]
fn fog_and_elastic_fields_have_numpys_distribution_and_roughness() {
    const SEEDS: u32 = 200;
    // Fog of a flat image shows its plasma; elastic of a ramp shows where each pixel came from.
    let ramp = {
        let shape = Shape { height: 32, width: 32, channels: Channels::Rgb };
        let bytes = (0..32 * 32).flat_map(|i| [(i % 32 * 8) as u8, (i / 32 * 8) as u8, 0]).collect();
        Image::new(shape, bytes).unwrap()
    };
    let textures = FrostTextures::procedural();
    for (corruption, image) in [(Corruption::Fog, flat(255, 32)), (Corruption::ElasticTransform, ramp)] {
        let recipe = recipe(corruption, 3, Table::Px32);
        let ours: Vec<Vec<u8>> = (0..SEEDS)
            .map(|seed| recipe.apply(&image, &textures, &mut Keyed::new(seed.into(), 8, 0)).into_bytes())
            .collect();
        let theirs: Vec<Vec<u8>> =
            (0..SEEDS).map(|seed| recipe.apply(&image, &textures, &mut NumpyCompat::new(seed)).into_bytes()).collect();
        // Kolmogorov–Smirnov at single pixels, one value an image.
        for (y, x) in [(0, 0), (9, 20), (16, 16), (31, 5)] {
            let at = |images: &[Vec<u8>]| {
                let mut values: Vec<u8> = images.iter().map(|i| i[(y * 32 + x) * 3]).collect();
                values.sort_unstable();
                values
            };
            let (a, b) = (at(&ours), at(&theirs));
            let below = |v: &[u8], k: u8| v.partition_point(|&x| x <= k) as f64 / v.len() as f64;
            let distance = (0..=255).map(|k| (below(&a, k) - below(&b, k)).abs()).fold(0.0, f64::max);
            let limit = 2.22 * (2.0 / f64::from(SEEDS)).sqrt();
            assert!(distance < limit, "{corruption:?} at ({y}, {x}): D = {distance:.3} > {limit:.3}");
        }
        // The spectrum's slope, by least squares over four octaves.
        let slope = |images: &[Vec<u8>]| {
            let power = octaves(images);
            (0..4).map(|octave| (octave as f64 - 1.5) * power[octave]).sum::<f64>() / 5.0
        };
        let (a, b) = (slope(&ours), slope(&theirs));
        assert!((a - b).abs() < 0.1, "{corruption:?}: {a:.3} against {b:.3} per octave");
    }
}

#[test]
fn glass_displaces_uniformly_left_and_up() {
    // The 32-pixel table's first severity moves by −1 or 0 and does not blur, so the origin of every pixel is legible.
    let shape = Shape { height: 32, width: 32, channels: Channels::Rgb };
    let coded: Vec<u8> = (0..32 * 32).flat_map(|i| [(i % 32) as u8, (i / 32) as u8, 9]).collect();
    let image = Image::new(shape, coded).unwrap();
    let mut counts = [[0f64; 2]; 2];
    for seed in 0..60 {
        let out = keyed(recipe(Corruption::GlassBlur, 1, Table::Px32), &image, seed);
        for (i, pixel) in out.as_chunks::<3>().0.iter().enumerate() {
            let (dx, dy) = (i % 32 - usize::from(pixel[0]), i / 32 - usize::from(pixel[1]));
            let inside = |k: usize| (2..=31).contains(&k);
            if inside(i % 32) && inside(i / 32) {
                counts[dy][dx] += 1.0;
            } else {
                assert_eq!((dx, dy), (0, 0), "the edge stays");
            }
        }
    }
    let expected = 60.0 * 900.0 / 4.0;
    let chi2: f64 = counts.iter().flatten().map(|c| (c - expected).powi(2) / expected).sum();
    assert!(chi2 < 21.1, "χ² {chi2} of 3 degrees of freedom: {counts:?}");
}
