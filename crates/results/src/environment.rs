//! The machine that a run was on.

use serde::Deserialize;

use super::details::Details;

/// Host, processor and memory; `None` is not known of this run.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Environment {
    /// Name of the host.
    pub host: Option<String>,
    /// Release of the kernel.
    pub kernel: Option<String>,
    /// Machine type, such as `x86_64`.
    pub architecture: Option<String>,
    /// Model name of the processor.
    pub cpu: Option<String>,
    /// Processors that the container's quota allows.
    pub cpu_threads: Option<u64>,
    /// Widest instruction set of the CPU kernels.
    pub cpu_kernels: Option<String>,
    /// Memory of the machine.
    pub memory_bytes: Option<u64>,
    /// Names that Kubernetes passes down.
    pub pod: Details,
}
