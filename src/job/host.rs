//! Facts about the host and the pod that a run is on, for `result.json` and for MLflow.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};

use flashjob_host::cgroup::machine_memory_bytes;
use flashjob_host::gpus::Gpus;

use super::privileges::Privileges;
use crate::backend;

/// Host, processor, memory, pod and rights, as `result.json` has them under `environment`.
#[derive(Clone, Debug, Serialize)]
struct Environment<'a> {
    host: String,
    kernel: String,
    architecture: String,
    /// Model name of the processor.
    cpu: Option<String>,
    /// Processors that the container's quota allows.
    cpu_threads: usize,
    /// Widest instruction set of the CPU kernels.
    cpu_kernels: &'static str,
    memory_bytes: Option<u64>,
    /// Names of the downward API.
    pod: BTreeMap<String, String>,
    privileges: &'a Privileges,
}

/// The GPUs that this process may use. That they cannot be watched is said once, and holds nothing up.
pub fn gpus() -> Gpus {
    backend::watch_gpus().unwrap_or_else(|reason| {
        tracing::warn!(%reason, "GPUs are not watched: no GPU metrics, and no energy in the result");
        Gpus::default()
    })
}

/// The host, the pod and the `privileges` of the job's process, for `result.json`.
pub fn describe(privileges: &Privileges) -> Value {
    let uname = rustix::system::uname();
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    // Processors of other architectures than x86 may have no such line.
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    json!(Environment {
        host: hostname(),
        kernel: uname.release().to_string_lossy().into_owned(),
        architecture: uname.machine().to_string_lossy().into_owned(),
        cpu: model.map(|(_, name)| name.trim().to_owned()),
        cpu_threads: flashjob_cpu::cpu_quota_threads(),
        cpu_kernels: flashjob_cpu::capabilities(),
        memory_bytes: machine_memory_bytes(),
        pod: kubernetes(),
        privileges,
    })
}

/// Tags of the run in MLflow.
pub fn tags() -> Vec<(String, String)> {
    let mut tags = vec![
        ("flashjob.version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ("host".to_owned(), hostname()),
        ("cpu_kernels".to_owned(), flashjob_cpu::capabilities().to_owned()),
    ];
    tags.extend(kubernetes());
    tags
}

/// Names that a Kubernetes Job passes down (downward API), where it does.
fn kubernetes() -> BTreeMap<String, String> {
    let names = ["POD_NAME", "POD_NAMESPACE", "NODE_NAME", "JOB_NAME", "JOB_COMPLETION_INDEX"];
    names
        .into_iter()
        .filter_map(|name| Some((format!("kubernetes.{}", name.to_lowercase()), std::env::var(name).ok()?)))
        .filter(|(_, value)| !value.trim().is_empty())
        .collect()
}

fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
