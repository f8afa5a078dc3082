//! Models uploaded as TorchScript archives.

use std::path::{Path, PathBuf};

use tch::{CModule, Device, TchError, Tensor};

use super::wide::Wide;
use super::{Classifier, ModelError, Normaliser, checked_logits};
use crate::protocol::ModelSpec;

/// How image tensors and four-dimensional weights lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MemoryFormat {
    #[default]
    ChannelsFirst,
    /// Often faster for convolutions; the same numbers up to rounding.
    ChannelsLast,
}

impl MemoryFormat {
    /// The spelling in numeric profiles.
    pub fn name(self) -> &'static str {
        match self {
            MemoryFormat::ChannelsFirst => "channels_first",
            MemoryFormat::ChannelsLast => "channels_last",
        }
    }

    /// The same for a convolution's weights. Of a single channel the strides do not show which format is meant, unless they say
    /// so; kernels go by the weights' then.
    fn lay_out_weights(self, weights: &Tensor) -> Tensor {
        match (self, &weights.size()[..]) {
            (MemoryFormat::ChannelsLast, &[out, 1, height, width]) => {
                weights.contiguous().as_strided([out, 1, height, width], [height * width, 1, width, 1], None)
            }
            _ => self.lay_out(weights),
        }
    }

    /// `tensor` [a, b, c, d] with the same values, laid out in this format.
    fn lay_out(self, tensor: &Tensor) -> Tensor {
        match self {
            MemoryFormat::ChannelsFirst => tensor.contiguous(),
            MemoryFormat::ChannelsLast => tensor.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]),
        }
    }
}

/// A TorchScript module in evaluation mode, its parameters frozen.
#[derive(Debug)]
pub struct TorchScript {
    module: CModule,
    spec: ModelSpec,
    device: Device,
    normaliser: Normaliser,
    format: MemoryFormat,
    source: Option<Source>,
}

/// What a module can be loaded from once more.
#[derive(Debug)]
pub(super) enum Source {
    File(PathBuf),
    Bytes(Vec<u8>),
}

impl Source {
    pub fn load(&self, device: Device) -> Result<CModule, TchError> {
        match self {
            Self::File(path) => CModule::load_on_device(path, device),
            Self::Bytes(bytes) => CModule::load_data_on_device(&mut &bytes[..], device),
        }
    }
}

impl TorchScript {
    pub fn load(path: &Path, spec: ModelSpec, device: Device, format: MemoryFormat) -> Result<Self, ModelError> {
        Self::open(Source::File(path.to_owned()), spec, device, format)
    }

    pub fn load_bytes(bytes: &[u8], spec: ModelSpec, device: Device, format: MemoryFormat) -> Result<Self, ModelError> {
        Self::open(Source::Bytes(bytes.to_owned()), spec, device, format)
    }

    fn open(source: Source, spec: ModelSpec, device: Device, format: MemoryFormat) -> Result<Self, ModelError> {
        let model = Self::prepare(source.load(device), spec, device, format)?;
        Ok(Self { source: Some(source), ..model })
    }

    /// Wraps a module made in this process, for example by tracing.
    pub fn from_module(module: CModule, spec: ModelSpec, device: Device) -> Result<Self, ModelError> {
        Self::prepare(Ok(module), spec, device, MemoryFormat::ChannelsFirst)
    }

    fn prepare(
        loaded: Result<CModule, TchError>,
        spec: ModelSpec,
        device: Device,
        format: MemoryFormat,
    ) -> Result<Self, ModelError> {
        let mut module = loaded.map_err(does_not_load)?;
        module.f_set_eval().map_err(does_not_load)?;
        for (_, parameter) in module.named_parameters().map_err(does_not_load)? {
            let _ = parameter.set_requires_grad(false);
        }
        let normaliser = Normaliser::new(spec.preprocessing.as_ref(), device);
        let mut model = Self { module, spec, device, normaliser, format: MemoryFormat::ChannelsFirst, source: None };
        if format != MemoryFormat::ChannelsFirst {
            model.lay_out(format)?;
        }
        Ok(model)
    }

    /// Lays weights out, and inputs from now on.
    pub fn lay_out(&mut self, format: MemoryFormat) -> Result<(), ModelError> {
        for (_, mut parameter) in self.module.named_parameters().map_err(does_not_load)? {
            if parameter.dim() == 4 {
                parameter.set_data(&format.lay_out_weights(&parameter));
            }
        }
        self.format = format;
        Ok(())
    }
}

fn does_not_load(error: TchError) -> ModelError {
    ModelError::sort(&error, ModelError::DoesNotLoad)
}

impl Classifier for TorchScript {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn device(&self) -> Device {
        self.device
    }

    fn logits(&self, images: &Tensor) -> Result<Tensor, ModelError> {
        let input = self.format.lay_out(&self.normaliser.apply(images));
        let output =
            self.module.forward_ts(&[input]).map_err(|error| ModelError::sort(&error, ModelError::ForwardFails))?;
        checked_logits(output, images.size()[0], self.spec.classes)
    }

    fn in_float64(&self) -> Option<Box<dyn Classifier>> {
        Some(Box::new(Wide::load(self.source.as_ref()?, &self.spec, self.device).ok()?))
    }
}
