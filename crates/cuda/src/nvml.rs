//! Queries of NVML, with results in SI units, and the faults that it knows of.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enum_wrappers::device::{Clock, EccCounter, MemoryError, TemperatureSensor};
use nvml_wrapper::enums::device::SampleValue;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::event::EventSet;
use nvml_wrapper::structs::device::FieldId;
use nvml_wrapper::sys_exports::field_id::{NVML_FI_DEV_REMAPPED_FAILURE, NVML_FI_DEV_REMAPPED_PENDING};
use nvml_wrapper::{Device, Nvml};

use super::driver::gpu_identifiers;
use flashjob_host::gpus::{GpuHealth, GpuReader, GpuSample, Gpus, THROTTLE_REASONS};

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

/// Time in milliseconds in which the driver is expected to report an error that has just ended a job.
const XID_WAIT_MILLISECONDS: u32 = 500;

/// Clock of a GPU's multiprocessors, ready to be read.
pub struct SmClock(Watched);

impl SmClock {
    /// That of the GPU with this number among those that are visible; `None` where NVML does not say.
    pub fn open(ordinal: usize) -> Option<Self> {
        let identifier = *gpu_identifiers().get(ordinal)?;
        Watched::open(&[identifier]).ok().map(Self)
    }

    /// Its present value in hertz.
    pub fn hertz(&self) -> Option<f64> {
        self.0.read().first()?.sm_clock_hertz
    }
}

/// NVML, with the GPUs to query.
struct Watched {
    nvml: &'static Nvml,
    /// Identifiers in NVML's notation.
    uuids: Vec<String>,
    /// Xid errors since the start, to be taken out; `None` where the driver reports none, as of a part of a GPU (MIG).
    xids: Mutex<Option<EventSet<'static>>>,
}

impl Watched {
    fn open(identifiers: &[[u8; 16]]) -> Result<Self, String> {
        let nvml = Nvml::init().map_err(|error| {
            format!("NVML cannot be had ({error}): a container gets it with NVIDIA_DRIVER_CAPABILITIES=compute,utility")
        })?;
        // For as long as the process lives: the set of events lives in it.
        let nvml: &'static Nvml = Box::leak(Box::new(nvml));
        let uuids = identifiers.iter().map(|identifier| uuid(nvml, identifier)).collect::<Result<Vec<_>, _>>()?;
        let xids = Mutex::new(watch_xids(nvml, &uuids));
        Ok(Self { nvml, uuids, xids })
    }

    /// The Xid errors that were reported since the last call, by UUID.
    fn take_xids(&self) -> BTreeMap<String, Vec<u64>> {
        let mut taken = BTreeMap::<String, Vec<u64>>::new();
        let xids = self.xids.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(events) = &*xids else { return taken };
        for _ in 0..MOST_EVENTS {
            // All have been reported when nothing comes for a while.
            let Ok(event) = events.wait(XID_WAIT_MILLISECONDS) else { break };
            if let (Ok(uuid), Some(XidError::Value(xid))) = (event.device.uuid(), event.event_data) {
                let of_gpu = taken.entry(uuid).or_default();
                if !of_gpu.contains(&xid) {
                    of_gpu.push(xid);
                }
            }
        }
        taken
    }
}

/// Events that are looked at: a GPU that is broken may report without end.
const MOST_EVENTS: usize = 32;

/// Has the driver keep the Xid errors of all GPUs from now on, where it can.
fn watch_xids(nvml: &'static Nvml, uuids: &[String]) -> Option<EventSet<'static>> {
    let set = nvml.create_event_set().ok()?;
    uuids.iter().try_fold(set, |set, uuid| {
        nvml.device_by_uuid(uuid.as_str()).ok()?.register_events(EventTypes::CRITICAL_XID_ERROR, set).ok()
    })
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

    fn health(&self) -> Vec<GpuHealth> {
        let mut xids = self.take_xids();
        let of_gpu = |(index, uuid): (usize, &String)| {
            let known = GpuHealth {
                index,
                uuid: uuid.clone(),
                xids: xids.remove(uuid).unwrap_or_default(),
                ..GpuHealth::default()
            };
            match self.nvml.device_by_uuid(uuid.as_str()) {
                Ok(device) => faults(&device, known),
                Err(_) => GpuHealth { is_lost: true, ..known },
            }
        };
        self.uuids.iter().enumerate().map(of_gpu).collect()
    }
}

/// `known` and the faults that the driver has counted of `device`; counts that a GPU does not have are 0.
fn faults(device: &Device<'_>, known: GpuHealth) -> GpuHealth {
    let remapping = [NVML_FI_DEV_REMAPPED_PENDING, NVML_FI_DEV_REMAPPED_FAILURE].map(|field| {
        let values = device.field_values_for(&[FieldId(field)]).ok();
        let sample = values.and_then(|values| values.into_iter().next()?.ok());
        matches!(sample.and_then(|sample| sample.value.ok()), Some(SampleValue::U32(1..)))
    });
    let errors = device.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile);
    let name = device.name();
    GpuHealth {
        is_lost: matches!(&name, Err(NvmlError::GpuLost)),
        name: name.unwrap_or_else(|_| "unknown".to_owned()),
        uncorrected_ecc_errors: errors.unwrap_or(0),
        is_remapping_pending: remapping[0],
        has_remapping_failed: remapping[1],
        ..known
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
