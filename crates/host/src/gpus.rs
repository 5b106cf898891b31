//! Metrics of the GPUs of this process: utilisation, throttling and energy.
//!
//! Values that a GPU does not report are `None` and not shown. This crate does not know who computes on them, nor which library
//! they are read from.

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

/// Reads samples of some GPUs; the package `flashjob-cuda` has one.
pub trait GpuReader: Send + Sync {
    /// Samples of all of them, taken now.
    fn read(&self) -> Vec<GpuSample>;

    /// Energy that the first `count` have consumed since their driver was loaded; `None` if one of them does not report it.
    fn energy_joules(&self, count: usize) -> Option<f64>;
}

/// The GPUs that are sampled; by default none.
#[derive(Default)]
pub struct Gpus {
    reader: Option<Box<dyn GpuReader>>,
}

impl Gpus {
    /// The GPUs of `reader`.
    pub fn new(reader: impl GpuReader + 'static) -> Self {
        Self { reader: Some(Box::new(reader)) }
    }

    /// Samples of all GPUs, taken now.
    pub fn read(&self) -> Vec<GpuSample> {
        self.reader.as_ref().map_or_else(Vec::new, |reader| reader.read())
    }

    /// Energy that the first `count` GPUs have consumed since their driver was loaded; `None` if one of them does not
    /// report it, or where there are none.
    pub fn energy_joules(&self, count: usize) -> Option<f64> {
        self.reader.as_ref().filter(|_| count > 0)?.energy_joules(count)
    }
}
