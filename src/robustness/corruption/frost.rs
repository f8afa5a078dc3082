//! The pictures of frost: the published ones, an operator's own, or a procedural stand-in.

use std::io;
use std::sync::{Arc, LazyLock, OnceLock};

use sha2::{Digest, Sha256};

use super::plasma::plasma;
use super::random::Keyed;
use crate::protocol::Pictures;

/// Pictures that a draw chooses from, each 1 time in 5. The published second and third are the same picture.
const FILES: [(&str, &str); 5] = [
    ("frost1.png", "ff9f907860bd7a835d459e32f9d588062b7f61ee267343cc7222b56753a14755"),
    ("frost2.png", "fe211a89b336999c207a852ce05818d4545d0b57c5beadd824b4cc9d9a9b6137"),
    ("frost3.png", "2d0d50b4a9bb213f38b024ef7768731bb83cc08d2f26b5766bbc167cdfa0e504"),
    ("frost4.jpg", "3f8b91ca1a9fa7167b09e773da53f5ae60d0a1fd88f02a783f6e328a72887f6e"),
    ("frost5.jpg", "5fc6a19df4a429ba68abdcc8f8a4278d4c9f81c9ccafd2c92ab0c8cf8992ebd2"),
];

/// The names of the five files.
pub const FROST_FILES: [&str; 5] = [FILES[0].0, FILES[1].0, FILES[2].0, FILES[3].0, FILES[4].0];

/// Which pictures five files, in the order of [`FROST_FILES`], are.
pub fn identify(files: &[impl AsRef<[u8]>; 5]) -> Pictures {
    let sums = files.each_ref().map(|file| hex::encode(Sha256::digest(file)));
    if sums.iter().zip(FILES).all(|(sum, (_, published))| sum == published) {
        return Pictures::Published;
    }
    Pictures::Custom(hex::encode(Sha256::digest(sums.concat())))
}

/// A picture, interleaved RGB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Texture {
    pub height: usize,
    pub width: usize,
    pub rgb: Vec<u8>,
}

/// A set of pictures is missing a file, or a file is no picture.
#[derive(Debug, thiserror::Error)]
pub enum FrostError {
    #[error("cannot read the frost picture {name}")]
    Read { name: &'static str, source: io::Error },
    #[error("the frost picture {name} is not a PNG or JPEG image")]
    Decode { name: &'static str, source: ::image::ImageError },
}

/// Five frost pictures, and their shrunken versions for small images. Cheap to clone.
#[derive(Debug, Clone)]
pub struct FrostTextures {
    pictures: Pictures,
    full: Arc<[Texture; 5]>,
    /// At 0.3 and 0.2 of the size, made when first asked for.
    small: Arc<[OnceLock<[Texture; 5]>; 2]>,
}

impl FrostTextures {
    /// Decodes the five files that `read` returns by name (`frost1.png` … `frost5.jpg`).
    ///
    /// JPEG decoders may differ by a few grey levels, so the two JPEG pictures need not equal the original package's to the last bit.
    pub fn read(mut read: impl FnMut(&str) -> io::Result<Vec<u8>>) -> Result<Self, FrostError> {
        let mut files: [Vec<u8>; 5] = Default::default();
        for (file, name) in files.iter_mut().zip(FROST_FILES) {
            *file = read(name).map_err(|source| FrostError::Read { name, source })?;
        }
        Self::decode(&files)
    }

    /// Decodes five files in the order of [`FROST_FILES`].
    pub fn decode(files: &[impl AsRef<[u8]>; 5]) -> Result<Self, FrostError> {
        let mut pictures = Vec::with_capacity(5);
        for (file, name) in files.iter().zip(FROST_FILES) {
            let picture =
                ::image::load_from_memory(file.as_ref()).map_err(|source| FrostError::Decode { name, source })?;
            let rgb = picture.to_rgb8();
            let (width, height) = (rgb.width() as usize, rgb.height() as usize);
            pictures.push(Texture { height, width, rgb: rgb.into_raw() });
        }
        Ok(Self::new(identify(files), pictures.try_into().expect("five files")))
    }

    /// Pictures that the caller has as pixels.
    pub fn from_pictures(pictures: [Texture; 5]) -> Self {
        let sums = pictures.each_ref().map(|picture| hex::encode(Sha256::digest(&picture.rgb)));
        Self::new(Pictures::Custom(hex::encode(Sha256::digest(sums.concat()))), pictures)
    }

    /// The stand-in: ridged plasma with the published pictures' channel means and standard deviations.
    pub fn procedural() -> Self {
        static MADE: LazyLock<FrostTextures> = LazyLock::new(|| {
            const MEANS: [[f64; 3]; 5] =
                [[78., 149., 166.], [201., 205., 215.], [201., 205., 215.], [138., 153., 165.], [112., 123., 135.]];
            const DEVIATIONS: [[f64; 3]; 5] =
                [[27., 17., 15.], [21., 22., 23.], [21., 22., 23.], [29., 29., 30.], [44., 43., 42.]];
            FrostTextures::new(
                Pictures::Procedural,
                std::array::from_fn(|i| crystals(i as u64, MEANS[i], DEVIATIONS[i])),
            )
        });
        MADE.clone()
    }

    fn new(pictures: Pictures, full: [Texture; 5]) -> Self {
        Self { pictures, full: Arc::new(full), small: Arc::default() }
    }

    /// Which pictures these are.
    pub fn pictures(&self) -> &Pictures {
        &self.pictures
    }

    /// Picture `index` at `scale` (1, 0.3 or 0.2 of its size), enlarged if it would not cover height × width with a pixel to spare.
    pub(super) fn pick(&self, index: usize, scale: f64, height: usize, width: usize) -> Cover<'_> {
        let texture = if scale == 1.0 {
            &self.full[index]
        } else {
            let slot = usize::from(scale < 0.25);
            &self.small[slot].get_or_init(|| self.full.each_ref().map(|t| resize(t, scale)))[index]
        };
        if texture.height > height && texture.width > width {
            return Cover::Borrowed(texture);
        }
        let factor = ((height + 1) as f64 / texture.height as f64).max((width + 1) as f64 / texture.width as f64);
        // Half a pixel more, so that rounding cannot fall short.
        let margin = 0.5 / texture.height.min(texture.width) as f64;
        Cover::Owned(resize(texture, factor + margin))
    }
}

/// A texture, perhaps made for the occasion.
pub(super) enum Cover<'a> {
    Borrowed(&'a Texture),
    Owned(Texture),
}

impl std::ops::Deref for Cover<'_> {
    type Target = Texture;

    fn deref(&self) -> &Texture {
        match self {
            Cover::Borrowed(texture) => texture,
            Cover::Owned(texture) => texture,
        }
    }
}

/// Ridges of one fractal field broken by another, standardised, then given each channel's mean and deviation.
fn crystals(index: u64, means: [f64; 3], deviations: [f64; 3]) -> Texture {
    const SIDE: usize = 512;
    let mut random = Keyed::new(0x0066_726f_7374, 0, index);
    // An amplitude that falls slowly from octave to octave is rough, as ice is.
    let (ridges, grain) = (plasma(SIDE, 1.3, &mut random), plasma(SIDE, 0.9, &mut random));
    let raw: Vec<f64> = ridges.iter().zip(&grain).map(|(r, g)| (g - 0.5) - 1.5 * (r - 0.5).abs()).collect();
    let mean = raw.iter().sum::<f64>() / raw.len() as f64;
    let deviation = (raw.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / raw.len() as f64).sqrt();
    let rgb = raw
        .iter()
        .flat_map(|v| {
            let z = (v - mean) / deviation;
            std::array::from_fn::<u8, 3, _>(|c| (means[c] + deviations[c] * z).round().clamp(0.0, 255.0) as u8)
        })
        .collect();
    Texture { height: SIDE, width: SIDE, rgb }
}

/// OpenCV's bilinear resize of bytes (`INTER_LINEAR`, no antialiasing): 11-bit weights, truncating vertical pass.
fn resize(from: &Texture, scale: f64) -> Texture {
    let size = |n: usize| ((n as f64 * scale).round_ties_even() as usize).max(1);
    let (height, width) = (size(from.height), size(from.width));
    let taps = |n: usize, to: usize| -> Vec<(usize, usize, i32, i32)> {
        (0..to)
            .map(|i| {
                let position = ((i as f64 + 0.5) / scale - 0.5) as f32;
                let base = position.floor();
                let part = position - base;
                let at = |k: i64| k.clamp(0, n as i64 - 1) as usize;
                let fixed = |w: f32| (w * 2048.0).round_ties_even() as i32;
                let base = base as i64;
                let inside = base >= 0 && base + 1 < n as i64;
                let part = if inside { part } else { 0.0 };
                (at(base), at(base + 1), fixed(1.0 - part), fixed(part))
            })
            .collect()
    };
    let (across, down) = (taps(from.width, width), taps(from.height, height));
    let pixels = from.rgb.as_chunks::<3>().0;
    let line = |y: usize| -> Vec<i32> {
        let row = &pixels[y * from.width..][..from.width];
        across
            .iter()
            .flat_map(|&(l, r, a, b)| {
                std::array::from_fn::<i32, 3, _>(|c| i32::from(row[l][c]) * a + i32::from(row[r][c]) * b)
            })
            .collect()
    };
    let rgb = down
        .iter()
        .flat_map(|&(top, bottom, a, b)| {
            let (top, bottom) = (line(top), line(bottom));
            top.into_iter()
                .zip(bottom)
                .map(move |(t, u)| ((((a * (t >> 4)) >> 16) + ((b * (u >> 4)) >> 16) + 2) >> 2) as u8)
                .collect::<Vec<u8>>()
        })
        .collect();
    Texture { height, width, rgb }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stand_in_has_the_published_means_and_deviations() {
        let textures = FrostTextures::procedural();
        let texture = &textures.full[0];
        for (c, (mean, deviation)) in [(78.0, 27.0), (149.0, 17.0), (166.0, 15.0)].into_iter().enumerate() {
            let values: Vec<f64> = texture.rgb.iter().skip(c).step_by(3).map(|&v| f64::from(v)).collect();
            let m = values.iter().sum::<f64>() / values.len() as f64;
            let sd = (values.iter().map(|v| (v - m).powi(2)).sum::<f64>() / values.len() as f64).sqrt();
            assert!((m - mean).abs() < 1.0 && (sd - deviation).abs() < 1.0, "{m} {sd}");
        }
    }

    #[test]
    fn a_picture_too_small_is_enlarged_to_cover_the_image() {
        let small = Texture { height: 20, width: 31, rgb: vec![90; 20 * 31 * 3] };
        let textures = FrostTextures::from_pictures(std::array::from_fn(|_| small.clone()));
        for (h, w) in [(224, 224), (33, 900), (19, 30), (20, 31)] {
            let texture = textures.pick(2, 1.0, h, w);
            assert!(texture.height > h && texture.width > w, "{h}×{w}: {}×{}", texture.height, texture.width);
            assert!(texture.rgb.iter().all(|v| v.abs_diff(90) <= 1));
        }
    }

    #[test]
    fn a_missing_or_broken_file_is_named() {
        let missing = FrostTextures::read(|_| Err(io::ErrorKind::NotFound.into())).unwrap_err();
        assert!(missing.to_string().contains("frost1.png"));
        let broken = FrostTextures::read(|_| Ok(b"not a picture".to_vec())).unwrap_err();
        assert!(matches!(broken, FrostError::Decode { name: "frost1.png", .. }));
    }
}
