//! As PID 1, in a PID namespace of its own.

use tempfile::TempDir;

use crate::support::process::{Process, skip};

/// flashjob as PID 1 of a new namespace; `None` where this user may not make one.
fn as_pid_1(results: &TempDir, arguments: &[&str]) -> Option<Process> {
    let probe = std::process::Command::new("unshare").args(["--pid", "--fork", "true"]).status();
    if !probe.is_ok_and(|status| status.success()) {
        skip("a PID namespace needs util-linux's unshare and CAP_SYS_ADMIN");
        return None;
    }
    let process = Process::new("unshare")
        .args(["--pid", "--fork", "--kill-child", env!("CARGO_BIN_EXE_flashjob")])
        .args(["--metrics-port=0", "--metrics-linger-seconds=0", "--model"])
        .args([super::tiny_model().display().to_string()])
        .args(["--results-dir", &results.path().join("out").display().to_string()])
        .args(arguments);
    Some(process)
}

#[test]
fn the_exit_code_passes_through() {
    let results = TempDir::new().unwrap();
    let Some(process) = as_pid_1(&results, &["--input-len=4", "--output-len=2", "--num-prompts=2"]) else { return };
    process.run().expect_code(0);
    let results = TempDir::new().unwrap();
    let Some(process) = as_pid_1(&results, &["--tensor-parallel-size=3"]) else { return };
    process.run().expect_code(2);
}

#[test]
fn sigterm_passes_through() {
    let results = TempDir::new().unwrap();
    let long = ["--input-len=8", "--output-len=480", "--num-prompts=20000"];
    let Some(process) = as_pid_1(&results, &long) else { return };
    let mut running = process.start();
    running.wait_for_stderr("\"phase\":\"measure\"");
    // unshare's one child is PID 1 inside; the signal comes from outside, as `docker stop` sends it.
    let children = format!("/proc/{0}/task/{0}/children", running.id());
    let init: i32 = std::fs::read_to_string(children).unwrap().trim().parse().unwrap();
    let init = rustix::process::Pid::from_raw(init).unwrap();
    rustix::process::kill_process(init, rustix::process::Signal::TERM).unwrap();
    running.wait().expect_code(143);
    assert_eq!(super::result(&results)["status"], "killed");
}
