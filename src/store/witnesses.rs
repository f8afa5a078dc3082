//! The witnesses of all shards as one safetensors file, written without holding it in memory.
//!
//! The headers of the shards' files tell what the merged header must say; pixel data then flow tensor by tensor.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use futures::Stream;
use safetensors::tensor::Metadata;
use serde_json::{Map, Value, json};

use super::artifacts::{ArtifactError, Artifacts};
use super::shards::DoneShard;

/// Where one tensor's bytes lie, in the order in which they are to be joined.
#[derive(Debug, Default)]
struct Joined {
    dtype: String,
    shape: Vec<usize>,
    parts: Vec<(String, Range<u64>)>,
}

/// A merged file, ready to be read.
#[derive(Debug)]
pub struct MergedWitnesses {
    header: Vec<u8>,
    parts: Vec<(String, Range<u64>)>,
    bytes: u64,
}

impl MergedWitnesses {
    /// Reads the headers of the shards' files.
    pub async fn open(artifacts: &Artifacts, shards: &[DoneShard]) -> Result<Self, ArtifactError> {
        let mut shards: Vec<&DoneShard> = shards.iter().collect();
        shards.sort_by_key(|shard| (shard.first_image, shard.ordinal));
        let mut tensors: BTreeMap<String, Joined> = BTreeMap::new();
        for key in shards.iter().filter_map(|shard| shard.witnesses_key.as_deref()) {
            let (start, metadata) = header(artifacts, key).await?;
            for (name, info) in metadata.tensors() {
                let joined = tensors.entry(name).or_default();
                joined.dtype = info.dtype.to_string();
                match joined.shape.first_mut() {
                    Some(n) => *n += info.shape[0],
                    None => joined.shape.clone_from(&info.shape),
                }
                let (from, to) = info.data_offsets;
                joined.parts.push((key.to_owned(), start + from as u64..start + to as u64));
            }
        }
        Ok(Self::lay_out(tensors))
    }

    fn lay_out(tensors: BTreeMap<String, Joined>) -> Self {
        // Eight-byte integers first keeps every tensor aligned.
        let mut tensors: Vec<(String, Joined)> = tensors.into_iter().collect();
        tensors.sort_by_key(|(name, joined)| (joined.dtype != "I64", name.clone()));
        let (mut entries, mut parts, mut at) = (Map::new(), Vec::new(), 0);
        for (name, joined) in tensors {
            let from = at;
            at += joined.parts.iter().map(|(_, range)| range.end - range.start).sum::<u64>();
            let entry = json!({"dtype": joined.dtype, "shape": joined.shape, "data_offsets": [from, at]});
            entries.insert(name, entry);
            parts.extend(joined.parts);
        }
        let mut text = Value::Object(entries).to_string();
        // The data begin at a multiple of eight.
        text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
        let mut header = (text.len() as u64).to_le_bytes().to_vec();
        header.extend(text.into_bytes());
        Self { bytes: header.len() as u64 + at, header, parts }
    }

    /// Length of the whole file.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The file, piece by piece.
    pub fn stream(self, artifacts: Artifacts) -> impl Stream<Item = Result<Bytes, ArtifactError>> {
        async_stream::try_stream! {
            yield Bytes::from(self.header);
            for (key, range) in self.parts {
                yield artifacts.get_range(&key, range).await?;
            }
        }
    }
}

/// Where the data of a safetensors object begin, and what they are.
async fn header(artifacts: &Artifacts, key: &str) -> Result<(u64, Metadata), ArtifactError> {
    let length = artifacts.get_range(key, 0..8).await?;
    let length = u64::from_le_bytes(length[..].try_into().unwrap_or_default());
    let text = artifacts.get_range(key, 8..8 + length).await?;
    let metadata = serde_json::from_slice(&text).map_err(|source| object_store::Error::Generic {
        store: "witnesses",
        source: format!("{key} has an unreadable header: {source}").into(),
    })?;
    Ok((8 + length, metadata))
}
