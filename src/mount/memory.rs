//! How much memory the block map may take where nobody says.

use std::fs;
use std::path::Path;

const MIB: u64 = 1 << 20;

/// A share of the memory that this process may use: an eighth, at least 64 MiB and at most 4 GiB, but never
/// more than half.
pub fn default_budget_bytes() -> u64 {
    budget_of(limit_bytes(Path::new("/")))
}

fn budget_of(limit_bytes: u64) -> u64 {
    (limit_bytes / 8).clamp(64 * MIB, 4096 * MIB).min(limit_bytes / 2)
}

/// The least of the machine's memory and the limits of the control groups that this process is in, as the
/// files under `root` state them.
fn limit_bytes(root: &Path) -> u64 {
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
    let mut limits = vec![machine_bytes(&read("proc/meminfo"))];
    for line in read("proc/self/cgroup").lines() {
        // `0::/path` for version 2, `5:memory:/path` for version 1.
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let (base, file) = match controllers {
            "" => ("sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        // A container sees its own group as the root, or its whole path on the host: try all of it, upwards.
        for group in Path::new(path).ancestors() {
            let group = group.strip_prefix("/").unwrap_or(group);
            limits.push(read(&format!("{base}/{}/{file}", group.display())).trim().parse().ok());
        }
    }
    limits.into_iter().flatten().min().unwrap_or(1024 * MIB)
}

fn machine_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn the_least_limit_counts() {
        let meminfo = ("proc/meminfo", "MemFree: 1 kB\nMemTotal:       4096 kB\n");
        let version_2 = ("proc/self/cgroup", "0::/pod/container\n");
        let version_1 = ("proc/self/cgroup", "3:cpu,cpuacct:/x\n5:memory:/docker/a\n");
        for (files, expected) in [
            (vec![], 1024 * MIB),
            (vec![meminfo], 4 * MIB),
            (vec![meminfo, version_2, ("sys/fs/cgroup/memory.max", "max\n")], 4 * MIB),
            (vec![meminfo, version_2, ("sys/fs/cgroup/memory.max", "2097152\n")], 2 * MIB),
            (vec![meminfo, version_2, ("sys/fs/cgroup/pod/memory.max", "1048576\n")], MIB),
            (vec![meminfo, version_1, ("sys/fs/cgroup/memory/memory.limit_in_bytes", "3145728\n")], 3 * MIB),
            (vec![meminfo, version_1, ("sys/fs/cgroup/memory/docker/a/memory.limit_in_bytes", "1048576\n")], MIB),
            (
                vec![meminfo, version_1, ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")],
                4 * MIB,
            ),
        ] {
            assert_eq!(limit_bytes(root(&files).path()), expected, "{files:?}");
        }
    }

    #[test]
    fn the_budget_is_a_share() {
        for (limit_mib, budget_mib) in [(64, 32), (256, 64), (1024, 128), (16384, 2048), (1 << 20, 4096)] {
            assert_eq!(budget_of(limit_mib * MIB), budget_mib * MIB);
        }
    }
}
