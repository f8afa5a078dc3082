//! Drops of water or mud on the lens.

use super::Shape;
use super::gaussian::{Border, blur_plane, blur_plane_f32};
use super::liquid;
use super::random::Random;
use super::simd::{byte_of_unit_f32, vectorised};
use super::tables::Spatter;

/// Largest distance from an edge of the liquid that still shades it, in pixels.
const RIM: f32 = 20.0;

/// A thresholded smooth random layer, shaded like water or stained like mud; RGB.
pub fn spatter(image: &[u8], shape: Shape, p: Spatter, random: &mut impl Random) -> Vec<u8> {
    let width = shape.width;
    let mut layer = vec![0.0; shape.pixels()];
    random.normals(&mut layer);
    layer.iter_mut().for_each(|n| *n = p.mean + p.sd * *n);
    blur_plane(&mut layer, width, p.blur, 4.0, Border::Replicate);
    let mut out = vec![0; image.len()];
    if p.mud {
        let mask: Vec<f32> = layer.iter().map(|&v| f32::from(u8::from(v > p.threshold))).collect();
        let mask = blur_plane_f32(&mask, width, p.strength);
        stain(image, &mask, [63.0, 42.0, 20.0].map(|c: f64| (c / 255.0) as f32), &mut out);
    } else {
        let shade = water(&layer, width, p.threshold, p.strength as f32);
        lighten(image, &shade, [175.0, 238.0, 238.0].map(|c: f64| (c / 255.0) as f32), &mut out);
    }
    out
}

/// Strength of the water at every pixel. Without a drop it is 0/0 everywhere, which blackens the image, as in the source.
fn water(layer: &[f64], width: usize, threshold: f64, strength: f32) -> Vec<f32> {
    // Values above 1 wrap round, as bytes do in the source.
    let liquid: Vec<u8> = layer.iter().map(|&v| if v < threshold { 0 } else { (v * 255.0) as i64 as u8 }).collect();
    let edges = liquid::canny(&liquid, width, 50, 150);
    let distance = liquid::distance(&edges, width, RIM);
    let mut relief = liquid::box_truncated(&distance, width);
    liquid::equalize(&mut relief);
    let relief = liquid::box_rounded(&liquid::emboss(&relief, width), width);
    let mut shade: Vec<f32> = liquid.iter().zip(&relief).map(|(&l, &r)| f32::from(l) * f32::from(r)).collect();
    let top = shade.iter().copied().fold(0.0, f32::max);
    shade.iter_mut().for_each(|m| *m = *m / top * strength);
    shade
}

vectorised! {
    /// trunc(255·clip(x + m·colour))
    fn lighten(image: &[u8], shade: &[f32], colour: [f32; 3], out: &mut [u8]) {
        for ((to, from), &m) in out.as_chunks_mut::<3>().0.iter_mut().zip(image.as_chunks::<3>().0).zip(shade) {
            for c in 0..3 {
                to[c] = byte_of_unit_f32(f32::from(from[c]) / 255.0 + m * colour[c]);
            }
        }
    }

    /// trunc(255·clip((1 − m)·x + m·colour)), m below 0.8 counting as 0
    fn stain(image: &[u8], mask: &[f32], colour: [f32; 3], out: &mut [u8]) {
        for ((to, from), &m) in out.as_chunks_mut::<3>().0.iter_mut().zip(image.as_chunks::<3>().0).zip(mask) {
            let m = if m < 0.8 { 0.0 } else { m };
            for c in 0..3 {
                to[c] = byte_of_unit_f32(f32::from(from[c]) / 255.0 * (1.0 - m) + colour[c] * m);
            }
        }
    }
}
