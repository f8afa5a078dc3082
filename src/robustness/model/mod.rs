//! The classifier boundary: what every attack, corruption and probe sees of a model.

mod probe;
mod torchscript;
mod wide;

pub use probe::{Rejection, probe};
pub use torchscript::{MemoryFormat, TorchScript};

use tch::{Device, Kind, TchError, Tensor};

use crate::protocol::{ModelSpec, Preprocessing};

/// A differentiable image classifier with frozen parameters.
pub trait Classifier {
    fn spec(&self) -> &ModelSpec;

    fn device(&self) -> Device;

    /// Logits float32 [n, K] of images float32 [n, C, H, W] in [0,1] on [`device`](Self::device), differentiable with
    /// respect to the images. Normalisation happens in here.
    fn logits(&self, images: &Tensor) -> Result<Tensor, ModelError>;

    /// The same model computing in float64, to see what float32 does to it; `None` where there is no such form.
    fn in_float64(&self) -> Option<Box<dyn Classifier>> {
        None
    }
}

/// Why a model cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    #[error("the file does not load as TorchScript: {0}")]
    DoesNotLoad(String),
    #[error("the forward pass fails: {0}")]
    ForwardFails(String),
    #[error("the backward pass fails: {0}")]
    BackwardFails(String),
    #[error("logits have shape {found:?}, expected {expected:?} (images, classes)")]
    WrongShape { expected: [i64; 2], found: Vec<i64> },
    #[error("logits have type {0}, expected a floating-point type")]
    WrongType(String),
    #[error("out of memory: {0}")]
    OutOfMemory(String),
    #[error("the device failed: {0}")]
    DeviceFailed(String),
}

impl ModelError {
    /// Sorts libtorch's complaint: memory and device are the machine's, everything else goes to `otherwise`.
    pub(crate) fn sort(error: &TchError, otherwise: fn(String) -> Self) -> Self {
        let text = match error {
            TchError::Torch(text) => text.trim().to_owned(),
            other => other.to_string(),
        };
        // What follows is a trace of libtorch's own frames, which says nothing about the model.
        let text = text.split("Exception raised from").next().unwrap_or_default().trim().to_owned();
        match text {
            text if is_out_of_memory(&text) => Self::OutOfMemory(text),
            text if is_device_failure(&text) => Self::DeviceFailed(text),
            text => otherwise(text),
        }
    }
}

/// Whether libtorch's words mean that memory ran out, on a GPU or on the CPU.
pub(crate) fn is_out_of_memory(text: &str) -> bool {
    ["out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED"]
        .iter()
        .any(|words| text.contains(words))
}

/// Whether libtorch's words mean that the GPU, its driver or one of its libraries failed. A kernel that the model misused leaves the
/// GPU in the same state as one that fell off its bus, and its error may show in whatever is called next.
pub(crate) fn is_device_failure(text: &str) -> bool {
    ["CUDA error", "CUDA driver error", "CUBLAS_STATUS_", "CUDNN_STATUS_", "CUFFT_", "cuSOLVER error"]
        .iter()
        .any(|words| text.contains(words))
}

/// Holds logits to the contract: [n, K] and floating point, handed on as float32.
pub fn checked_logits(logits: Tensor, images: i64, classes: u32) -> Result<Tensor, ModelError> {
    let expected = [images, classes.into()];
    if logits.size() != expected {
        return Err(ModelError::WrongShape { expected, found: logits.size() });
    }
    match logits.f_kind() {
        Ok(Kind::Float) => Ok(logits),
        Ok(Kind::Half | Kind::BFloat16 | Kind::Double) => Ok(logits.to_kind(Kind::Float)),
        Ok(kind) => Err(ModelError::WrongType(format!("{kind:?}"))),
        Err(_) => Err(ModelError::WrongType("unknown".into())),
    }
}

/// Normalisation inside the model boundary: (x − mean) / std per channel, or nothing.
#[derive(Debug)]
pub struct Normaliser(Option<(Tensor, Tensor)>);

impl Normaliser {
    pub fn new(preprocessing: Option<&Preprocessing>, device: Device) -> Self {
        let column =
            |values: &[f64]| Tensor::from_slice(values).to_kind(Kind::Float).to_device(device).view([1, -1, 1, 1]);
        Self(preprocessing.map(|p| (column(&p.mean), column(&p.std))))
    }

    /// A new tensor in every case, so that a model which writes to its input in place cannot reach the caller's.
    pub fn apply(&self, images: &Tensor) -> Tensor {
        match &self.0 {
            Some((mean, std)) => (images - mean) / std,
            None => images.copy(),
        }
    }
}

/// uint8 pixels [n, C, H, W] as float32 in [0,1]: v / 255, correctly rounded.
pub fn to_unit(pixels: &Tensor, device: Device) -> Tensor {
    pixels.to_device(device).to_kind(Kind::Float) / 255.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_the_machines_is_told_from_what_is_the_models() {
        let sort = |text: &str| ModelError::sort(&TchError::Torch(text.into()), ModelError::ForwardFails);
        for text in [
            "CUDA error: device-side assert triggered\nCompile with `TORCH_USE_CUDA_DSA`",
            "CUDA error: unspecified launch failure",
            "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
            "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(…)`",
        ] {
            assert!(matches!(sort(text), ModelError::DeviceFailed(_)), "{text}");
        }
        for text in
            ["CUDA error: out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"]
        {
            assert!(matches!(sort(text), ModelError::OutOfMemory(_)), "{text}");
        }
        assert!(matches!(sort("mat1 and mat2 shapes cannot be multiplied"), ModelError::ForwardFails(_)));
    }
}
