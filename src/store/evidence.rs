//! Evidence files: verdicts as Parquet or CSV, witnesses as safetensors.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::Compression;
use parquet::column::writer::ColumnWriter;
use parquet::data_type::ByteArray;
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::writer::SerializedFileWriter;
use parquet::record::RowAccessor;
use parquet::schema::parser::parse_message_type;
use safetensors::tensor::{Dtype, SafeTensorError, TensorView};
use safetensors::{SafeTensors, serialize};

use crate::protocol::{Stage, Verdict};

/// A verdict and the cell it belongs to.
#[derive(Debug, Clone, PartialEq)]
pub struct VerdictRow {
    /// The condition's id.
    pub condition: String,
    pub seed: i64,
    pub verdict: Verdict,
}

const SCHEMA: &str = "message verdict {
    required binary condition (utf8); required int64 seed; required int32 image; required int32 label;
    required int32 predicted; required boolean robust; required binary stage (utf8);
    required double l1; required double l2; required double linf; required int32 forwards; required int32 backwards;
}";

/// `robust` where nothing broke the image.
fn stage_text(stage: &Option<Stage>) -> String {
    stage.as_ref().map_or("robust".into(), Stage::to_string)
}

fn stage_from(text: &str) -> Option<Stage> {
    match text {
        "robust" => None,
        "clean" => Some(Stage::Clean),
        "ladder" => Some(Stage::Ladder),
        "corruption" => Some(Stage::Corruption),
        attack => Some(Stage::Attack(attack.into())),
    }
}

/// Writes verdicts as one Parquet file, a row group (Snappy-compressed) per call of [`ParquetVerdicts::push`].
pub struct ParquetVerdicts<W: Write + Send>(SerializedFileWriter<W>);

impl<W: Write + Send> ParquetVerdicts<W> {
    pub fn new(to: W) -> Result<Self, ParquetError> {
        let schema = Arc::new(parse_message_type(SCHEMA)?);
        let properties = Arc::new(WriterProperties::builder().set_compression(Compression::SNAPPY).build());
        SerializedFileWriter::new(to, schema, properties).map(Self)
    }

    pub fn push(&mut self, rows: &[VerdictRow]) -> Result<(), ParquetError> {
        let mut group = self.0.next_row_group()?;
        let mut index = 0;
        while let Some(mut column) = group.next_column()? {
            write_column(column.untyped(), index, rows)?;
            column.close()?;
            index += 1;
        }
        group.close().map(drop)
    }

    /// Writes the footer, without which the file is unreadable.
    pub fn finish(self) -> Result<W, ParquetError> {
        self.0.into_inner()
    }
}

/// A Parquet file of one row group.
pub fn to_parquet(rows: &[VerdictRow]) -> Result<Vec<u8>, ParquetError> {
    let mut file = ParquetVerdicts::new(Vec::new())?;
    file.push(rows)?;
    file.finish()
}

fn write_column(writer: &mut ColumnWriter, index: usize, rows: &[VerdictRow]) -> Result<(), ParquetError> {
    fn collect<T>(rows: &[VerdictRow], f: impl Fn(&VerdictRow) -> T) -> Vec<T> {
        rows.iter().map(f).collect()
    }
    let ints: fn(&VerdictRow) -> i32 = match index {
        2 => |r| r.verdict.image as i32,
        3 => |r| r.verdict.label as i32,
        4 => |r| r.verdict.predicted as i32,
        10 => |r| r.verdict.forwards as i32,
        _ => |r| r.verdict.backwards as i32,
    };
    let sizes: fn(&VerdictRow) -> f64 = match index {
        7 => |r| r.verdict.l1,
        8 => |r| r.verdict.l2,
        _ => |r| r.verdict.linf,
    };
    let texts: fn(&VerdictRow) -> String = match index {
        0 => |r| r.condition.clone(),
        _ => |r| stage_text(&r.verdict.stage),
    };
    match writer {
        ColumnWriter::ByteArrayColumnWriter(w) => {
            w.write_batch(&collect(rows, |r| ByteArray::from(texts(r).into_bytes())), None, None)
        }
        ColumnWriter::Int64ColumnWriter(w) => w.write_batch(&collect(rows, |r| r.seed), None, None),
        ColumnWriter::Int32ColumnWriter(w) => w.write_batch(&collect(rows, ints), None, None),
        ColumnWriter::BoolColumnWriter(w) => w.write_batch(&collect(rows, |r| r.verdict.robust), None, None),
        ColumnWriter::DoubleColumnWriter(w) => w.write_batch(&collect(rows, sizes), None, None),
        _ => unreachable!("the schema has no other types"),
    }
    .map(drop)
}

/// Reads what [`to_parquet`] wrote.
pub fn from_parquet(bytes: Bytes) -> Result<Vec<VerdictRow>, ParquetError> {
    let reader = SerializedFileReader::new(bytes)?;
    let rows = reader.get_row_iter(None)?;
    rows.map(|row| {
        let row = row?;
        Ok(VerdictRow {
            condition: row.get_string(0)?.clone(),
            seed: row.get_long(1)?,
            verdict: Verdict {
                image: row.get_int(2)? as u32,
                label: row.get_int(3)? as u32,
                predicted: row.get_int(4)? as u32,
                robust: row.get_bool(5)?,
                stage: stage_from(row.get_string(6)?),
                l1: row.get_double(7)?,
                l2: row.get_double(8)?,
                linf: row.get_double(9)?,
                forwards: row.get_int(10)? as u32,
                backwards: row.get_int(11)? as u32,
            },
        })
    })
    .collect()
}

/// The same columns as the Parquet file, with a header line.
pub fn to_csv(rows: &[VerdictRow]) -> Result<Vec<u8>, csv::Error> {
    let mut file = CSV_HEADER.as_bytes().to_vec();
    file.extend(csv_lines(rows)?);
    Ok(file)
}

/// First line of a CSV file of verdicts.
pub const CSV_HEADER: &str = "condition,seed,image,label,predicted,robust,stage,l1,l2,linf,forwards,backwards\n";

/// One line per verdict, in the order of [`CSV_HEADER`].
pub fn csv_lines(rows: &[VerdictRow]) -> Result<Vec<u8>, csv::Error> {
    let mut writer = csv::WriterBuilder::new().has_headers(false).from_writer(Vec::new());
    for VerdictRow { condition, seed, verdict: v } in rows {
        writer.serialize((
            (condition, seed, v.image, v.label, v.predicted, v.robust),
            (stage_text(&v.stage), v.l1, v.l2, v.linf, v.forwards, v.backwards),
        ))?;
    }
    writer.into_inner().map_err(|e| e.into_error().into())
}

/// Witnesses of one condition and seed.
#[derive(Debug, Clone, PartialEq)]
pub struct WitnessSet {
    pub condition: String,
    pub seed: i64,
    /// Dataset indices, one per witness.
    pub images: Vec<u32>,
    /// [channels, height, width]
    pub shape: [usize; 3],
    /// [n, channels, height, width] in [0,1]
    pub pixels: Vec<f32>,
}

impl WitnessSet {
    /// What its tensors are called, less the last part.
    fn name(&self) -> String {
        format!("{}/seed-{}", self.condition, self.seed)
    }
}

/// `<condition>/seed-<seed>/witness` [n, c, h, w] float32 and `…/image` [n] int64 for every set.
pub fn to_safetensors(sets: &[WitnessSet]) -> Result<Vec<u8>, SafeTensorError> {
    let buffers: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = sets
        .iter()
        .flat_map(|set| {
            let n = set.images.len();
            let [c, h, w] = set.shape;
            let pixels = set.pixels.iter().flat_map(|v| v.to_le_bytes()).collect();
            let images = set.images.iter().flat_map(|&i| i64::from(i).to_le_bytes()).collect();
            [
                (format!("{}/witness", set.name()), Dtype::F32, vec![n, c, h, w], pixels),
                (format!("{}/image", set.name()), Dtype::I64, vec![n], images),
            ]
        })
        .collect();
    let views =
        buffers.iter().map(|(name, dtype, shape, bytes)| Ok((name, TensorView::new(*dtype, shape.clone(), bytes)?)));
    serialize(views.collect::<Result<Vec<_>, SafeTensorError>>()?, None)
}

/// Reads what [`to_safetensors`] wrote.
pub fn from_safetensors(bytes: &[u8]) -> Result<Vec<WitnessSet>, SafeTensorError> {
    let file = SafeTensors::deserialize(bytes)?;
    let mut sets = Vec::new();
    for (name, view) in file.tensors() {
        let Some((condition, seed)) = name.strip_suffix("/witness").and_then(|n| n.rsplit_once("/seed-")) else {
            continue;
        };
        let (Ok(seed), &[_, c, h, w]) = (seed.parse(), view.shape()) else {
            return Err(SafeTensorError::InvalidHeaderDeserialization(serde::de::Error::custom(name)));
        };
        let images = file.tensor(&format!("{condition}/seed-{seed}/image"))?;
        let eights = images.data().as_chunks::<8>().0;
        sets.push(WitnessSet {
            condition: condition.to_owned(),
            seed,
            images: eights.iter().map(|b| i64::from_le_bytes(*b) as u32).collect(),
            shape: [c, h, w],
            pixels: view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        });
    }
    Ok(sets)
}

/// Joins sets of the same condition and seed; images in ascending order.
pub fn merge(sets: Vec<WitnessSet>) -> Vec<WitnessSet> {
    let mut merged: BTreeMap<(String, i64), WitnessSet> = BTreeMap::new();
    for set in sets {
        match merged.entry((set.condition.clone(), set.seed)) {
            std::collections::btree_map::Entry::Vacant(slot) => drop(slot.insert(set)),
            std::collections::btree_map::Entry::Occupied(mut slot) => {
                slot.get_mut().images.extend(set.images);
                slot.get_mut().pixels.extend(set.pixels);
            }
        }
    }
    merged.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<VerdictRow> {
        let verdict = |image, stage: Option<Stage>| Verdict {
            image,
            label: 3,
            predicted: if stage.is_some() { 5 } else { 3 },
            robust: stage.is_none(),
            stage,
            l1: 1.5,
            l2: 0.1 + 0.2,
            linf: 1.0 / 255.0,
            forwards: 66,
            backwards: 64,
        };
        let stages = [None, Some(Stage::Clean), Some(Stage::Ladder), Some(Stage::Attack("pgd".into()))];
        let row = |(i, stage): (usize, _)| VerdictRow {
            condition: "pgd-linf-1/255".into(),
            seed: -4,
            verdict: verdict(i as u32, stage),
        };
        stages.into_iter().enumerate().map(row).collect()
    }

    #[test]
    fn verdicts_survive_parquet_bit_for_bit() {
        assert_eq!(from_parquet(to_parquet(&rows()).unwrap().into()).unwrap(), rows());
        assert_eq!(from_parquet(to_parquet(&[]).unwrap().into()).unwrap(), []);
    }

    #[test]
    fn csv_has_one_line_per_verdict_under_a_header() {
        let text = String::from_utf8(to_csv(&rows()).unwrap()).unwrap();
        assert_eq!(text.lines().count(), 5);
        assert!(text.starts_with("condition,seed,image,label,predicted,robust,stage,l1,l2,linf,forwards,backwards\n"));
        assert!(text.contains("pgd-linf-1/255,-4,0,3,3,true,robust,1.5,0.30000000000000004,"));
    }

    #[test]
    fn witnesses_survive_safetensors_bit_for_bit() {
        let set = |images: Vec<u32>| WitnessSet {
            condition: "pgd-linf-1/255".into(),
            seed: 7,
            pixels: images.iter().flat_map(|&i| [i as f32 / 3.0; 6]).collect(),
            images,
            shape: [1, 2, 3],
        };
        let sets = vec![set(vec![4, 9])];
        assert_eq!(from_safetensors(&to_safetensors(&sets).unwrap()).unwrap(), sets);
        assert_eq!(merge(vec![set(vec![4]), set(vec![9])]), sets);
    }
}
