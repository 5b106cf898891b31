//! Queries of NVML, with results in SI units.

use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};

use super::driver::gpu_identifiers;
use flashjob_host::gpus::{GpuReader, GpuSample, Gpus, THROTTLE_REASONS};

/// Bits in the order of [`THROTTLE_REASONS`].
const REASON_BITS: [ThrottleReasons; THROTTLE_REASONS.len()] = [
    ThrottleReasons::APPLICATIONS_CLOCKS_SETTING,
    ThrottleReasons::SW_POWER_CAP,
    ThrottleReasons::HW_SLOWDOWN,
    ThrottleReasons::SYNC_BOOST,
    ThrottleReasons::SW_THERMAL_SLOWDOWN,
    ThrottleReasons::HW_THERMAL_SLOWDOWN,
    ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN,
    ThrottleReasons::DISPLAY_CLOCK_SETTING,
];

/// The GPUs that this process may use, to be sampled; none where the driver shows none.
///
/// # Errors
/// A sentence on what NVML lacks.
pub fn watch_gpus() -> Result<Gpus, String> {
    let identifiers = gpu_identifiers();
    if identifiers.is_empty() {
        return Ok(Gpus::default());
    }
    Ok(Gpus::new(Watched::open(&identifiers)?))
}

/// NVML, with the GPUs to query.
struct Watched {
    nvml: Nvml,
    /// Identifiers in NVML's notation.
    uuids: Vec<String>,
}

impl Watched {
    fn open(identifiers: &[[u8; 16]]) -> Result<Self, String> {
        let nvml = Nvml::init().map_err(|error| {
            format!("NVML cannot be had ({error}): a container gets it with NVIDIA_DRIVER_CAPABILITIES=compute,utility")
        })?;
        let uuids = identifiers.iter().map(|identifier| uuid(&nvml, identifier)).collect::<Result<_, _>>()?;
        Ok(Self { nvml, uuids })
    }
}

impl GpuReader for Watched {
    fn read(&self) -> Vec<GpuSample> {
        let known = self.uuids.iter().enumerate().filter_map(|(index, uuid)| {
            // Looked up each time: handles become invalid when a GPU is reset.
            let device = self.nvml.device_by_uuid(uuid.as_str()).ok()?;
            Some(sample(index, uuid, &device))
        });
        known.collect()
    }

    fn energy_joules(&self, count: usize) -> Option<f64> {
        let energy = |uuid: &String| {
            Some(joules(self.nvml.device_by_uuid(uuid.as_str()).ok()?.total_energy_consumption().ok()?))
        };
        self.uuids.get(..count)?.iter().map(energy).sum()
    }
}

fn sample(index: usize, uuid: &str, device: &Device<'_>) -> GpuSample {
    let memory = device.memory_info().ok();
    let watts = |milliwatts: Result<u32, NvmlError>| milliwatts.ok().map(|milliwatts| f64::from(milliwatts) / 1e3);
    let hertz = |clock| device.clock_info(clock).ok().map(|megahertz| f64::from(megahertz) * 1e6);
    GpuSample {
        index,
        uuid: uuid.to_owned(),
        name: device.name().unwrap_or_default(),
        utilization: device.utilization_rates().ok().map(|percent| f64::from(percent.gpu) / 100.0),
        memory_used_bytes: memory.as_ref().map(|memory| memory.used as f64),
        memory_bytes: memory.as_ref().map(|memory| memory.total as f64),
        power_watts: watts(device.power_usage()),
        // The enforced limit, which is the lower one of the board's and the administrator's.
        power_limit_watts: watts(device.enforced_power_limit()),
        temperature_celsius: device.temperature(TemperatureSensor::Gpu).ok().map(f64::from),
        sm_clock_hertz: hertz(Clock::SM),
        memory_clock_hertz: hertz(Clock::Memory),
        energy_joules: device.total_energy_consumption().ok().map(joules),
        throttled_by: device.current_throttle_reasons().ok().map(reasons),
    }
}

fn joules(millijoules: u64) -> f64 {
    millijoules as f64 / 1e3
}

fn reasons(given: ThrottleReasons) -> Vec<&'static str> {
    let named = REASON_BITS.iter().zip(THROTTLE_REASONS);
    named.filter(|(bits, _)| given.contains(**bits)).map(|(_, name)| name).collect()
}

/// Identifier in NVML's notation: of a whole GPU, or of a part of one (multi-instance GPU).
fn uuid(nvml: &Nvml, identifier: &[u8; 16]) -> Result<String, String> {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let [a, b, c, d, e] =
        [&identifier[..4], &identifier[4..6], &identifier[6..8], &identifier[8..10], &identifier[10..]];
    let written = format!("{}-{}-{}-{}-{}", hex(a), hex(b), hex(c), hex(d), hex(e));
    // CUDA's 16 bytes do not tell the two kinds apart.
    let candidates = ["GPU", "MIG"].map(|kind| format!("{kind}-{written}"));
    let known = candidates.into_iter().find(|candidate| nvml.device_by_uuid(candidate.as_str()).is_ok());
    known.ok_or_else(|| format!("NVML does not know the GPU {written}, which CUDA shows"))
}
