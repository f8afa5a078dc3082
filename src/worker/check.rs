//! One model check: have a fresh child load and probe it.

use super::child::{Child, ChildOptions, unexpected};
use super::failure::{self, ChildError};
use super::words;
use crate::dataset::{Catalogue, Shape};
use crate::protocol::{Calibration, Finding, ModelSpec};
use crate::queue::Outage;
use crate::store::Artifacts;
use crate::store::artifacts::ArtifactError;
use crate::store::models::{Model, ProbeReport};
use crate::wire::{BatchWish, Reply, Request};

/// Images shown to a model under check.
const PROBE_IMAGES: usize = 16;

/// Why a model was not found usable.
#[derive(Debug)]
pub enum CheckError {
    /// The check was not begun.
    Outage(Outage),
    /// [`ChildError::Rejected`] is a verdict on the model; others are not its fault, or not known to be.
    Child(ChildError),
}

impl From<Outage> for CheckError {
    fn from(outage: Outage) -> Self {
        Self::Outage(outage)
    }
}

impl From<ChildError> for CheckError {
    fn from(error: ChildError) -> Self {
        Self::Child(error)
    }
}

/// Loads and probes a model.
pub async fn run(
    options: &ChildOptions,
    artifacts: &Artifacts,
    catalogue: &Catalogue,
    model: &Model,
    dataset: Option<&str>,
) -> Result<(Vec<Finding>, ProbeReport), CheckError> {
    let file = artifacts.model_file(&model.sha256).await.map_err(unreadable)?;
    let images = probe_images(catalogue, &model.spec, dataset).await;
    let mut child = Child::start(options, Some(&file)).await.map_err(failure::before_the_model)?;
    let (profile, floor) = child.load(&model.spec, None, BatchWish::Free).await?;
    let calibration = floor.map(|floor| Calibration { profile, floor });
    match child.ask(Request::Probe, &images, |_| {}).await? {
        // The model's code ran in the process that measured: the time must be one that can have passed.
        (Reply::Probed { findings, seconds_per_forward }, _)
            if (0.0..=options.wall.as_secs_f64()).contains(&seconds_per_forward) =>
        {
            words::findings(&findings).map_err(ChildError::Garbage)?;
            Ok((findings, ProbeReport { seconds_per_forward, calibration }))
        }
        (other, _) => Err(unexpected(&other).into()),
    }
}

fn unreadable(error: ArtifactError) -> CheckError {
    if error.is_missing() {
        ChildError::Failed { code: "artifact_store".into(), detail: error.to_string() }.into()
    } else {
        failure::of_the_store(&error).into()
    }
}

/// Real images where a dataset of the model's shape is at hand (the one an evaluation names, or any), else grey ramps.
async fn probe_images(catalogue: &Catalogue, spec: &ModelSpec, dataset: Option<&str>) -> Vec<u8> {
    let [channels, height, width] = spec.input;
    let shape = Shape { channels, height, width };
    let mut manifests = catalogue.list().await.unwrap_or_default();
    manifests.sort_by_key(|m| Some(m.hash.to_string().as_str()) != dataset);
    for manifest in manifests.iter().filter(|m| m.shape == shape) {
        let count = PROBE_IMAGES.min(manifest.images as usize);
        let Some((part, _)) = manifest.parts().next() else { continue };
        if let Ok(batch) = catalogue.read_part(manifest, part, 0..count).await {
            return batch.pixels;
        }
    }
    let pixels = shape.bytes();
    (0..PROBE_IMAGES).flat_map(|i| (0..pixels).map(move |p| ((p * 7 + i * 31) % 256) as u8)).collect()
}
