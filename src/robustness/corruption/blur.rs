//! Defocus, glass, motion, zoom and Gaussian blur.

use super::Shape;
use super::disk::{self, Disk};
use super::motion::{self, Line};
use super::random::Random;
use super::tables::{Defocus, Glass, Motion, Zoom, zoom_factors};
use super::{gaussian, zoom};

pub fn gaussian(image: &[u8], shape: Shape, sigma: f64) -> Vec<u8> {
    gaussian::blur_bytes(image, shape.width, shape.channels(), sigma)
}

pub fn defocus(image: &[u8], shape: Shape, (radius, alias_sigma): Defocus) -> Vec<u8> {
    disk::correlate_bytes(image, shape.width, shape.channels(), &Disk::new(radius, alias_sigma))
}

/// Blur, copy pixels about, blur. The source writes a swap of two array views, which copies one way only, and so it stays.
pub fn glass(image: &[u8], shape: Shape, (sigma, delta, passes): Glass, random: &mut impl Random) -> Vec<u8> {
    let (width, channels) = (shape.width, shape.channels());
    let mut pixels = gaussian::blur_bytes(image, width, channels, sigma);
    match channels {
        1 => (0..passes).for_each(|_| shuffle::<1>(&mut pixels, shape, delta, random)),
        _ => (0..passes).for_each(|_| shuffle::<3>(&mut pixels, shape, delta, random)),
    }
    gaussian::blur_bytes(&pixels, width, channels, sigma)
}

/// From the last pixel to the first, `delta` away from the edges: each becomes a pixel at −delta..delta of it on both axes.
fn shuffle<const C: usize>(image: &mut [u8], shape: Shape, delta: usize, random: &mut impl Random) {
    let Shape { height, width, .. } = shape;
    let pixels = image.as_chunks_mut::<C>().0;
    let places = (width - delta).saturating_sub(delta);
    let mut moves = vec![0; 2 * places];
    for y in (delta + 1..=height - delta).rev() {
        random.integers(-(delta as i32), delta as i32, &mut moves);
        for (x, step) in (delta + 1..=width - delta).rev().zip(moves.as_chunks::<2>().0) {
            let [dx, dy] = step.map(|s| s as isize);
            let from = (y as isize + dy) * width as isize + x as isize + dx;
            pixels[y * width + x] = pixels[from as usize];
        }
    }
}

/// Along a line between −45° and 45°.
pub fn motion(image: &[u8], shape: Shape, (radius, sigma): Motion, random: &mut impl Random) -> Vec<u8> {
    let angle = random.uniform(-45.0, 45.0);
    motion::blur_bytes(image, shape.width, shape.channels(), &Line::new(radius, sigma, angle))
}

pub fn zoom(image: &[u8], shape: Shape, range: Zoom) -> Vec<u8> {
    zoom::blur_bytes(image, shape.width, shape.channels(), &zoom_factors(range))
}
