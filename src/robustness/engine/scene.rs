//! Who is where in an attack on a stochastic model. What such a model draws depends on the number of the pass and on who shares it, so that
//! only the whole scene, put back as it was, comes to the same verdicts.

use serde::{Deserialize, Serialize};

use super::floor::Job;

/// Images are positions in [`super::Images`]; each that is not settled is in one slot, one queue, or waits with its candidate.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Scene {
    /// Model passes so far.
    pub passes: u32,
    pub floors: [Seating; 2],
    /// Candidates in the order in which they are examined.
    pub waiting: Vec<Kept>,
    /// The best candidate so far of images whose attack goes on, with its margin.
    pub held: Vec<(f64, Kept)>,
}

/// The images of one floor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Seating {
    /// Slot and image.
    pub seats: Vec<(usize, usize)>,
    pub queue: Vec<usize>,
}

/// A candidate.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Kept {
    pub job: Job,
    pub claimed: bool,
    pub next: Option<Job>,
    pub pixels: Vec<f32>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct SceneHeader {
    passes: u32,
    floors: [Seating; 2],
    waiting: Vec<KeptHeader>,
    /// With the bits of the margin, which may be infinite.
    held: Vec<(u64, KeptHeader)>,
}

#[derive(Serialize, Deserialize)]
struct KeptHeader {
    job: Job,
    claimed: bool,
    next: Option<Job>,
    pixels: usize,
}

impl Scene {
    pub fn encode(&self, payload: &mut Vec<u8>) -> SceneHeader {
        SceneHeader {
            passes: self.passes,
            floors: self.floors.clone(),
            waiting: self.waiting.iter().map(|kept| kept.encode(payload)).collect(),
            held: self.held.iter().map(|(margin, kept)| (margin.to_bits(), kept.encode(payload))).collect(),
        }
    }

    pub fn decode(header: SceneHeader, payload: &mut &[u8]) -> Option<Self> {
        let SceneHeader { passes, floors, waiting, held } = header;
        let waiting = waiting.into_iter().map(|kept| Kept::decode(kept, payload)).collect::<Option<_>>()?;
        let held = held.into_iter().map(|(bits, kept)| Some((f64::from_bits(bits), Kept::decode(kept, payload)?)));
        Some(Self { passes, floors, waiting, held: held.collect::<Option<_>>()? })
    }
}

impl Kept {
    fn encode(&self, payload: &mut Vec<u8>) -> KeptHeader {
        let Self { job, claimed, next, pixels } = self;
        payload.extend(pixels.iter().flat_map(|pixel| pixel.to_le_bytes()));
        KeptHeader { job: *job, claimed: *claimed, next: *next, pixels: pixels.len() }
    }

    fn decode(header: KeptHeader, payload: &mut &[u8]) -> Option<Self> {
        let KeptHeader { job, claimed, next, pixels } = header;
        Some(Self { job, claimed, next, pixels: super::checkpoint::take_pixels(payload, pixels)? })
    }
}
