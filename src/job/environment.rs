//! What is around the run: the host, the pod, the clock, and what a panic left behind.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Exit;
use super::exit::Failure;
use super::privileges::Privileges;
use flashjob_config::JobConfig;
use flashjob_host::gpus::Gpus;

/// What the last panic said and where.
static PANIC: Mutex<Option<String>> = Mutex::new(None);

/// Turns panics into one log line each, kept for [`panic_failure`].
pub fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let message = panic.payload_as_str().unwrap_or("no message");
        let place = panic.location().map(|at| format!(" at {}:{}", at.file(), at.line())).unwrap_or_default();
        let text = format!("{message}{place}");
        tracing::error!("panic: {text}");
        *PANIC.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
    }));
}

/// The failure that a caught panic means.
pub fn panic_failure() -> Failure {
    let text = PANIC.lock().unwrap_or_else(PoisonError::into_inner).take();
    let text = text.unwrap_or_else(|| "a thread ended unexpectedly".to_owned());
    Failure::sentence(Exit::Unexpected, format!("unexpected failure ({text}); this is a bug, please report it"))
}

/// The whole configuration, redacted, as `key → {value, origin}`.
pub fn settings(job: &JobConfig) -> Value {
    let settings = job.settings().iter();
    Value::Object(
        settings.map(|s| (s.key.clone(), json!({"value": s.value, "origin": s.origin.to_string()}))).collect(),
    )
}

/// The GPUs that this process may use. That they cannot be watched is said once, and holds nothing up.
#[cfg(feature = "cuda")]
pub fn gpus() -> Gpus {
    let identifiers = crate::backend::gpu_identifiers();
    if identifiers.is_empty() {
        return Gpus::default();
    }
    Gpus::watch(&identifiers).unwrap_or_else(|reason| {
        tracing::warn!(%reason, "GPUs are not watched: no GPU metrics, and no energy in the result");
        Gpus::default()
    })
}

/// None: this build uses no GPUs.
#[cfg(not(feature = "cuda"))]
pub fn gpus() -> Gpus {
    Gpus::default()
}

/// Host, processor, memory, pod and `privileges` of the job's process, for `result.json`.
pub fn describe(privileges: &Privileges) -> Value {
    let uname = rustix::system::uname();
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':')).map(|(_, name)| name.trim());
    json!({
        "host": hostname(),
        "kernel": uname.release().to_string_lossy(),
        "architecture": uname.machine().to_string_lossy(),
        "cpu": model,
        "cpu_threads": flashjob_cpu::cpu_quota_threads(),
        "cpu_kernels": flashjob_cpu::capabilities(),
        "memory_bytes": memory_bytes(),
        "pod": kubernetes(),
        "privileges": privileges,
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
fn kubernetes() -> std::collections::BTreeMap<String, String> {
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

fn memory_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.trim().strip_suffix("kB")?;
    kib.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// A run name where none was given: the model's last name and the time.
pub fn run_name(job: &JobConfig, at: SystemTime) -> String {
    let model = job.model.0.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    format!("{model} {}", rfc3339(at))
}

/// RFC 3339 in UTC.
pub fn rfc3339(at: SystemTime) -> String {
    let at = OffsetDateTime::from(at);
    at.replace_nanosecond(0).unwrap_or(at).format(&Rfc3339).unwrap_or_default()
}

/// A folder name made of the time, to the millisecond.
pub fn folder_name(at: SystemTime) -> String {
    let milliseconds = at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis());
    format!("{}-{:03}", rfc3339(at).replace([':', '-'], ""), milliseconds % 1000)
}

/// Leaves `message` where Kubernetes reads it, if there is such a file. A message that cannot be left is no failure.
pub fn leave_termination_message(path: Option<&Path>, message: &str) {
    if let Some(path) = path
        && let Err(error) = write_over(path, message)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "the termination message could not be written");
    }
}

/// Replaces what the file at `path` holds. A link could lead to any file of this user, and a pipe would be waited for.
fn write_over(path: &Path, text: &str) -> io::Result<()> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let open = File::options().write(true).custom_flags(flags.bits() as i32).open(path);
    let mut file = open.map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::LOOP) => io::Error::other("it is a symbolic link, which is not followed"),
        _ => error,
    })?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    file.set_len(0)?;
    file.write_all(text.as_bytes())
}

/// Takes from this process and its children the habit of making files that group or others may write, whatever was passed down;
/// what else it withholds stays withheld.
pub fn keep_files_to_oneself() {
    let others = Mode::WGRP | Mode::WOTH;
    // There is no other way to ask for it than to set it.
    let passed_down = rustix::process::umask(others);
    rustix::process::umask(passed_down | others);
}
