//! The latest samples of GPUs as metrics, a series for each: absolute values, passed through as they were read.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{Metric, MetricFamily, MetricType};

use super::family::{Family, counter, gauge, labelled, measured};
use super::registrar::Registrar;
use flashjob_host::gpus::{GpuSample, THROTTLE_REASONS};

#[rustfmt::skip]
const FAMILIES: [Family<GpuSample>; 9] = [
    gauge("flashjob_gpu_utilization_ratio", "Share of the last moments in which a kernel ran on the GPU.", |g| g.utilization),
    gauge("flashjob_gpu_memory_used_bytes", "Memory of the GPU in use.", |g| g.memory_used_bytes),
    gauge("flashjob_gpu_memory_bytes", "Memory of the GPU.", |g| g.memory_bytes),
    gauge("flashjob_gpu_power_watts", "What the GPU draws.", |g| g.power_watts),
    gauge("flashjob_gpu_power_limit_watts", "What the GPU may draw.", |g| g.power_limit_watts),
    gauge("flashjob_gpu_temperature_celsius", "Temperature of the GPU.", |g| g.temperature_celsius),
    gauge("flashjob_gpu_sm_clock_hertz", "Clock of the GPU's multiprocessors.", |g| g.sm_clock_hertz),
    gauge("flashjob_gpu_memory_clock_hertz", "Clock of the GPU's memory.", |g| g.memory_clock_hertz),
    counter("flashjob_gpu_energy_joules_total", "Energy that the GPU has taken since its driver was loaded.", |g| g.energy_joules),
];

const THROTTLED: &str = "flashjob_gpu_throttled";
const THROTTLED_HELP: &str = "1 where this reason keeps the GPU's clocks down, 0 where it does not.";

/// The collector of GPU samples; clones share them.
#[derive(Clone)]
pub(super) struct GpuFamilies {
    latest: Arc<Mutex<Vec<GpuSample>>>,
    descriptions: Arc<[Desc]>,
}

impl GpuFamilies {
    pub(super) fn register(registrar: &Registrar) -> Self {
        let description = |name: &str, help: &str, labels: &[&str]| {
            let labels = labels.iter().map(|&label| label.to_owned()).collect();
            Desc::new(name.to_owned(), help.to_owned(), labels, HashMap::new())
        };
        let descriptions = FAMILIES
            .iter()
            .map(|family| description(family.name, family.help, &["gpu", "name", "uuid"]))
            .chain([description(THROTTLED, THROTTLED_HELP, &["gpu", "name", "uuid", "reason"])])
            .collect::<Result<_, _>>();
        registrar.enter(Self {
            latest: Arc::default(),
            descriptions: descriptions.expect("metric names are constants of this file"),
        })
    }

    pub(super) fn set(&self, samples: Vec<GpuSample>) {
        *self.latest.lock() = samples;
    }
}

impl Collector for GpuFamilies {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let samples = self.latest.lock();
        let whose = |gpu: &GpuSample| {
            vec![("gpu", gpu.index.to_string()), ("name", gpu.name.clone()), ("uuid", gpu.uuid.clone())]
        };
        let values = FAMILIES
            .iter()
            .map(|family| family.of(samples.iter().filter_map(|gpu| family.series(gpu, whose(gpu))).collect()));
        let throttled =
            samples.iter().filter_map(|gpu| Some((gpu, gpu.throttled_by.as_ref()?))).flat_map(|(gpu, given)| {
                THROTTLE_REASONS.iter().map(move |reason| {
                    let mut labels = whose(gpu);
                    // Prometheus writes labels in alphabetical order.
                    labels.insert(2, ("reason", (*reason).to_owned()));
                    measured(MetricType::GAUGE, f64::from(u8::from(given.contains(reason))), labels)
                })
            });
        let throttled: Vec<Metric> = throttled.collect();
        let families = values.chain([labelled(THROTTLED, THROTTLED_HELP, MetricType::GAUGE, throttled)]);
        // A family without a series would appear as a bare help text.
        families.filter(|family| !family.get_metric().is_empty()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_gpu_has_its_series_and_what_it_does_not_say_has_none() {
        let families = prometheus::Registry::new();
        let gpus = GpuFamilies::register(&Registrar(&families));
        let render = || prometheus::TextEncoder::new().encode_to_string(&families.gather()).unwrap();
        assert_eq!(render(), "");
        let gpu = |index, power_watts| GpuSample {
            index,
            uuid: format!("GPU-{index}"),
            name: "A10".to_owned(),
            power_watts,
            throttled_by: power_watts.map(|_| vec!["software_power_cap"]),
            ..GpuSample::default()
        };
        gpus.set(vec![gpu(0, Some(150.5)), gpu(1, None)]);
        let text = render();
        let series: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert!(series.contains(&r#"flashjob_gpu_power_watts{gpu="0",name="A10",uuid="GPU-0"} 150.5"#), "{text}");
        for (reason, expected) in [("software_power_cap", 1), ("sync_boost", 0)] {
            let line =
                format!(r#"flashjob_gpu_throttled{{gpu="0",name="A10",reason="{reason}",uuid="GPU-0"}} {expected}"#);
            assert!(series.contains(&&*line), "{line}: {text}");
        }
        assert_eq!(series.len(), 1 + THROTTLE_REASONS.len());
    }
}
