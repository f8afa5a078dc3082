//! The identity of a dataset: its content, whatever it is called and however it is stored.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Shape;
use crate::protocol::{Corruption, Severity};

/// SHA-256 over a header (tag, then n, channels, height, width and classes as little-endian u64), the pixels in order,
/// and the labels in order as little-endian u32. Written as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContentHash([u8; 32]);

const TAG: &[u8] = b"gauntlet dataset v1\n";

const SET_TAG: &[u8] = b"gauntlet corrupted set v1\n";

impl ContentHash {
    /// Of a published corrupted set: SHA-256 over a tag, the hash of the clean images (zeros for none), and of every cell in
    /// order its type's name, a zero byte, its severity and its hash.
    pub(crate) fn of_set(
        clean: Option<ContentHash>,
        cells: impl IntoIterator<Item = (Corruption, Severity, ContentHash)>,
    ) -> Self {
        let mut hasher = Sha256::new_with_prefix(SET_TAG);
        hasher.update(clean.map_or([0; 32], |hash| hash.0));
        for (corruption, severity, hash) in cells {
            hasher.update(corruption.name());
            hasher.update([0, severity.get()]);
            hasher.update(hash.0);
        }
        Self(hasher.finalize().into())
    }
}

/// Takes the pixels of a dataset in order, in pieces of any size.
pub(crate) struct Hasher(Sha256);

impl Hasher {
    pub fn new(images: usize, shape: Shape, classes: u32) -> Self {
        let mut hasher = Sha256::new_with_prefix(TAG);
        for value in [images as u64, shape.channels.into(), shape.height.into(), shape.width.into(), classes.into()] {
            hasher.update(value.to_le_bytes());
        }
        Self(hasher)
    }

    pub fn pixels(&mut self, pixels: &[u8]) {
        self.0.update(pixels);
    }

    pub fn finish(mut self, labels: &[u32]) -> ContentHash {
        for label in labels {
            self.0.update(label.to_le_bytes());
        }
        ContentHash(self.0.finalize().into())
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<ContentHash> for String {
    fn from(hash: ContentHash) -> Self {
        hash.to_string()
    }
}

/// Text that is not a content hash.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not 64 hexadecimal digits")]
pub struct NotAHash(String);

impl FromStr for ContentHash {
    type Err = NotAHash;

    fn from_str(text: &str) -> Result<Self, NotAHash> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| NotAHash(text.to_owned()))?;
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for ContentHash {
    type Error = NotAHash;

    fn try_from(text: String) -> Result<Self, NotAHash> {
        text.parse()
    }
}
