//! Metrics of the GPUs of this process: utilisation, throttling and energy; and their faults.
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

/// Faults of one GPU since this process began to watch it, and those that its driver remembers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GpuHealth {
    /// Index among the GPUs of this process: the rank that computes on it.
    pub index: usize,
    /// Identifier of the driver, `GPU-…` or `MIG-…`.
    pub uuid: String,
    /// Product name of the GPU.
    pub name: String,
    /// Errors that the driver reported while this process watched (NVIDIA, "Xid Errors").
    pub xids: Vec<u64>,
    /// Memory errors that ECC could not correct, since the driver was loaded.
    pub uncorrected_ecc_errors: u64,
    /// Broken rows of memory are replaced by spare ones at the next reset of the GPU.
    pub is_remapping_pending: bool,
    /// There was no spare row left for a broken one.
    pub has_remapping_failed: bool,
    /// It does not answer.
    pub is_lost: bool,
}

impl GpuHealth {
    /// Names index, UUID and product.
    fn identity(&self) -> String {
        format!("GPU {} ({}, {})", self.index, self.uuid, self.name)
    }

    /// Each fault in a clause.
    fn faults(&self) -> Vec<String> {
        let mut faults: Vec<String> = self.xids.iter().map(|&xid| described(xid)).collect();
        let noted = [
            (self.is_lost, "it does not answer NVML".to_owned()),
            (self.uncorrected_ecc_errors > 0, format!("{} uncorrected ECC errors", self.uncorrected_ecc_errors)),
            (self.is_remapping_pending, "broken rows of its memory are replaced at the next reset".to_owned()),
            (self.has_remapping_failed, "a broken row of its memory could not be replaced".to_owned()),
        ];
        faults.extend(noted.into_iter().filter(|(is_so, _)| *is_so).map(|(_, clause)| clause));
        faults
    }
}

/// An Xid with its meaning, of those that end jobs most often (NVIDIA, "Xid Errors", table of Xids).
fn described(xid: u64) -> String {
    let meaning = match xid {
        13 => ": an exception in a kernel",
        31 => ": a kernel's access to an address that it may not use",
        48 => ": a memory error that ECC could not correct",
        63 | 64 => ": a row of its memory that was or could not be replaced",
        74 => ": an error of NVLink",
        79 => ": the GPU has fallen off the bus",
        94 => ": a contained memory error",
        95 => ": an uncontained memory error",
        119 | 120 => ": its system processor (GSP) does not answer",
        _ => "",
    };
    format!("Xid {xid}{meaning}")
}

/// One sentence on `health`: the faults of the GPUs that have any, or that there are none.
fn summary(health: &[GpuHealth]) -> Option<String> {
    let faulty: Vec<String> = health
        .iter()
        .filter_map(|gpu| {
            let faults = gpu.faults();
            (!faults.is_empty()).then(|| format!("{}: {}", gpu.identity(), faults.join(", ")))
        })
        .collect();
    let all = || health.iter().map(GpuHealth::identity).collect::<Vec<_>>().join(", ");
    match (health, &faulty[..]) {
        ([], _) => None,
        (_, []) => Some(format!("NVML reports no fault of {}", all())),
        _ => Some(format!("NVML reports {}; have it looked at before another job runs there", faulty.join("; "))),
    }
}

/// Reads samples of some GPUs; the package `flashjob-cuda` has one.
pub trait GpuReader: Send + Sync {
    /// Samples of all of them, taken now.
    fn read(&self) -> Vec<GpuSample>;

    /// Energy that the first `count` have consumed since their driver was loaded; `None` if one of them does not report it.
    fn energy_joules(&self, count: usize) -> Option<f64>;

    /// The faults of all of them, known now.
    fn health(&self) -> Vec<GpuHealth>;
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

    /// One sentence on the faults of all GPUs, each named; `None` where there are no GPUs.
    pub fn health(&self) -> Option<String> {
        summary(&self.reader.as_ref()?.health())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn healthy(index: usize) -> GpuHealth {
        GpuHealth { index, uuid: format!("GPU-{index}"), name: "NVIDIA A10".to_owned(), ..GpuHealth::default() }
    }

    #[test]
    fn the_gpus_with_faults_are_named_and_where_there_are_none_all_of_them() {
        assert_eq!(summary(&[]), None);
        assert_eq!(
            summary(&[healthy(0), healthy(1)]).unwrap(),
            "NVML reports no fault of GPU 0 (GPU-0, NVIDIA A10), GPU 1 (GPU-1, NVIDIA A10)"
        );
        let broken =
            GpuHealth { xids: vec![79, 1], uncorrected_ecc_errors: 2, is_remapping_pending: true, ..healthy(1) };
        assert_eq!(
            summary(&[healthy(0), broken]).unwrap(),
            "NVML reports GPU 1 (GPU-1, NVIDIA A10): Xid 79: the GPU has fallen off the bus, Xid 1, 2 uncorrected ECC errors, \
             broken rows of its memory are replaced at the next reset; have it looked at before another job runs there"
        );
    }
}
