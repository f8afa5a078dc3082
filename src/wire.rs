//! The language of supervisor and child: a JSON header and a raw payload per frame.
//!
//! `[header length u32 LE][payload length u64 LE][header][payload]`. Both lengths are bounded before anything is
//! allocated. Every reply repeats the nonce of the request it answers, so that bytes a model manages to inject do not
//! pass for an answer.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use uuid::Uuid;

use crate::protocol::{
    Condition, Device, Finding, Floor, ModelSpec, NumericProfile, Pictures, Platform, Sandbox, Signs, Verdict,
    VerdictRule,
};

/// The descriptor the child finds its socket on.
pub const SOCKET_FD: std::os::fd::RawFd = 3;
/// The descriptor the child finds its model's file on, open for reading. The folder it lies in may be closed to the child.
pub const MODEL_FD: std::os::fd::RawFd = 4;
/// The code of a child that could not enter its sandbox.
pub const SANDBOX_UNAVAILABLE: &str = "sandbox_unavailable";
/// The code of a child whose device failed while it worked.
pub const DEVICE_FAILED: &str = "device_failed";
/// Longest JSON header: the verdicts of the largest shard fit several times.
pub const MAX_HEADER: u32 = 64 << 20;
/// Longest payload: the pixels of the largest shard, or its witnesses as float32 for every condition.
pub const MAX_PAYLOAD: u64 = 4 << 30;

/// A request and the nonce its replies must carry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Call {
    pub nonce: Uuid,
    #[serde(flatten)]
    pub request: Request,
}

/// What the supervisor asks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// Enter the sandbox, unless there is to be none, and get libtorch ready. Answer: [`Reply::Started`].
    Start { device: Device, threads: u32, confinement: Option<Confinement> },
    /// Load the model and settle the numeric profile. Answer: [`Reply::Loaded`] or [`Reply::Rejected`].
    Load {
        spec: ModelSpec,
        /// The profile that earlier shards fixed; must be honoured exactly.
        profile: Option<NumericProfile>,
        /// What a new profile's batch should be. Unless it is given exactly, the profile is calibrated.
        batch: BatchWish,
        /// Whether calibration may choose fewer threads than were asked for at the start.
        #[serde(default)]
        choose_threads: bool,
    },
    /// Look for what a reader must know. Payload: uint8 images of the model's shape.
    /// Answer: [`Reply::Probed`] or [`Reply::Rejected`].
    Probe,
    /// Take the frost pictures that shards to come name. Payload: the five files, of these lengths, one after the other.
    /// Answer: [`Reply::Taken`].
    Frost { lengths: [u64; 5] },
    /// Run one shard. Payload: uint8 images, then perhaps a checkpoint. Answers: [`Reply::Progress`] and
    /// [`Reply::Checkpoint`]…, then [`Reply::Done`].
    Shard(ShardRequest),
    /// Examine witnesses. Payload: uint8 clean images, then float32 witnesses, both [n, c, h, w].
    /// Answer: [`Reply::Examined`].
    Examine { labels: Vec<u32>, rule: VerdictRule, seed: i64 },
}

/// Bounds of the sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    /// Most private memory, where a limit on it can be set (on a CPU).
    pub memory_bytes: Option<u64>,
}

/// How many images a new profile may put into a kernel launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchWish {
    /// Whatever suits model and device.
    Free,
    AtMost(u32),
    Exactly(u32),
}

impl BatchWish {
    /// Most images of a launch that anybody may ask for.
    pub const MOST: u32 = 1 << 16;

    pub fn admits(self, batch: u32) -> bool {
        match self {
            Self::Free => (1..=Self::MOST).contains(&batch),
            Self::AtMost(limit) => (1..=limit.max(1)).contains(&batch),
            Self::Exactly(wanted) => batch == wanted.max(1),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShardRequest {
    /// One group: a ladder in ascending ε, severities of a corruption, or a single condition.
    pub conditions: Vec<Condition>,
    pub seed: i64,
    pub rule: VerdictRule,
    /// Dataset index of the first image.
    pub first_image: u32,
    /// One per image.
    pub labels: Vec<u32>,
    /// Witnesses are wanted for the first this many images of the payload.
    pub witness_images: u32,
    /// Dataset indices, among those of the payload, of images that get a second opinion at the last condition; rising.
    #[serde(default)]
    pub second_opinion: Vec<u32>,
    /// Time between two checkpoints; 0: none are wanted.
    #[serde(default)]
    pub checkpoint_milliseconds: u64,
    /// Length of an earlier attempt's checkpoint, which follows the pixels in the payload; 0: there is none.
    #[serde(default)]
    pub checkpoint_bytes: u64,
}

/// What the child answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    pub nonce: Uuid,
    #[serde(flatten)]
    pub reply: Reply,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    Started {
        platform: Platform,
        sandbox: Sandbox,
    },
    Loaded {
        profile: NumericProfile,
        /// What calibration measured, where there was one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        floor: Option<Floor>,
    },
    /// The model cannot be evaluated.
    Rejected {
        code: String,
        found: String,
    },
    Probed {
        findings: Vec<Finding>,
        seconds_per_forward: f64,
    },
    /// Also the sign of life.
    Progress(Progress),
    /// Where the shard can go on from, should this be interrupted. Payload: the checkpoint, which only an evaluator reads.
    Checkpoint,
    /// Payload: the witnesses as float32, in the order of `witnesses`.
    Done {
        verdicts: Vec<Vec<Verdict>>,
        witnesses: Vec<WitnessAt>,
        /// One per condition.
        signs: Vec<Signs>,
        time: CpuTime,
    },
    /// Which frost pictures they are.
    Taken {
        pictures: Pictures,
    },
    /// One per witness: the class seen, and the sizes of the perturbation.
    Examined {
        witnesses: Vec<Examination>,
    },
    /// The request failed; the child may be asked again.
    Failed {
        code: String,
        detail: String,
    },
}

/// How far a shard is: totals since the question was asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Progress {
    /// Verdicts reached, of images × conditions.
    pub verdicts: u32,
    /// Passes of single images that the search asked for.
    pub forwards: u64,
    pub backwards: u64,
    /// Rows of all batches sent through the model: `forwards / rows` is how full the batches were.
    pub rows: u64,
    /// Time that the model waited for corrupted images.
    pub waited_microseconds: u64,
}

/// Seconds that a shard took in the evaluator: processor seconds of all threads together, and what the clock on the wall says.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct CpuTime {
    pub total: f64,
    /// Spent on corrupting images.
    pub corruption: f64,
    /// Seconds by the clock on the wall that this attempt was busy with the shard.
    #[serde(default)]
    pub wall: f64,
}

/// Which verdict a witness proves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WitnessAt {
    /// Index into the shard's conditions.
    pub condition: u32,
    /// Dataset index.
    pub image: u32,
}

/// What a fresh look at a witness shows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Examination {
    pub predicted: u32,
    pub misclassified: bool,
    pub l1: f64,
    pub l2: f64,
    pub linf: f64,
    /// Smallest and largest pixel.
    pub low: f32,
    pub high: f32,
    /// Every pixel is a multiple of 1/255.
    #[serde(default)]
    pub eight_bit: bool,
}

/// A frame that is not one, or a broken connection.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("the connection closed")]
    Closed,
    #[error("a frame announces {what} of {length} bytes, more than the limit of {limit}")]
    TooLong { what: &'static str, length: u64, limit: u64 },
    #[error("a frame's header is not understood: {0}")]
    Header(#[from] serde_json::Error),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl WireError {
    fn from_read(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::Io(error),
        }
    }
}

fn prefix(header: &[u8], payload: usize) -> [u8; 12] {
    let mut prefix = [0; 12];
    prefix[..4].copy_from_slice(&(header.len() as u32).to_le_bytes());
    prefix[4..].copy_from_slice(&(payload as u64).to_le_bytes());
    prefix
}

fn lengths(prefix: [u8; 12]) -> Result<(usize, usize), WireError> {
    let header = u32::from_le_bytes(prefix[..4].try_into().expect("four bytes"));
    let payload = u64::from_le_bytes(prefix[4..].try_into().expect("eight bytes"));
    if header > MAX_HEADER {
        return Err(WireError::TooLong { what: "a header", length: header.into(), limit: MAX_HEADER.into() });
    }
    if payload > MAX_PAYLOAD {
        return Err(WireError::TooLong { what: "a payload", length: payload, limit: MAX_PAYLOAD });
    }
    Ok((header as usize, payload as usize))
}

/// Writes a frame, on the child's side.
pub fn send(stream: &mut impl Write, header: &impl Serialize, payload: &[u8]) -> Result<(), WireError> {
    let header = serde_json::to_vec(header)?;
    stream.write_all(&prefix(&header, payload.len()))?;
    stream.write_all(&header)?;
    stream.write_all(payload)?;
    Ok(stream.flush()?)
}

/// Reads a frame, on the child's side.
pub fn receive<T: DeserializeOwned>(stream: &mut impl Read) -> Result<(T, Vec<u8>), WireError> {
    let mut start = [0; 12];
    stream.read_exact(&mut start).map_err(WireError::from_read)?;
    let (header_length, payload_length) = lengths(start)?;
    let mut header = vec![0; header_length];
    stream.read_exact(&mut header).map_err(WireError::from_read)?;
    let mut payload = vec![0; payload_length];
    stream.read_exact(&mut payload).map_err(WireError::from_read)?;
    Ok((serde_json::from_slice(&header)?, payload))
}

/// Writes a frame, on the supervisor's side.
pub async fn send_async(
    stream: &mut (impl AsyncWriteExt + Unpin),
    header: &impl Serialize,
    payload: &[u8],
) -> Result<(), WireError> {
    let header = serde_json::to_vec(header)?;
    stream.write_all(&prefix(&header, payload.len())).await.map_err(WireError::from_read)?;
    stream.write_all(&header).await.map_err(WireError::from_read)?;
    stream.write_all(payload).await.map_err(WireError::from_read)?;
    stream.flush().await.map_err(WireError::from_read)
}

/// Reads a frame, on the supervisor's side, where the sender is not trusted: memory grows with the bytes that really
/// arrive, not with what the prefix announces.
pub async fn receive_async<T: DeserializeOwned>(
    stream: &mut (impl AsyncReadExt + Unpin),
) -> Result<(T, Vec<u8>), WireError> {
    let mut start = [0; 12];
    stream.read_exact(&mut start).await.map_err(WireError::from_read)?;
    let (header_length, payload_length) = lengths(start)?;
    let header = read_up_to(stream, header_length).await?;
    let payload = read_up_to(stream, payload_length).await?;
    Ok((serde_json::from_slice(&header)?, payload))
}

async fn read_up_to(stream: &mut (impl AsyncReadExt + Unpin), length: usize) -> Result<Vec<u8>, WireError> {
    let mut bytes = Vec::new();
    stream.take(length as u64).read_to_end(&mut bytes).await.map_err(WireError::from_read)?;
    if bytes.len() == length { Ok(bytes) } else { Err(WireError::Closed) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Format, Sign, Stage, builtin};

    fn requests() -> Vec<Request> {
        let conditions = builtin("pgd-linf").unwrap().conditions(Some("imagenet")).unwrap();
        let spec = ModelSpec {
            format: Format::Torchscript,
            input: [3, 224, 224],
            classes: 1000,
            preprocessing: None,
            stochastic: false,
        };
        vec![
            Request::Start {
                device: Device::Cpu,
                threads: 2,
                confinement: Some(Confinement { memory_bytes: Some(1 << 30) }),
            },
            Request::Load { spec, profile: None, batch: BatchWish::AtMost(64), choose_threads: true },
            Request::Probe,
            Request::Shard(ShardRequest {
                conditions: conditions[1..2].to_vec(),
                seed: -3,
                rule: VerdictRule::Majority(5),
                first_image: 100,
                labels: vec![7, 8],
                witness_images: 1,
                second_opinion: vec![101],
                checkpoint_milliseconds: 15_000,
                checkpoint_bytes: 9,
            }),
            Request::Frost { lengths: [5, 4, 3, 2, 1] },
            Request::Examine { labels: vec![7], rule: VerdictRule::OneForward, seed: 4 },
        ]
    }

    fn replies() -> Vec<Reply> {
        let verdict = Verdict {
            image: 100,
            label: 7,
            predicted: 9,
            robust: false,
            stage: Some(Stage::Attack("pgd".into())),
            l1: 1.0,
            l2: 0.5,
            linf: 0.25,
            forwards: 3,
            backwards: 2,
        };
        let mut signs = Signs::default();
        signs.look(Sign::Overturned, 101, true);
        vec![
            Reply::Rejected { code: "wrong_shape".into(), found: "logits have shape [16, 5]".into() },
            Reply::Checkpoint,
            Reply::Progress(Progress { verdicts: 12, forwards: 40, backwards: 36, rows: 64, waited_microseconds: 9 }),
            Reply::Done {
                verdicts: vec![vec![verdict]],
                witnesses: vec![WitnessAt { condition: 0, image: 100 }],
                signs: vec![signs],
                time: CpuTime { total: 2.0, corruption: 0.5, wall: 1.5 },
            },
            Reply::Taken { pictures: Pictures::Custom("ab".into()) },
            Reply::Failed { code: "out_of_memory".into(), detail: "too much".into() },
        ]
    }

    /// Supervisors and children of different builds may meet: a change here must be meant.
    #[test]
    fn frames_look_as_they_always_did() {
        insta::assert_json_snapshot!((requests(), replies()));
    }

    #[tokio::test]
    async fn frames_survive_both_directions() {
        for request in requests() {
            let call = Call { nonce: Uuid::nil(), request };
            let mut bytes = Vec::new();
            send_async(&mut bytes, &call, b"pixels").await.unwrap();
            assert_eq!(receive::<Call>(&mut bytes.as_slice()).unwrap(), (call, b"pixels".to_vec()));
        }
        for reply in replies() {
            let answer = Answer { nonce: Uuid::nil(), reply };
            let mut bytes = Vec::new();
            send(&mut bytes, &answer, b"witness").unwrap();
            assert_eq!(receive_async::<Answer>(&mut bytes.as_slice()).await.unwrap(), (answer, b"witness".to_vec()));
        }
    }

    #[tokio::test]
    async fn what_is_no_frame_is_refused_before_memory_is_taken() {
        let prefixed = |header: u32, payload: u64, rest: &[u8]| {
            let mut bytes = header.to_le_bytes().to_vec();
            bytes.extend(payload.to_le_bytes());
            bytes.extend(rest);
            bytes
        };
        let read = async |bytes: Vec<u8>| receive_async::<Answer>(&mut bytes.as_slice()).await.unwrap_err();
        assert!(matches!(read(prefixed(u32::MAX, 0, b"")).await, WireError::TooLong { what: "a header", .. }));
        assert!(matches!(read(prefixed(2, u64::MAX, b"{}")).await, WireError::TooLong { what: "a payload", .. }));
        assert!(matches!(read(prefixed(2, 0, b"{}")).await, WireError::Header(_)));
        assert!(matches!(read(prefixed(2, MAX_PAYLOAD, b"{}")).await, WireError::Closed));
        assert!(matches!(read(b"abc".to_vec()).await, WireError::Closed));
    }
}
