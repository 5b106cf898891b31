//! The machine's latest sample as metrics: absolute values, passed through as they were read.
//!
//! Process metrics keep the names that all Prometheus clients share, so that common dashboards find them.

use std::sync::Arc;

use parking_lot::Mutex;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;

use super::family::{Family, counter, gauge};
use super::registrar::Registrar;
use crate::host::Sample;

#[rustfmt::skip]
const FAMILIES: [Family<Sample>; 23] = [
    counter("process_cpu_seconds_total", "CPU time of this process, user and system.", |s| s.process_cpu_seconds),
    gauge("process_resident_memory_bytes", "Memory of this process that is in RAM.", |s| s.process_resident_bytes),
    gauge("process_virtual_memory_bytes", "Address space of this process.", |s| s.process_virtual_bytes),
    gauge("process_threads", "Threads of this process.", |s| s.process_threads),
    gauge("process_open_fds", "File descriptors in use.", |s| s.process_open_files),
    gauge("process_max_fds", "File descriptors allowed.", |s| s.process_max_open_files),
    gauge("process_start_time_seconds", "When this process started, on the Unix clock.", |s| s.process_start_time_seconds),
    gauge("flashjob_host_cpus", "Processors of the machine.", |s| s.host_cpus),
    counter("flashjob_host_cpu_busy_seconds_total", "CPU time used on the machine, all processors.", |s| s.host_cpu_busy_seconds),
    counter("flashjob_host_cpu_idle_seconds_total", "CPU time not used on the machine, all processors.", |s| s.host_cpu_idle_seconds),
    gauge("flashjob_host_memory_bytes", "RAM of the machine.", |s| s.host_memory_bytes),
    gauge("flashjob_host_memory_available_bytes", "RAM that could be had without swapping.", |s| s.host_memory_available_bytes),
    counter("flashjob_host_network_received_bytes_total", "Received by all interfaces but loopback.", |s| s.network_received_bytes),
    counter("flashjob_host_network_sent_bytes_total", "Sent by all interfaces but loopback.", |s| s.network_sent_bytes),
    counter("flashjob_host_disk_read_bytes_total", "Read from the machine's disks.", |s| s.disk_read_bytes),
    counter("flashjob_host_disk_written_bytes_total", "Written to the machine's disks.", |s| s.disk_written_bytes),
    gauge("flashjob_results_filesystem_bytes", "Size of the file system that takes the results.", |s| s.filesystem_bytes),
    gauge("flashjob_results_filesystem_used_bytes", "Used on the file system that takes the results.", |s| s.filesystem_used_bytes),
    gauge("flashjob_results_filesystem_available_bytes", "Left on the file system that takes the results.", |s| s.filesystem_available_bytes),
    gauge("flashjob_cgroup_memory_limit_bytes", "Memory that this container may use; absent without a limit.", |s| s.cgroup.memory_limit_bytes),
    gauge("flashjob_cgroup_memory_used_bytes", "Memory that this container uses, page cache included.", |s| s.cgroup.memory_used_bytes),
    gauge("flashjob_cgroup_cpu_limit", "Processors' worth of time that this container may use; absent without a limit.", |s| s.cgroup.cpu_limit),
    counter("flashjob_cgroup_cpu_throttled_seconds_total", "Time for which the CPU limit held this container back.", |s| s.cgroup.throttled_seconds),
];

/// The collector of machine samples; clones share one.
#[derive(Clone)]
pub(super) struct Machine {
    latest: Arc<Mutex<Sample>>,
    descriptions: Arc<[Desc]>,
}

impl Machine {
    pub(super) fn register(registrar: &Registrar) -> Self {
        let description = |family: &Family<Sample>| {
            Desc::new(family.name.to_owned(), family.help.to_owned(), vec![], Default::default())
        };
        let descriptions = FAMILIES.iter().map(description).collect::<Result<_, _>>();
        registrar.enter(Self {
            latest: Arc::default(),
            descriptions: descriptions.expect("metric names are constants of this file"),
        })
    }

    pub(super) fn set(&self, sample: Sample) {
        *self.latest.lock() = sample;
    }
}

impl Collector for Machine {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let sample = self.latest.lock();
        // A value that could not be read has no series, rather than 0.
        let series = |family: &Family<Sample>| Some(family.of(vec![family.series(&sample, Vec::new())?]));
        FAMILIES.iter().filter_map(series).collect()
    }
}
