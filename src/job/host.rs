//! Facts about the host and the pod that a run is on, for `result.json` and for MLflow.

use std::collections::BTreeMap;

use flashjob_host::cgroup::machine_memory_bytes;
use flashjob_host::gpus::Gpus;

use crate::backend;
use crate::report::{Environment, Privileges};

/// The GPUs that this process may use. That they cannot be watched is said once, and holds nothing up.
pub fn gpus() -> Gpus {
    backend::watch_gpus().unwrap_or_else(|reason| {
        tracing::warn!(%reason, "GPUs are not watched: no GPU metrics, and no energy in the result");
        Gpus::default()
    })
}

/// The host, the pod and the `privileges` of the job's process.
pub fn describe(privileges: &Privileges) -> Environment {
    let uname = rustix::system::uname();
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    // Processors of other architectures than x86 may have no such line.
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    Environment {
        host: hostname(),
        kernel: uname.release().to_string_lossy().into_owned(),
        architecture: uname.machine().to_string_lossy().into_owned(),
        cpu: model.map(|(_, name)| name.trim().to_owned()),
        cpu_threads: flashjob_cpu::cpu_quota_threads(),
        cpu_kernels: flashjob_cpu::capabilities(),
        memory_bytes: machine_memory_bytes(),
        pod: kubernetes(),
        privileges: privileges.clone(),
    }
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
