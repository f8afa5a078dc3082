//! Resize and crop, as torchvision's transforms do on Pillow images.

use serde::{Deserialize, Serialize};

use super::resample::{Filter, Resampler};

/// What is done to each image at import: resize (antialiased bilinear), then centre crop.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Geometry {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resize: Option<Resize>,
    /// Side of the square kept around the centre, in pixels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crop: Option<u32>,
}

/// Sides are in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Resize {
    /// The shorter side becomes this long, the other ⌊side · long / short⌋.
    ShortSide(u32),
    /// Both sides become this long, whatever the aspect ratio.
    Square(u32),
}

/// One decoded image, [height, width, channels].
pub(crate) struct Picture {
    pub channels: usize,
    pub height: usize,
    pub width: usize,
    pub pixels: Vec<u8>,
}

impl Geometry {
    /// (height, width) after the resize.
    fn resized(self, (height, width): (usize, usize)) -> (usize, usize) {
        match self.resize {
            None => (height, width),
            Some(Resize::Square(side)) => (side as usize, side as usize),
            Some(Resize::ShortSide(side)) => {
                let side = side as usize;
                let long = |long, short| ((side as u128 * long as u128) / short as u128) as usize;
                if width <= height { (long(height, width), side) } else { (side, long(width, height)) }
            }
        }
    }

    /// (height, width) of an image of this size afterwards, or why it cannot be had.
    pub(crate) fn output(self, from: (usize, usize)) -> Result<(usize, usize), String> {
        let (height, width) = self.resized(from);
        match self.crop.map(|crop| crop as usize) {
            None => Ok((height, width)),
            Some(crop) if crop > height || crop > width => {
                Err(format!("is {width}×{height} pixels before the crop, smaller than the crop of {crop}"))
            }
            Some(crop) => Ok((crop, crop)),
        }
    }

    /// `picture` must be one for which [`Self::output`] answers.
    pub(crate) fn apply(self, picture: Picture) -> Picture {
        let from = (picture.height, picture.width);
        let to = self.resized(from);
        let mut picture = picture;
        if to != from {
            let resampler = Resampler::new(from, to, Filter::Bilinear);
            picture.pixels =
                if picture.channels == 1 { resampler.plane(&picture.pixels) } else { resampler.rgb(&picture.pixels) };
            (picture.height, picture.width) = to;
        }
        match self.crop {
            Some(side) => picture.centre_crop(side as usize),
            None => picture,
        }
    }
}

impl Picture {
    fn centre_crop(self, side: usize) -> Self {
        // Python's round: ties go to the even number.
        let offset = |length: usize| ((length - side) as f64 / 2.0).round_ties_even() as usize;
        let (top, left) = (offset(self.height), offset(self.width));
        let pixels = self
            .pixels
            .chunks_exact(self.width * self.channels)
            .skip(top)
            .take(side)
            .flat_map(|row| &row[left * self.channels..(left + side) * self.channels])
            .copied()
            .collect();
        Self { channels: self.channels, height: side, width: side, pixels }
    }

    /// Grey to RGB by repetition; RGB to grey by Pillow's ITU-R 601 weights in 16-bit fixed point.
    pub fn with_channels(self, channels: usize) -> Self {
        let pixels = match (self.channels, channels) {
            (1, 3) => self.pixels.iter().flat_map(|v| [*v; 3]).collect(),
            (3, 1) => self
                .pixels
                .chunks_exact(3)
                .map(|p| {
                    let weigh = |value: u8, weight: u32| u32::from(value) * weight;
                    ((weigh(p[0], 19595) + weigh(p[1], 38470) + weigh(p[2], 7471) + 0x8000) >> 16) as u8
                })
                .collect(),
            _ => self.pixels,
        };
        Self { channels, pixels, ..self }
    }

    /// Writes [channels, height, width].
    pub fn write_planar(&self, out: &mut [u8]) {
        if self.channels == 1 {
            return out.copy_from_slice(&self.pixels);
        }
        for (channel, plane) in out.chunks_exact_mut(self.height * self.width).enumerate() {
            for (to, pixel) in plane.iter_mut().zip(self.pixels.chunks_exact(self.channels)) {
                *to = pixel[channel];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGENET: Geometry = Geometry { resize: Some(Resize::ShortSide(256)), crop: Some(224) };

    #[test]
    fn the_long_side_is_rounded_down() {
        assert_eq!(IMAGENET.resized((375, 500)), (256, 341));
        assert_eq!(IMAGENET.resized((500, 375)), (341, 256));
        assert_eq!(IMAGENET.resized((100, 100)), (256, 256));
        assert_eq!(IMAGENET.output((375, 500)), Ok((224, 224)));
    }

    #[test]
    fn a_crop_that_does_not_fit_is_refused() {
        assert!(Geometry { resize: None, crop: Some(5) }.output((4, 9)).is_err());
    }

    #[test]
    fn half_pixel_offsets_go_to_the_even_side() {
        let row = |width: u8| Picture { channels: 1, height: 1, width: width.into(), pixels: (0..width).collect() };
        assert_eq!(row(2).centre_crop(1).pixels, [0], "½ rounds to 0");
        assert_eq!(row(4).centre_crop(1).pixels, [2], "1½ rounds to 2");
        assert_eq!(row(6).centre_crop(1).pixels, [2], "2½ rounds to 2");
    }

    #[test]
    fn grey_follows_pillow() {
        // Image.new("RGB", (1, 1), c).convert("L") of Pillow
        for (rgb, grey) in
            [([255, 255, 255], 255), ([255, 0, 0], 76), ([0, 255, 0], 150), ([0, 0, 255], 29), ([1, 2, 3], 2)]
        {
            let picture = Picture { channels: 3, height: 1, width: 1, pixels: rgb.to_vec() };
            assert_eq!(picture.with_channels(1).pixels, [grey], "{rgb:?}");
        }
    }
}
