//! The image that corruptions take and give.

/// Channels of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Channels {
    Grey,
    Rgb,
}

/// Size of an image in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    pub height: usize,
    pub width: usize,
    pub channels: Channels,
}

impl Shape {
    /// Pixels of one channel.
    pub fn pixels(self) -> usize {
        self.height * self.width
    }

    /// 1 or 3.
    pub fn channels(self) -> usize {
        match self.channels {
            Channels::Grey => 1,
            Channels::Rgb => 3,
        }
    }

    fn bytes(self) -> usize {
        self.pixels() * self.channels()
    }
}

/// Bytes that are no image of the shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    #[error("an image of {height}×{width} pixels: both sides must be at least 1")]
    Empty { height: usize, width: usize },
    #[error("{found} bytes where the shape needs {expected}")]
    Length { found: usize, expected: usize },
}

/// Interleaved bytes, row by row: RGBRGB… or one grey byte a pixel. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    shape: Shape,
    bytes: Vec<u8>,
}

impl Image {
    pub fn new(shape: Shape, bytes: Vec<u8>) -> Result<Self, ImageError> {
        let Shape { height, width, .. } = shape;
        if height == 0 || width == 0 {
            return Err(ImageError::Empty { height, width });
        }
        if bytes.len() != shape.bytes() {
            return Err(ImageError::Length { found: bytes.len(), expected: shape.bytes() });
        }
        Ok(Self { shape, bytes })
    }

    /// From one plane per channel, as the data set store keeps images.
    pub fn from_planes(shape: Shape, planes: &[u8]) -> Result<Self, ImageError> {
        if shape.channels == Channels::Grey || planes.len() != shape.bytes() {
            return Self::new(shape, planes.to_vec());
        }
        let mut bytes = vec![0; planes.len()];
        let (r, rest) = planes.split_at(shape.pixels());
        let (g, b) = rest.split_at(shape.pixels());
        for (((pixel, &r), &g), &b) in bytes.as_chunks_mut::<3>().0.iter_mut().zip(r).zip(g).zip(b) {
            *pixel = [r, g, b];
        }
        Self::new(shape, bytes)
    }

    /// One plane per channel.
    pub fn to_planes(&self) -> Vec<u8> {
        if self.shape.channels == Channels::Grey {
            return self.bytes.clone();
        }
        let mut planes = vec![0; self.bytes.len()];
        let (r, rest) = planes.split_at_mut(self.shape.pixels());
        let (g, b) = rest.split_at_mut(self.shape.pixels());
        for (((pixel, r), g), b) in self.bytes.as_chunks::<3>().0.iter().zip(r).zip(g).zip(b) {
            [*r, *g, *b] = *pixel;
        }
        planes
    }

    pub fn shape(&self) -> Shape {
        self.shape
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Extended by repeating the edge pixels; of an odd number of new rows or columns the larger part comes after.
    pub(super) fn padded(&self, height: usize, width: usize) -> Self {
        let (top, left) = ((height - self.shape.height) / 2, (width - self.shape.width) / 2);
        self.gather(height, width, |y, x| {
            let inside = |i: usize, before: usize, n: usize| i.saturating_sub(before).min(n - 1);
            (inside(y, top, self.shape.height), inside(x, left, self.shape.width))
        })
    }

    /// The inverse of [`Image::padded`].
    pub(super) fn centre(&self, height: usize, width: usize) -> Self {
        let (top, left) = ((self.shape.height - height) / 2, (self.shape.width - width) / 2);
        self.gather(height, width, |y, x| (y + top, x + left))
    }

    fn gather(&self, height: usize, width: usize, from: impl Fn(usize, usize) -> (usize, usize)) -> Self {
        let channels = self.shape.channels();
        let mut bytes = Vec::with_capacity(height * width * channels);
        for y in 0..height {
            for x in 0..width {
                let (y, x) = from(y, x);
                bytes.extend_from_slice(&self.bytes[(y * self.shape.width + x) * channels..][..channels]);
            }
        }
        Self { shape: Shape { height, width, channels: self.shape.channels }, bytes }
    }

    /// Three equal channels.
    pub(super) fn to_rgb(&self) -> Self {
        let bytes = self.bytes.iter().flat_map(|&v| [v; 3]).collect();
        Self { shape: Shape { channels: Channels::Rgb, ..self.shape }, bytes }
    }

    /// ITU-R 601 luma, in Pillow's 16-bit fixed point.
    pub(super) fn to_grey(&self) -> Self {
        let luma = |p: &[u8; 3]| {
            ((19595 * u32::from(p[0]) + 38470 * u32::from(p[1]) + 7471 * u32::from(p[2]) + 32768) >> 16) as u8
        };
        let bytes = self.bytes.as_chunks::<3>().0.iter().map(luma).collect();
        Self { shape: Shape { channels: Channels::Grey, ..self.shape }, bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RGB: Shape = Shape { height: 2, width: 2, channels: Channels::Rgb };

    #[test]
    fn planes_and_pixels_are_two_views_of_one_image() {
        let image = Image::new(RGB, (0..12).collect()).unwrap();
        let planes = image.to_planes();
        assert_eq!(planes, [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]);
        assert_eq!(Image::from_planes(RGB, &planes).unwrap(), image);
    }

    #[test]
    fn wrong_sizes_are_refused() {
        assert_eq!(Image::new(RGB, vec![0; 11]), Err(ImageError::Length { found: 11, expected: 12 }));
        assert_eq!(Image::from_planes(RGB, &[0; 11]), Err(ImageError::Length { found: 11, expected: 12 }));
        let empty = Shape { height: 0, ..RGB };
        assert_eq!(Image::new(empty, vec![]), Err(ImageError::Empty { height: 0, width: 2 }));
    }

    #[test]
    fn padding_repeats_the_edge_and_the_centre_is_the_image_again() {
        let grey = Shape { height: 1, width: 2, channels: Channels::Grey };
        let image = Image::new(grey, vec![7, 9]).unwrap();
        let padded = image.padded(2, 5);
        assert_eq!(padded.bytes(), [7, 7, 9, 9, 9, 7, 7, 9, 9, 9]);
        assert_eq!(padded.centre(1, 2), image);
    }

    #[test]
    fn grey_survives_three_channels() {
        let grey = Shape { height: 16, width: 16, channels: Channels::Grey };
        let image = Image::new(grey, (0..=255).collect()).unwrap();
        assert_eq!(image.to_rgb().to_grey(), image);
    }
}
