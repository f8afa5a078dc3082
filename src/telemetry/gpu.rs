//! The machine's GPUs, as NVIDIA's management library sees them. Where there is none, there are no such metrics.

use std::sync::Once;

use nvml_wrapper::Nvml;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{GaugeVec, IntGaugeVec, Opts};

/// Reads the GPUs at each scrape.
struct Gpus {
    nvml: Nvml,
    used: IntGaugeVec,
    size: IntGaugeVec,
    utilisation: GaugeVec,
}

/// Adds the GPUs to this process's metrics if the driver's library is there. Later calls do nothing.
pub fn register() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| match Nvml::init() {
        Ok(nvml) => prometheus::register(Box::new(Gpus::new(nvml))).expect("each metric is registered once"),
        Err(error) => tracing::debug!(%error, "no GPU metrics"),
    });
}

/// Memory of the GPU that this process would use, in bytes: the first that `CUDA_VISIBLE_DEVICES` leaves. `None` where the driver's
/// library does not say.
pub fn memory_bytes() -> Option<u64> {
    let nvml = Nvml::init().ok()?;
    let visible = std::env::var("CUDA_VISIBLE_DEVICES").unwrap_or_default();
    let first = visible.split(',').next().unwrap_or_default().trim();
    let device = match first.parse::<u32>() {
        Ok(index) => nvml.device_by_index(index),
        Err(_) if first.is_empty() => nvml.device_by_index(0),
        Err(_) => nvml.device_by_uuid(first),
    };
    Some(device.ok()?.memory_info().ok()?.total)
}

impl Gpus {
    fn new(nvml: Nvml) -> Self {
        let labels = &["gpu"];
        let valid = "the name and labels are valid";
        let bytes = |name, help| IntGaugeVec::new(Opts::new(name, help), labels).expect(valid);
        let help = "Share of the last sampling period in which a kernel ran, 0 to 1.";
        Self {
            nvml,
            used: bytes("gauntlet_gpu_memory_used_bytes", "GPU memory in use, by all processes."),
            size: bytes("gauntlet_gpu_memory_size_bytes", "GPU memory there is."),
            utilisation: GaugeVec::new(Opts::new("gauntlet_gpu_utilization_ratio", help), labels).expect(valid),
        }
    }

    /// Sets the gauges of one GPU; one that does not answer keeps none.
    fn read(&self, index: u32) -> Result<(), nvml_wrapper::error::NvmlError> {
        let (device, label) = (self.nvml.device_by_index(index)?, index.to_string());
        let (memory, load) = (device.memory_info()?, device.utilization_rates()?);
        self.used.with_label_values(&[&label]).set(memory.used as i64);
        self.size.with_label_values(&[&label]).set(memory.total as i64);
        self.utilisation.with_label_values(&[&label]).set(f64::from(load.gpu) / 100.0);
        Ok(())
    }
}

impl Collector for Gpus {
    fn desc(&self) -> Vec<&Desc> {
        [self.used.desc(), self.size.desc(), self.utilisation.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.used.reset();
        self.size.reset();
        self.utilisation.reset();
        for index in 0..self.nvml.device_count().unwrap_or(0) {
            if let Err(error) = self.read(index) {
                tracing::debug!(%error, index, "a GPU does not answer");
            }
        }
        [self.used.collect(), self.size.collect(), self.utilisation.collect()].concat()
    }
}
