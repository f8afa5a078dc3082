//! Snow, frost, fog, and the brightness and saturation of the light.

use super::frost::FrostTextures;
use super::hsv::{self, Change};
use super::motion::{self, Line};
use super::plasma::plasma;
use super::random::Random;
use super::simd::{byte_of_unit, truncate, vectorised};
use super::tables::{self, Fog, Frost, Saturate, Snow};
use super::zoom;
use super::{Channels, Shape, Table};

/// A zoomed field of flakes, blurred along a falling line, laid over the whitened image twice (the second time upside down).
pub fn snow(image: &[u8], shape: Shape, snow: Snow, random: &mut impl Random) -> Vec<u8> {
    let Shape { width, .. } = shape;
    let mut layer = vec![0.0; shape.pixels()];
    random.normals(&mut layer);
    layer.iter_mut().for_each(|n| *n = snow.mean + snow.sd * *n);
    let layer = zoom::zoom_plane(&layer, width, snow.zoom);
    let mut flakes = vec![0; layer.len()];
    threshold(&layer, snow.threshold, &mut flakes);
    let line = Line::new(snow.radius, snow.sigma, random.uniform(-135.0, -45.0));
    let flakes = motion::blur_bytes(&flakes, width, 1, &line);
    let mut upside_down = flakes.clone();
    upside_down.reverse();
    let mut out = vec![0; image.len()];
    let (own, white) = (snow.weight as f32, (1.0 - snow.weight) as f32);
    match shape.channels {
        Channels::Grey => whiten_grey(image, &flakes, &upside_down, own, white, &mut out),
        Channels::Rgb => whiten(image, &flakes, &upside_down, own, white, &mut out),
    }
    out
}

vectorised! {
    fn threshold(layer: &[f64], least: f64, out: &mut [u8]) {
        for (byte, &v) in out.iter_mut().zip(layer) {
            *byte = byte_of_unit(if v < least { 0.0 } else { v });
        }
    }

    fn whiten(image: &[u8], flakes: &[u8], upside_down: &[u8], own: f32, white: f32, out: &mut [u8]) {
        let (from, to) = (image.as_chunks::<3>().0, out.as_chunks_mut::<3>().0);
        let n = from.len();
        let (to, flakes, upside_down) = (&mut to[..n], &flakes[..n], &upside_down[..n]);
        for i in 0..n {
            let x = from[i].map(|v| f32::from(v) / 255.0);
            let grey = x[0] * 0.299 + x[1] * 0.587 + x[2] * 0.114;
            for c in 0..3 {
                to[i][c] = snowy(x[c], grey, flakes[i], upside_down[i], own, white);
            }
        }
    }

    fn whiten_grey(image: &[u8], flakes: &[u8], upside_down: &[u8], own: f32, white: f32, out: &mut [u8]) {
        for (((to, &v), &s), &u) in out.iter_mut().zip(image).zip(flakes).zip(upside_down) {
            let x = f32::from(v) / 255.0;
            *to = snowy(x, x, s, u, own, white);
        }
    }

    /// trunc((u + c·P)·m/(m + c)·255), `CHANNELS` values to a cell of the plasma.
    fn fog_row(image: &[u8], plasma: &[f64], strength: f64, top: f64, out: &mut [u8]) {
        let scale = top + strength;
        if image.len() == plasma.len() {
            for ((to, &v), &p) in out.iter_mut().zip(image).zip(plasma) {
                *to = byte_of_unit((f64::from(v) / 255.0 + strength * p) * top / scale);
            }
        } else {
            let (from, to) = (image.as_chunks::<3>().0, out.as_chunks_mut::<3>().0);
            for ((to, from), &p) in to.iter_mut().zip(from).zip(plasma) {
                let p = strength * p;
                for c in 0..3 {
                    to[c] = byte_of_unit((f64::from(from[c]) / 255.0 + p) * top / scale);
                }
            }
        }
    }

    fn frost_row(image: &[u8], frost: &[u8], own: f64, other: f64, out: &mut [u8]) {
        for ((to, &v), &f) in out.iter_mut().zip(image).zip(frost) {
            *to = truncate(own * f64::from(v) + other * f64::from(f));
        }
    }
}

#[inline(always)]
fn snowy(x: f32, grey: f32, flake: u8, other: u8, own: f32, white: f32) -> u8 {
    let light = grey * 1.5 + 0.5;
    let y = own * x + white * if x > light { x } else { light };
    byte_of_unit(f64::from(y) + f64::from(flake) / 255.0 + f64::from(other) / 255.0)
}

/// A random crop of a random frost picture added to the image, in RGB.
pub fn frost(
    image: &[u8],
    shape: Shape,
    (own, other): Frost,
    table: Table,
    textures: &FrostTextures,
    random: &mut impl Random,
) -> Vec<u8> {
    let Shape { height, width, .. } = shape;
    let texture = textures.pick(random.integer(0, 5) as usize, tables::frost_scale(table), height, width);
    let top = random.integer(0, (texture.height - height) as i32) as usize;
    let left = random.integer(0, (texture.width - width) as i32) as usize;
    let mut out = vec![0; image.len()];
    let row = width * 3;
    for (y, (from, to)) in image.chunks(row).zip(out.chunks_mut(row)).enumerate() {
        let frost = &texture.rgb[((top + y) * texture.width + left) * 3..][..row];
        frost_row(from, frost, own, other, to);
    }
    out
}

/// Plasma added, then the whole scaled back to the image's own maximum m: (u + c·P)·m/(m + c).
pub fn fog(image: &[u8], shape: Shape, (strength, decay): Fog, table: Table, random: &mut impl Random) -> Vec<u8> {
    let row = shape.width * shape.channels();
    let side = tables::plasma_size(table).max(shape.height.max(shape.width).next_power_of_two());
    let map = plasma(side, decay, random);
    let top = f64::from(image.iter().copied().max().unwrap_or(0)) / 255.0;
    let mut out = vec![0; image.len()];
    for ((from, to), plasma) in image.chunks(row).zip(out.chunks_mut(row)).zip(map.chunks(side)) {
        fog_row(from, &plasma[..shape.width], strength, top, to);
    }
    out
}

/// V + c in HSV; grey values are V themselves.
pub fn brightness(image: &[u8], shape: Shape, offset: f64) -> Vec<u8> {
    match shape.channels {
        Channels::Grey => image.iter().map(|&v| byte_of_unit(f64::from(v) / 255.0 + offset)).collect(),
        Channels::Rgb => hsv::change_bytes(image, Change::Value(offset)),
    }
}

/// a·S + b in HSV, in RGB.
pub fn saturate(image: &[u8], (scale, offset): Saturate) -> Vec<u8> {
    hsv::change_bytes(image, Change::Saturation { scale, offset })
}
