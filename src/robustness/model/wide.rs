//! A TorchScript model that computes in float64.

use std::borrow::Cow;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;

use tch::{Device, Kind, Tensor};

use super::torchscript::Source;
use super::{Classifier, ModelError, Normaliser, checked_logits};
use crate::protocol::ModelSpec;

unsafe extern "C" {
    fn gauntlet_load_wide(
        bytes: *const c_char,
        length: usize,
        device: c_int,
        module: *mut *mut c_void,
    ) -> *const c_char;
    fn gauntlet_forward_wide(module: *mut c_void, images: *const c_void, output: *mut *mut c_void) -> *const c_char;
    fn gauntlet_free_wide(module: *mut c_void);
}

/// A module whose parameters, buffers and constants are float64. A model that makes float32 tensors of its own may fail in it.
#[derive(Debug)]
pub struct Wide {
    module: *mut c_void,
    spec: ModelSpec,
    device: Device,
    normaliser: Normaliser,
}

impl Wide {
    pub(super) fn load(source: &Source, spec: &ModelSpec, device: Device) -> Result<Self, ModelError> {
        let bytes = match source {
            Source::File(path) => Cow::Owned(std::fs::read(path).map_err(|e| ModelError::DoesNotLoad(e.to_string()))?),
            Source::Bytes(bytes) => Cow::Borrowed(bytes),
        };
        let place = match device {
            Device::Cuda(index) => index as c_int,
            _ => -1,
        };
        let mut module = ptr::null_mut();
        // SAFETY: the bytes live through the call, which writes `module` unless it returns a reason.
        check(unsafe { gauntlet_load_wide(bytes.as_ptr().cast(), bytes.len(), place, &mut module) })
            .map_err(ModelError::DoesNotLoad)?;
        let normaliser = Normaliser::new(spec.preprocessing.as_ref(), device);
        Ok(Self { module, spec: spec.clone(), device, normaliser })
    }
}

impl Drop for Wide {
    fn drop(&mut self) {
        // SAFETY: made by `gauntlet_load_wide`, and freed once.
        unsafe { gauntlet_free_wide(self.module) }
    }
}

impl Classifier for Wide {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn device(&self) -> Device {
        self.device
    }

    fn logits(&self, images: &Tensor) -> Result<Tensor, ModelError> {
        let input = self.normaliser.apply(&images.to_kind(Kind::Double));
        let mut output = ptr::null_mut();
        // SAFETY: module and input live through the call, which writes a new tensor unless it returns a reason.
        let output = unsafe {
            check(gauntlet_forward_wide(self.module, input.as_ptr().cast(), &mut output))
                .map_err(ModelError::ForwardFails)?;
            Tensor::from_ptr(output.cast())
        };
        checked_logits(output, images.size()[0], self.spec.classes)
    }
}

/// `reason` must be null or a string.
fn check(reason: *const c_char) -> Result<(), String> {
    if reason.is_null() {
        return Ok(());
    }
    // SAFETY: as the caller promises.
    Err(unsafe { CStr::from_ptr(reason) }.to_string_lossy().into_owned())
}
