//! Contrast, elastic transform, pixelation and JPEG compression.

use super::gaussian::{Border, blur_plane};
use super::random::Random;
use super::scratch::Scratch;
use super::simd::byte_of_unit;
use super::tables::Elastic;
use super::{Channels, Shape, jpeg, resample, warp};

/// trunc(255·clip((u − μ)·c + μ)), μ the channel's mean: a table of 256 bytes per channel.
pub fn contrast(image: &[u8], shape: Shape, factor: f64) -> Vec<u8> {
    match shape.channels {
        Channels::Grey => contrast_channels::<1>(image, factor),
        Channels::Rgb => contrast_channels::<3>(image, factor),
    }
}

fn contrast_channels<const C: usize>(image: &[u8], factor: f64) -> Vec<u8> {
    let pixels = image.as_chunks::<C>().0;
    let units: [f64; 256] = std::array::from_fn(|v| v as f64 / 255.0);
    // One pixel after the other, as NumPy sums: the level of a flat image hangs on the last bit of the mean.
    let mut sums = [0.0; C];
    for pixel in pixels {
        for c in 0..C {
            sums[c] += units[usize::from(pixel[c])];
        }
    }
    let luts = sums.map(|sum| {
        let mean = sum / pixels.len() as f64;
        units.map(|u| byte_of_unit((u - mean) * factor + mean))
    });
    let mut out = vec![0; image.len()];
    for (to, from) in out.as_chunks_mut::<C>().0.iter_mut().zip(pixels) {
        for c in 0..C {
            to[c] = luts[c][usize::from(from[c])];
        }
    }
    out
}

/// A random affine map of three points about the centre, then a smooth random displacement of every pixel.
pub fn elastic(image: &[u8], shape: Shape, p: Elastic, random: &mut impl Random) -> Vec<u8> {
    let Shape { height, width, .. } = shape;
    // The source gives (row, column) where OpenCV reads (x, y); square images do not notice.
    let (cy, cx, s) = ((height / 2) as f32, (width / 2) as f32, (height.min(width) / 3) as f32);
    let from = [[cy + s, cx + s], [cy + s, cx - s], [cy - s, cx - s]];
    let mut shifts = [0.0; 6];
    random.uniforms(-p.shift, p.shift, &mut shifts);
    let to = std::array::from_fn(|i| std::array::from_fn(|k| from[i][k] + shifts[2 * i + k] as f32));
    let map = warp::affine_through(from, to).expect("sides of at least 32 pixels make a triangle");
    let moved = warp::warp_affine(image, width, shape.channels(), &map);
    let mut noise = Scratch::<f64>::zeros(shape.pixels());
    let mut field = || {
        random.uniforms(-1.0, 1.0, &mut noise);
        blur_plane(&mut noise, width, p.sigma, 3.0, Border::Symmetric);
        let mut moves = Scratch::<f32>::zeros(noise.len());
        moves.iter_mut().zip(noise.iter()).for_each(|(to, v)| *to = (v * p.alpha) as f32);
        moves
    };
    let (dx, dy) = (field(), field());
    warp::displace(&moved, width, shape.channels(), &dx, &dy)
}

/// Box-filtered down to a fraction of each side, and up again.
pub fn pixelate(image: &[u8], shape: Shape, fraction: f64) -> Vec<u8> {
    let Shape { height, width, .. } = shape;
    let small = ((height as f64 * fraction) as usize, (width as f64 * fraction) as usize);
    let channels = shape.channels();
    let down = resample::resize_box(image, (height, width), channels, small);
    resample::resize_box(&down, small, channels, (height, width))
}

/// A JPEG file of the given quality, saved and loaded.
pub fn jpeg_compression(image: &[u8], shape: Shape, quality: u32) -> Vec<u8> {
    jpeg::round_trip(image, shape.width, shape.channels(), quality)
}
