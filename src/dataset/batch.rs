//! A run of consecutive images.

use serde::{Deserialize, Serialize};

/// The shape of one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Shape {
    /// 1 (grey) or 3 (RGB).
    pub channels: u32,
    pub height: u32,
    pub width: u32,
}

impl Shape {
    /// Bytes of one image.
    pub fn bytes(self) -> usize {
        self.channels as usize * self.height as usize * self.width as usize
    }

    /// [channels, height, width]
    pub fn sides(self) -> [u32; 3] {
        [self.channels, self.height, self.width]
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}×{}×{}", self.channels, self.height, self.width)
    }
}

/// Consecutive images of a dataset, with their labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Index in the dataset of the first image.
    pub first: usize,
    pub shape: Shape,
    /// [n, channels, height, width], row-major.
    pub pixels: Vec<u8>,
    /// One per image, each below the dataset's class count.
    pub labels: Vec<u32>,
}
