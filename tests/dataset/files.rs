//! Writers of the formats, and one small dataset to write.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gauntlet::dataset::{Catalogue, DatasetError, ImportOptions, Manifest, Progress, Shape, Source, SourceOptions};
use object_store::memory::InMemory;

/// 7 images with labels 0 to 3.
pub struct Sample {
    pub shape: Shape,
    /// [n, channels, height, width]
    pub pixels: Vec<u8>,
    pub labels: Vec<u8>,
}

pub const N: usize = 7;

pub fn sample(channels: u32) -> Sample {
    let shape = Shape { channels, height: 5, width: 4 };
    let pixels = (0..N * shape.bytes()).map(|i| (i * 37 % 251) as u8).collect();
    Sample { shape, pixels, labels: vec![3, 0, 1, 2, 0, 3, 1] }
}

impl Sample {
    pub fn source(&self) -> Source {
        let labels = self.labels.iter().copied().map(u32::from).collect();
        Source::in_memory(self.shape, 4, self.pixels.clone(), labels).unwrap()
    }

    /// [n, height, width, channels]
    pub fn interleaved(&self) -> Vec<u8> {
        let plane = (self.shape.height * self.shape.width) as usize;
        let channels = self.shape.channels as usize;
        self.pixels
            .chunks(plane * channels)
            .flat_map(|image| (0..plane * channels).map(move |i| image[i % channels * plane + i / channels]))
            .collect()
    }
}

pub fn quiet() -> Progress {
    Arc::new(|_| {})
}

pub fn open(path: &Path) -> Result<Source, DatasetError> {
    Source::open(path, &SourceOptions::default())
}

pub fn import_options() -> ImportOptions {
    ImportOptions { preset: None, replace: false, progress: quiet() }
}

/// A catalogue whose objects hold three sample images of one channel each, and its store.
pub fn catalogue() -> (Catalogue, Arc<InMemory>) {
    let store = Arc::new(InMemory::new());
    (Catalogue::new(store.clone()).with_shard_bytes(3 * 20), store)
}

pub async fn import(catalogue: &Catalogue, name: &str, source: Source) -> Result<Manifest, DatasetError> {
    catalogue.import(name, Arc::new(source), &import_options()).await
}

pub fn write(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, bytes).unwrap();
    path
}

pub fn idx(sides: &[u32], bytes: &[u8]) -> Vec<u8> {
    let mut file = vec![0, 0, 8, sides.len() as u8];
    file.extend(sides.iter().flat_map(|side| side.to_be_bytes()));
    file.extend(bytes);
    file
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn npy(descr: &str, shape: &[usize], bytes: &[u8]) -> Vec<u8> {
    let shape: String = shape.iter().map(|side| format!("{side}, ")).collect();
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({shape}), }}\n");
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend((header.len() as u16).to_le_bytes());
    file.extend(header.as_bytes());
    file.extend(bytes);
    file
}

pub fn npz(arrays: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in arrays {
        archive.start_file(format!("{name}.npy"), zip::write::SimpleFileOptions::default()).unwrap();
        archive.write_all(bytes).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

pub fn png(folder: &Path, name: &str, width: u32, height: u32, grey: &[u8]) -> PathBuf {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    image::save_buffer(&path, grey, width, height, image::ExtendedColorType::L8).unwrap();
    path
}
