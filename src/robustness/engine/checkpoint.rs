//! Where an interrupted evaluation goes on: what is settled, and how far every other image is.
//!
//! Random numbers are keyed by image, attack and run, so an image that begins its run anew comes to the same verdict. Long
//! runs need not: their trajectories are frozen and go on where they were. On a stochastic model all are, with the scene.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Notes;
use super::floor::Job;
use super::scene::{Scene, SceneHeader};
use crate::protocol::Verdict;
use crate::robustness::attack::Frozen;
use crate::robustness::threat::Size;

/// The images of a run, in its order: all, of searches; of corruptions those that are done with.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    pub(super) images: Vec<Standing>,
    /// Of a stochastic model under attack.
    pub(super) scene: Option<Scene>,
}

/// One image: its books by rung, and where it goes on unless all is settled.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Standing {
    pub accounts: Vec<Account>,
    pub place: Option<Place>,
}

/// The books of one image under one condition.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Account {
    pub forwards: u32,
    pub backwards: u32,
    pub notes: Notes,
    pub settled: Option<(Verdict, Option<Arc<[f32]>>)>,
}

/// The run that an image is in; without a trajectory it begins anew.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Place {
    pub job: Job,
    pub began: Beginning,
    pub trajectory: Option<Trajectory>,
    /// The nearest example confirmed so far, where the nearest is wanted.
    pub nearest: Option<Near>,
}

/// Where the run of an image began: at which rung, and what had been spent on that before.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Beginning {
    pub rung: usize,
    pub account: Account,
}

/// What a slot remembers of its trajectory.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Trajectory {
    pub frozen: Frozen,
    /// Its passes so far.
    pub passes: u32,
    /// Its highest losses.
    pub curve: Vec<f64>,
}

/// A confirmed example, the stage it is from, and what its examination found.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Near {
    pub stage: usize,
    pub predicted: u32,
    pub size: Size,
    pub pixels: Vec<f32>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    images: Vec<StandingHeader>,
    scene: Option<SceneHeader>,
}

#[derive(Serialize, Deserialize)]
struct StandingHeader {
    accounts: Vec<AccountHeader>,
    place: Option<PlaceHeader>,
}

#[derive(Serialize, Deserialize)]
struct AccountHeader {
    forwards: u32,
    backwards: u32,
    notes: Notes,
    verdict: Option<Verdict>,
    witness: WitnessHeader,
}

#[derive(Serialize, Deserialize)]
enum WitnessHeader {
    None,
    /// Of this many pixels, next in the payload.
    New(usize),
    /// That of the rung below.
    Same,
}

#[derive(Serialize, Deserialize)]
struct PlaceHeader {
    rung: usize,
    stage: usize,
    run: u32,
    began: BeginningHeader,
    trajectory: Option<TrajectoryHeader>,
    nearest: Option<NearHeader>,
}

#[derive(Serialize, Deserialize)]
struct BeginningHeader {
    rung: usize,
    forwards: u32,
    backwards: u32,
    notes: Notes,
}

#[derive(Serialize, Deserialize)]
struct TrajectoryHeader {
    numbers: Vec<u64>,
    bytes: usize,
    passes: u32,
    curve: usize,
}

#[derive(Serialize, Deserialize)]
struct NearHeader {
    stage: usize,
    predicted: u32,
    l1: f64,
    l2: f64,
    linf: f64,
    pixels: usize,
}

impl Checkpoint {
    /// Verdicts that are settled.
    pub fn settled(&self) -> usize {
        self.images.iter().flat_map(|image| &image.accounts).filter(|account| account.settled.is_some()).count()
    }

    /// The header's length, a JSON header, then numbers, little endian.
    pub fn encode(&self) -> Vec<u8> {
        let mut payload = Vec::new();
        let images = self.images.iter().map(|image| image.encode(&mut payload)).collect();
        let scene = self.scene.as_ref().map(|scene| scene.encode(&mut payload));
        let header = serde_json::to_vec(&Header { images, scene }).expect("plain data");
        [&(header.len() as u64).to_le_bytes()[..], &header, &payload].concat()
    }

    /// `None` for bytes that are no checkpoint.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (length, rest) = bytes.split_first_chunk::<8>()?;
        let (header, mut payload) = rest.split_at_checked(u64::from_le_bytes(*length).try_into().ok()?)?;
        let Header { images, scene } = serde_json::from_slice(header).ok()?;
        let images = images.into_iter().map(|header| Standing::decode(header, &mut payload)).collect::<Option<_>>()?;
        let scene = match scene {
            None => None,
            Some(header) => Some(Scene::decode(header, &mut payload)?),
        };
        payload.is_empty().then_some(Self { images, scene })
    }
}

impl Standing {
    fn encode(&self, payload: &mut Vec<u8>) -> StandingHeader {
        let mut below: Option<&Arc<[f32]>> = None;
        let accounts = self.accounts.iter().map(|account| {
            let witness = account.settled.as_ref().and_then(|(_, witness)| witness.as_ref());
            let header = match witness {
                None => WitnessHeader::None,
                Some(witness) if below.is_some_and(|below| Arc::ptr_eq(below, witness)) => WitnessHeader::Same,
                Some(witness) => {
                    payload.extend(witness.iter().flat_map(|pixel| pixel.to_le_bytes()));
                    WitnessHeader::New(witness.len())
                }
            };
            below = witness;
            AccountHeader {
                forwards: account.forwards,
                backwards: account.backwards,
                notes: account.notes,
                verdict: account.settled.as_ref().map(|(verdict, _)| verdict.clone()),
                witness: header,
            }
        });
        let accounts = accounts.collect();
        let place = self.place.as_ref().map(|place| place.encode(payload));
        StandingHeader { accounts, place }
    }

    fn decode(header: StandingHeader, payload: &mut &[u8]) -> Option<Self> {
        let mut below: Option<Arc<[f32]>> = None;
        let mut accounts = Vec::with_capacity(header.accounts.len());
        for account in header.accounts {
            let witness = match account.witness {
                WitnessHeader::None => None,
                WitnessHeader::Same => Some(below.clone()?),
                WitnessHeader::New(pixels) => Some(take_pixels(payload, pixels)?.into()),
            };
            below = witness.clone();
            accounts.push(Account {
                forwards: account.forwards,
                backwards: account.backwards,
                notes: account.notes,
                settled: account.verdict.map(|verdict| (verdict, witness)),
            });
        }
        let place = match header.place {
            None => None,
            Some(header) => Some(Place::decode(header, payload)?),
        };
        Some(Self { accounts, place })
    }
}

impl Place {
    fn encode(&self, payload: &mut Vec<u8>) -> PlaceHeader {
        let Self { job, began: Beginning { rung, account }, trajectory, nearest } = self;
        PlaceHeader {
            rung: job.rung,
            stage: job.stage,
            run: job.run,
            began: BeginningHeader {
                rung: *rung,
                forwards: account.forwards,
                backwards: account.backwards,
                notes: account.notes,
            },
            trajectory: trajectory.as_ref().map(|Trajectory { frozen, passes, curve }| {
                payload.extend(&frozen.rows);
                payload.extend(curve.iter().flat_map(|loss| loss.to_le_bytes()));
                let (numbers, bytes) = (frozen.numbers.clone(), frozen.rows.len());
                TrajectoryHeader { numbers, bytes, passes: *passes, curve: curve.len() }
            }),
            nearest: nearest.as_ref().map(|Near { stage, predicted, size: Size { l1, l2, linf }, pixels }| {
                payload.extend(pixels.iter().flat_map(|pixel| pixel.to_le_bytes()));
                let (stage, predicted, pixels) = (*stage, *predicted, pixels.len());
                NearHeader { stage, predicted, l1: *l1, l2: *l2, linf: *linf, pixels }
            }),
        }
    }

    fn decode(header: PlaceHeader, payload: &mut &[u8]) -> Option<Self> {
        let PlaceHeader { rung, stage, run, began, trajectory, nearest } = header;
        let BeginningHeader { rung: first, forwards, backwards, notes } = began;
        let account = Account { forwards, backwards, notes, settled: None };
        let trajectory = match trajectory {
            None => None,
            Some(TrajectoryHeader { numbers, bytes, passes, curve }) => {
                let rows = take(payload, bytes)?.to_vec();
                let losses = take(payload, curve.checked_mul(8)?)?;
                let curve = losses.as_chunks::<8>().0.iter().map(|loss| f64::from_le_bytes(*loss)).collect();
                Some(Trajectory { frozen: Frozen { numbers, rows }, passes, curve })
            }
        };
        let nearest = match nearest {
            None => None,
            Some(NearHeader { stage, predicted, l1, l2, linf, pixels }) => {
                let pixels = take_pixels(payload, pixels)?;
                Some(Near { stage, predicted, size: Size { l1, l2, linf }, pixels })
            }
        };
        let job = Job { image: 0, rung, stage, run };
        Some(Self { job, began: Beginning { rung: first, account }, trajectory, nearest })
    }
}

fn take<'a>(payload: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, rest) = payload.split_at_checked(count)?;
    *payload = rest;
    Some(taken)
}

pub(super) fn take_pixels(payload: &mut &[u8], count: usize) -> Option<Vec<f32>> {
    let bytes = take(payload, count.checked_mul(4)?)?;
    Some(bytes.as_chunks::<4>().0.iter().map(|pixel| f32::from_le_bytes(*pixel)).collect())
}

#[cfg(test)]
mod tests {
    use super::super::scene::{Kept, Seating};
    use super::*;
    use crate::protocol::Stage;

    fn checkpoint() -> Checkpoint {
        let verdict = Verdict {
            image: 3,
            label: 1,
            predicted: 2,
            robust: false,
            stage: Some(Stage::Attack("pgd".into())),
            l1: 0.1 + 0.2,
            l2: 1e-300,
            linf: 0.3,
            forwards: 7,
            backwards: 6,
        };
        let witness: Arc<[f32]> = [0.25, 1.0, f32::MIN_POSITIVE].into();
        let broken = Account { forwards: 7, settled: Some((verdict, Some(witness))), ..Account::default() };
        let ladder = Account { forwards: 0, ..broken.clone() };
        let frozen = Frozen { numbers: vec![u64::MAX, 0], rows: vec![1, 2, 3] };
        let trajectory = Some(Trajectory { frozen, passes: 9, curve: vec![f64::NEG_INFINITY, 0.5] });
        let began = Beginning { rung: 0, account: Account { backwards: 8, ..Account::default() } };
        let size = Size { l1: 0.7, l2: 1e-9, linf: 0.1 };
        let nearest = Some(Near { stage: 1, predicted: 4, size, pixels: vec![0.1, -0.0] });
        let place = Some(Place { job: Job { image: 0, rung: 1, stage: 2, run: 5 }, began, trajectory, nearest });
        let job = Job { image: 1, rung: 0, stage: 1, run: 0 };
        let kept = Kept { job, claimed: true, next: Some(job), pixels: vec![0.5] };
        Checkpoint {
            images: vec![
                Standing { accounts: vec![broken, ladder], place: None },
                Standing { accounts: vec![Account::default(); 2], place },
            ],
            scene: Some(Scene {
                passes: 7,
                floors: [(), ()].map(|()| Seating { seats: vec![(3, 1)], queue: vec![0] }),
                waiting: vec![kept.clone()],
                held: vec![(f64::NEG_INFINITY, kept)],
            }),
        }
    }

    #[test]
    fn a_checkpoint_survives_its_encoding_bit_by_bit() {
        let checkpoint = checkpoint();
        assert_eq!((Checkpoint::decode(&checkpoint.encode()), checkpoint.settled()), (Some(checkpoint.clone()), 2));
    }

    #[test]
    fn bytes_that_are_cut_or_lengthened_are_no_checkpoint() {
        let bytes = checkpoint().encode();
        assert!((0..bytes.len()).all(|length| Checkpoint::decode(&bytes[..length]).is_none()));
        assert_eq!(Checkpoint::decode(&[&bytes[..], &[0]].concat()), None);
        let mut huge = bytes.clone();
        huge[..8].fill(0xff);
        assert_eq!(Checkpoint::decode(&huge), None);
    }
}
