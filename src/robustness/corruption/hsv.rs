//! Hue, saturation, value by scikit-image's formulas, in double precision.

use super::simd::{byte_of_unit, vectorised};

/// Pixels converted at a time.
const CHUNK: usize = 64;

/// What to do to a pixel between the two conversions.
#[derive(Debug, Clone, Copy)]
pub enum Change {
    /// V ← clip(V + c)
    Value(f64),
    /// S ← clip(a·S + b)
    Saturation { scale: f64, offset: f64 },
}

/// RGB bytes to HSV, the change, and back: trunc(255·clip(·)).
pub fn change_bytes(image: &[u8], change: Change) -> Vec<u8> {
    let mut out = vec![0; image.len()];
    match change {
        Change::Value(c) => brighten(image, &mut out, c),
        Change::Saturation { scale, offset } => saturate(image, &mut out, scale, offset),
    }
    out
}

vectorised! {
    fn brighten(image: &[u8], out: &mut [u8], offset: f64) {
        each_chunk(image, out, |s, v| (s, clip(v + offset)));
    }

    fn saturate(image: &[u8], out: &mut [u8], scale: f64, offset: f64) {
        each_chunk(image, out, |s, v| (clip(s * scale + offset), v));
    }
}

#[inline(always)]
fn clip(x: f64) -> f64 {
    let x = if x > 0.0 { x } else { 0.0 };
    if x < 1.0 { x } else { 1.0 }
}

#[inline(always)]
fn each_chunk(image: &[u8], out: &mut [u8], change: impl Fn(f64, f64) -> (f64, f64)) {
    let (mut r, mut g, mut b) = ([0.0; CHUNK], [0.0; CHUNK], [0.0; CHUNK]);
    for (from, to) in image.chunks(3 * CHUNK).zip(out.chunks_mut(3 * CHUNK)) {
        let from = from.as_chunks::<3>().0;
        for (i, pixel) in from.iter().enumerate() {
            r[i] = f64::from(pixel[0]) / 255.0;
            g[i] = f64::from(pixel[1]) / 255.0;
            b[i] = f64::from(pixel[2]) / 255.0;
        }
        for i in 0..CHUNK {
            let (h, s, v) = hsv_of(r[i], g[i], b[i]);
            let (s, v) = change(s, v);
            (r[i], g[i], b[i]) = rgb_of(h, s, v);
        }
        for (i, pixel) in to.as_chunks_mut::<3>().0.iter_mut().enumerate() {
            *pixel = [byte_of_unit(r[i]), byte_of_unit(g[i]), byte_of_unit(b[i])];
        }
    }
}

/// Hue in sixths of the circle is divided by 6 into [0,1]; grey has hue and saturation 0.
#[inline(always)]
fn hsv_of(r: f64, g: f64, b: f64) -> (f64, f64, f64) {
    let larger = if r > g { r } else { g };
    let v = if larger > b { larger } else { b };
    let smaller = if r < g { r } else { g };
    let d = v - if smaller < b { smaller } else { b };
    let grey = d == 0.0;
    // Grey pixels divide by 1 instead of 0, and their result is replaced.
    let divisor = if grey { 1.0 } else { d };
    let s = d / if grey { 1.0 } else { v };
    // The later rule wins a tie.
    let (base, difference) = if b == v {
        (4.0, r - g)
    } else if g == v {
        (2.0, b - r)
    } else {
        (0.0, g - b)
    };
    let h = (base + difference / divisor) / 6.0;
    let h = if h < 0.0 { h + 1.0 } else { h };
    (if grey { 0.0 } else { h }, s, v)
}

#[inline(always)]
fn rgb_of(h: f64, s: f64, v: f64) -> (f64, f64, f64) {
    let sixths = h * 6.0;
    let sector = sixths.floor();
    let f = sixths - sector;
    let p = v * (1.0 - s);
    let q = v * (1.0 - f * s);
    let t = v * (1.0 - (1.0 - f) * s);
    // A hue that rounding has carried to 1 is sector 6, the same as sector 0.
    let r = if sector == 1.0 {
        q
    } else if sector == 2.0 || sector == 3.0 {
        p
    } else if sector == 4.0 {
        t
    } else {
        v
    };
    let g = if sector == 1.0 || sector == 2.0 {
        v
    } else if sector == 3.0 {
        q
    } else if sector == 4.0 || sector == 5.0 {
        p
    } else {
        t
    };
    let b = if sector == 2.0 {
        t
    } else if sector == 3.0 || sector == 4.0 {
        v
    } else if sector == 5.0 {
        q
    } else {
        p
    };
    (r, g, b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_change_gives_the_pixel_back_but_for_truncation() {
        let image: Vec<u8> = (0..3 * 1000).map(|i| ((i * 7919) >> 4) as u8).collect();
        let out = change_bytes(&image, Change::Saturation { scale: 1.0, offset: 0.0 });
        assert!(image.iter().zip(&out).all(|(a, b)| a - b <= 1 && a >= b));
    }

    #[test]
    fn no_saturation_is_grey_of_the_largest_channel() {
        let out = change_bytes(&[10, 200, 30, 9, 8, 7], Change::Saturation { scale: 0.0, offset: 0.0 });
        assert_eq!(out, [200, 200, 200, 9, 9, 9]);
        assert_eq!(change_bytes(&[0, 0, 0, 255, 255, 255], Change::Value(0.2)), [51, 51, 51, 255, 255, 255]);
    }
}
