//! How much memory this process may still take.
//!
//! The smaller of what the machine has to spare and what every control group above this process leaves; page cache
//! counts as free, for the kernel gives it up. It knows nothing of what the memory is for.

use std::fs;
use std::path::{Path, PathBuf};

/// Bytes that can still be allocated; `None` where the system does not say.
pub fn free_bytes() -> Option<u64> {
    free_bytes_below(Path::new("/"))
}

fn free_bytes_below(root: &Path) -> Option<u64> {
    let groups = control_groups(root).into_iter().filter_map(|group| group.free_bytes());
    machine_free_bytes(root).into_iter().chain(groups).min()
}

/// `MemAvailable` of `/proc/meminfo`.
fn machine_free_bytes(root: &Path) -> Option<u64> {
    let text = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

struct ControlGroup {
    directory: PathBuf,
    /// File names of version 1 or 2.
    limit: &'static str,
    usage: &'static str,
    file_pages: [&'static str; 2],
}

impl ControlGroup {
    fn version_1(directory: PathBuf) -> Self {
        let file_pages = ["total_inactive_file", "total_active_file"];
        Self { directory, limit: "memory.limit_in_bytes", usage: "memory.usage_in_bytes", file_pages }
    }

    fn version_2(directory: PathBuf) -> Self {
        let file_pages = ["inactive_file", "active_file"];
        Self { directory, limit: "memory.max", usage: "memory.current", file_pages }
    }

    /// `None` without a limit (`max` does not parse; version 1 writes a number near 2⁶³, which is never the smallest).
    fn free_bytes(&self) -> Option<u64> {
        let number = |name: &str| fs::read_to_string(self.directory.join(name)).ok()?.trim().parse::<u64>().ok();
        let limit = number(self.limit)?;
        let usage = number(self.usage)?;
        let statistics = fs::read_to_string(self.directory.join("memory.stat")).unwrap_or_default();
        let reclaimable: u64 = statistics
            .lines()
            .filter_map(|line| line.split_once(' '))
            .filter(|(name, _)| self.file_pages.contains(name))
            .filter_map(|(_, bytes)| bytes.trim().parse::<u64>().ok())
            .sum();
        Some(limit.saturating_sub(usage.saturating_sub(reclaimable)))
    }
}

/// This process's control groups and all above them. In a container only its own may be visible, as the root.
fn control_groups(root: &Path) -> Vec<ControlGroup> {
    let mount = root.join("sys/fs/cgroup");
    let membership = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut groups = Vec::new();
    for line in membership.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let version_1 = controllers.split(',').any(|controller| controller == "memory");
        if !version_1 && !controllers.is_empty() {
            continue;
        }
        let mount = if version_1 { mount.join("memory") } else { mount.clone() };
        let path = Path::new(path.trim_start_matches('/'));
        let make = if version_1 { ControlGroup::version_1 } else { ControlGroup::version_2 };
        groups.extend(path.ancestors().map(|ancestor| make(mount.join(ancestor))));
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn machine(files: &[(&str, String)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn the_smallest_of_machine_and_control_groups_counts() {
        let meminfo = ("proc/meminfo", format!("MemTotal: 99 kB\nMemAvailable:  {} kB\n", 8 * GIB / 1024));
        let statistics = format!("anon 5\ninactive_file {GIB}\nactive_file {GIB}\nfile 7\n");
        let version_2 = |limit: &str| {
            vec![
                meminfo.clone(),
                ("proc/self/cgroup", "0::/pods/mine\n".into()),
                ("sys/fs/cgroup/pods/memory.max", limit.into()),
                ("sys/fs/cgroup/pods/memory.current", (4 * GIB).to_string()),
                ("sys/fs/cgroup/pods/memory.stat", statistics.clone()),
                ("sys/fs/cgroup/pods/mine/memory.max", "max\n".into()),
                ("sys/fs/cgroup/pods/mine/memory.current", GIB.to_string()),
            ]
        };
        let version_1 = vec![
            meminfo.clone(),
            ("proc/self/cgroup", "5:cpu:/x\n4:memory:/docker/abc\n0::/\n".into()),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", (3 * GIB).to_string()),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", (2 * GIB).to_string()),
            ("sys/fs/cgroup/memory/memory.stat", format!("total_inactive_file {GIB}\ninactive_file 3\n")),
        ];
        let cases = [
            (vec![], None),
            (vec![meminfo.clone()], Some(8 * GIB)),
            (version_2("max\n"), Some(8 * GIB)),
            (version_2(&(6 * GIB).to_string()), Some(4 * GIB)),
            (version_2(&GIB.to_string()), Some(0)),
            (version_1, Some(2 * GIB)),
        ];
        for (files, expected) in cases {
            let root = machine(&files);
            assert_eq!(free_bytes_below(root.path()), expected, "{files:?}");
        }
    }

    #[test]
    fn this_machine_has_some() {
        assert!(free_bytes().is_some_and(|bytes| bytes > 0));
    }
}
