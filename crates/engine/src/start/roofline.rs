//! What the machine can do at most: measured before weights are loaded, and on processors once more after a run.
//!
//! Whatever else runs at that moment makes a limit too low, so that of two moments the higher figure is the better one. GPUs are not
//! measured again: a job has them for itself, and by then their memory is full.

use flashjob_cpu::{Isa, Limits, Pool, TooLittleMemory, measure_limits};
use flashjob_event::{Events, Fact};
use flashjob_host::cgroup::free_memory_bytes;

/// The processors of a number of equal machines.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Processors {
    /// Threads of each machine.
    pub(crate) threads: usize,
    pub(crate) isa: Isa,
    pub(crate) machines: usize,
}

impl Processors {
    pub(crate) fn limits(self) -> Result<Limits, TooLittleMemory> {
        let limits = measure_limits(&Pool::with_isa(self.threads, self.isa), free_memory_bytes())?;
        Ok(limits.times(self.machines))
    }
}

pub(crate) fn state(Limits { flops_per_second, bytes_per_second, .. }: Limits, events: &Events) {
    events.emit(Fact::LimitsMeasured { flops_per_second, bytes_per_second });
}
