//! Counting what a model is sent.

use std::cell::Cell;

use tch::{Device, Tensor};

use crate::protocol::ModelSpec;
use crate::robustness::model::{Classifier, ModelError};

/// A classifier that counts the rows of every batch, padding included.
pub struct Counted<'a> {
    model: &'a dyn Classifier,
    rows: Cell<u64>,
}

impl<'a> Counted<'a> {
    pub fn new(model: &'a dyn Classifier) -> Self {
        Self { model, rows: Cell::new(0) }
    }

    pub fn rows(&self) -> u64 {
        self.rows.get()
    }
}

impl Classifier for Counted<'_> {
    fn spec(&self) -> &ModelSpec {
        self.model.spec()
    }

    fn device(&self) -> Device {
        self.model.device()
    }

    fn logits(&self, images: &Tensor) -> Result<Tensor, ModelError> {
        self.rows.set(self.rows.get() + images.size()[0] as u64);
        self.model.logits(images)
    }

    fn in_float64(&self) -> Option<Box<dyn Classifier>> {
        self.model.in_float64()
    }
}
