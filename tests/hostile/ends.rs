//! Jobs that are ended from outside, whatever the signal: no mount stays, and the termination message says what happened.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::bucket_of_tiny_model;
use crate::job::{LONG, job_without_model, result, tiny_model};
use crate::support::bucket_server::BucketServer;
use crate::support::mount_table::mounts_at;
use crate::support::process::{Process, Running, installed};

/// A job under way, its model mounted; what it is measured by is in `results`.
fn mounted(results: &TempDir, server: &BucketServer) -> (Running, std::path::PathBuf) {
    let (location, message) = (results.path().join("models"), results.path().join("message"));
    std::fs::write(&message, "").unwrap();
    let mut running = job_without_model(results)
        .args(["--model=model", "--par", server.url(), "--mount-location", &location.display().to_string()])
        .args(["--termination-message-path", &message.display().to_string()])
        .args(LONG)
        .start();
    running.wait_for_stderr("\"phase\":\"measure\"");
    (running, location)
}

fn message(results: &TempDir) -> Value {
    let text = std::fs::read_to_string(results.path().join("message")).unwrap();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text:?}"))
}

#[test]
fn a_job_that_dies_of_a_signal_leaves_a_message_and_no_mount() {
    let (_folder, server) = bucket_of_tiny_model();
    for (signal, name) in [(libc::SIGSEGV, "SIGSEGV"), (libc::SIGABRT, "SIGABRT"), (libc::SIGKILL, "SIGKILL")] {
        let results = TempDir::new().unwrap();
        let (running, location) = mounted(&results, &server);
        let was_mounted = mounts_at(&location);
        running.signal_job(signal);
        // One that nothing in the process gave rise to only takes the runtime's own handler away.
        if signal == libc::SIGSEGV {
            std::thread::sleep(Duration::from_millis(200));
            running.signal_job(signal);
        }
        let finished = running.wait().expect_code(128 + signal);
        assert!(finished.stderr.contains(&format!("the job's process was ended by {name}")), "{finished}");
        assert!(was_mounted <= 1 && mounts_at(&location) == 0, "{finished}");
        let message = message(&results);
        assert_eq!((&message["status"], &message["exit_code"]), (&"killed".into(), &(128 + signal).into()));
        assert!(message["error"].as_str().unwrap().contains(name), "{message}");
    }
}

/// SIGKILL for the process that was started: the job is told to stop, and does so in order.
#[test]
fn a_job_whose_watcher_is_killed_ends_in_order() {
    let (_folder, server) = bucket_of_tiny_model();
    let results = TempDir::new().unwrap();
    let (running, location) = mounted(&results, &server);
    running.signal(libc::SIGKILL);
    assert_eq!(running.wait().signal(), Some(libc::SIGKILL));
    let patience = Instant::now() + Duration::from_secs(30);
    let said = |results: &TempDir| std::fs::read_to_string(results.path().join("message")).unwrap();
    while (mounts_at(&location) > 0 || said(&results).is_empty()) && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(mounts_at(&location), 0);
    assert!(message(&results)["error"].as_str().unwrap().contains("stopped by SIGTERM"));
    assert_eq!(result(&results)["status"], "killed");
}

fn long_job(results: &TempDir) -> Process {
    job_without_model(results).args(["--model".into(), tiny_model()]).args(LONG)
}

#[test]
fn a_terminal_that_closes_and_a_quit_end_a_job_as_sigterm_does() {
    for (signal, name) in [(libc::SIGHUP, "SIGHUP"), (libc::SIGQUIT, "SIGQUIT")] {
        let results = TempDir::new().unwrap();
        let mut running = long_job(&results).start();
        running.wait_for_stderr("\"phase\":\"measure\"");
        running.signal(signal);
        running.wait().expect_code(143);
        let result = result(&results);
        assert_eq!((&result["status"], &result["exit_code"]), (&"killed".into(), &143.into()));
        assert!(result["error"].as_str().unwrap().contains(name), "{}", result["error"]);
    }
}

#[test]
fn a_job_that_is_to_outlive_its_terminal_does() {
    let results = TempDir::new().unwrap();
    let mut running = long_job(&results).through(["sh", "-c", "trap '' HUP; exec \"$@\"", "sh"]).start();
    running.wait_for_stderr("\"phase\":\"measure\"");
    running.signal(libc::SIGHUP);
    running.signal_job(libc::SIGHUP);
    running.signal(libc::SIGTERM);
    running.wait().expect_code(143);
    assert!(result(&results)["error"].as_str().unwrap().contains("SIGTERM"));
}

#[test]
fn too_little_address_space_is_said_and_ends_no_process_by_a_signal() {
    let Some(_) = installed("prlimit", "util-linux") else { return };
    for megabytes in [60, 100, 150, 200, 300, 400, 600] {
        let results = TempDir::new().unwrap();
        let job = job_without_model(&results).args(["--model".into(), tiny_model()]);
        let job = job.args(["--num-prompts=1", "--input-len=4", "--output-len=2"]);
        let finished = job.through(["prlimit".to_owned(), format!("--as={}", megabytes << 20)]).run();
        let code = finished.code();
        assert!(code.is_some_and(|code| code < 128), "{megabytes} MB: {finished}");
        assert!(code == Some(0) || !finished.stderr.trim().is_empty(), "{megabytes} MB: {finished}");
    }
}

#[test]
fn the_process_of_the_texts_has_no_variables_and_nothing_but_its_pipes() {
    let results = TempDir::new().unwrap();
    let mut running = long_job(&results).env("SECRET", "s3cr3t").start();
    running.wait_for_stderr("\"phase\":\"measure\"");
    let children = format!("/proc/{0}/task", running.job());
    let children: Vec<String> = std::fs::read_dir(children)
        .unwrap()
        .filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("children")).ok())
        .flat_map(|children| children.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    let [child] = &children[..] else { panic!("{children:?}") };
    let of_child = |file: &str| Path::new("/proc").join(child).join(file);
    assert!(std::fs::read(of_child("environ")).unwrap().is_empty());
    for entry in std::fs::read_dir(of_child("fd")).unwrap() {
        let opened = std::fs::read_link(entry.unwrap().path()).unwrap().display().to_string();
        // The library that draws random numbers keeps its source open.
        assert!(opened.starts_with("pipe:") || opened == "/dev/urandom", "{opened}");
    }
    let limits = std::fs::read_to_string(of_child("limits")).unwrap();
    for (name, least) in [("Max open files", "0"), ("Max core file size", "0"), ("Max file size", "0")] {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        assert_eq!(line[name.len()..].split_whitespace().next(), Some(least), "{line}");
    }
    let limited = limits.lines().find(|line| line.starts_with("Max address space")).unwrap();
    assert!(!limited.contains("unlimited"), "{limited}");
    assert!(std::fs::read_to_string(of_child("status")).unwrap().contains("NoNewPrivs:\t1"));
    running.signal(libc::SIGTERM);
    running.wait().expect_code(143);
}
