//! Samples under the names that MLflow's own system monitor uses, so that its page shows them.
//!
//! Names and units: `mlflow/system_metrics/metrics/*_monitor.py` of MLflow 3.17 (megabytes are 10^6 bytes).

use std::borrow::Cow;

use super::Sample;
use flashjob_host::gpus::GpuSample;

const MEGABYTE: f64 = 1e6;

/// Names and values of `now`; rates are relative to `before`, network traffic to `first`.
pub fn system_metrics(
    first: &Sample,
    before: &Sample,
    now: &Sample,
    seconds_between: f64,
) -> Vec<(Cow<'static, str>, f64)> {
    // Counters can go back, as when an interface disappears; a negative rate would break charts.
    let difference = |of: fn(&Sample) -> Option<f64>, from: &Sample| Some((of(now)? - of(from)?).max(0.0));
    let busy = difference(|sample| sample.host_cpu_busy_seconds, before);
    let idle = difference(|sample| sample.host_cpu_idle_seconds, before);
    let own = difference(|sample| sample.process_cpu_seconds, before);
    let memory_used = now.host_memory_bytes.zip(now.host_memory_available_bytes).map(|(all, free)| all - free);
    let disk_used = now.filesystem_used_bytes;
    // As MLflow's monitor computes it: space reserved for root counts as neither used nor available.
    let disk_reachable = disk_used.zip(now.filesystem_available_bytes).map(|(used, free)| used + free);
    let cgroup = &now.cgroup;

    let metrics = [
        ("system/cpu_utilization_percentage", percentage(busy, busy.zip(idle).map(|(busy, idle)| busy + idle))),
        ("system/system_memory_usage_megabytes", megabytes(memory_used)),
        ("system/system_memory_usage_percentage", percentage(memory_used, now.host_memory_bytes)),
        ("system/network_receive_megabytes", megabytes(difference(|sample| sample.network_received_bytes, first))),
        ("system/network_transmit_megabytes", megabytes(difference(|sample| sample.network_sent_bytes, first))),
        ("system/disk_usage_percentage", percentage(disk_used, disk_reachable)),
        ("system/disk_usage_megabytes", megabytes(disk_used)),
        ("system/disk_available_megabytes", megabytes(now.filesystem_available_bytes)),
        // Not in MLflow's own set: metrics of this process and container. 100 is one processor.
        ("system/process_cpu_utilization_percentage", percentage(own, Some(seconds_between))),
        ("system/process_memory_usage_megabytes", megabytes(now.process_resident_bytes)),
        ("system/container_memory_usage_percentage", percentage(cgroup.memory_used_bytes, cgroup.memory_limit_bytes)),
    ];
    let of_gpus = now.gpus.iter().flat_map(gpu_metrics);
    metrics.into_iter().filter_map(|(name, value)| Some((name.into(), value?))).chain(of_gpus).collect()
}

fn gpu_metrics(gpu: &GpuSample) -> impl Iterator<Item = (Cow<'static, str>, f64)> + use<> {
    let metrics = [
        ("memory_usage_megabytes", megabytes(gpu.memory_used_bytes)),
        ("memory_usage_percentage", percentage(gpu.memory_used_bytes, gpu.memory_bytes)),
        ("utilization_percentage", percentage(gpu.utilization, Some(1.0))),
        ("power_usage_watts", gpu.power_watts),
        ("power_usage_percentage", percentage(gpu.power_watts, gpu.power_limit_watts)),
        // Ours.
        ("temperature_celsius", gpu.temperature_celsius),
        ("energy_joules", gpu.energy_joules),
    ];
    let index = gpu.index;
    metrics.into_iter().filter_map(move |(name, value)| Some((format!("system/gpu_{index}_{name}").into(), value?)))
}

fn megabytes(bytes: Option<f64>) -> Option<f64> {
    bytes.map(|bytes| bytes / MEGABYTE)
}

fn percentage(part: Option<f64>, whole: Option<f64>) -> Option<f64> {
    part.zip(whole).filter(|(_, whole)| *whole > 0.0).map(|(part, whole)| 100.0 * part / whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(metrics: &[(Cow<'_, str>, f64)], name: &str) -> Option<f64> {
        metrics.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
    }

    #[test]
    fn shares_and_differences_are_right() {
        let first = Sample { network_received_bytes: Some(1e6), ..Sample::default() };
        let before = Sample {
            host_cpu_busy_seconds: Some(10.0),
            host_cpu_idle_seconds: Some(10.0),
            process_cpu_seconds: Some(1.0),
            network_received_bytes: Some(2e6),
            ..Sample::default()
        };
        let now = Sample {
            host_cpu_busy_seconds: Some(13.0),
            host_cpu_idle_seconds: Some(11.0),
            process_cpu_seconds: Some(4.0),
            network_received_bytes: Some(5e6),
            host_memory_bytes: Some(8e6),
            host_memory_available_bytes: Some(6e6),
            ..Sample::default()
        };
        let metrics = system_metrics(&first, &before, &now, 2.0);
        assert_eq!(value(&metrics, "system/cpu_utilization_percentage"), Some(75.0));
        assert_eq!(value(&metrics, "system/process_cpu_utilization_percentage"), Some(150.0));
        assert_eq!(value(&metrics, "system/network_receive_megabytes"), Some(4.0));
        assert_eq!(value(&metrics, "system/system_memory_usage_megabytes"), Some(2.0));
        assert_eq!(value(&metrics, "system/system_memory_usage_percentage"), Some(25.0));
        assert_eq!(value(&metrics, "system/disk_usage_percentage"), None);
    }

    #[test]
    fn gpus_are_named_as_mlflow_names_them() {
        let gpu = GpuSample {
            index: 3,
            utilization: Some(0.5),
            memory_used_bytes: Some(2e6),
            memory_bytes: Some(8e6),
            power_watts: Some(100.0),
            power_limit_watts: Some(400.0),
            ..GpuSample::default()
        };
        let sample = Sample { gpus: vec![gpu], ..Sample::default() };
        let metrics = system_metrics(&Sample::default(), &Sample::default(), &sample, 1.0);
        for (name, expected) in [
            ("system/gpu_3_memory_usage_megabytes", 2.0),
            ("system/gpu_3_memory_usage_percentage", 25.0),
            ("system/gpu_3_utilization_percentage", 50.0),
            ("system/gpu_3_power_usage_watts", 100.0),
            ("system/gpu_3_power_usage_percentage", 25.0),
        ] {
            assert_eq!(value(&metrics, name), Some(expected), "{name}");
        }
        assert_eq!(metrics.len(), 5, "what a GPU does not say is not shown: {metrics:?}");
    }

    #[test]
    fn nothing_is_divided_by_no_time() {
        let sample = Sample {
            host_cpu_busy_seconds: Some(1.0),
            host_cpu_idle_seconds: Some(1.0),
            process_cpu_seconds: Some(1.0),
            ..Sample::default()
        };
        assert_eq!(system_metrics(&sample, &sample, &sample, 0.0), vec![]);
    }
}
