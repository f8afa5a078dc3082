//! Settling the numeric profile: what this process and model will compute under.

use tch::Device as TchDevice;

use crate::protocol::{Device, MemoryFormat, ModelSpec, NumericProfile, Platform};
use crate::robustness::runtime::Runtime;
use crate::wire::BatchWish;

/// What this process offers on the kind of device it was asked for; an error sentence if it has none.
pub fn platform(runtime: &Runtime, device: Device) -> Result<(Platform, TchDevice), String> {
    let cuda = runtime.devices.iter().copied().find(|d| matches!(d, TchDevice::Cuda(_)));
    let (tch_device, hardware) = match (device, cuda) {
        (Device::Cpu, _) => (TchDevice::Cpu, runtime.cpu_capability.clone()),
        (Device::Cuda, Some(gpu)) => (gpu, gpu_model().unwrap_or_else(|| "unknown GPU".into())),
        (Device::Cuda, None) => {
            let why = runtime.cuda_problem.clone();
            return Err(why.unwrap_or_else(|| "libtorch finds no usable GPU, or its CUDA half is not installed".into()));
        }
    };
    Ok((Platform { device, hardware, libtorch: runtime.libtorch.clone() }, tch_device))
}

/// The first GPU's model as its driver names it.
fn gpu_model() -> Option<String> {
    let mut gpus: Vec<_> = std::fs::read_dir("/proc/driver/nvidia/gpus").ok()?.flatten().map(|e| e.path()).collect();
    gpus.sort();
    let text = std::fs::read_to_string(gpus.first()?.join("information")).ok()?;
    text.lines().find_map(|line| Some(line.strip_prefix("Model:")?.trim().to_owned()))
}

/// A profile for this model before anything is measured.
pub fn new_profile(platform: &Platform, spec: &ModelSpec, threads: u32, wish: BatchWish) -> NumericProfile {
    let batch = match wish {
        BatchWish::Free => suitable_batch(platform.device, spec),
        BatchWish::AtMost(limit) => suitable_batch(platform.device, spec).min(limit.max(1)),
        BatchWish::Exactly(batch) => batch.max(1),
    };
    NumericProfile { platform: platform.clone(), batch, threads, memory_format: MemoryFormat::ChannelsFirst }
}

/// A power of two: small enough that activations stay near the caches (CPU) or in memory (GPU), large enough to fill
/// the machine.
fn suitable_batch(device: Device, spec: &ModelSpec) -> u32 {
    let pixels: u32 = spec.input.iter().product();
    let (budget, least, most) = match device {
        Device::Cpu => (1 << 19, 16, 128),
        Device::Cuda => (1 << 23, 32, 512),
    };
    let fits = (budget / pixels.max(1)).max(1);
    (1 << fits.ilog2()).clamp(least, most)
}
