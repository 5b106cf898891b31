//! Default memory budget of the block map.

use flashjob_host::cgroup::memory_limit_bytes;

const MIB: u64 = 1 << 20;

/// Memory limit assumed where the system reports none.
const UNKNOWN_LIMIT_BYTES: u64 = 1024 * MIB;

/// Default budget: an eighth of the memory that this process may use, at least 64 MiB, at most 4 GiB, and never more
/// than half.
pub fn default_budget_bytes() -> u64 {
    budget_of(memory_limit_bytes().unwrap_or(UNKNOWN_LIMIT_BYTES))
}

fn budget_of(limit_bytes: u64) -> u64 {
    (limit_bytes / 8).clamp(64 * MIB, 4096 * MIB).min(limit_bytes / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_a_share() {
        for (limit_mib, budget_mib) in [(64, 32), (256, 64), (1024, 128), (16384, 2048), (1 << 20, 4096)] {
            assert_eq!(budget_of(limit_mib * MIB), budget_mib * MIB);
        }
    }
}
