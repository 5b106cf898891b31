//! What is mounted, as the kernel lists it.

use std::path::Path;

/// What `/proc/mounts` has at `location`.
pub fn mounts_at(location: &Path) -> usize {
    let table = std::fs::read_to_string("/proc/mounts").unwrap();
    let location = location.to_str().unwrap();
    table.lines().filter(|line| line.split(' ').nth(1) == Some(location)).count()
}
