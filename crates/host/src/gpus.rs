//! What NVIDIA's management library (NVML) says of the GPUs that this process uses: how busy they are, what holds them back, and
//! the energy that they have taken.
//!
//! A build without the feature `cuda` has none to ask. What a GPU does not say is `None` and shown nowhere. This room does not
//! know who computes on them.

#[cfg(feature = "cuda")]
mod nvml;

/// One GPU at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GpuSample {
    /// Its number among those that this process uses: the rank that computes on it.
    pub index: usize,
    /// As the driver identifies it, `GPU-…` or `MIG-…`.
    pub uuid: String,
    /// Product name.
    pub name: String,
    /// Share of the last moments in which a kernel ran.
    pub utilization: Option<f64>,
    /// Memory in use.
    pub memory_used_bytes: Option<f64>,
    /// Memory that there is.
    pub memory_bytes: Option<f64>,
    /// What it draws.
    pub power_watts: Option<f64>,
    /// What it may draw.
    pub power_limit_watts: Option<f64>,
    /// Of the chip.
    pub temperature_celsius: Option<f64>,
    /// Of its multiprocessors.
    pub sm_clock_hertz: Option<f64>,
    /// Of its memory.
    pub memory_clock_hertz: Option<f64>,
    /// What it has taken since its driver was loaded.
    pub energy_joules: Option<f64>,
    /// What keeps its clocks down; `None` where it does not say.
    pub throttled_by: Option<Vec<&'static str>>,
}

/// The names that [`GpuSample::throttled_by`] may hold.
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

/// The GPUs that are watched.
#[derive(Default)]
pub struct Gpus {
    #[cfg(feature = "cuda")]
    watched: Option<nvml::Watched>,
}

impl Gpus {
    /// Watches those with these identifiers, 16 bytes each as CUDA has them, in this order.
    ///
    /// # Errors
    /// One sentence: NVML is not there, or does not know them.
    #[cfg(feature = "cuda")]
    pub fn watch(identifiers: &[[u8; 16]]) -> Result<Self, String> {
        Ok(Self { watched: Some(nvml::Watched::open(identifiers)?) })
    }

    /// All of them, now.
    pub fn read(&self) -> Vec<GpuSample> {
        #[cfg(feature = "cuda")]
        if let Some(watched) = &self.watched {
            return watched.read();
        }
        Vec::new()
    }

    /// What the first `count` have taken since their driver was loaded; `None` where one of them does not say.
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "there are none"))]
    pub fn energy_joules(&self, count: usize) -> Option<f64> {
        #[cfg(feature = "cuda")]
        return self.watched.as_ref().filter(|_| count > 0)?.energy_joules(count);
        #[cfg(not(feature = "cuda"))]
        None
    }
}
