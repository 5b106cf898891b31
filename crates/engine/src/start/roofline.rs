//! Limits of the hardware for the roofline: measured before weights are loaded, and on CPUs once more after a run.
//!
//! Whatever else runs at that moment makes a limit too low, so that of two moments the higher figure is the better one. GPUs are not
//! measured again: a job has them for itself, and by then their memory is full.

use flashjob_cpu::{Isa, Limits, Pool, TooLittleMemory, measure_limits};
use flashjob_event::{Events, Fact};
use flashjob_host::cgroup::free_memory_bytes;

/// The processors of a number of equal nodes.
#[derive(Clone, Copy, Debug)]
pub struct CpuNodes {
    /// Threads of each node.
    pub threads: usize,
    /// Instruction set that kernels use.
    pub isa: Isa,
    /// Nodes that share the model, this one included.
    pub nodes: usize,
}

impl CpuNodes {
    /// Limits of all nodes together, measured on this one.
    pub fn limits(self) -> Result<Limits, TooLittleMemory> {
        let limits = measure_limits(&Pool::with_isa(self.threads, self.isa), free_memory_bytes())?;
        Ok(limits.times(self.nodes))
    }
}

/// Emits measured limits.
pub fn state(Limits { flops_per_second, bytes_per_second, .. }: Limits, events: &Events) {
    events.emit(Fact::LimitsMeasured { flops_per_second, bytes_per_second });
}
