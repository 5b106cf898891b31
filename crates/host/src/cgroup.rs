//! Limits and usage of the control group (cgroup) of this process, versions 1 and 2.
//!
//! Files: kernel documentation, "Control Group v2" and "Memory Resource Controller" (v1). Within a
//! container the path in `/proc/self/cgroup` may be the host's while only the container's own part is
//! mounted; then the mount's top is this process's group. This crate does not know the use of memory.

mod memory;

use std::fs;
use std::path::{Path, PathBuf};

pub use memory::{free_memory_bytes, machine_memory_bytes, memory_limit_bytes};

/// Value above which a limit of v1 counts as none: "no limit" is the largest multiple of a page.
const V1_NO_LIMIT_BYTES: f64 = 9.0e18;

/// One reading of the cgroup; `None` for limits that do not exist or cannot be read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cgroup {
    /// Memory limit in bytes: the tightest of this group and its visible ancestors.
    pub memory_limit_bytes: Option<f64>,
    /// Memory in use in bytes, with page cache.
    pub memory_used_bytes: Option<f64>,
    /// CPU limit in processors: the tightest of this group and its visible ancestors.
    pub cpu_limit: Option<f64>,
    /// Time for which tasks were throttled by that limit, in seconds.
    pub throttled_seconds: Option<f64>,
}

impl Cgroup {
    /// Reads the cgroup of this process under `root`, which is `/` outside of tests.
    pub fn read(root: &Path) -> Self {
        let Groups { version, memory, cpu } = Groups::of(root);
        let innermost = |groups: &[PathBuf], file: &str| groups.first().map(|group| group.join(file));
        let limit_file = version.memory_limit_file();
        // A limit of an ancestor applies, too: in Kubernetes the pod's may be tighter than the container's.
        let limits = memory.iter().filter_map(|group| number(&group.join(limit_file)));
        let held_back = |field_name, units_per_second: f64| {
            innermost(&cpu, "cpu.stat").and_then(|file| field(&file, field_name)).map(|time| time / units_per_second)
        };
        Self {
            memory_limit_bytes: tightest(limits.filter(|limit| *limit < V1_NO_LIMIT_BYTES)),
            memory_used_bytes: innermost(&memory, version.memory_use_file()).and_then(|file| number(&file)),
            cpu_limit: tightest(cpu.iter().filter_map(|group| version.cpu_limit(group))),
            throttled_seconds: match version {
                Version::V1 => held_back("throttled_time", 1e9),
                Version::V2 => held_back("throttled_usec", 1e6),
            },
        }
    }
}

#[derive(Clone, Copy)]
enum Version {
    V1,
    V2,
}

impl Version {
    fn memory_limit_file(self) -> &'static str {
        match self {
            Version::V1 => "memory.limit_in_bytes",
            Version::V2 => "memory.max",
        }
    }

    fn memory_use_file(self) -> &'static str {
        match self {
            Version::V1 => "memory.usage_in_bytes",
            Version::V2 => "memory.current",
        }
    }

    fn cpu_limit(self, group: &Path) -> Option<f64> {
        match self {
            Version::V1 => {
                quota_in_cpus(number(&group.join("cpu.cfs_quota_us"))?, number(&group.join("cpu.cfs_period_us"))?)
            }
            Version::V2 => {
                let text = fs::read_to_string(group.join("cpu.max")).ok()?;
                let (quota, period) = text.trim().split_once(' ')?;
                quota_in_cpus(quota.parse().ok()?, period.parse().ok()?)
            }
        }
    }
}

/// Directories with this process's limits, innermost first, by controller.
struct Groups {
    version: Version,
    memory: Vec<PathBuf>,
    cpu: Vec<PathBuf>,
}

impl Groups {
    fn of(root: &Path) -> Self {
        let membership = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
        let mounts = root.join("sys/fs/cgroup");
        // v2 has one hierarchy for all controllers, in line `0::`.
        if mounts.join("cgroup.controllers").exists() {
            let path = membership.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
            let all = groups(&mounts, path);
            return Self { version: Version::V2, memory: all.clone(), cpu: all };
        }
        // v1 has a hierarchy for each controller, or for several such as `cpu,cpuacct`.
        let of_controller = |controller: &str| {
            let path = membership.lines().find_map(|line| {
                let mut parts = line.splitn(3, ':').skip(1);
                let controllers = parts.next()?;
                controllers.split(',').any(|name| name == controller).then(|| parts.next())?
            });
            groups(&mounts.join(controller), path.unwrap_or("/"))
        };
        Self { version: Version::V1, memory: of_controller("memory"), cpu: of_controller("cpu") }
    }
}

/// Directories of the group at `path` and its ancestors up to the mount, innermost first.
fn groups(mount: &Path, path: &str) -> Vec<PathBuf> {
    let own = mount.join(path.trim_start_matches('/'));
    // In a container, the path may be the host's, of which only the own part is mounted.
    let innermost = if own.is_dir() { own } else { mount.to_owned() };
    innermost.ancestors().take_while(|group| group.starts_with(mount)).map(Path::to_owned).collect()
}

fn tightest(limits: impl Iterator<Item = f64>) -> Option<f64> {
    limits.reduce(f64::min)
}

/// Quota as a number of processors; `None` for v1's -1, which stands for no limit.
fn quota_in_cpus(quota: f64, period: f64) -> Option<f64> {
    (quota > 0.0 && period > 0.0).then_some(quota / period)
}

/// Number in a file; `None` also for v2's `max`.
fn number(path: &Path) -> Option<f64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Number after `key` in a file of `key value` lines.
fn field(path: &Path, key: &str) -> Option<f64> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A root with these files.
    pub(super) fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn a_v2_group_takes_the_tightest_limit_above_it() {
        let root = machine(&[
            ("proc/self/cgroup", "0::/pod/job\n"),
            ("sys/fs/cgroup/cgroup.controllers", "cpu memory\n"),
            ("sys/fs/cgroup/pod/memory.max", "1000\n"),
            ("sys/fs/cgroup/pod/cpu.max", "400000 100000\n"),
            ("sys/fs/cgroup/pod/job/memory.max", "max\n"),
            ("sys/fs/cgroup/pod/job/memory.current", "600\n"),
            ("sys/fs/cgroup/pod/job/cpu.max", "150000 100000\n"),
            ("sys/fs/cgroup/pod/job/cpu.stat", "usage_usec 9\nnr_throttled 2\nthrottled_usec 2500000\n"),
        ]);
        let expected = Cgroup {
            memory_limit_bytes: Some(1000.0),
            memory_used_bytes: Some(600.0),
            cpu_limit: Some(1.5),
            throttled_seconds: Some(2.5),
        };
        assert_eq!(Cgroup::read(root.path()), expected);
    }

    #[test]
    fn a_v1_group_is_read_from_its_controllers() {
        let root = machine(&[
            ("proc/self/cgroup", "4:memory:/docker/abc\n1:cpu,cpuacct:/\n0::/\n"),
            ("sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", "2000\n"),
            ("sys/fs/cgroup/memory/docker/abc/memory.usage_in_bytes", "1500\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "50000\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
            ("sys/fs/cgroup/cpu/cpu.stat", "nr_periods 3\nthrottled_time 1500000000\n"),
        ]);
        let expected = Cgroup {
            memory_limit_bytes: Some(2000.0),
            memory_used_bytes: Some(1500.0),
            cpu_limit: Some(0.5),
            throttled_seconds: Some(1.5),
        };
        assert_eq!(Cgroup::read(root.path()), expected);
    }

    #[test]
    fn a_container_sees_its_own_group_at_the_top_of_the_mount() {
        let root = machine(&[
            ("proc/self/cgroup", "4:memory:/kubepods/pod1/c1\n1:cpu:/kubepods/pod1/c1\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "3000\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
        ]);
        let expected = Cgroup { memory_limit_bytes: Some(3000.0), ..Cgroup::default() };
        assert_eq!(Cgroup::read(root.path()), expected);
    }

    #[test]
    fn no_cgroups_or_nonsense_is_none() {
        assert_eq!(Cgroup::read(Path::new("/no/such/root")), Cgroup::default());
        let root = machine(&[
            ("proc/self/cgroup", "\u{0}:::\n0::../../..\n"),
            ("sys/fs/cgroup/cgroup.controllers", ""),
            ("sys/fs/cgroup/cpu.max", "1 0\n"),
            ("sys/fs/cgroup/memory.max", "lots\n"),
        ]);
        assert_eq!(Cgroup::read(root.path()), Cgroup::default());
    }
}
