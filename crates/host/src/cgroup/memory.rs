//! Memory limit of this process, and its free part.
//!
//! The lesser of machine and control groups. Page cache counts as free, since the kernel reclaims it.

use std::fs;
use std::path::Path;

use super::{Groups, Version, field, number};

/// Memory limit of this process in bytes: the machine's memory or the tightest limit. `None` where the system does not
/// report it.
pub fn memory_limit_bytes() -> Option<u64> {
    limit_below(Path::new("/"))
}

/// Bytes that can still be allocated; `None` where the system does not report it.
pub fn free_memory_bytes() -> Option<u64> {
    free_below(Path::new("/"))
}

/// Memory of the machine in bytes, whatever this process may use of it; `None` where the system does not report it.
pub fn machine_memory_bytes() -> Option<u64> {
    machine_bytes(Path::new("/"), "MemTotal:")
}

fn limit_below(root: &Path) -> Option<u64> {
    let Groups { version, memory, .. } = Groups::of(root);
    let limits = memory.iter().filter_map(|group| number(&group.join(version.memory_limit_file())));
    limits.map(|bytes| bytes as u64).chain(machine_bytes(root, "MemTotal:")).min()
}

fn free_below(root: &Path) -> Option<u64> {
    let Groups { version, memory, .. } = Groups::of(root);
    let left = memory.iter().filter_map(|group| free_in_group(version, group));
    // The tightest of all bounds decides what the next allocation gets.
    left.chain(machine_bytes(root, "MemAvailable:")).min()
}

/// Free memory of a group; `None` without a limit (`max` is no number; version 1 writes one near 2⁶³, which is never
/// the smallest).
fn free_in_group(version: Version, group: &Path) -> Option<u64> {
    let limit = number(&group.join(version.memory_limit_file()))? as u64;
    let used = number(&group.join(version.memory_use_file()))? as u64;
    // File pages count as used, but the kernel reclaims them before it refuses an allocation.
    let file_pages = match version {
        Version::V1 => ["total_inactive_file ", "total_active_file "],
        Version::V2 => ["inactive_file ", "active_file "],
    };
    let statistics = group.join("memory.stat");
    let reclaimable = file_pages.into_iter().filter_map(|name| field(&statistics, name)).sum::<f64>() as u64;
    Some(limit.saturating_sub(used.saturating_sub(reclaimable)))
}

/// Value of a line of `/proc/meminfo`, in bytes.
fn machine_bytes(root: &Path, name: &str) -> Option<u64> {
    // Not by the crate procfs: it fails unless all fields of Linux are present, and sandboxes show only a few of them.
    let text = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::super::tests::machine;
    use super::*;

    const MEMINFO: (&str, &str) = ("proc/meminfo", "MemTotal:  9000 kB\nMemAvailable:       8000 kB\n");
    const V2: (&str, &str) = ("sys/fs/cgroup/cgroup.controllers", "memory\n");

    #[test]
    fn the_smallest_of_machine_and_control_groups_counts() {
        let v2 = |limit: &'static str| {
            vec![
                MEMINFO,
                V2,
                ("proc/self/cgroup", "0::/pods/mine\n"),
                ("sys/fs/cgroup/pods/memory.max", limit),
                ("sys/fs/cgroup/pods/memory.current", "4000000"),
                ("sys/fs/cgroup/pods/memory.stat", "anon 5\ninactive_file 1000000\nactive_file 1000000\nfile 7\n"),
                ("sys/fs/cgroup/pods/mine/memory.max", "max\n"),
                ("sys/fs/cgroup/pods/mine/memory.current", "1000000"),
            ]
        };
        let v1 = vec![
            MEMINFO,
            ("proc/self/cgroup", "5:cpu:/x\n4:memory:/docker/abc\n0::/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "3000000"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "2000000"),
            ("sys/fs/cgroup/memory/memory.stat", "total_inactive_file 1000000\ninactive_file 3\n"),
        ];
        let v1_without_limit = vec![
            MEMINFO,
            ("proc/self/cgroup", "4:memory:/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "2000000"),
        ];
        for (files, limit, free) in [
            (vec![], None, None),
            (vec![MEMINFO], Some(9_216_000), Some(8_192_000)),
            (v2("max\n"), Some(9_216_000), Some(8_192_000)),
            (v2("6000000\n"), Some(6_000_000), Some(4_000_000)),
            (v2("1000000\n"), Some(1_000_000), Some(0)),
            (v1, Some(3_000_000), Some(2_000_000)),
            (v1_without_limit, Some(9_216_000), Some(8_192_000)),
        ] {
            let root = machine(&files);
            assert_eq!((limit_below(root.path()), free_below(root.path())), (limit, free), "{files:?}");
        }
    }

    #[test]
    fn this_machine_has_some() {
        assert!(free_memory_bytes().is_some_and(|bytes| bytes > 0));
        assert!(memory_limit_bytes() >= free_memory_bytes());
    }
}
