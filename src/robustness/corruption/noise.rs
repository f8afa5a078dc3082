//! Gaussian, shot, impulse and speckle noise: every value of every channel for itself.

use super::random::Random;
use super::simd::{byte_of_unit, vectorised};

/// Values drawn at a time.
const CHUNK: usize = 4096;

/// trunc(255·clip(u + σ·N))
pub fn gaussian(image: &[u8], sigma: f64, random: &mut impl Random) -> Vec<u8> {
    with_normals(image, random, |from, n, to| add(from, n, sigma, to))
}

/// trunc(255·clip(u + u·σ·N))
pub fn speckle(image: &[u8], sigma: f64, random: &mut impl Random) -> Vec<u8> {
    with_normals(image, random, |from, n, to| multiply(from, n, sigma, to))
}

/// trunc(255·clip(P/λ)), P ~ Poisson(u·λ)
pub fn shot(image: &[u8], rate: f64, random: &mut impl Random) -> Vec<u8> {
    let mut out = vec![0; image.len()];
    let mut counts = [0; CHUNK];
    // Counts of at least λ are white.
    let bytes: Vec<u8> = (0..=rate.ceil() as u32).map(|count| byte_of_unit(f64::from(count) / rate)).collect();
    for (from, to) in image.chunks(CHUNK).zip(out.chunks_mut(CHUNK)) {
        let counts = &mut counts[..from.len()];
        random.poissons(rate, from, counts);
        for (byte, &count) in to.iter_mut().zip(counts.iter()) {
            *byte = bytes[(count as usize).min(bytes.len() - 1)];
        }
    }
    out
}

/// With probability `p` a value becomes 255 or 0, each half of the time.
pub fn impulse(image: &[u8], p: f64, random: &mut impl Random) -> Vec<u8> {
    let mut out = image.to_vec();
    let mut flipped = vec![false; image.len()];
    random.coins(p, &mut flipped);
    let mut salt = [false; CHUNK];
    for (to, flipped) in out.chunks_mut(CHUNK).zip(flipped.chunks(CHUNK)) {
        let salt = &mut salt[..to.len()];
        random.coins(0.5, salt);
        flip(flipped, salt, to);
    }
    out
}

fn with_normals(image: &[u8], random: &mut impl Random, step: impl Fn(&[u8], &[f64], &mut [u8])) -> Vec<u8> {
    let mut out = vec![0; image.len()];
    let mut normals = [0.0; CHUNK];
    for (from, to) in image.chunks(CHUNK).zip(out.chunks_mut(CHUNK)) {
        let normals = &mut normals[..from.len()];
        random.normals(normals);
        step(from, normals, to);
    }
    out
}

vectorised! {
    fn add(from: &[u8], normals: &[f64], sigma: f64, to: &mut [u8]) {
        for ((byte, &v), &n) in to.iter_mut().zip(from).zip(normals) {
            *byte = byte_of_unit(f64::from(v) / 255.0 + sigma * n);
        }
    }

    fn multiply(from: &[u8], normals: &[f64], sigma: f64, to: &mut [u8]) {
        for ((byte, &v), &n) in to.iter_mut().zip(from).zip(normals) {
            let u = f64::from(v) / 255.0;
            *byte = byte_of_unit(u + u * (sigma * n));
        }
    }

    fn flip(flipped: &[bool], salt: &[bool], bytes: &mut [u8]) {
        for ((byte, &flipped), &salt) in bytes.iter_mut().zip(flipped).zip(salt) {
            let extreme = if salt { 255 } else { 0 };
            *byte = if flipped { extreme } else { *byte };
        }
    }
}
