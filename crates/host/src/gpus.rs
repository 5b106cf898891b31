//! Metrics of the GPUs of this process, from NVIDIA's management library (NVML): utilisation, throttling and energy.
//!
//! A build without the feature `cuda` has no GPUs. Values that a GPU does not report are `None` and not shown. This crate does
//! not know who computes on them.

#[cfg(feature = "cuda")]
mod nvml;

/// One GPU at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GpuSample {
    /// Index among the GPUs of this process: the rank that computes on it.
    pub index: usize,
    /// Identifier of the driver, `GPU-…` or `MIG-…`.
    pub uuid: String,
    /// Product name of the GPU.
    pub name: String,
    /// Share of the last sampling period in which a kernel ran, from 0 to 1.
    pub utilization: Option<f64>,
    /// Memory in use, in bytes.
    pub memory_used_bytes: Option<f64>,
    /// Memory in total, in bytes.
    pub memory_bytes: Option<f64>,
    /// Power draw in watts.
    pub power_watts: Option<f64>,
    /// Power limit in watts.
    pub power_limit_watts: Option<f64>,
    /// Temperature of the chip.
    pub temperature_celsius: Option<f64>,
    /// Clock of the multiprocessors.
    pub sm_clock_hertz: Option<f64>,
    /// Clock of the memory.
    pub memory_clock_hertz: Option<f64>,
    /// Energy consumed since the driver was loaded.
    pub energy_joules: Option<f64>,
    /// Reasons for reduced clocks, of [`THROTTLE_REASONS`]; `None` if unknown.
    pub throttled_by: Option<Vec<&'static str>>,
}

/// All names that [`GpuSample::throttled_by`] may contain.
pub const THROTTLE_REASONS: [&str; 8] = [
    "applications_clocks_setting",
    "software_power_cap",
    "hardware_slowdown",
    "sync_boost",
    "software_thermal_slowdown",
    "hardware_thermal_slowdown",
    "hardware_power_brake_slowdown",
    "display_clock_setting",
];

/// The GPUs that are sampled.
#[derive(Default)]
pub struct Gpus {
    #[cfg(feature = "cuda")]
    watched: Option<nvml::Watched>,
}

impl Gpus {
    /// Samples the GPUs with these identifiers, 16 bytes each as in CUDA, in this order.
    #[cfg(feature = "cuda")]
    pub fn watch(identifiers: &[[u8; 16]]) -> Result<Self, String> {
        Ok(Self { watched: Some(nvml::Watched::open(identifiers)?) })
    }

    /// Samples of all GPUs, taken now.
    pub fn read(&self) -> Vec<GpuSample> {
        #[cfg(feature = "cuda")]
        if let Some(watched) = &self.watched {
            return watched.read();
        }
        Vec::new()
    }

    /// Energy that the first `count` GPUs have consumed since their driver was loaded; `None` if one of them does not
    /// report it.
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "there are none"))]
    pub fn energy_joules(&self, count: usize) -> Option<f64> {
        #[cfg(feature = "cuda")]
        return self.watched.as_ref().filter(|_| count > 0)?.energy_joules(count);
        #[cfg(not(feature = "cuda"))]
        None
    }
}
