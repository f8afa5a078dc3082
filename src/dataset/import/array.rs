//! Arrays of numbers, whatever file they came in, understood as pixels or labels.

use std::path::Path;

use super::super::geometry::Picture;
use super::super::source::Images;
use super::super::{DatasetError, Shape};
use super::{Files, Found, check_count};
use crate::dataset::Importer;

/// Element types that can hold pixels or labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Element {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F32,
    F64,
}

impl Element {
    pub fn bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F64)
    }
}

/// A row-major array; `data` holds exactly the product of `shape` elements.
#[derive(Debug)]
pub(crate) struct Array {
    pub element: Element,
    pub big_endian: bool,
    pub shape: Vec<usize>,
    pub data: Vec<u8>,
}

/// Names under which the images and the labels of a set are looked for, in this order.
pub(crate) const IMAGE_NAMES: [&str; 4] = ["x", "images", "data", "x_test"];
pub(crate) const LABEL_NAMES: [&str; 4] = ["y", "labels", "target", "y_test"];

/// The name among `present` that holds what is wanted.
pub(crate) fn pick<'a>(path: &Path, present: &[&'a str], wanted: &[&str], what: &str) -> Result<&'a str, DatasetError> {
    wanted.iter().find_map(|name| present.iter().find(|p| *p == name).copied()).ok_or_else(|| {
        let problem =
            format!("has no array of {what}; call it {} (present: {})", wanted.join(", "), present.join(", "));
        DatasetError::file(path, problem)
    })
}

const LAYOUTS: &str =
    "images are [n, height, width], [n, height, width, channels] or [n, channels, height, width] with 1 or 3 channels";

/// Images and labels from one or two array files.
pub(crate) fn found(
    importer: Importer,
    path: &Path,
    label_path: &Path,
    pixels: Array,
    labels: Array,
) -> Result<Found, DatasetError> {
    let labels = labels.into_labels(label_path)?;
    let images = pixels.into_images(path)?;
    check_count(path, images.len(), labels.len())?;
    let mut files = vec![path.to_owned()];
    if label_path != path {
        files.push(label_path.to_owned());
    }
    Ok(Found {
        importer,
        shape: images.shape,
        labels,
        classes: None,
        class_names: None,
        preset: None,
        files: Files::Single(files),
        images: Box::new(images),
    })
}

impl Array {
    /// The element as an integer, if it is one. `index` must be below the number of elements.
    fn integer(&self, index: usize) -> Option<i64> {
        let raw = self.raw(index);
        match self.element {
            Element::U8 | Element::U16 | Element::U32 | Element::U64 => i64::try_from(raw).ok(),
            Element::I8 => Some(i64::from(raw as i8)),
            Element::I16 => Some(i64::from(raw as i16)),
            Element::I32 => Some(i64::from(raw as i32)),
            Element::I64 => Some(raw as i64),
            Element::F32 | Element::F64 => {
                let value = self.float(index);
                (value.fract() == 0.0 && value.abs() < 2f64.powi(53)).then_some(value as i64)
            }
        }
    }

    fn float(&self, index: usize) -> f64 {
        let raw = self.raw(index);
        if self.element == Element::F32 { f64::from(f32::from_bits(raw as u32)) } else { f64::from_bits(raw) }
    }

    /// The element's bits, zero-extended.
    fn raw(&self, index: usize) -> u64 {
        let size = self.element.bytes();
        let bytes = &self.data[index * size..(index + 1) * size];
        let mut wide = [0; 8];
        if self.big_endian {
            wide[8 - size..].copy_from_slice(bytes);
            u64::from_be_bytes(wide)
        } else {
            wide[..size].copy_from_slice(bytes);
            u64::from_le_bytes(wide)
        }
    }

    fn elements(&self) -> usize {
        self.data.len() / self.element.bytes()
    }

    /// Class numbers, [n] or [n, 1].
    pub fn into_labels(self, path: &Path) -> Result<Vec<u32>, DatasetError> {
        if !matches!(self.shape.as_slice(), [_] | [_, 1]) {
            return Err(DatasetError::file(
                path,
                format!("labels have shape {:?}; they must be class numbers [n]", self.shape),
            ));
        }
        (0..self.elements())
            .map(|index| {
                self.integer(index).and_then(|label| u32::try_from(label).ok()).ok_or_else(|| {
                    let problem = format!("the label of image {index} is not a class number (0, 1, 2, …)");
                    DatasetError::file(path, problem)
                })
            })
            .collect()
    }

    /// Pixels as bytes: integers 0 to 255, or floats that are k/255.
    pub fn into_images(self, path: &Path) -> Result<ArrayImages, DatasetError> {
        let (shape, planar) = match *self.shape.as_slice() {
            [_, h, w] => ((1, h, w), true),
            [_, h, w, c @ (1 | 3)] => ((c, h, w), false),
            [_, c @ (1 | 3), h, w] => ((c, h, w), true),
            _ => {
                return Err(DatasetError::file(path, format!("the image array has shape {:?}; {LAYOUTS}", self.shape)));
            }
        };
        let side = |side: usize| u32::try_from(side).ok().filter(|side| (1..=65_535).contains(side));
        let (Some(height), Some(width)) = (side(shape.1), side(shape.2)) else {
            return Err(DatasetError::file(path, format!("images of {}×{} pixels; {LAYOUTS}", shape.2, shape.1)));
        };
        let shape = Shape { channels: shape.0 as u32, height, width };
        Ok(ArrayImages { shape, planar, pixels: self.into_bytes(path, shape)? })
    }

    fn into_bytes(self, path: &Path, shape: Shape) -> Result<Vec<u8>, DatasetError> {
        if self.element == Element::U8 {
            return Ok(self.data);
        }
        let byte = |index| if self.element.is_float() { self.level(index) } else { self.integer(index) };
        (0..self.elements())
            .map(|index| {
                byte(index).and_then(|value| u8::try_from(value).ok()).ok_or_else(|| {
                    let image = index / shape.bytes();
                    let problem = if self.element.is_float() {
                        format!(
                            "image {image} has a pixel of {}; evaluation pixels are 8-bit, so floats must be k/255 with k = 0 … 255. Save the array as uint8",
                            self.float(index)
                        )
                    } else {
                        format!("image {image} has a pixel outside 0 to 255")
                    };
                    DatasetError::file(path, problem)
                })
            })
            .collect()
    }

    /// k where the value is k/255 within 1e-4.
    fn level(&self, index: usize) -> Option<i64> {
        let value = self.float(index);
        let level = (value * 255.0).round();
        ((value - level / 255.0).abs() < 1e-4).then_some(level as i64)
    }
}

/// Images of one shape, in memory.
pub(crate) struct ArrayImages {
    pub shape: Shape,
    /// [n, channels, height, width]; otherwise [n, height, width, channels].
    planar: bool,
    pixels: Vec<u8>,
}

impl ArrayImages {
    pub fn planar(shape: Shape, pixels: Vec<u8>) -> Self {
        Self { shape, planar: true, pixels }
    }

    /// Whole images; a rest does not count.
    pub fn len(&self) -> usize {
        self.pixels.len() / self.shape.bytes()
    }
}

impl Images for ArrayImages {
    fn image(&self, index: usize) -> Result<Picture, DatasetError> {
        let Shape { channels, height, width } = self.shape;
        let (channels, height, width) = (channels as usize, height as usize, width as usize);
        let image = &self.pixels[index * self.shape.bytes()..(index + 1) * self.shape.bytes()];
        let plane = height * width;
        let pixels = if self.planar && channels > 1 {
            (0..plane).flat_map(|i| (0..channels).map(move |c| image[c * plane + i])).collect()
        } else {
            image.to_vec()
        };
        Ok(Picture { channels, height, width, pixels })
    }
}
