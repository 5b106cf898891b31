//! Metrics of the machine and this process, read at one moment.
//!
//! From `/proc` through the `procfs` crate, from cgroup files, and from `statvfs`. Values that cannot be
//! read are `None` and not shown, rather than zero. This module does not know who shows a [`Sample`].

mod system_metrics;

use std::path::Path;

use procfs::process::{LimitValue, Process};
use procfs::{Current, CurrentSI, KernelStats, Meminfo};

use flashjob_host::cgroup::Cgroup;
use flashjob_host::gpus::{GpuSample, Gpus};

pub use system_metrics::system_metrics;

/// Bytes of a sector in `/proc/diskstats`, for every device (kernel documentation, "I/O statistics fields").
const SECTOR_BYTES: u64 = 512;

/// One reading of the machine. Times are in seconds, sizes in bytes; cumulative values count from the start of machine
/// or process.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// CPU time of this process, user and system, all threads.
    pub process_cpu_seconds: Option<f64>,
    /// Resident memory of this process.
    pub process_resident_bytes: Option<f64>,
    /// Virtual memory of this process.
    pub process_virtual_bytes: Option<f64>,
    /// Threads of this process.
    pub process_threads: Option<f64>,
    /// File descriptors in use.
    pub process_open_files: Option<f64>,
    /// File descriptors allowed (soft limit).
    pub process_max_open_files: Option<f64>,
    /// Start of this process as Unix time.
    pub process_start_time_seconds: Option<f64>,
    /// Processors of the machine.
    pub host_cpus: Option<f64>,
    /// Busy time over all processors.
    pub host_cpu_busy_seconds: Option<f64>,
    /// Idle time over all processors, with waits for I/O.
    pub host_cpu_idle_seconds: Option<f64>,
    /// Memory of the machine.
    pub host_memory_bytes: Option<f64>,
    /// Memory that can be allocated without swapping.
    pub host_memory_available_bytes: Option<f64>,
    /// Bytes received by all interfaces of this network namespace but loopback.
    pub network_received_bytes: Option<f64>,
    /// Bytes sent by the same interfaces.
    pub network_sent_bytes: Option<f64>,
    /// Bytes read from the machine's disks.
    pub disk_read_bytes: Option<f64>,
    /// Bytes written to the machine's disks.
    pub disk_written_bytes: Option<f64>,
    /// Size of the file system that takes the results.
    pub filesystem_bytes: Option<f64>,
    /// Bytes in use on that file system.
    pub filesystem_used_bytes: Option<f64>,
    /// Bytes that this process may still write to that file system.
    pub filesystem_available_bytes: Option<f64>,
    /// This process's cgroup.
    pub cgroup: Cgroup,
    /// The GPUs that this process uses.
    pub gpus: Vec<GpuSample>,
}

impl Sample {
    /// Reads all values; `results` is any path on the file system of the results.
    pub fn read(results: &Path, gpus: &Gpus) -> Self {
        let mut sample = Self { cgroup: Cgroup::read(Path::new("/")), gpus: gpus.read(), ..Self::default() };
        sample.read_process();
        sample.read_processors_and_memory();
        sample.read_network();
        sample.read_disks();
        sample.read_filesystem(results);
        sample
    }

    /// Power of all GPUs together; `None` where there are none, or one of them does not report it.
    pub fn gpu_power_watts(&self) -> Option<f64> {
        self.gpus.iter().map(|gpu| gpu.power_watts).sum::<Option<f64>>().filter(|_| !self.gpus.is_empty())
    }

    fn read_process(&mut self) {
        let Ok(process) = Process::myself() else { return };
        let ticks = procfs::ticks_per_second() as f64;
        if let Ok(stat) = process.stat() {
            self.process_cpu_seconds = Some((stat.utime + stat.stime) as f64 / ticks);
            self.process_resident_bytes = Some((stat.rss * procfs::page_size()) as f64);
            self.process_virtual_bytes = Some(stat.vsize as f64);
            self.process_threads = Some(stat.num_threads as f64);
            self.process_start_time_seconds =
                procfs::boot_time_secs().ok().map(|boot| boot as f64 + stat.starttime as f64 / ticks);
        }
        self.process_open_files = process.fd_count().ok().map(|count| count as f64);
        // Prometheus' own collectors show no limit as infinity.
        self.process_max_open_files = process.limits().ok().map(|limits| match limits.max_open_files.soft_limit {
            LimitValue::Unlimited => f64::INFINITY,
            LimitValue::Value(limit) => limit as f64,
        });
    }

    fn read_processors_and_memory(&mut self) {
        if let Ok(stats) = KernelStats::current() {
            let ticks = procfs::ticks_per_second() as f64;
            let total = &stats.total;
            // The kernel counts guest time as user time already.
            let busy = total.user
                + total.nice
                + total.system
                + [total.irq, total.softirq, total.steal].into_iter().flatten().sum::<u64>();
            self.host_cpus = Some(stats.cpu_time.len() as f64);
            self.host_cpu_busy_seconds = Some(busy as f64 / ticks);
            self.host_cpu_idle_seconds = Some((total.idle + total.iowait.unwrap_or(0)) as f64 / ticks);
        }
        if let Ok(memory) = Meminfo::current() {
            self.host_memory_bytes = Some(memory.mem_total as f64);
            self.host_memory_available_bytes = memory.mem_available.map(|bytes| bytes as f64);
        }
    }

    fn read_network(&mut self) {
        let Ok(interfaces) = procfs::net::dev_status() else { return };
        let (received, sent) = interfaces
            .values()
            // Loopback traffic, such as scrapes on the same host, is no network load.
            .filter(|interface| interface.name != "lo")
            .fold((0, 0), |(received, sent), interface| (received + interface.recv_bytes, sent + interface.sent_bytes));
        self.network_received_bytes = Some(received as f64);
        self.network_sent_bytes = Some(sent as f64);
    }

    fn read_disks(&mut self) {
        let Ok(disks) = procfs::diskstats() else { return };
        // Partitions, loop devices and device mapper would count bytes twice; only whole, real devices have this entry.
        let (read, written) = disks
            .iter()
            .filter(|disk| Path::new("/sys/block").join(&disk.name).join("device").exists())
            .fold((0, 0), |(read, written), disk| (read + disk.sectors_read, written + disk.sectors_written));
        self.disk_read_bytes = Some((read * SECTOR_BYTES) as f64);
        self.disk_written_bytes = Some((written * SECTOR_BYTES) as f64);
    }

    fn read_filesystem(&mut self, path: &Path) {
        let Ok(stat) = rustix::fs::statvfs(path) else { return };
        let bytes = |blocks: u64| Some(blocks.saturating_mul(stat.f_frsize) as f64);
        self.filesystem_bytes = bytes(stat.f_blocks);
        self.filesystem_used_bytes = bytes(stat.f_blocks.saturating_sub(stat.f_bfree));
        self.filesystem_available_bytes = bytes(stat.f_bavail);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_can_be_read() {
        let sample = Sample::read(Path::new("/"), &Gpus::default());
        assert!(sample.process_resident_bytes.unwrap() > 1e5);
        assert!(sample.process_threads.unwrap() >= 1.0);
        assert!(sample.process_open_files.unwrap() >= 3.0);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        let age = now - sample.process_start_time_seconds.unwrap();
        assert!((-1.0..3600.0).contains(&age), "this process is {age} s old");
        assert!(sample.host_memory_available_bytes <= sample.host_memory_bytes);
        assert!(sample.filesystem_used_bytes <= sample.filesystem_bytes);
    }

    #[test]
    fn used_cpu_time_shows() {
        let before = Sample::read(Path::new("/"), &Gpus::default()).process_cpu_seconds.unwrap();
        // One tick of the clock is 10 ms of work; this is seconds of it.
        for round in 0..10_000u64 {
            std::hint::black_box((0..1_000_000u64).fold(round, |sum, i| std::hint::black_box(sum ^ i)));
            if Sample::read(Path::new("/"), &Gpus::default()).process_cpu_seconds.unwrap() > before {
                return;
            }
        }
        panic!("the CPU time of this process stands still at {before} s");
    }

    #[test]
    fn what_is_not_there_is_none() {
        let sample = Sample::read(Path::new("/no/such/path"), &Gpus::default());
        assert_eq!(sample.filesystem_bytes, None);
        assert!(sample.process_cpu_seconds.is_some());
    }
}
